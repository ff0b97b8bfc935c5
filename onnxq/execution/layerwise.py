"""The network layer after layer, in float and as quantized so far, for about two forward passes in all.

Both streams are cut at every linear layer that is to be visited. Between two cuts lies a segment, a small model of
its own. What later segments still read is kept for each calibration sample:

    float stream      the model as it came           segment k ends behind layer k:      y, its reference output
    quantized stream  weights and activations on     segment k ends in front of it:      x^, its input
                      their grids (`graph.simulate`)

so that layer k is seen with (x^, y), and may change before it is run in the quantized stream, in segment k + 1. A
weight that several layers share is seen by all of them, rounded to nearest so far, before it changes; then the
streams go back to the first of them.

Tensors that pass a cut are held in memory up to a limit, and in files beyond it. Quantized ones are held as integers:
DequantizeLinear is computed anew in every segment that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..data import Feed
from ..errors import DataError, ModelError
from ..graph import edit, large
from ..graph.model import Model, captured
from ..graph.scratch import scratch_folder
from ..graph.simulate import simulated
from ..operators.linear import LinearLayer, linear_layer
from .services import Services
from .session import Session, parallel_map, real_rows
from .spill import CachedArray, SpillCache

Array = NDArray[np.generic]
Floats = NDArray[np.floating]
Arrays = Mapping[str, Array]


class Visitor(Protocol):
    """What is done at each layer. `x`: its input in the quantized stream; `y`: its float output, bias included."""

    def observe(self, layer: LinearLayer, sample: int, x: Floats, y: Floats) -> Any:
        """What one sample tells; called in worker threads."""

    def take(self, layer: LinearLayer, part: Any) -> None:
        """What `observe` gave, in the order of the samples; called in the main thread."""

    def change(self, uses: Sequence[LinearLayer]) -> str:
        """All samples of all layers that share a weight were seen: change its values, and the layers' biases.

        Returns what became of it in a few words.
        """

    def cost(self, layer: LinearLayer) -> int:
        """How much work it is to visit a layer, in any unit: time left is told by that."""


@dataclass(frozen=True)
class Traffic:
    """What passed the cuts: the most bytes that were held in memory at once, and bytes written to files in all."""

    held: int
    spilled: int

    def __str__(self) -> str:
        text = f"activations held between layers: {self.held / 2**20:.0f} MiB at most"
        return text + (f"; {self.spilled / 2**20:.0f} MiB went to files" if self.spilled else "")


def planned_layers(model: Model) -> list[LinearLayer]:
    """The linear layers whose weight has a quantizer with an answer, in graph order."""
    found = (linear_layer(node) for node in model.graph.nodes)
    layers = [layer for layer in found if isinstance(layer, LinearLayer)]
    quantizers = [model.quantizers.get(layer.weight.name) for layer in layers]
    return [
        layer
        for layer, q in zip(layers, quantizers, strict=True)
        if q is not None and q.params is not None and layer.node.name in q.readers
    ]


def isolate(model: Model) -> None:
    """Give every planned layer a bias of its own, and part quantized weights from readers that keep them in float:
    after that, values can change one by one."""
    for layer in planned_layers(model):
        if layer.bias is None or len(layer.bias.outputs) > 1:
            bias = layer.bias_values
            edit.set_bias(model, layer, bias)
    for name in dict.fromkeys(layer.weight.name for layer in planned_layers(model)):
        old, quantizer = model.graph.tensors()[name], model.quantizers[name]
        assert isinstance(old, gs.Constant)
        others = [node for node in model.consumers(old) if node.name not in quantizer.readers]
        if others:  # they get the copy, and the old name's grid stays with the layers
            copy = edit.constant(model, name, old.values)
            for node in others:
                edit.replace_input(node, old, copy)


def visit_layers(model: Model, feeds: Iterable[Feed], services: Services, visitor: Visitor, label: str) -> Traffic:
    """Let `visitor` see and change all planned layers of `model`, which `isolate` has prepared, in order.

    label: of the progress shown. Raises OnnxqError.
    """
    layers = planned_layers(model)
    if not layers:
        return Traffic(0, 0)
    with scratch_folder() as folder:
        cache = SpillCache(folder, services.max_memory)
        walk = _Walk(model, feeds, services, layers, cache)
        walk.run(visitor, label)
        return Traffic(cache.most, cache.spilled)


@dataclass
class _Walk:
    """Both streams on their way through the layers."""

    model: Model
    feeds: Iterable[Feed]
    services: Services
    layers: list[LinearLayer]
    cache: SpillCache
    reference: _Stream = field(init=False)
    quantized: _Stream = field(init=False)

    def __post_init__(self) -> None:
        names = [layer.node.name for layer in self.layers]
        self.reference = _Stream(self.model.to_proto(), names, behind=True)
        self.quantized = _Stream(simulated(self.model), names, behind=False)

    def run(self, visitor: Visitor, label: str) -> None:
        groups: dict[int, list[int]] = {}
        for k, layer in enumerate(self.layers):
            groups.setdefault(id(layer.weight), []).append(k)
        kept: dict[int, list[_Cut]] = {}
        costs = [max(visitor.cost(layer), 1) for layer in self.layers]
        self.services.progress(label, 0, sum(costs))
        cuts, k, seen = self._begin(), 0, -1
        while k < len(self.layers):
            name, uses, told = self.layers[k].node.name, groups[id(self.layers[k].weight)], ""
            fresh = k > seen
            cuts = self._advance(k, cuts, visitor if fresh else None)
            seen = max(seen, k)
            if k == uses[0] and seen < uses[-1]:
                kept[k] = list(cuts)
            if fresh and k == uses[-1]:
                told = visitor.change([self.layers[use] for use in uses])
                for use in uses:
                    self._update(use)
                if len(uses) > 1:  # what comes after its first use goes on with the new values
                    k, cuts = uses[0], kept.pop(uses[0])
            self.services.progress(f"{label}: {name} {told}", sum(costs[: seen + 1]), sum(costs))
            k += 1

    def _update(self, k: int) -> None:
        """Let the quantized stream go on with the values that the layer has now."""
        layer = linear_layer(self.layers[k].node)
        assert isinstance(layer, LinearLayer)
        params = self.model.quantizers[layer.weight.name].params
        assert params is not None
        self.quantized.set_values(layer, params.fake(layer.weight.values))
        self.layers[k] = layer

    def _begin(self) -> list[_Cut]:
        cuts: list[_Cut] = []
        for feed in self.feeds:
            held = {name: self.cache.put(array) for name, array in feed.arrays.items()}
            streams = ({n: held[n] for n in s.inputs & held.keys()} for s in (self.reference, self.quantized))
            cuts.append(_Cut(len(cuts), feed.batch, feed.rows, *streams))
        if not cuts:
            raise DataError("no calibration data: layer-wise optimisation needs at least one sample")
        return cuts

    def _advance(self, k: int, cuts: list[_Cut], visitor: Visitor | None) -> list[_Cut]:
        """All samples from in front of segment k to behind it; `cuts` is empty afterwards."""
        layer, behind = self.layers[k], []
        reference, quantized = self.reference.enter(k), self.quantized.enter(k)

        def step(cut: _Cut) -> tuple[_Cut, Arrays, Arrays, Any]:
            y, made = reference(cut.reference)
            x, quantized_made = quantized(cut.quantized)
            part = None
            if visitor is not None:
                part = visitor.observe(layer, cut.sample, cut.real(x), _with_bias(layer, cut.real(y)))
            return cut, made, quantized_made, part

        for cut, *made, part in parallel_map(step, _drain(cuts), self.services.threads, self.services.in_flight):
            if visitor is not None:
                visitor.take(layer, part)
            behind.append(
                replace(
                    cut,
                    reference=self.reference.moved(k, cut.reference, made[0], self.cache),
                    quantized=self.quantized.moved(k, cut.quantized, made[1], self.cache),
                )
            )
        return behind


def _with_bias(layer: LinearLayer, y: Floats) -> Floats:
    """The node's output with the bias that an Add behind it contributes."""
    if layer.bias is None or layer.bias_node is layer.node:
        return y
    return np.asarray(y + layer.bias.values)


