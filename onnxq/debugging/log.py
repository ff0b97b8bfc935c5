"""What a workflow did and why, written down as it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..evaluation.metric import Metric, SqnrMetric
from ..report import LogEntry
from .trial import Goal, Standing, Trial

Say = Callable[[LogEntry], None]


@dataclass
class Log:
    """metric: whose scores are told.  say: called with every entry as soon as it is written."""

    metric: Metric
    say: Say | None = None
    entries: list[LogEntry] = field(default_factory=list)

    def write(self, title: str, *lines: str, unit: str = "", figures: Iterable[tuple[str, float]] = ()) -> None:
        """figures: what is not finite is left out."""
        shown = tuple((label, float(value)) for label, value in figures if math.isfinite(value))
        entry = LogEntry(title, "\n".join(line for line in lines if line), unit, shown)
        self.entries.append(entry)
        if self.say is not None:
            self.say(entry)

    def score(self, value: float) -> str:
        """A score with its unit."""
        return score_text(value, self.metric.unit)

    def standing(self, found: Standing) -> str:
        """A score, and the SQNR beside it unless that is the score."""
        if isinstance(self.metric, SqnrMetric):
            return self.score(found.score)
        return f"{self.score(found.score)} ({score_text(found.db, 'dB')})"

    def objection(self, goal: Goal, trial: Trial) -> str:
        """What to say where a model reaches the target, but not on other data; else nothing."""
        gate = goal.gate
        if gate is None or not goal.reached(trial.whole) or gate.passes(trial):
            return ""
        unit = gate.study.metric.unit
        found = score_text(trial.apart or 0.0, unit)
        return f"The target is reached, but not on the other samples: {found}, {score_text(gate.needed, unit)} needed."


def score_text(value: float, unit: str) -> str:
    """`61.50 %`, `23.4 dB`, `-0.0213 nats`; an infinite SQNR says that nothing differs."""
    if math.isinf(value):
        return "identical" if value > 0 else "not finite"
    digits = {"%": ".2f", "dB": ".1f"}.get(unit, ".5g")
    return f"{value:{digits}} {unit}".rstrip()
