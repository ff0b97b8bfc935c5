"""Figure 9, remedies for single tensors: as few of them as possible get what costs as little as possible.

selection     the fewest tensors, from the top of the sensitivity ranking, that must be in float for the target to be
              reached, by simulation; each that may stay quantized after all is dropped from it
range         another range method, which costs nothing
fallback      then all selected tensors go through the fallback order (`remedies.fallback_order`) together, one step
              after the other, until the quantized model reaches the target. Where the last step does not suffice, more
              tensors are selected.
taking back   what was given is taken back or made cheaper, one by one, as long as the target holds
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape

from ..errors import OnnxqError
from ..evaluation.sensitivity import Unit
from ..options import Options, Override
from ..thresholds import LEAST_GAIN_DB
from .candidate import Candidate, Goal, Part, quantized_with
from .log import Log
from .remedies import METHODS, Fallback, fallback_order

PART: Mapping[str, Part] = {"weights": "weights", "activation": "activations"}


@dataclass
class TensorRepair:
    """candidate: the best so far.  options: of the network, without what is given to single tensors here.
    methods: range methods, by unit.  fallbacks: the fallback order of a unit.  levels: the place in it that a unit is
    at; units that are not there have no fallback.
    """

    candidate: Candidate
    goal: Goal
    log: Log
    without: Collection[str]
    options: Options = field(init=False)
    methods: dict[str, str] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, list[Fallback]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.options = self.candidate.options

    @property
    def reached(self) -> bool:
        return self.goal.accepts(self.candidate)

    def run(self, ranking: Sequence[Unit]) -> None:
        """ranking: units, the most sensitive first."""
        selected = self._selected(ranking)
        self.log.write(
            "Single tensors",
            f"By simulation the target is reached with {len(selected)} of {len(ranking)} tensors in float:"
            f" {names(selected)}.",
        )
        if "tensor-range" not in self.without:
            self._other_ranges(selected)
            if self.reached or not self.methods:
                selected = [] if self.reached else selected
            else:
                selected = self._selected(ranking)
        self._more_precision(selected, [unit for unit in ranking if unit not in selected])

    def take_back(self) -> None:
        """Lower or drop what costs something, the least sensitive tensors first, as long as the target holds."""
        if not self.reached:
            return
        for name in reversed(list(self.levels)):
            for level in range(-1, self.levels[name]):
                fewer = {n: at for n, at in self.levels.items() if n != name} | ({name: level} if level >= 0 else {})
                now = self.fallbacks[name][self.levels[name]].title
                change = f"{self.fallbacks[name][level].title} instead of {now}" if level >= 0 else f"without {now}"
                if self._attempt(f"Take back: {name}, {change}", fewer, must_reach=True):
                    break

    def given(self, name: str) -> str:
        """What a tensor was given; empty: nothing."""
        if name in self.levels:
            return self.fallbacks[name][self.levels[name]].title
        return f"range by {self.methods[name]}" if name in self.methods else ""

    # --- which tensors ----------------------------------------------------------------------------------------

    def _selected(self, ranking: Sequence[Unit]) -> list[Unit]:
        """The fewest from the top of the ranking that must be in float, if those in front of them are."""
        low, high = 0, len(ranking)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._reaches_without(ranking[:middle]) else (middle, high)
        selected = list(ranking[:high])
        for unit in reversed(selected[:-1]):
            fewer = [other for other in selected if other is not unit]
            if self._reaches_without(fewer):
                selected = fewer
        return selected

    def _reaches_without(self, units: Sequence[Unit]) -> bool:
        off = {unit.name for unit in units}
        return self.goal.reached(self.candidate.alone(name for name in self.candidate.switches if name not in off))

    # --- range methods ----------------------------------------------------------------------------------------

    def _other_ranges(self, selected: Sequence[Unit]) -> None:
        """Try each method on all selected tensors at once; each of them keeps the method that is best for it."""
        best = {unit.name: self.candidate.db_alone(unit.name) for unit in selected}
        start = dict(best)
        for method in dict.fromkeys(m for part in METHODS.values() for m in part):
            units = [unit for unit in selected if method in METHODS[PART[unit.kind]]]
            tried = self._try(self._composed({unit.name: method for unit in units}, {})) if units else None
            for unit in units if tried is not None else ():
                assert tried is not None
                db = tried.db_alone(unit.name)
                if db > best[unit.name] + LEAST_GAIN_DB:
                    best[unit.name], self.methods[unit.name] = db, method
        if not self.methods:
            self.log.write("Other range methods", "None is better for any of these tensors than the one that it has.")
            return
        lines = [f"{n}: {m}, alone at {best[n]:.1f} dB instead of {start[n]:.1f} dB." for n, m in self.methods.items()]
        if not self._attempt("Other range methods", {}, *lines):
            self.methods = {}

    # --- more precision ---------------------------------------------------------------------------------------

    def _more_precision(self, selected: Sequence[Unit], others: Sequence[Unit]) -> None:
        """Give all selected tensors their first fallback, then the next ones; then the same to more tensors."""
        rest, level = list(others), 0
        last: dict[str, int] = {}
        while not self.reached and selected:
            for unit in selected:
                self.fallbacks.setdefault(unit.name, self._fallback_order(unit))
            levels = {u.name: min(level, len(self.fallbacks[u.name]) - 1) for u in selected if self.fallbacks[u.name]}
            if levels != last:
                lines = [f"{name}: {self.fallbacks[name][at].title}." for name, at in levels.items()]
                self._attempt("More precision for single tensors", levels, *lines)
                last, level = levels, level + 1
            elif rest:
                selected, rest = [*selected, *rest[: len(selected)]], rest[len(selected) :]
                self.log.write("More precision for single tensors", f"Not enough: now for {len(selected)} tensors.")
            else:
                return

    def _fallback_order(self, unit: Unit) -> list[Fallback]:
        quantizer = self.candidate.planned.quantizers.get(unit.name)
        params = None if quantizer is None else quantizer.params
        whole = unit.kind == "weights" and params is not None and params.axis is None and params.block is None
        return fallback_order(unit.name, PART[unit.kind], self.options, whole, self.without)

    # --- trying -----------------------------------------------------------------------------------------------

    def _attempt(self, title: str, levels: Mapping[str, int], *lines: str, must_reach: bool = False) -> bool:
        """Take these levels if the model is no worse for them, or, where it must be, still reaches the target."""
        tried = self._try(self._composed(self.methods, levels))
        if tried is None:
            return False
        kept = self.goal.accepts(tried) if must_reach else not self.goal.better(self.candidate.whole, tried.whole)
        verdict = "kept" if kept else "not kept"
        if must_reach and not kept:
            verdict = "the target would be missed: it stays"
        outcome = f"{self.log.change(self.candidate, tried)}: {verdict}."
        self.log.write(title, *lines, outcome, self.log.objection(self.goal, tried))
        if kept:
            self.candidate, self.levels = tried, dict(levels)
        return kept

    def _try(self, options: Options) -> Candidate | None:
        try:
            return quantized_with(self.candidate.evaluator, options)
        except OnnxqError as error:
            self.log.write("Not possible", str(error))
            return None

    def _composed(self, methods: Mapping[str, str], levels: Mapping[str, int]) -> Options:
        ranges = [Override(escape(name), method=method) for name, method in methods.items()]
        precision = [self.fallbacks[name][level].override for name, level in levels.items()]
        return replace(self.options, overrides=(*self.options.overrides, *ranges, *precision))


def names(units: Sequence[Unit], most: int = 10) -> str:
    """For messages."""
    some = ", ".join(unit.name for unit in units[:most])
    return some + (f" and {len(units) - most} more" if len(units) > most else "")
