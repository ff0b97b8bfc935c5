"""The log of the workflow: what was measured, tried and kept, and why, written down as it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..evaluation.metric import Metric, SqnrMetric
from ..report import LogEntry
from .candidate import Candidate, Goal, Score

OnEntry = Callable[[LogEntry], None]


@dataclass
class Log:
    """metric: whose scores are written.  on_entry: called with every entry as soon as it is written."""

    metric: Metric
    on_entry: OnEntry | None = None
    entries: list[LogEntry] = field(default_factory=list)

    def write(self, title: str, *lines: str, unit: str = "", figures: Iterable[tuple[str, float]] = ()) -> None:
        """Add an entry; of the figures, those that are not finite are left out."""
        shown = tuple((label, float(value)) for label, value in figures if math.isfinite(value))
        entry = LogEntry(title, "\n".join(line for line in lines if line), unit, shown)
        self.entries.append(entry)
        if self.on_entry is not None:
            self.on_entry(entry)

    def value(self, value: float) -> str:
        """A value of the metric with its unit."""
        return score_text(value, self.metric.unit)

    def score(self, score: Score) -> str:
        """A score, and the SQNR beside it unless that is the score."""
        if isinstance(self.metric, SqnrMetric):
            return self.value(score.value)
        return f"{self.value(score.value)} ({score_text(score.db, 'dB')})"

    def change(self, before: Candidate, after: Candidate) -> str:
        """The scores of two quantized models, one after the other."""
        return f"{self.score(before.whole)} -> {self.score(after.whole)}"

    def objection(self, goal: Goal, candidate: Candidate) -> str:
        """A line for a model that reaches the target, but not on held-out samples; else nothing."""
        check = goal.held_out_check
        if check is None or not goal.reached(candidate.whole) or check.passes(candidate):
            return ""
        unit = check.evaluator.metric.unit
        found = score_text(candidate.held_out_score or 0.0, unit)
        return f"The target is reached, but not on held-out samples: {found}, {score_text(check.needed, unit)} needed."


def score_text(value: float, unit: str) -> str:
    """`61.50 %`, `23.4 dB`, `-0.0213 nats`; an infinite SQNR says that nothing differs."""
    if math.isinf(value):
        return "identical" if value > 0 else "not finite"
    digits = {"%": ".2f", "dB": ".1f"}.get(unit, ".5g")
    return f"{value:{digits}} {unit}".rstrip()