def _drain(cuts: list[_Cut]) -> Iterator[_Cut]:
    """In order; nothing refers to what was taken, so that its memory is free as soon as it has been used."""
    cuts.reverse()
    while cuts:
        yield cuts.pop()


@dataclass(frozen=True)
class _Cut:
    """One sample in front of a segment. batch, rows: of its feed, rows None where all are real."""

    sample: int
    batch: int
    rows: int | None
    reference: Mapping[str, CachedArray]
    quantized: Mapping[str, CachedArray]

    def real(self, x: Array) -> Any:
        """A tensor without the rows that fill a fixed batch up."""
        return real_rows(x, self.batch, self.rows)


@dataclass(frozen=True)
class _Segment:
    """nodes: what runs, DequantizeLinear of earlier tensors first.  reads: what it takes from the cut.
    probe: the tensor that is looked at behind it.  makes: what later segments read of it.  drops: what they do not
    read any more."""

    nodes: tuple[NodeProto, ...]
    reads: frozenset[str]
    probe: str
    makes: tuple[str, ...]
    drops: frozenset[str]

    def fed(self) -> list[str]:
        """What the nodes read from the cut."""
        return sorted(self.reads & {name for node in self.nodes for name in _reads(node)})


class _Stream:
    """A model in segments that end at the named nodes: behind them, with their output, or before, with their input."""

    def __init__(self, proto: ModelProto, names: Sequence[str], behind: bool) -> None:
        self._proto = proto
        self._constants = {t.name: t for t in proto.graph.initializer}
        self._types = {v.name: v.type for v in proto.graph.input}
        self._layers = {n.name: n for n in proto.graph.node if n.name in set(names)}
        self._segments = _plan(proto, names, behind)
        self.inputs = self._types.keys() & {name for segment in self._segments for name in segment.reads}

    def set_values(self, layer: LinearLayer, weight: Floats) -> None:
        """A new weight, and the bias that the layer has now."""
        self._set(self._layers[layer.node.name].input[layer.form.weight], weight)
        assert layer.bias is not None
        self._set(layer.bias.name, layer.bias.values)

    def _set(self, name: str, values: NDArray[np.generic]) -> None:
        aside = name in self._constants and large.is_reference(self._constants[name])
        self._constants[name] = large.tensor(np.ascontiguousarray(values), name, aside=aside)

    def enter(self, k: int) -> Callable[[Mapping[str, CachedArray]], tuple[Any, Arrays]]:
        """A function from a cut's tensors to the probe of segment k, and to what later segments read of it."""
        segment = self._segments[k]
        passing = segment.probe in segment.reads  # computed before: another layer reads it too
        outputs = segment.makes if passing else tuple(dict.fromkeys((*segment.makes, segment.probe)))
        fed = segment.fed()
        session = Session(self._model(segment, fed, outputs)) if outputs else None
        if session is not None:
            self._types |= {name: _type(text, name) for name, text in session.output_types().items()}

        def run(tensors: Mapping[str, CachedArray]) -> tuple[Any, Arrays]:
            made = session.run({name: tensors[name].array() for name in fed}) if session is not None else {}
            probe = tensors[segment.probe].array() if passing else made[segment.probe]
            return probe, {name: made[name] for name in segment.makes}

        return run

    def moved(
        self, k: int, tensors: Mapping[str, CachedArray], made: Mapping[str, Array], cache: SpillCache
    ) -> dict[str, CachedArray]:
        """A cut's tensors behind segment k."""
        kept = {name: held for name, held in tensors.items() if name not in self._segments[k].drops}
        return kept | {name: cache.put(value) for name, value in made.items()}

    def _model(self, segment: _Segment, fed: Iterable[str], outputs: Iterable[str]) -> ModelProto:
        model = ModelProto(ir_version=self._proto.ir_version, graph=onnx.GraphProto(name="segment"))
        model.opset_import.extend(self._proto.opset_import)
        model.functions.extend(self._proto.functions)
        model.graph.node.extend(segment.nodes)
        model.graph.input.extend(onnx.ValueInfoProto(name=name, type=self._types[name]) for name in fed)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        read = dict.fromkeys(name for node in segment.nodes for name in _reads(node))
        model.graph.initializer.extend(self._constants[name] for name in read if name in self._constants)
        return model


