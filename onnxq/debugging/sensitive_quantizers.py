"""Quantizers that miss the target alone: what is wrong with each, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..evaluation.sensitivity import SensitivityAnalysis, UnitEffect
from ..thresholds import CLEAR_DB, MOST_EXAMINED, SUSPECTED
from .log import Log, score_text
from .root_cause import Finding, look_at
from .trial import Goal, Trial


@dataclass
class SensitiveQuantizer:
    """db: SQNR of the outputs with it alone on its grid, at first.  repaired_by: the fix; empty where there is none."""

    name: str
    kind: str
    findings: tuple[Finding, ...]
    db: float
    repaired_by: str = ""


def find_sensitive_quantizers(
    trial: Trial, goal: Goal, ranking: SensitivityAnalysis, log: Log
) -> list[SensitiveQuantizer]:
    """Those that miss the target alone, the worst first; where there are none, those that cost most."""
    effects = ranking.measured
    guilty = [effect for effect in effects if effect.only is not None and effect.only < goal.needed]
    named = (guilty or list(effects[:SUSPECTED]))[:MOST_EXAMINED]
    units = {unit.name: unit for unit in trial.units}
    sensitive_quantizers = [
        SensitiveQuantizer(effect.unit, effect.kind, look_at(trial, units[effect.unit]), trial.db_alone(effect.unit))
        for effect in named
    ]
    lines = [
        f"{len(guilty)} of {len(effects)} quantizers miss the target alone."
        if guilty
        else "No quantizer misses the target alone: noise adds up. Those that cost most:"
    ]
    lines += [_told(effect, culprit, log) for effect, culprit in zip(named, sensitive_quantizers, strict=True)]
    if len(guilty) > len(named):
        lines.append(f"And {len(guilty) - len(named)} more.")
    if ranking.not_measured:
        lines.append(f"For {len(ranking.not_measured)} others, less suspicious by themselves, there was no time.")
    figures = [(effect.unit, effect.only) for effect in named if effect.only is not None]
    log.write("Culprits", *lines, unit=log.metric.unit, figures=figures)
    return sensitive_quantizers


def _told(effect: UnitEffect, culprit: SensitiveQuantizer, log: Log) -> str:
    assert effect.only is not None
    assert effect.all_but is not None
    found = "; ".join(f"{each.kind}: {each.text}" for each in culprit.findings)
    scores = f"alone {log.score(effect.only)}, all but it {log.score(effect.all_but)}"
    return f"{effect.unit} ({effect.kind}): {scores}. {found}."


def mean_alone(trial: Trial, sensitive: Collection[SensitiveQuantizer]) -> float:
    """SQNR of the outputs with one sensitive quantizer on, in dB, mean over them. What is clear counts as clear."""
    return sum(min(trial.db_alone(q.name), CLEAR_DB) for q in sensitive) / max(len(sensitive), 1)


def note_repairs(trial: Trial, goal: Goal, sensitive_quantizers: Sequence[SensitiveQuantizer], fix: str) -> list[str]:
    """Credit a fix with the sensitive quantizers that reach the target alone since then; what to say of it."""
    repaired = [c for c in sensitive_quantizers if not c.repaired_by and goal.reached(trial.alone([c.name]))]
    for culprit in repaired:
        culprit.repaired_by = fix
    return [f"It repairs {', '.join(culprit.name for culprit in repaired)}."] if repaired else []


def tell_fates(trial: Trial, sensitive_quantizers: Sequence[SensitiveQuantizer], log: Log) -> None:
    """What became of those that were named."""
    lines, figures = [], []
    for culprit in sensitive_quantizers:
        after = trial.db_alone(culprit.name)
        now = score_text(after, "dB") if culprit.name in trial.groups else "in float"
        fate = f"repaired by: {culprit.repaired_by}" if culprit.repaired_by else "not repaired by itself"
        lines.append(f"{culprit.name}: outputs at {score_text(culprit.db, 'dB')} alone, now {now}; {fate}.")
        figures.append((culprit.name, after))
    log.write("What became of the sensitive quantizers", *lines, unit="dB", figures=figures)
