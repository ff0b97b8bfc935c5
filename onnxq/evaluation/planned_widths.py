"""One network planned at several widths: every unit's switch for each of its candidate bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import escape

from ..errors import UsageError
from ..execution.layerwise import isolate
from ..execution.switches import State, Switch, switches_of
from ..execution.workload import workload
from ..graph.model import Model
from ..operators.linear import linear_layers
from ..options import Options, Override
from ..pipeline.correct import correct
from ..pipeline.equalize import equalize
from ..pipeline.lower import at_sufficient_opset
from ..pipeline.prepare import prepare
from ..pipeline.run_passes import run_passes
from ..pipeline.set_ranges import placement, set_ranges
from ..pipeline.task import Task
from .bit_allocation import BitCosts, Bits


@dataclass(frozen=True)
class Candidates:
    """Widths to choose from, the most bits first; empty: as the preset says."""

    weights: tuple[int, ...]
    activations: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Candidates:
        """From `w4,w8,a8,a16`. Raises UsageError."""
        found: dict[str, set[int]] = {"w": set(), "a": set()}
        for part in text.split(","):
            match = re.fullmatch(r"([wa])(\d+)", part.strip())
            if match is None or not 2 <= int(match[2]) <= 16:
                raise UsageError(f"`candidates` {text!r}: expected widths from 2 to 16, as in w4,w8,a8,a16")
            found[match[1]].add(int(match[2]))
        return cls(*(tuple(sorted(widths, reverse=True)) for widths in found.values()))

    def check(self, options: Options) -> None:
        """Raise UsageError where the options leave in float what is to be chosen here."""
        for widths, spec, name in (
            (self.weights, options.weight, "weights"),
            (self.activations, options.activation, "activations"),
        ):
            if widths and spec is None:
                raise UsageError(f"`candidates` {self}: `preset` {options.preset} leaves {name} in float")

    @property
    def plans(self) -> list[tuple[int | None, int | None]]:
        """Widths of (weights, activations), so that every candidate is in one of them."""
        plans: list[tuple[int | None, int | None]] = []
        for i in range(max(len(self.weights), len(self.activations))):
            w, a = (ws[min(i, len(ws) - 1)] if ws else None for ws in (self.weights, self.activations))
            plans.append((w, a))
        return plans

    def __str__(self) -> str:
        return ",".join([*(f"w{b}" for b in self.weights), *(f"a{b}" for b in self.activations)])


@dataclass(frozen=True)
class PlannedWidths:
    """base: the float model.  switches: unit -> bits -> its switch.  weights: the units that are layers' weights.
    costs: of choices among them."""

    base: Model
    switches: Mapping[str, Mapping[int, Switch]]
    weights: frozenset[str]
    costs: BitCosts

    def state(self, bits: Bits) -> State:
        """Everything quantized, with these bits."""
        return {unit: self.switches[unit][width] for unit, width in bits.items()}


def plan(task: Task, candidates: Candidates) -> PlannedWidths:
    """Plan the model once for each candidate.

    Weights of less than 8 bits are rounded by coordinate descent at effort fast where options leave the method open.
    Units whose bits the user's own overrides set have no choice. Raises OnnxqError.
    """
    options = task.options
    model, _ = prepare(task.proto, task.origin, options, task.context)
    model, _ = equalize(model, task)
    probe, _ = run_passes(placement(options), model.clone(), task.context)
    weights = {layer.weight.name for layer in linear_layers(probe.graph.nodes)}
    units = {name: name in weights for name, q in probe.quantizers.items() if q.grid_of is None}
    plans = [_with_widths(options, units, *widths) for widths in candidates.plans]
    every = tuple(override for variant in plans for override in variant.overrides)
    model = at_sufficient_opset(model, replace(options, overrides=every))  # the same nodes and names at all widths
    base: Model | None = None
    switches: dict[str, dict[int, Switch]] = {}
    for variant in plans:
        other = replace(task, options=variant)
        ranged, _ = set_ranges(model.clone(), other)
        planned, _ = correct(ranged.clone(), other)
        isolate(ranged)
        base = base or ranged
        for name, switch in switches_of(base, planned).items():
            params = planned.quantizers[name].params
            assert params is not None
            switches.setdefault(name, {}).setdefault(params.grid.bits, switch)
    assert base is not None
    costs = BitCosts.of(base, base.quantizers, workload(base.to_proto(), next(iter(task.feeds))))
    return PlannedWidths(base, switches, frozenset(weights & switches.keys()), costs)


def _with_widths(options: Options, units: Mapping[str, bool], weight: int | None, activation: int | None) -> Options:
    """All weights and activations at one width each; the user's overrides stay above that.

    units: name -> whether it is a layer's weight.
    """
    widths = {name: weight if is_weight else activation for name, is_weight in units.items()}
    overrides = tuple(Override(tensor=escape(name), bits=width) for name, width in widths.items() if width is not None)
    options = replace(options, overrides=(*overrides, *options.overrides))
    if weight is not None and is_rounded_by_coordinate_descent(options, weight):
        return replace(options, rounding="coordinate-descent", effort="fast")
    return options


def is_rounded_by_coordinate_descent(options: Options, weight_bits: int) -> bool:
    """Whether weights of so few bits call for optimised rounding, and the options leave that open."""
    return options.rounding == "auto" and weight_bits < 8 and options.block_size is None


def chosen_options(options: Options, planned: PlannedWidths, bits: Bits) -> Options:
    """The options that quantize with these bits: overrides where the preset says otherwise, and rounding to match."""
    tensors = planned.base.graph.tensors()
    overrides = []
    for unit in sorted(bits, key=list(tensors).index):
        spec = options.weight if unit in planned.weights else options.activation
        if spec is None or bits[unit] != spec.grid.bits:
            overrides.append(Override(tensor=escape(unit), bits=bits[unit]))
    fewest = min((bits[unit] for unit in planned.weights), default=8)
    rounding = "coordinate-descent" if is_rounded_by_coordinate_descent(options, fewest) else options.rounding
    return replace(options, overrides=(*overrides, *options.overrides), rounding=rounding)
