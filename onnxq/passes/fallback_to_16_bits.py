"""Exceptions from 8 bits: activations whose grid costs the outputs too much get 16 bits (white paper, section 4.2).

    n_i    noise of the outputs, relative to their power, where activation i alone is on its grid, all else in float
    N_k    the same, weights and activations on their grids, but for the k activations of largest n_i
    k      maximises   -10 log10 N_k  -  k / n * worth            n: number of activations with a grid of their own

An exception has to pay: it costs an integer kernel. `worth` is what it should bring, in dB, to widen all of them; the
price of one is its share, so that a network twice as deep gets twice as many. Ranking one by one finds the tensors with
outliers, on which N_k then decides together: where several spoil the outputs, none of them helps alone.

Both are measured by running the network with a switch at each grid, in float where it is on: 16 bits cost next to
nothing, and their range may hold every outlier, so it is that of the calibration data. Where a target's operators read
inputs of one width only, the inputs of an operator are switched together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from ..calibration.collect import collect_tensors
from ..data import Feed
from ..execution.session import Session, parallel_map, without_padding
from ..graph.model import Model, Quantizer, drop_quantizer, grid_root
from ..graph.simulate import with_quantizers
from ..numeric.histogram import Histogram
from ..numeric.metrics import OutputSqnr
from ..numeric.quant import QuantParams, QuantSpec
from ..numeric.samples import Samples, Statistic
from ..targets import Target
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class FallbackTo16Bits:
    """Give 16 bits, or float where the target has no such type, to the activations that need them, as few as possible.

    worth: dB. least: dB that all exceptions together must bring. samples: how many the search runs on.
    All quantizers must have their answers.
    """

    worth: float = 20.0
    least: float = 1.0
    samples: int = 16
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        feeds = list(islice(context.feeds, self.samples))
        candidates = _candidates(model)
        if not feeds or not candidates:
            missing = "activations on grids of less than 16 bits" if feeds else "calibration data"
            return Outcome(notes=(f"not run: there are no {missing}",))
        if "whole-operators" in context.target.requirements and not _reads_16_bits(context.target):
            return Outcome(notes=(f"not run: {context.target.name} reads no 16-bit activations, and none in float",))
        groups = _groups(model, candidates, context.target)
        alone = _alone(model, groups, feeds, context)
        ranked = sorted(groups, key=lambda group: alone[group])
        curve = _curve(model, ranked, feeds, context, self.worth)
        count = self._count(curve, len(ranked))
        chosen = [(name, alone[group]) for group in ranked[:count] for name in group]
        known = _statistics(model, [name for name, _ in chosen], context)
        widened = f"{len(chosen)} of {len(candidates)} grids widened"
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
    """Quantizers of activations with a grid of their own that is not wide already."""
    tensors = model.graph.tensors()
    return {
        name: q
        for name, q in model.quantizers.items()
        if q.grid_of is None and q.params is not None and isinstance(tensors[name], gs.Variable)
        if q.params.grid.bits < 16 and not q.given
    }


def _reads_16_bits(target: Target) -> bool:
    return bool({"uint16", "int16"} & set(target.activation_types))


Group: TypeAlias = tuple[str, ...]


def _groups(model: Model, candidates: Mapping[str, Quantizer], target: Target) -> list[Group]:
    """Candidates that must have one width: the inputs of an operator, where the target mixes no widths."""
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
class _Switched:
    """The network with its grids, each in force where its switch is off. constants: whether they are on grids too."""

    model: Model
    feeds: Sequence[Feed]
    threads: int
    roots: Sequence[str]
    constants: bool
    session: Session = field(init=False)
    switches: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        model, tensors = self.model, self.model.graph.tensors()
        self.switches = {root: model.unique_name(f"{root}_in_float") for root in self.roots}
        quantizers, switches = {}, {}
        for name, quantizer in model.quantizers.items():
            root = grid_root(model.quantizers, name)
            if isinstance(tensors[name], gs.Variable) and root in self.switches:
                switches[name] = self.switches[root]
            if name in switches or self.constants:
                quantizers[name] = quantizer
        proto = with_quantizers(model.to_proto(), quantizers, model.unique_name, switches)
        proto.graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in self.switches.values()
        )
        self.session = Session(proto)

    def db(self, references: Sequence[Mapping[str, np.ndarray]], in_float: Iterable[Group]) -> float:
        """SQNR of the outputs with these roots in float, all others on their grids."""
        chosen = {root for group in in_float for root in group}
        given = {switch: np.asarray(root in chosen) for root, switch in self.switches.items()}
        total = OutputSqnr()
        runs = parallel_map(lambda feed: self.session.run({**feed.arrays, **given}), self.feeds, self.threads)
        for feed, reference, outputs in zip(self.feeds, references, runs, strict=True):
            total.update(_real(reference, feed), _real(outputs, feed))
        return total.db

    def references(self) -> list[Mapping[str, np.ndarray]]:
        """The float network's outputs for each feed."""
        session = Session(self.model.to_proto())
        return list(parallel_map(lambda feed: session.run(feed.arrays), self.feeds, self.threads))


def _real(outputs: Mapping[str, np.ndarray], feed: Feed) -> dict[str, np.ndarray]:
    return {name: without_padding(value, feed) for name, value in outputs.items()}


def _alone(model: Model, groups: Sequence[Group], feeds: Sequence[Feed], context: Context) -> dict[Group, float]:
    """-10 log10 n_i of each group."""
    network = _Switched(
        model, feeds, context.services.threads, [root for group in groups for root in group], constants=False
    )
    references, found = network.references(), {}
    for done, group in enumerate(groups, 1):
        context.services.progress("activations one by one", done, len(groups))
        found[group] = network.db(references, [other for other in groups if other != group])
    return found


def _curve(model: Model, ranked: Sequence[Group], feeds: Sequence[Feed], context: Context, worth: float) -> list[float]:
    """-10 log10 N_k for k = 0, 1, ..., up to where no further exception can pay."""
    network = _Switched(
        model, feeds, context.services.threads, [root for group in ranked for root in group], constants=True
    )
    references, price = network.references(), worth / len(ranked)
    ceiling, curve, best = network.db(references, ranked), [], -np.inf
    for k in range(len(ranked) + 1):
        context.services.progress("activations together", k, len(ranked))
        curve.append(network.db(references, ranked[:k]))
        best = max(best, curve[-1] - k * price)
        if ceiling - (k + 1) * price <= best:
            break
    return curve


def _statistics(model: Model, names: Sequence[str], context: Context) -> dict[str, Samples]:
    """What the roots take on calibration data, with the tensors that share their grids."""
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
    """Give the root and those that keep its grid 16 bits, or leave them in float; what they are now."""
    quantizer = model.quantizers[root]
    spec: QuantSpec = replace(quantizer.spec, grid=replace(quantizer.spec.grid, bits=16))
    lo, hi = quantizer.fixed or (samples.lo[0], samples.hi[0])
    params = QuantParams.from_range(np.asarray(lo), np.asarray(hi), spec)
    if params.grid.dtype.name not in target.activation_types:
        drop_quantizer(model, root)
        return f"in float, since {target.name} reads no {params.grid.dtype.name}"
    for name, other in list(model.quantizers.items()):
        if grid_root(model.quantizers, name) == root:
            model.quantizers[name] = replace(other, spec=spec).with_params(params)
    return str(params.grid)
