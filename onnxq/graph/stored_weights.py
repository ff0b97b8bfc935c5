"""Weights that no pass of the main graph reaches, stored as integers: only how they are stored changes.

    LSTM, GRU, RNN     W (D, G H, I), R (D, G H, H)    one scale for each direction and row of a gate: (D G H,)
    inside If, Loop and Scan: linear operators         as in the main graph
    linear operators that the target has no rule for   8 bits at least, one scale for each channel
    inside If, Loop and Scan: Gather                   as tables in the main graph

    W    integers -> DequantizeLinear [-> Reshape] -> the node, in the node's own graph

Activations stay in float here. The library that edits graphs copies into each branch what it reads from outside, so
that equal constants are put together first. Two branches that look up rows of the same table, or run an LSTM with the
same weights, read the same integers, from the main graph. Integers of linear operators are stored in each branch: ONNX
Runtime 1.32 fuses DequantizeLinear and MatMul in a branch as it does outside, and refuses the model where the integers
lie further out ("Missing required weight"); without that fusion a decoder would dequantize all its weights for each
token.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from ..numeric.quant import QuantParams, QuantSpec
from ..numeric.ranges import set_range
from ..numeric.samples import Samples
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import linear_form
from ..thresholds import SMALLEST_STORED
from . import large
from .serialized import drop_unread_initializers, graphs_of, nodes_of, unused_name

RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class StoredWeights:
    """weight: the grids; None: all stays as it is.  table: those of what Gather looks up, 8 bits.
    method: how ranges are set.  keeps_float: nodes that the user keeps in float.  computed: the grids of weights of the
    main graph's linear operators for which the target has no integer kernel; None: they stay as they are.  has_kernel:
    which have one."""

    weight: QuantSpec | None
    table: QuantSpec | None
    method: str
    keeps_float: Callable[[NodeProto], bool]
    computed: QuantSpec | None = None
    has_kernel: Callable[[NodeProto], bool] = lambda node: True

    def applies(self, proto: ModelProto) -> bool:
        """Whether the model has such weights."""
        return self.weight is not None and any(True for _ in self._uses(proto))

    def store(self, proto: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
        """The model with such weights as integers, and the nodes, by name, that read them."""
        if not self.applies(proto):
            return proto, ()
        copy = ModelProto()
        copy.CopyFrom(proto)
        _put_together(copy)
        writer = _Writer(copy, self)
        done = [use.node.name or use.node.op_type for use in list(self._uses(copy)) if writer.write(use)]
        writer.finish()
        return copy, tuple(done)

    def _uses(self, proto: ModelProto) -> Iterator[_Use]:
        initializers = {t.name: t for g in graphs_of(proto.graph) for t in g.initializer}
        for graph in graphs_of(proto.graph):
            for node in graph.node:
                if self.keeps_float(node):
                    continue
                for index in self._places(node, inside=graph is not proto.graph):
                    weight = initializers.get(node.input[index])
                    if weight is None or weight.data_type != TensorProto.FLOAT:
                        continue
                    if math.prod(weight.dims) >= SMALLEST_STORED and len(weight.dims) >= 2:
                        yield _Use(graph, node, index, weight)

    def _places(self, node: NodeProto, inside: bool) -> Sequence[int]:
        """Which inputs of a node are weights that are stored here. inside: whether it stands in a branch or a loop."""
        if node.domain in ONNX_DOMAINS and node.op_type in RECURRENT:
            return [i for i in (1, 2) if len(node.input) > i]
        form = linear_form(node.op_type, node.domain)
        if not inside and (form is None or self.computed is None or self.has_kernel(node)):
            return []
        if form is not None and len(node.input) > form.weight:
            return [form.weight]
        is_table = node.op_type == "Gather" and node.domain in ONNX_DOMAINS and _attributes(node).get("axis", 0) == 0
        return [0] if is_table else []


@dataclass(frozen=True)
class _Use:
    """One weight as one node reads it. graph: that the node stands in."""

    graph: GraphProto
    node: NodeProto
    index: int
    weight: TensorProto


def _attributes(node: NodeProto) -> dict[str, object]:
    graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type not in graphs}


@dataclass
class _Writer:
    model: ModelProto
    options: StoredWeights
    stored: dict[tuple[int, str, str], tuple[str, str, str]] = field(default_factory=dict)
    read: dict[tuple[int, str, str], str] = field(default_factory=dict)  # in a graph: what holds the dequantized weight
    before: dict[int, list[tuple[int, NodeProto]]] = field(default_factory=dict)  # graph -> (in front of which, node)
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.is_large = bool(large.references(self.model))
        self.graphs = list(graphs_of(self.model.graph))  # kept: protobuf's objects have an identity while they live
        for graph in self.graphs:
            self.names.update(t.name for t in graph.initializer)
            self.names.update(v.name for v in (*graph.input, *graph.output))
            self.names.update(name for node in graph.node for name in (*node.input, *node.output, node.name))

    def write(self, use: _Use) -> bool:
        """Let the node read integers; whether it does."""
        node, name = use.node, use.weight.name
        values = large.array(use.weight)
        if not np.isfinite(values).all():
            return False
        if node.op_type == "Gather" and node.domain in ONNX_DOMAINS:
            return self._table(use, values)
        spec, axis, shape = self._layout(use, tuple(values.shape))
        kind = f"{axis} {spec.block} {shape}"
        place = (id(use.graph), name, kind)
        if place not in self.read:
            integers, scale, zero_point = self._stored(use, kind, values.reshape(shape), spec, axis)
            attributes: dict[str, Any] = {"axis": axis} if spec.per_channel or spec.block else {}
            if spec.block:
                attributes["block_size"] = spec.block
            result = unused_name(f"{name}_dequantized", self.names)
            nodes = [helper.make_node("DequantizeLinear", [integers, scale, zero_point], [result], **attributes)]
            if shape != tuple(values.shape):
                target = self._initializer(use.graph, f"{name}_shape", np.asarray(values.shape, np.int64))
                nodes.append(helper.make_node("Reshape", [result, target], [unused_name(f"{name}_shaped", self.names)]))
            self._put(use, nodes)
            self.read[place] = nodes[-1].output[0]
        node.input[use.index] = self.read[place]
        return True

    def _layout(self, use: _Use, shape: tuple[int, ...]) -> tuple[QuantSpec, int, tuple[int, ...]]:
        """The grids, the axis of their scales, and the shape in which the weight is stored."""
        node = use.node
        form = linear_form(node.op_type, node.domain)
        spec = self.options.weight if form is None or use.graph is not self.model.graph else self.options.computed
        assert spec is not None
        if form is None:  # recurrent: rows of all directions below one another
            shape = (math.prod(shape[:-1]), shape[-1])
            rows, columns = 0, 1
        else:
            rows, columns = form.axes(_attributes(node), len(shape))
        is_matrix = form is None or not form.is_convolution
        if spec.block is not None and is_matrix and shape[columns] % spec.block == 0:
            return spec, columns, shape
        whole = form is not None and not spec.per_channel and spec.block is None
        return replace(spec, per_channel=not whole, block=None), rows, shape

    def _table(self, use: _Use, values: np.ndarray) -> bool:
        spec, node = self.options.table, use.node
        if spec is None:
            return False
        integers, scale, _ = self._stored(use, "rows", values, spec, 0)
        output = node.output[0]
        found, scales, cast = (unused_name(f"{output}_{stem}", self.names) for stem in ("rows", "row_scales", "cast"))
        behind = [helper.make_node("Gather", [scale, node.input[1]], [scales], axis=0)]
        rows = found
        if _packs(spec, values):
            rows = self._unpacked(found, output, behind)
        behind.append(helper.make_node("Cast", [rows], [cast], to=TensorProto.FLOAT))
        if _packs(spec, values):
            half, shifted = (
                self._initializer(use.graph, f"{output}_half", np.float32(_HALF)),
                unused_name(f"{output}_signed", self.names),
            )
            behind.append(helper.make_node("Sub", [cast, half], [shifted]))
            cast = shifted
        behind.append(helper.make_node("Mul", [cast, scales], [output]))
        node.input[0], node.output[0] = integers, found
        self._put(use, behind, behind=True)
        return True

    def _unpacked(self, found: str, output: str, nodes: list[NodeProto]) -> str:
        """Bytes of two columns each, as `graph.table_writer` packs them, as integers of 4 bits and `_HALF`."""
        four = self._initializer(self.model.graph, f"{output}_four", np.asarray(4, np.uint8))
        upper, left, lower, both = (
            unused_name(f"{output}_{stem}", self.names) for stem in ("upper", "left", "lower", "columns")
        )
        nodes += [
            helper.make_node("BitShift", [found, four], [upper], direction="RIGHT"),
            helper.make_node("BitShift", [found, four], [left], direction="LEFT"),
            helper.make_node("BitShift", [left, four], [lower], direction="RIGHT"),
            helper.make_node("Concat", [lower, upper], [both], axis=-1),
        ]
        return both

    def _stored(self, use: _Use, kind: str, values: np.ndarray, spec: QuantSpec, axis: int) -> tuple[str, str, str]:
        """Integers, scales and zero points, in the main graph where no linear operator reads them; of a table, the
        scales as rows."""
        name, rows = use.weight.name, kind == "rows"
        graph = self.model.graph if rows or use.node.op_type in RECURRENT else use.graph
        key = (id(graph), name, kind)
        if key not in self.stored:
            along = axis if spec.per_channel or spec.block else None
            lo, hi = set_range(self.options.method, Samples.of_weights(values, along, spec.block), spec)
            shape: tuple[int, ...] = () if along is None else (values.shape[axis],)
            if spec.block is not None:
                shape = tuple(n // spec.block if i == axis else n for i, n in enumerate(values.shape))
            params = QuantParams.from_range(lo.reshape(shape), hi.reshape(shape), spec, along)
            scale = params.scale.reshape(-1, *[1] * (values.ndim - 1)) if rows else params.scale
            integers = np.asarray(params.quantize(values))
            if rows:
                stored = self._initializer(
                    graph, f"{name}_quantized", _packed(integers) if _packs(spec, values) else integers
                )
            else:
                stored = self._integers(graph, f"{name}_quantized", integers, params)
            self.stored[key] = (
                stored,
                self._initializer(graph, f"{name}_scale", np.asarray(scale, np.float32)),
                self._integers(graph, f"{name}_zero_point", np.asarray(params.zero_point), params),
            )
        return self.stored[key]

    def _integers(self, graph: GraphProto, stem: str, values: np.ndarray, params: QuantParams) -> str:
        if params.grid.stored_bits != 4:
            return self._initializer(graph, stem, values.astype(params.grid.dtype))
        name = unused_name(stem, self.names)
        kind = TensorProto.INT4 if params.grid.signed else TensorProto.UINT4
        flat = values.astype(np.uint8).reshape(-1) & 0xF
        flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
        packed = (flat[0::2] | (flat[1::2] << 4)).tobytes()
        graph.initializer.append(TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=packed))
        return name

    def _initializer(self, graph: GraphProto, stem: str, values: np.ndarray) -> str:
        name = unused_name(stem, self.names)
        graph.initializer.append(large.tensor(np.asarray(values, order="C"), name, spilled=self.is_large))
        return name

    def _put(self, use: _Use, nodes: list[NodeProto], behind: bool = False) -> None:
        place = next(i for i, node in enumerate(use.graph.node) if node is use.node) + behind
        for node in nodes:
            node.name = unused_name(f"{node.op_type}_{node.output[0]}", self.names)
        self.before.setdefault(id(use.graph), []).extend((place, node) for node in nodes)

    def finish(self) -> None:
        """Put the nodes in, and drop the float weights that nobody reads any more."""
        for graph in reversed(self.graphs):  # bodies before what holds them, whose nodes are copied with them
            added = self.before.get(id(graph), [])
            nodes: list[NodeProto] = []
            for index, node in enumerate(graph.node):
                nodes += [new for place, new in added if place == index]
                nodes.append(node)
            nodes += [new for place, new in added if place == len(graph.node)]
            if added:
                kept = [_copied(node) for node in nodes]
                del graph.node[:]
                graph.node.extend(kept)
        drop_unread_initializers(self.model.graph)


_HALF = 8
"""What is added to signed integers of 4 bits, so that they are none below 0."""


def _packs(spec: QuantSpec, values: np.ndarray) -> bool:
    """Whether rows of a table are stored as two columns in a byte."""
    return spec.grid.bits <= 4 and values.shape[-1] % 2 == 0


def _packed(integers: np.ndarray) -> np.ndarray:
    """(V, D) of 4 bits -> (V, D/2) bytes: the first half of the columns below the second."""
    unsigned, half = np.asarray(integers + _HALF, np.uint8), integers.shape[-1] // 2
    return np.asarray(unsigned[..., :half] | (unsigned[..., half:] << 4))


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _put_together(model: ModelProto) -> None:
    """Equal constants of branches and loops become one of the main graph, which all of them read."""
    taken = {t.name for graph in graphs_of(model.graph) for t in graph.initializer}
    taken |= {name for node in nodes_of(model.graph) for name in (*node.input, *node.output)}
    known: dict[bytes, str] = {}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) >= SMALLEST_STORED:
            known[_key(tensor)] = tensor.name
    main = {t.name for t in model.graph.initializer}
    for graph in list(graphs_of(model.graph))[1:]:
        kept, renamed = [], {}
        for tensor in graph.initializer:
            if math.prod(tensor.dims) < SMALLEST_STORED or tensor.data_type != TensorProto.FLOAT:
                kept.append(tensor)
                continue
            key = _key(tensor)
            if key not in known:
                name = tensor.name if tensor.name not in main else unused_name(tensor.name, taken)
                lifted = model.graph.initializer.add()
                lifted.CopyFrom(tensor)
                lifted.name = name
                main.add(name)
                known[key] = name
            renamed[tensor.name] = known[key]
        if renamed:
            remaining = [_tensor_copy(t) for t in kept]
            del graph.initializer[:]
            graph.initializer.extend(remaining)
            for node in nodes_of(graph):
                node.input[:] = [renamed.get(name, name) for name in node.input]
            for output in (o for inner in graphs_of(graph) for o in inner.output):
                output.name = renamed.get(output.name, output.name)


def _tensor_copy(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _key(tensor: TensorProto) -> bytes:
    values = np.ascontiguousarray(large.array(tensor))
    head = f"{tensor.data_type} {list(tensor.dims)} ".encode()
    return hashlib.blake2b(head + values.tobytes(), digest_size=16).digest()
