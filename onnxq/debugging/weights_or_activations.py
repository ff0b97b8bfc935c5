"""Figure 9, second box: is it the weights or the activations that cost too much?

All weights are quantized with all activations in float, and the other way round. The part with the lower score is
repaired first; where either alone reaches the target, both are, since their noise adds up.
"""

from __future__ import annotations

from .candidate import Candidate, Goal, Part
from .log import Log


def worse_first(candidate: Candidate, goal: Goal) -> list[Part]:
    """Weights and activations, the part with the lower score first."""
    first, second = candidate.parts
    return [second, first] if goal.better(candidate.parts[first], candidate.parts[second]) else [first, second]


def parts_to_repair(candidate: Candidate, goal: Goal) -> list[Part]:
    """The parts that miss the target alone, the worse first; both where neither does."""
    parts = worse_first(candidate, goal)
    return [part for part in parts if not goal.reached(candidate.parts[part])] or parts


def log_parts(candidate: Candidate, goal: Goal, log: Log) -> None:
    """Write down what weights alone and activations alone cost."""
    scores = {part: candidate.parts[part] for part in worse_first(candidate, goal)}
    missed = [part for part, score in scores.items() if not goal.reached(score)]
    verdict = "Either alone reaches the target; their noise adds up."
    if missed:
        verdict = f"What misses the target alone: {' and '.join(missed)}."
    lines = [f"{part.capitalize()} alone quantized: {log.score(score)}." for part, score in scores.items()]
    figures = [(part, score.value) for part, score in scores.items()]
    log.write("Weights or activations", *lines, verdict, unit=log.metric.unit, figures=figures)
