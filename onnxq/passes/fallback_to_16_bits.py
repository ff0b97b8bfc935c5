"""Exceptions from 8 bits: activations whose quantization costs the outputs too much get 16 bits (white paper, section
4.2).

    n_i    noise of the outputs, relative to their power, where activation i alone is quantized, all else in float
    N_k    the same, weights and activations quantized, but for the k activations of largest n_i
    k      maximises   -10 log10 N_k  -  k / n * worth            n: number of activations with parameters of their own

An exception has to pay: it costs an integer kernel. `worth` is what it should bring, in dB, to widen all of them; the
price of one is its share, so that a network twice as deep gets twice as many. Ranking one by one finds the tensors with
outliers, on which N_k then decides together: where several spoil the outputs, none of them helps alone.

Both are measured with `execution.switches`, an activation that is off being in float: 16 bits cost next to nothing, and
their range may hold every outlier, so it is that of the calibration data. Where a target's operators read inputs of one
width only, the inputs of an operator are switched together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..calibration.collect import collect_tensors
from ..data import Feed
from ..execution.compare_outputs import Outputs, output_sqnr, reference_outputs
from ..execution.observe import observed
from ..execution.services import Services
from ..execution.switches import Switch, Switchboard
from ..graph.comparable import Comparable, comparables
from ..graph.model import Model, Quantizer, drop_quantizer, grid_root
from ..graph.simulate import with_quantizers
from ..numeric.histogram import Histogram
from ..numeric.quant import QuantParams, QuantSpec
from ..numeric.samples import Samples, Statistic
from ..report import Reason
from ..targets import Target
from ..thresholds import A16_LEAST_DB, A16_SAMPLES, A16_WORTH_DB
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class FallbackTo16Bits:
    """Give 16 bits, or float where the target has no such type, to the activations that need them, as few as possible.

    worth: dB. least: dB that all exceptions together must bring. samples: how many the search runs on.
    All quantizers must have their parameters.
    """

    worth: float = A16_WORTH_DB
    least: float = A16_LEAST_DB
    samples: int = A16_SAMPLES
    title: ClassVar[str] = "16-bit fallback"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        feeds = list(islice(context.choosing, self.samples)) or list(islice(context.feeds, self.samples))
        candidates = _candidates(model)
        if not feeds or not candidates:
            missing = "activations of less than 16 bits" if feeds else "calibration data"
            return Outcome(notes=(f"not run: there are no {missing}",))
        if "whole-operators" in context.target.requirements and not _reads_16_bits(context.target):
            return Outcome(notes=(f"not run: {context.target.name} reads no 16-bit activations, and none in float",))
        search = _Search(model, _groups(model, candidates, context.target), feeds, context.services)
        alone = search.alone()
        ranked = sorted(search.groups, key=lambda group: alone[group])
        curve = search.together(ranked, self.worth)
        count = self._count(curve, len(ranked))
        chosen = [(name, alone[group]) for group in ranked[:count] for name in group]
        known = _statistics(model, [name for name, _ in chosen], context)
        widened = f"{len(chosen)} of {len(candidates)} activations widened"
        notes = [f"outputs at {curve[0]:.1f} dB, then {curve[count]:.1f} dB; {widened}"]
        for name, db in chosen:
            made = _widen(model, name, known[name], context.target)
            notes.append(
                f"{name}: largest value {_crest(known[name]):.0f} times the root mean square, outputs at"
                f" {db:.1f} dB with it alone on {candidates[name].spec.grid.bits} bits; now {made}"
            )
        reason = "{} bits suffice: alone they leave the outputs at {:.1f} dB"
        kept = [(name, alone[group]) for group in ranked[count:] for name in group]
        skips = (Skip(name, reason.format(candidates[name].spec.grid.bits, db)) for name, db in kept)
        return Outcome(len(chosen), tuple(skips), tuple(notes))

    def _count(self, curve: Sequence[float], total: int) -> int:
        scores = [db - k * self.worth / total for k, db in enumerate(curve)]
        best = int(np.argmax(scores))
        return best if curve[best] >= curve[0] + self.least else 0


def _candidates(model: Model) -> dict[str, Quantizer]:
    """Quantizers of activations with parameters of their own and less than 16 bits."""
    tensors = model.graph.tensors()
    return {
        name: q
        for name, q in model.quantizers.items()
        if q.grid_of is None and q.params is not None and isinstance(tensors[name], gs.Variable)
        if q.params.grid.bits < 16 and not q.given
    }


def _reads_16_bits(target: Target) -> bool:
    return bool({"uint16", "int16"} & set(target.activation_types))


Together: TypeAlias = tuple[str, ...]
"""Tensors that must have one width."""


def _groups(model: Model, candidates: Mapping[str, Quantizer], target: Target) -> list[Together]:
    """All candidates: each alone, or with the other inputs of an operator where the target mixes no widths."""
    leader = {name: name for name in candidates}
    if "one-width" in target.requirements:
        for node in model.graph.nodes:
            read = [grid_root(model.quantizers, t.name) for t in node.inputs if t.name in model.quantizers]
            first, *others = list(dict.fromkeys(name for name in read if name in leader)) or [""]
            leader = {
                name: leader[first] if known in map(leader.get, others) else known for name, known in leader.items()
            }
    return [tuple(n for n, known in leader.items() if known == name) for name in dict.fromkeys(leader.values())]


@dataclass
class _Search:
    """Runs the network on the first samples with some of its quantizers on.

    groups: of the candidates. switches: one for each group. others: all other quantizers. references: what is
    comparable of the float model's outputs (`graph.comparable`).
    """

    model: Model
    groups: Sequence[Together]
    feeds: Sequence[Feed]
    services: Services
    switches: dict[Together, Switch] = field(init=False)
    others: dict[str, Quantizer] = field(default_factory=dict)
    references: list[dict[str, Any]] = field(init=False)
    compared: tuple[Comparable, ...] = field(init=False)

    def __post_init__(self) -> None:
        tensors, quantizers = self.model.graph.tensors(), self.model.quantizers
        group_of = {name: group for group in self.groups for name in group}
        members: dict[Together, list[Quantizer]] = {group: [] for group in self.groups}
        for name, quantizer in quantizers.items():
            group = group_of.get(grid_root(quantizers, name))
            if group is not None and isinstance(tensors[name], gs.Variable):
                members[group].append(quantizer)
            else:
                self.others[name] = quantizer
        self.switches = {group: Switch(group[0], tuple(found)) for group, found in members.items()}
        proto = self.model.to_proto()
        self.compared = comparables(proto)
        found = reference_outputs(observed(proto, self.compared), self.feeds, self.services.threads)
        wanted = {each.label for each in self.compared}
        self.references = [{name: value for name, value in each.items() if name in wanted} for each in found]

    def alone(self) -> dict[Together, float]:
        """-10 log10 n_i of each group."""
        board, found = self._switchboard(self.model.to_proto()), {}
        board.hold({})
        for done, (group, switch) in enumerate(self.switches.items(), 1):
            self.services.progress("activations one by one", done, len(self.groups))
            found[group] = board.score({switch.name: switch})
        return found

    def together(self, ranked: Sequence[Together], worth: float) -> list[float]:
        """-10 log10 N_k for k = 0, 1, ..., up to where no further exception can pay."""
        board = self._switchboard(with_quantizers(self.model.to_proto(), self.others, self.model.unique_name))
        price, best, ceiling, curve = worth / len(ranked), -np.inf, board.score({}), list[float]()
        for k in range(len(ranked) + 1):
            self.services.progress("activations together", k, len(ranked))
            state = {switch.name: switch for switch in (self.switches[group] for group in ranked[k:])}
            curve.append(board.score(state) if curve else board.hold(state))
            best = max(best, curve[-1] - k * price)
            if ceiling - (k + 1) * price <= best:
                break
        return curve

    def _switchboard(self, proto: ModelProto) -> Switchboard:
        return Switchboard(
            observed(proto, self.compared), self.switches.values(), self.feeds, self._db,
            threads=self.services.threads, max_memory=self.services.max_memory, outputs_quantized=False,
        )  # fmt: skip

    def _db(self, outputs: Iterable[tuple[Feed, Outputs]]) -> float:
        """SQNR of the outputs; infinite where none is comparable, since that is no reason to widen anything."""
        found = output_sqnr(zip(self.references, (each for _, each in outputs), strict=True))
        return np.inf if found is None else found


def _statistics(model: Model, names: Sequence[str], context: Context) -> dict[str, Samples]:
    """Calibration statistics of the roots, those of tensors that share their quantizers included."""
    members = {name: (name, *model.quantizers[name].widened_by) for name in names}
    wanted = [tensor for tensors in members.values() for tensor in tensors]
    known: Mapping[str, Statistic] = {}
    if wanted and context.statistics is not None:
        known = context.statistics.tensors
    elif wanted:
        known = collect_tensors(model, wanted, context, lambda name: Histogram(), "measuring exceptions")
    found = {}
    for name, (first, *others) in members.items():
        total = getattr(known[first], "histogram", known[first])
        for other in others:
            total = total.merge(getattr(known[other], "histogram", known[other]))
        found[name] = total.samples()
    return found


def _crest(samples: Samples) -> float:
    """Largest magnitude over root mean square."""
    power = float((np.square(samples.values) * samples.counts).sum() / max(samples.counts.sum(), 1))
    return float(max(samples.hi[0], -samples.lo[0]) / max(np.sqrt(power), np.finfo(np.float64).tiny))


def _widen(model: Model, root: str, samples: Samples, target: Target) -> str:
    """Give the root and those that share its quantizer 16 bits, or leave them in float; returns what they are now."""
    quantizer = model.quantizers[root]
    spec: QuantSpec = replace(quantizer.spec, grid=replace(quantizer.spec.grid, bits=16))
    lo, hi = quantizer.fixed or (samples.lo[0], samples.hi[0])
    params = QuantParams.from_range(np.asarray(lo), np.asarray(hi), spec)
    if params.grid.dtype.name not in target.activation_types:
        text = f"{quantizer.spec.grid.bits} bits cost the outputs too much, and {target.name} reads no"
        drop_quantizer(model, root, Reason("target", f"{text} {params.grid.dtype.name}"))
        return f"in float, since {target.name} reads no {params.grid.dtype.name}"
    for name, other in list(model.quantizers.items()):
        if grid_root(model.quantizers, name) == root:
            model.quantizers[name] = replace(other, spec=spec).with_params(params)
    return str(params.grid)
