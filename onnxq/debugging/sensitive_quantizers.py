"""Figure 9, third box: every quantizer alone. Those that miss the target alone, why, and what became of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..evaluation.sensitivity import SensitivityAnalysis, UnitEffect
from ..thresholds import CLEAR_DB, EXAMINED_OTHERWISE, MOST_EXAMINED
from .candidate import Candidate, Goal
from .log import Log, score_text
from .root_cause import Cause, find_causes


@dataclass
class SensitiveQuantizer:
    """db: SQNR of the outputs with it alone quantized, at first.  repaired_by: a remedy; empty where there is none."""

    name: str
    kind: str
    causes: tuple[Cause, ...]
    db: float
    repaired_by: str = ""


def find_sensitive_quantizers(
    candidate: Candidate, goal: Goal, ranking: SensitivityAnalysis, log: Log
) -> list[SensitiveQuantizer]:
    """Those that miss the target alone, the worst first; where there are none, those that cost most."""
    effects = ranking.measured
    missing = [effect for effect in effects if effect.only is not None and effect.only < goal.needed]
    examined = missing[:MOST_EXAMINED] or list(effects[:EXAMINED_OTHERWISE])
    units = {unit.name: unit for unit in candidate.units}
    found = [
        SensitiveQuantizer(
            effect.unit, effect.kind, find_causes(candidate, units[effect.unit]), candidate.db_alone(effect.unit)
        )
        for effect in examined
    ]
    first = "No quantizer misses the target alone: their noise adds up. Those that cost most:"
    if missing:
        first = f"{len(missing)} of {len(effects)} quantizers miss the target alone."
    lines = [first, *(_line(effect, quantizer, log) for effect, quantizer in zip(examined, found, strict=True))]
    if len(missing) > len(examined):
        lines.append(f"And {len(missing) - len(examined)} more.")
    if ranking.not_measured:
        lines.append(f"{len(ranking.not_measured)} others, with a better SQNR of their own, were not measured in time.")
    figures = [(effect.unit, effect.only) for effect in examined if effect.only is not None]
    log.write("Sensitive quantizers", *lines, unit=log.metric.unit, figures=figures)
    return found


def _line(effect: UnitEffect, quantizer: SensitiveQuantizer, log: Log) -> str:
    assert effect.only is not None
    assert effect.all_but is not None
    causes = "; ".join(f"{cause.kind}: {cause.text}" for cause in quantizer.causes)
    scores = f"alone {log.value(effect.only)}, all but it {log.value(effect.all_but)}"
    return f"{effect.unit} ({effect.kind}): {scores}. {causes}."


def mean_alone(candidate: Candidate, sensitive: Collection[SensitiveQuantizer]) -> float:
    """SQNR of the outputs with one sensitive quantizer on, in dB, mean over them; each counts `CLEAR_DB` at most."""
    return sum(min(candidate.db_alone(q.name), CLEAR_DB) for q in sensitive) / max(len(sensitive), 1)


def note_repairs(candidate: Candidate, goal: Goal, sensitive: Sequence[SensitiveQuantizer], remedy: str) -> list[str]:
    """Credit a remedy with the sensitive quantizers that reach the target alone since then; the lines that say so."""
    repaired = [q for q in sensitive if not q.repaired_by and goal.reached(candidate.alone([q.name]))]
    for quantizer in repaired:
        quantizer.repaired_by = remedy
    return [f"It repairs {', '.join(quantizer.name for quantizer in repaired)}."] if repaired else []


def log_outcomes(candidate: Candidate, sensitive: Sequence[SensitiveQuantizer], log: Log) -> None:
    """Write down what became of the sensitive quantizers."""
    lines, figures = [], []
    for quantizer in sensitive:
        after = candidate.db_alone(quantizer.name)
        now = score_text(after, "dB") if quantizer.name in candidate.switches else "in float"
        outcome = f"repaired by: {quantizer.repaired_by}" if quantizer.repaired_by else "not repaired by itself"
        lines.append(f"{quantizer.name}: outputs at {score_text(quantizer.db, 'dB')} alone, now {now}; {outcome}.")
        figures.append((quantizer.name, after))
    log.write("What became of the sensitive quantizers", *lines, unit="dB", figures=figures)
