"""The network layer after layer, in float and as quantized so far, for about two forward passes in all.

Both streams are cut at every linear layer that is to be visited (`partial`), into steps between two cuts:

    float stream      the model as it came           step k ends behind layer k:      y, its reference output
    quantized stream  weights and activations        step k ends in front of it:      x^, its input
                      quantized (`graph.simulate`)

so that layer k is seen with (x^, y), and may change before it is run in the quantized stream, in step k + 1. A
weight that several layers share is seen by all of them, rounded to nearest so far, before it changes; then the
streams go back to the first of them.

What passes a cut is kept for each calibration sample, in memory up to a limit, and in files beyond it. The limit is
what `max_memory` leaves beside what the visitor holds of the layer: both are there at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from ..data import Feed
from ..errors import DataError, ModelError
from ..graph import edit, large
from ..graph.model import Model
from ..graph.simulate import simulated
from ..numeric.blas import product_seconds
from ..operators.linear import LinearLayer, linear_layer, linear_layers
from ..thresholds import FORECAST_SECONDS
from .memory import return_freed_memory
from .partial import Cuts, Network
from .services import Services, duration
from .session import Session, parallel_map, real_rows
from .spill import CachedArray, SpillCache

Array = NDArray[np.generic]
Floats = NDArray[np.floating]
Arrays = Mapping[str, Array]


class Visitor(Protocol):
    """What is done at each layer. `x`: its input in the quantized stream; `y`: its float output, bias included."""

    def observe(self, layer: LinearLayer, sample: int, x: Floats, y: Floats) -> Any:
        """What is learnt from one sample; called in worker threads."""

    def take(self, layer: LinearLayer, part: Any) -> None:
        """What `observe` gave, in the order of the samples; called in the main thread."""

    def change(self, uses: Sequence[LinearLayer]) -> str:
        """All samples of all layers that share a weight were seen: change its values, and the layers' biases.

        Returns what became of it in a few words.
        """

    def cost(self, layer: LinearLayer) -> int:
        """How much work it is to visit a layer, in multiplications, for the progress that is shown."""

    def memory(self, layer: LinearLayer) -> int:
        """Bytes that it holds of a layer at most, once all samples were seen."""

    @property
    def avoided_by(self) -> str:
        """What the user can do about it where that takes long."""


@dataclass(frozen=True)
class Traffic:
    """What passed the cuts: the most bytes that were held in memory at once, and bytes written to files in all."""

    held: int
    spilled: int

    def __str__(self) -> str:
        text = f"activations held between layers: {self.held / 2**20:.0f} MiB at most"
        return text + (f"; {self.spilled / 2**20:.0f} MiB went to files" if self.spilled else "")


def planned_layers(model: Model) -> list[LinearLayer]:
    """The linear layers whose weight has a quantizer with parameters, in graph order; without those whose weight is a
    table, for its rows have readers that these layers know nothing of: it stays rounded to nearest."""
    own = (layer for layer in linear_layers(model.graph.nodes) if not model.reads_table(layer))
    planned = ((layer, model.weight_quantizer(layer)) for layer in own)
    return [layer for layer, quantizer in planned if quantizer is not None and quantizer.params is not None]


def isolate(model: Model) -> None:
    """Give every planned layer a bias of its own, and readers that keep a quantized weight in float a copy of it:
    after that, values can change one by one."""
    for layer in planned_layers(model):
        if layer.bias is None or len(layer.bias.outputs) > 1:
            bias = layer.bias_values
            edit.set_bias(model, layer, bias)
    for name in dict.fromkeys(layer.weight.name for layer in planned_layers(model)):
        old, quantizer = model.graph.tensors()[name], model.quantizers[name]
        assert isinstance(old, gs.Constant)
        others = [node for node in model.consumers(old) if node.name not in quantizer.readers]
        if others:  # they get the copy: the quantizer belongs to the old name
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
    cache = SpillCache(services.max_memory)
    _Walk(model, feeds, services, layers, cache).run(visitor, label)
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
        self.reference = _Stream(self.model.to_proto(), names, self.cache, behind=True)
        self.quantized = _Stream(simulated(self.model), names, self.cache, behind=False)

    def run(self, visitor: Visitor, label: str) -> None:
        uses_of: dict[int, list[int]] = {}  # id of a weight -> the layers that use it
        for k, layer in enumerate(self.layers):
            uses_of.setdefault(id(layer.weight), []).append(k)
        kept: dict[int, list[_Sample]] = {}
        costs = [max(visitor.cost(layer), 1) for layer in self.layers]
        seconds = sum(costs) * product_seconds()
        forecast = (
            f": about {duration(seconds)} of CPU time; {visitor.avoided_by}" if seconds > FORECAST_SECONDS else ""
        )
        self.services.progress(f"{label}{forecast}", 0, sum(costs))
        samples, k, seen = self._begin(), 0, -1
        while k < len(self.layers):
            name, uses, result = self.layers[k].node.name, uses_of[id(self.layers[k].weight)], ""
            fresh = k > seen
            samples = self._advance(k, samples, visitor if fresh else None)
            seen = max(seen, k)
            if k == uses[0] and seen < uses[-1]:
                kept[k] = list(samples)
            if fresh and k == uses[-1]:
                result = visitor.change([self.layers[use] for use in uses])
                for use in uses:
                    self._update(use)
                if len(uses) > 1:  # what comes after its first use goes on with the new values
                    k, samples = uses[0], kept.pop(uses[0])
            self.services.progress(f"{label}: {name} {result}", sum(costs[: seen + 1]), sum(costs))
            k += 1

    def _update(self, k: int) -> None:
        """Let the quantized stream go on with the values that the layer has now."""
        layer = linear_layer(self.layers[k].node)
        assert isinstance(layer, LinearLayer)
        params = self.model.quantizers[layer.weight.name].params
        assert params is not None
        self.quantized.set_values(layer, params.fake(layer.weight.values))
        self.layers[k] = layer

    def _begin(self) -> list[_Sample]:
        samples: list[_Sample] = []
        for feed in self.feeds:
            held = {name: self.cache.put(array) for name, array in feed.arrays.items()}
            streams = (stream.passing(0, held) for stream in (self.reference, self.quantized))
            samples.append(_Sample(len(samples), feed.batch, feed.rows, *streams))
        if not samples:
            raise DataError("no calibration data: layer-wise optimisation needs at least one sample")
        return samples

    def _advance(self, k: int, samples: list[_Sample], visitor: Visitor | None) -> list[_Sample]:
        """All samples from in front of step k to behind it; `samples` is empty afterwards."""
        layer, behind = self.layers[k], []
        return_freed_memory()
        if visitor is not None:
            self.cache.limit = max(self.services.max_memory - visitor.memory(layer), 0)
        reference = self.reference.load(k, samples[0].reference)
        quantized = self.quantized.load(k, samples[0].quantized)

        def step(sample: _Sample) -> tuple[_Sample, Arrays, Arrays, Any]:
            y, made = reference(sample.reference)
            x, quantized_made = quantized(sample.quantized)
            part = None
            if visitor is not None:
                part = visitor.observe(layer, sample.number, sample.real(x), _with_bias(layer, sample.real(y)))
            return sample, made, quantized_made, part

        for sample, *made, part in parallel_map(step, _drain(samples), self.services.threads, self.services.in_flight):
            if visitor is not None:
                visitor.take(layer, part)
            behind.append(
                replace(
                    sample,
                    reference=self.reference.moved(k, sample.reference, made[0]),
                    quantized=self.quantized.moved(k, sample.quantized, made[1]),
                )
            )
        return behind


def _with_bias(layer: LinearLayer, y: Floats) -> Floats:
    """The node's output with the bias that an Add behind it contributes."""
    if layer.bias is None or layer.bias_node is layer.node:
        return y
    return np.asarray(y + layer.bias.values)


