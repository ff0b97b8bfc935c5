"""A network in part: the model that computes some of its tensors from others, and where it can be cut.

    step k      nodes that run together; `ends[k]` is the index of the first node behind them
    cut k       the tensors that steps k, k + 1, ... read and that steps 0, ..., k - 1 compute or the model is fed

A network that was run up to cut k goes on from its tensors alone, kept for each sample in memory or in files
(`spill.SpillCache`). What DequantizeLinear computes is never among them: it is computed anew wherever it is read, from
integers that take a quarter of its memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..data import Feed
from ..graph.serialized import captured
from ..graph.shapes import tensor_bytes
from .session import Session


class Network:
    """A serialized model whose parts are models of their own.

    constants: its initializers by name, which may be replaced. nodes: in the order of computation. reads: of each node,
    its subgraphs included. maker: tensor -> index of the node that computes it. variables: all but constants. readers:
    of each tensor, in order.
    """

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.constants: dict[str, TensorProto] = {t.name: t for t in proto.graph.initializer}
        self.nodes: Sequence[NodeProto] = list(proto.graph.node)
        self.reads = [{*node.input, *captured(node)} - {""} for node in self.nodes]
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.inputs = {v.name for v in proto.graph.input}
        self.variables = self.maker.keys() | (self.inputs - self.constants.keys())
        self.readers: dict[str, list[NodeProto]] = {}
        for node, names in zip(self.nodes, self.reads, strict=True):
            for name in names:
                self.readers.setdefault(name, []).append(node)

    def needed(self, outputs: Iterable[str], given: Collection[str] = ()) -> list[int]:
        """Indices of the nodes that compute `outputs` from `given`, the model's inputs and constants, in order."""
        chosen = set[int]()
        wanted = list(outputs)
        while wanted:
            name = wanted.pop()
            index = self.maker.get(name)
            if index is not None and index not in chosen and name not in given:
                chosen.add(index)
                wanted += self.reads[index]
        return sorted(chosen)

    def part(
        self,
        outputs: Iterable[str],
        given: Mapping[str, np.dtype[Any]] | None = None,
        constants: Mapping[str, TensorProto] = MappingProxyType({}),
    ) -> ModelProto:
        """A model that computes `outputs`, any of the network's tensors, each once.

        given: tensors to compute them from, with their types: those that are read become the inputs. None: the
        network's own inputs, all of them but constants that nothing reads. constants: instead of the network's. Types
        of other tensors are left for the runtime to infer. Raises KeyError for a name that nothing in the network has.
        """
        outputs, graph = list(dict.fromkeys(outputs)), self.proto.graph
        nodes = self.needed(outputs, given or ())
        read = {*outputs, *(name for i in nodes for name in self.reads[i])}
        part = ModelProto(ir_version=self.proto.ir_version, producer_name=self.proto.producer_name)
        part.opset_import.extend(self.proto.opset_import)
        part.functions.extend(self.proto.functions)
        part.graph.name = graph.name or "part"
        part.graph.node.extend(self.nodes[i] for i in nodes)
        if given is None:
            part.graph.input.extend(v for v in graph.input if v.name not in self.constants or v.name in read)
        else:
            part.graph.input.extend(_input(name, dtype) for name, dtype in given.items() if name in read)
        part.graph.initializer.extend(constants.get(n, t) for n, t in self.constants.items() if n in read)
        part.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in read)
        known = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        for name in outputs:
            if name not in self.maker and name not in self.inputs and name not in self.constants:
                raise KeyError(name)
            part.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
        return part


def extract(proto: ModelProto, outputs: Iterable[str]) -> ModelProto:
    """The part of a model that computes `outputs` from the model's inputs, which all stay; see `Network.part`."""
    return Network(proto).part(outputs)


def tensor_values(proto: ModelProto, names: Collection[str], feeds: Iterable[Feed]) -> Iterator[dict[str, Any]]:
    """Any tensors of a model, its inputs among them, for each feed; padding is not left out. Raises EngineError."""
    session = Session(extract(proto, names)) if names else None
    return (session.run(feed.arrays) if session is not None else {} for feed in feeds)


def parts_that_fit(
    proto: ModelProto, names: Iterable[str], feed: Mapping[str, np.ndarray], limit: int, label: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Tensors of a model in parts, each for a pass over the data of its own, and what progress calls that pass.

    limit: bytes that the tensors of a part may have together, for inputs shaped as in `feed`; a single one may have
    more.
    """
    parts: list[list[str]] = []
    total = 0
    for name, size in tensor_bytes(proto, names, feed).items():
        if not parts or total + size > limit:
            parts.append([])
            total = 0
        parts[-1].append(name)
        total += size
    for number, part in enumerate(parts, 1):
        yield (label if len(parts) == 1 else f"{label}, part {number} of {len(parts)}"), part


class Cuts:
    """Where a network is cut, and what later steps need of what was computed in front of a cut.

    ends: of each step, increasing. probes: the tensors that are wanted of each step, computed in it or before; nodes
    that lead to none are left out.
    live: of each cut, that behind the last step included, the tensors that pass it. made: of each step, those that
    pass the cut behind it and not the one in front of it.
    """

    def __init__(self, network: Network, ends: Sequence[int], probes: Sequence[Collection[str]]) -> None:
        def step_of(index: int) -> int:
            return bisect_right(ends, index)

        self.probes = probes
        last: dict[str, int] = {}
        reads = [*enumerate(probes), *((step_of(i), network.reads[i]) for i in network.needed(set().union(*probes)))]
        for step, names in reads:
            for name in _kept(network, names):
                last[name] = max(last.get(name, step), step)
        self.live: list[list[str]] = [[] for _ in range(len(ends) + 1)]
        for name, step in last.items():
            first = step_of(network.maker[name]) + 1 if name in network.maker else 0
            for cut in range(first, step + 1):
                self.live[cut].append(name)
        before = [set(names) for names in self.live]
        self.made = [[name for name in self.live[k + 1] if name not in before[k]] for k in range(len(ends))]


def _kept(network: Network, names: Iterable[str]) -> set[str]:
    """What must pass a cut so that `names` can be read behind it."""
    found = set[str]()
    for name in names:
        index = network.maker.get(name)
        dequantized = index is not None and network.nodes[index].op_type == "DequantizeLinear"
        found |= network.reads[index] if index is not None and dequantized else {name}
    return found & network.variables


def _input(name: str, dtype: np.dtype[Any]) -> onnx.ValueInfoProto:
    """An input of unknown shape."""
    kind = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), None)
    return onnx.ValueInfoProto(name=name, type=kind)
