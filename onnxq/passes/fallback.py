"""Exceptions from a grid: activations whose quantization costs the outputs too much get something better (white paper,
section 4.2).

    n_i    noise of the outputs, relative to their power, where activation i alone is quantized, all else in float
    N_k    the same, weights and activations quantized, but for the k activations of largest n_i
    k      maximises   -10 log10 N_k  -  k / n * worth * price     n: number of activations with parameters of their own

An exception has to pay: it costs an integer kernel. `worth` is what it should bring, in dB, to except all of them; the
price of one is its share, so that a network twice as deep gets twice as many. Ranking one by one finds the tensors with
outliers, on which N_k then decides together: where several spoil the outputs, none of them helps alone.

Both are measured with `execution.switches`, an activation that is off being in float. What it can get instead is

    a16        16 bits over the whole range of the calibration data, which may hold every outlier
    dynamic    8 bits over the range of each sample, found at run time, where a product with a matrix reads it
    float      nothing

and each costs noise of its own in what will run the model: ONNX Runtime rounds activations of 16 bits, and floats, to 8
bits in blocks (`Target.rounds_activations`). So each kind, for as many activations as it pays for by N_k, is measured
there (`measure`), beside float for the worst and dynamic for the others; the best of these is taken if it is worth its
price. Where a target's operators read inputs of one width only, the inputs of an operator are switched together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..data import Feed
from ..execution.output_score import OutputScore
from ..execution.services import Services
from ..execution.switches import Switch
from ..graph.model import Model, Quantizer, grid_root
from ..graph.simulate import with_quantizers
from ..thresholds import DYNAMIC_PRICE, FALLBACK_LEAST_DB, FALLBACK_SAMPLES, FALLBACK_WORTH_DB
from .base import Context, Outcome, Skip
from .wider_activations import Together, dynamic_layers, narrow_activations, of_one_width, widen


@dataclass(frozen=True)
class Fallback:
    """Give the activations that need it something better than their grids, as few as possible.

    kinds: of `targets.contradictions.FALLBACKS`, what they may get. measure: dB of a planned model, which it may
    change, in what will run it; None where nothing can be compared; without it N_k decides, and the first of the kinds
    is taken.  worth: dB. least: dB that all exceptions together must bring. samples: how many the search runs on.
    All quantizers must have their parameters.
    """

    kinds: tuple[str, ...] = ("a16",)
    measure: Callable[[Model], float | None] | None = field(default=None, repr=False)
    worth: float = FALLBACK_WORTH_DB
    least: float = FALLBACK_LEAST_DB
    samples: int = FALLBACK_SAMPLES
    title: ClassVar[str] = "Fallback of activations"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        feeds = list(islice(context.choosing, self.samples)) or list(islice(context.feeds, self.samples))
        candidates = narrow_activations(model)
        if not feeds or not candidates:
            missing = "activations of less than 16 bits" if feeds else "calibration data"
            return Outcome(notes=(f"not run: there are no {missing}",))
        search = _Search(model, of_one_width(model, candidates, context.target), feeds, context.services)
        alone = search.alone()
        ranked = sorted(search.groups, key=lambda group: alone[group])
        if self.kinds == ("dynamic",):
            ranked = [group for group in ranked if any(dynamic_layers(model, name) for name in group)]
            if not ranked:
                return Outcome(notes=("no product with a matrix reads a quantized activation",))
        curve = search.together(ranked, self.worth * min(map(_price, self.kinds)))
        exceptions, before, after = self._best(model, ranked, curve, context)
        changed = f"{len(exceptions)} of {len(candidates)} activations changed"
        notes = [f"outputs at {before:.1f} dB, then {after:.1f} dB; {changed}"]
        texts = widen(model, exceptions, context)
        for name, text in texts.items():
            db = next(alone[group] for group in ranked if name in group)
            notes.append(
                f"{name}: outputs at {db:.1f} dB with it alone on {candidates[name].spec.grid.bits} bits; {text}"
            )
        reason = "{} bits suffice: alone they leave the outputs at {:.1f} dB"
        kept = [(name, alone[group]) for group in ranked for name in group if name not in exceptions]
        skips = (Skip(name, reason.format(candidates[name].spec.grid.bits, db)) for name, db in kept)
        return Outcome(len(exceptions), tuple(skips), tuple(notes))

    def _best(
        self, model: Model, ranked: Sequence[Together], curve: Sequence[float], context: Context
    ) -> tuple[dict[str, str], float, float]:
        """The kind that each exception gets, by tensor, and dB without and with them."""
        size = len(ranked)
        counts = {kind: self._count(curve, size, _price(kind)) for kind in self.kinds}
        plans = [dict.fromkeys(ranked[:count], kind) for kind, count in counts.items() if count]
        if counts.get("dynamic", 0) > counts.get("float", 0) > 0:
            plans.append(dict.fromkeys(ranked[: counts["dynamic"]], "dynamic"))
            plans[-1] |= dict.fromkeys(ranked[: counts["float"]], "float")
        before = self._measured(model, {}, context) if plans else None
        if before is None:
            chosen = plans[0] if plans else {}
            return _by_tensor(chosen), curve[0], curve[len(chosen)]
        best, best_score, after = {}, before, before
        for plan in plans:
            db = self._measured(model, _by_tensor(plan), context)
            score = -np.inf if db is None else db - sum(map(_price, plan.values())) * self.worth / size
            if db is not None and score > best_score and db >= before + self.least:
                best, best_score, after = plan, score, db
        return _by_tensor(best), before, after

    def _measured(self, model: Model, exceptions: Mapping[str, str], context: Context) -> float | None:
        if self.measure is None:
            return None
        copy = model.clone()
        widen(copy, exceptions, context)
        return self.measure(copy)

    def _count(self, curve: Sequence[float], total: int, price: float = 1.0) -> int:
        scores = [db - k * price * self.worth / total for k, db in enumerate(curve)]
        best = int(np.argmax(scores))
        return best if curve[best] >= curve[0] + self.least else 0


def _price(kind: str) -> float:
    return DYNAMIC_PRICE if kind == "dynamic" else 1.0


def _by_tensor(plan: Mapping[Together, str]) -> dict[str, str]:
    return {name: kind for group, kind in plan.items() for name in group}


@dataclass
class _Search:
    """Runs the network on the first samples with some of its quantizers on.

    groups: of the candidates. switches: one for each group. others: all other quantizers.
    """

    model: Model
    groups: Sequence[Together]
    feeds: Sequence[Feed]
    services: Services
    switches: dict[Together, Switch] = field(init=False)
    others: dict[str, Quantizer] = field(default_factory=dict)
    score: OutputScore = field(init=False)

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
        self.score = OutputScore(self.model.to_proto(), self.feeds, self.services)

    def alone(self) -> dict[Together, float]:
        """-10 log10 n_i of each group."""
        board, found = self.score.board(self.model.to_proto(), self.switches.values()), {}
        board.hold({})
        for done, (group, switch) in enumerate(self.switches.items(), 1):
            self.services.progress("activations one by one", done, len(self.groups))
            found[group] = board.score({switch.name: switch})
        return found

    def together(self, ranked: Sequence[Together], worth: float) -> list[float]:
        """-10 log10 N_k for k = 0, 1, ..., up to where no further exception can pay."""
        board = self.score.board(
            with_quantizers(self.model.to_proto(), self.others, self.model.unique_name), self.switches.values()
        )
        price, best, ceiling, curve = worth / len(ranked), -np.inf, board.score({}), list[float]()
        for k in range(len(ranked) + 1):
            self.services.progress("activations together", k, len(ranked))
            state = {switch.name: switch for switch in (self.switches[group] for group in ranked[k:])}
            curve.append(board.score(state) if curve else board.hold(state))
            best = max(best, curve[-1] - k * price)
            if ceiling - (k + 1) * price <= best:
                break
        return curve
