"""Single tensors that cost too much: as few of them as possible get what costs as little as possible.

suspects    the fewest tensors, from the top of the ranking, that must leave their grids for the target to be
            reached, by simulation; each that may stay after all is let go again
ladders     another range method, which is free; then all suspects go up one fallback after the other
            (`remedies.fallback_order`) until the quantized model reaches the target. Where the tops do not suffice,
            there are more suspects.
back        what was given is taken back or made cheaper, one by one, as long as the target holds
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape

from ..errors import OnnxqError
from ..evaluation.sensitivity import Unit
from ..options import Options, Override
from ..thresholds import LEAST_GAIN_DB
from .log import Log
from .remedies import METHODS, Fallback, fallback_order
from .trial import Goal, Part, Trial, try_options

PART: Mapping[str, Part] = {"weights": "weights", "activation": "activations"}


@dataclass
class TensorRepair:
    """trial: the best so far.  options: of the network, without what is given to single tensors here.
    methods: range methods, by unit.  heights: fallbacks of units; those that are not there have none.
    """

    trial: Trial
    goal: Goal
    log: Log
    without: Collection[str]
    options: Options = field(init=False)
    methods: dict[str, str] = field(default_factory=dict)
    heights: dict[str, int] = field(default_factory=dict)
    ladders: dict[str, list[Fallback]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.options = self.trial.options

    @property
    def reached(self) -> bool:
        return self.goal.accepts(self.trial)

    def run(self, ranking: Sequence[Unit]) -> None:
        """ranking: units, the most harmful first."""
        suspects = self._suspects(ranking)
        self.log.write(
            "Single tensors",
            f"By simulation the target is reached with {len(suspects)} of {len(ranking)} tensors off their grids:"
            f" {names(suspects)}.",
        )
        if "tensor-range" not in self.without:
            self._other_ranges(suspects)
            if self.reached or not self.methods:
                suspects = [] if self.reached else suspects
            else:
                suspects = self._suspects(ranking)
        self._climb(suspects, [unit for unit in ranking if unit not in suspects])

    def take_back(self) -> None:
        """Lower or drop what costs something, the least harmful tensors first, as long as the target holds."""
        if not self.reached:
            return
        for name in reversed(list(self.heights)):
            for height in range(-1, self.heights[name]):
                fewer = {n: h for n, h in self.heights.items() if n != name} | ({name: height} if height >= 0 else {})
                fallback = self.ladders[name][self.heights[name]].title
                given = (
                    f"{self.ladders[name][height].title} instead of {fallback}"
                    if height >= 0
                    else f"without {fallback}"
                )
                title = f"Take back: {name}, {given}"
                if self._attempt(title, fewer, must_reach=True):
                    break

    def given(self, name: str) -> str:
        """What a tensor was given; empty: nothing."""
        if name in self.heights:
            return self.ladders[name][self.heights[name]].title
        return f"range by {self.methods[name]}" if name in self.methods else ""

    # --- which tensors ----------------------------------------------------------------------------------------

    def _suspects(self, ranking: Sequence[Unit]) -> list[Unit]:
        """The fewest from the top of the ranking that must be off their grids, if those in front of them are."""
        low, high = 0, len(ranking)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._reaches_without(ranking[:middle]) else (middle, high)
        suspects = list(ranking[:high])
        for unit in reversed(suspects[:-1]):
            fewer = [other for other in suspects if other is not unit]
            if self._reaches_without(fewer):
                suspects = fewer
        return suspects

    def _reaches_without(self, units: Sequence[Unit]) -> bool:
        off = {unit.name for unit in units}
        return self.goal.reached(self.trial.alone(name for name in self.trial.groups if name not in off))

    # --- range methods ----------------------------------------------------------------------------------------

    def _other_ranges(self, suspects: Sequence[Unit]) -> None:
        """Try each method on all suspects at once; every one of them keeps the method that serves it best."""
        best = {unit.name: self.trial.db_alone(unit.name) for unit in suspects}
        start = dict(best)
        for method in dict.fromkeys(m for part in METHODS.values() for m in part):
            units = [unit for unit in suspects if method in METHODS[PART[unit.kind]]]
            tried = self._try(self._composed({unit.name: method for unit in units}, {})) if units else None
            for unit in units if tried is not None else ():
                assert tried is not None
                db = tried.db_alone(unit.name)
                if db > best[unit.name] + LEAST_GAIN_DB:
                    best[unit.name], self.methods[unit.name] = db, method
        if not self.methods:
            self.log.write("Other range methods", "None serves any of these tensors better than the one that it has.")
            return
        told = [f"{n}: {m}, alone at {best[n]:.1f} dB instead of {start[n]:.1f} dB." for n, m in self.methods.items()]
        if not self._attempt("Other range methods", {}, *told):
            self.methods = {}

    # --- more precision ---------------------------------------------------------------------------------------

    def _climb(self, suspects: Sequence[Unit], others: Sequence[Unit]) -> None:
        """Give all suspects the lowest fallback, then the next ones; then others the highest."""
        rest, level = list(others), 0
        last: dict[str, int] = {}
        while not self.reached and suspects:
            for unit in suspects:
                self.ladders.setdefault(unit.name, self._ladder(unit))
            heights = {u.name: min(level, len(self.ladders[u.name]) - 1) for u in suspects if self.ladders[u.name]}
            if heights != last:
                self._attempt("More precision for single tensors", heights, *self._told(heights))
                last, level = heights, level + 1
            elif rest:
                suspects, rest = [*suspects, *rest[: len(suspects)]], rest[len(suspects) :]
                self.log.write("More precision for single tensors", f"Not enough: now for {len(suspects)} tensors.")
            else:
                return

    def _told(self, heights: Mapping[str, int]) -> list[str]:
        return [f"{name}: {self.ladders[name][height].title}." for name, height in heights.items()]

    def _ladder(self, unit: Unit) -> list[Fallback]:
        params = self.trial.planned.quantizers[unit.name].params if unit.name in self.trial.planned.quantizers else None
        whole = unit.kind == "weights" and params is not None and params.axis is None and params.block is None
        return fallback_order(unit.name, PART[unit.kind], self.options, whole, self.without)

    # --- trying -----------------------------------------------------------------------------------------------

    def _attempt(self, title: str, heights: Mapping[str, int], *lines: str, must_reach: bool = False) -> bool:
        """Take these heights if the model is no worse for them, or, where it must be, still reaches the target."""
        tried = self._try(self._composed(self.methods, heights))
        if tried is None:
            return False
        before, after = self.trial.whole, tried.whole
        kept = self.goal.accepts(tried) if must_reach else not self.goal.better(before, after)
        verdict = "kept" if kept else "not kept"
        if must_reach and not kept:
            verdict = "the target would be missed: it stays"
        outcome = f"{self.log.standing(before)} -> {self.log.standing(after)}: {verdict}."
        self.log.write(title, *lines, outcome, self.log.objection(self.goal, tried))
        if kept:
            self.trial, self.heights = tried, dict(heights)
        return kept

    def _try(self, options: Options) -> Trial | None:
        try:
            return try_options(self.trial.study, options)
        except OnnxqError as error:
            self.log.write("Not possible", str(error))
            return None

    def _composed(self, methods: Mapping[str, str], heights: Mapping[str, int]) -> Options:
        ranges = [Override(escape(name), method=method) for name, method in methods.items()]
        precision = [self.ladders[name][height].override for name, height in heights.items()]
        return replace(self.options, overrides=(*self.options.overrides, *ranges, *precision))


def names(units: Sequence[Unit], most: int = 10) -> str:
    """For messages."""
    some = ", ".join(unit.name for unit in units[:most])
    return some + (f" and {len(units) - most} more" if len(units) > most else "")