def _plan(proto: ModelProto, names: Sequence[str], behind: bool) -> list[_Segment]:
    """One segment a name; nodes that no probe needs are left out."""
    index = {node.name: i for i, node in enumerate(proto.graph.node)}
    ends = [index[name] + behind for name in names]
    probes = [proto.graph.node[index[n]].output[0] if behind else proto.graph.node[index[n]].input[0] for n in names]
    constants = {t.name for t in proto.graph.initializer}
    maker = {name: node for node in proto.graph.node for name in node.output}
    later: set[str] = set()  # what segments behind the current one read
    segments: list[_Segment] = []
    for k in reversed(range(len(ends))):
        own = proto.graph.node[ends[k - 1] if k else 0 : ends[k]]
        nodes = _needed(_complete(own, probes[k], maker), {probes[k]} | later)
        made = {name for node in nodes for name in node.output}
        reads = frozenset({probes[k]}.union(*map(_reads, nodes)) - made - constants - {""})
        makes = tuple(sorted(made & later))
        segments.append(_Segment(tuple(nodes), reads, probes[k], makes, reads - later))
        later |= reads
    return segments[::-1]


def _complete(own: Iterable[NodeProto], probe: str, maker: Mapping[str, NodeProto]) -> list[NodeProto]:
    """The nodes, and in front of them those DequantizeLinear nodes whose outputs they read from earlier segments."""
    own = list(own)
    made = {name for node in own for name in node.output}
    read = dict.fromkeys((*(name for node in own for name in _reads(node)), probe))
    before = [maker[name] for name in read if name in maker and name not in made]
    return [node for node in before if node.op_type == "DequantizeLinear"] + own


def _needed(nodes: Sequence[NodeProto], wanted: set[str]) -> list[NodeProto]:
    wanted, chosen = set(wanted), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            chosen.append(node)
            wanted.update(_reads(node))
    return chosen[::-1]


def _reads(node: NodeProto) -> set[str]:
    return {*node.input, *captured(node)}


def _type(text: str, name: str) -> onnx.TypeProto:
    """ONNX Runtime's `tensor(float)` as a type of unknown shape."""
    kind = text.removeprefix("tensor(").removesuffix(")").upper()
    known: Mapping[str, int] = dict(TensorProto.DataType.items())
    if not text.startswith("tensor(") or kind not in known:
        raise ModelError(f"tensor {name!r} between two layers is a {text}, which cannot be kept")
    return helper.make_tensor_type_proto(known[kind], None)