def _drain(samples: list[_Sample]) -> Iterator[_Sample]:
    """In order; nothing refers to what was taken, so that its memory is free as soon as it has been used."""
    samples.reverse()
    while samples:
        yield samples.pop()


Held = Mapping[str, CachedArray]


@dataclass(frozen=True)
class _Sample:
    """One sample, and what of it passes the cut that the streams are at. batch, rows: of its feed."""

    number: int
    batch: int
    rows: int | None
    reference: Held
    quantized: Held

    def real(self, x: Array) -> Any:
        """A tensor without the rows that fill a fixed batch up."""
        return real_rows(x, self.batch, self.rows)


class _Stream:
    """A model in steps that end at the named nodes: behind them, with their output, or before, with their input."""

    def __init__(self, proto: ModelProto, names: Sequence[str], cache: SpillCache, behind: bool) -> None:
        self._network, self._cache = Network(proto), cache
        index = {node.name: i for i, node in enumerate(proto.graph.node)}
        self._layers = {name: proto.graph.node[index[name]] for name in names}
        self._probes = [node.output[0] if behind else node.input[0] for node in self._layers.values()]
        self._cuts = Cuts(self._network, [index[name] + behind for name in names], [{p} for p in self._probes])

    def set_values(self, layer: LinearLayer, weight: Floats) -> None:
        """A new weight, and the bias that the layer has now."""
        assert layer.bias is not None
        new = {self._layers[layer.node.name].input[layer.form.weight]: weight, layer.bias.name: layer.bias.values}
        for name, values in new.items():
            old = self._network.constants.get(name)
            spilled = old is not None and large.is_reference(old)
            self._network.constants[name] = large.tensor(np.ascontiguousarray(values), name, spilled=spilled)

    def passing(self, cut: int, held: Held) -> dict[str, CachedArray]:
        """Those of the tensors that pass a cut."""
        return {name: held[name] for name in self._cuts.live[cut] if name in held}

    def load(self, k: int, held: Held) -> Callable[[Held], tuple[Any, Arrays]]:
        """A function from what passes the cut in front of step k to its probe, and to what else passes behind it.

        held: of any sample; all have the same types.
        """
        probe, made = self._probes[k], self._cuts.made[k]
        outputs = made if probe in held else [*dict.fromkeys((*made, probe))]
        session, fed = None, list[str]()
        if outputs:
            part = self._network.part(outputs, {name: array.dtype for name, array in held.items()})
            session, fed = Session(part), [value.name for value in part.graph.input]

        def run(held: Held) -> tuple[Any, Arrays]:
            found = session.run({name: held[name].array() for name in fed}) if session is not None else {}
            value = held[probe].array() if probe in held else found[probe]
            return value, {name: found[name] for name in made}

        return run

    def moved(self, k: int, held: Held, made: Arrays) -> dict[str, CachedArray]:
        """What passes the cut behind step k."""
        for name, value in made.items():
            if not isinstance(value, np.ndarray):
                raise ModelError(f"tensor {name!r} between two layers is a sequence, which cannot be kept")
        return self.passing(k + 1, {**held, **{name: self._cache.put(value) for name, value in made.items()}})
