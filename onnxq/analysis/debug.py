"""The debugging workflow of the white paper (section 3.7, figure 9), walked automatically.

    1. Sanity: the float model is sound, and with all quantizers bypassed the network is the float model (`sanity`).
    2. Weights alone on their grids, activations alone: which are to blame.
    3. Every quantizer alone on, and alone off: the culprits, and what is wrong with them (`findings`).
    4. Fixes for the whole network (`fixes`), for the part that is worse, those first that match what was found. A fix
       is kept if the quantized model is better for it, or its part is and the model no worse.
    5. Where these do not suffice, single tensors get another range method, then more precision (`repair_tensors`).
    6. What costs something at run time is taken back, one by one, as long as the target holds.

What is decided is decided by a score on calibration data. Other data, where there is some, decides nothing but
whether the result is accepted.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from glob import escape
from typing import Any

from onnx import ModelProto

from ..data import Preprocess
from ..errors import OnnxqError, UsageError, VerificationError
from ..judge import CLEAR_DB, DROWNED_DB
from ..options import Options
from ..passes.apply_overrides import Override
from ..report import LogEntry, Measure, SensitivityRanking
from .debug_log import Log, Say, score_text
from .findings import Finding, look_at
from .fixes import FIXES, NAMES, PER_CHANNEL, Fix
from .mixed_precision import classifies
from .repair_tensors import TensorRepair
from .sanity import check_bypassed, check_float, samples_of
from .sensitivity import SensitivityAnalysis, UnitEffect, rank
from .study import Labels, Study, open_study
from .trial import HEARD_DB, TINY, Goal, Part, Standing, Trial, try_options

NAMED = 10
"""Culprits that are looked at, at most."""

TRIES = 2
"""Of a fix for the whole network."""

LEAST_DB = 20.0
"""The target for SQNR, unless one is given: noise of a tenth of the outputs' magnitude."""


@dataclass(frozen=True)
class Target:
    """What is asked of the quantized model. drop: from the float model's score, in the metric's unit.
    score: instead of a drop; SQNR, of which the float model has no end, is always asked for so."""

    drop: float = 1.0
    score: float | None = None

    def needed(self, float_score: float) -> float:
        """The lowest score that is accepted."""
        if self.score is not None:
            return self.score
        return float_score - self.drop if math.isfinite(float_score) else LEAST_DB


@dataclass(frozen=True)
class Debugged:
    """options: to quantize with.  score, float_score: by `metric`, of what they give and of the float model.
    reached: whether that is within the target, also on other data.  culprits: what was named, with what was found.
    ranking: of what was quantized at first; None where there was no need for one.  text: the verdict.
    """

    options: Options
    metric: str
    score: float
    float_score: float
    reached: bool
    culprits: Mapping[str, tuple[Finding, ...]]
    log: tuple[LogEntry, ...]
    measures: tuple[Measure, ...]
    ranking: SensitivityRanking | None
    text: str


def debug(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    *,
    target: Target | None = None,
    labels: Labels | None = None,
    metric: str | None = None,
    judged: int | None = None,
    evaluation: Any = None,
    evaluation_labels: Labels | None = None,
    without: Collection[str] = (),
    budget: float | None = None,
    closest: bool = False,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    say: Say | None = None,
) -> Debugged:
    """Find out what quantization with these options breaks, and options that repair it; see the module.

    labels, metric, judged: as in `sensitivity`, the labels being those of the calibration data. Without labels and
    metric, classifiers are measured by top-1 agreement with the float model, other models by SQNR.
    evaluation: data that decides nothing but whether the result is accepted; evaluation_labels: of these.
    without: names of fixes (`fixes.NAMES`) that are not to be tried. budget: seconds for each ranking of quantizers.
    closest: where the target is not reached, return the best instead of failing. say: called with every entry of the
    log as it is written. The rest as in `quantize`, to which the options that are returned belong.

    Raises VerificationError where the target is not reached, and whatever OnnxqError `quantize` does.
    """
    options = options or Options()
    unknown = set(without) - set(NAMES)
    if unknown:
        raise UsageError(f"--without {min(unknown)!r} is unknown; expected one of {', '.join(NAMES)}")
    if evaluation is None and evaluation_labels is not None:
        raise UsageError("--eval-labels belong to --eval: give that, too")
    if evaluation is not None and labels is not None and evaluation_labels is None:
        raise UsageError("the calibration data has labels (--labels), and --eval has none: give --eval-labels, too")
    if metric is None and labels is None:
        metric = "agreement" if classifies(model, calibration, options, preprocess, input_keys) else "sqnr"
    study = open_study(
        model, calibration, options=options, labels=labels, metric=metric, judged=judged,
        preprocess=preprocess, input_keys=input_keys, progress=progress,
    )  # fmt: skip
    held_out = None
    if evaluation is not None:
        measured_by = None if evaluation_labels is not None and labels is None else metric
        held_out = open_study(
            model, evaluation, options=replace(options, samples=None), labels=evaluation_labels, metric=measured_by,
            preprocess=preprocess, input_keys=input_keys,
        )  # fmt: skip
    found = _Walk(study, target or Target(), frozenset(without), budget, held_out, Log(study.metric, say)).run()
    if not found.reached and not closest:
        raise VerificationError(f"{found.text} --closest takes it all the same")
    return found


@dataclass
class _Walk:
    """trial: the best so far.  culprits: named at first, with their SQNR of the outputs alone.  repairs: by culprit."""

    study: Study
    target: Target
    without: frozenset[str]
    budget: float | None
    held_out: Study | None
    log: Log
    trial: Trial = field(init=False)
    goal: Goal = field(init=False)
    ranking: SensitivityAnalysis | None = None
    findings: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)
    repairs: dict[str, str] = field(default_factory=dict)

    def run(self) -> Debugged:
        check_float(self.study, self.log)
        self.goal = self._goal()
        self.trial = try_options(self.study, self.study.job.options)
        check_bypassed(self.trial, self.log)
        whole = self.trial.whole
        self.log.write(
            "Quantized as asked for",
            f"{self.log.standing(whole)}; the target, {self.log.score(self.goal.needed)}, is"
            f" {'reached: nothing to repair' if self.reached else 'missed'}.",
        )
        if not self.reached:
            self._blame()
            self._name_culprits()
            self._repair_network()
            self._repair_tensors()
            self._take_back_network()
            self._tell_culprits()
        return self._result()

    @property
    def reached(self) -> bool:
        return self.goal.reached(self.trial.whole)

    def _goal(self) -> Goal:
        """Shares of few samples are off by chance: a quarter of the largest standard error is told from none."""
        noise = {"%": 12.5 / math.sqrt(samples_of(self.study)), "dB": HEARD_DB}.get(self.study.metric.unit, 0.0)
        return Goal(self.target.needed(self.study.float_score), noise)

    # --- whom to blame ----------------------------------------------------------------------------------------

    def _parts(self) -> dict[Part, Standing]:
        """The worse part first."""
        parts = dict(self.trial.parts)
        return dict(reversed(parts.items())) if self.goal.better(*parts.values()) else parts

    def _blame(self) -> None:
        parts = self._parts()
        told = [f"{part} alone on their grids: {self.log.standing(found)}." for part, found in parts.items()]
        missed = [part for part, found in parts.items() if not self.goal.reached(found)]
        verdict = f"To blame: {' and '.join(missed)}." if missed else "Either alone is good enough; both add up."
        figures = [(part, found.score) for part, found in parts.items()]
        self.log.write("Weights or activations", *told, verdict, unit=self.study.metric.unit, figures=figures)

    def _rank(self) -> SensitivityAnalysis:
        trial = self.trial
        return rank(self.study, trial.base, trial.groups, trial.units, self.budget)

    def _name_culprits(self) -> None:
        """Those that miss the target alone; where there are none, the three that cost most."""
        self.ranking = self._rank()
        units = {unit.name: unit for unit in self.trial.units}
        effects = self.ranking.measured
        guilty = [effect for effect in effects if effect.only is not None and effect.only < self.goal.needed]
        named = (guilty or list(effects[:3]))[:NAMED]
        text = f"{len(guilty)} of {len(effects)} quantizers miss the target alone." if guilty else (
            "No quantizer misses the target alone: noise adds up. Those that cost most:"
        )  # fmt: skip
        self.findings = {effect.unit: look_at(self.trial, units[effect.unit]) for effect in named}
        self.alone = {effect.unit: self.trial.db_alone(effect.unit) for effect in named}
        told = [self._told(effect) for effect in named]
        more = f"And {len(guilty) - len(named)} more." if len(guilty) > len(named) else ""
        figures = [(effect.unit, effect.only) for effect in named if effect.only is not None]
        self.log.write("Culprits", text, *told, more, unit=self.study.metric.unit, figures=figures)

    def _told(self, effect: UnitEffect) -> str:
        assert effect.only is not None
        assert effect.all_but is not None
        found = "; ".join(f"{each.kind}: {each.text}" for each in self.findings[effect.unit])
        scores = f"alone {self.log.score(effect.only)}, all but it {self.log.score(effect.all_but)}"
        return f"{effect.unit} ({effect.kind}): {scores}. {found}."

    # --- the whole network ------------------------------------------------------------------------------------

    def _repair_network(self) -> None:
        """Each fix is tried once more where others were kept since: noise that drowned it may be gone."""
        tries: Counter[Fix] = Counter()
        waiting = set(FIXES)
        while not self.reached and (fix := self._next_fix(waiting)) is not None:
            waiting.discard(fix)
            tries[fix] += 1
            if self._try(fix):
                waiting.update(other for other in tries if tries[other] < TRIES)

    def _next_fix(self, waiting: Collection[Fix]) -> Fix | None:
        """For parts that miss the target, if one does: first for the worse part, then what matches the findings, then
        what costs nothing."""
        parts = self._parts()
        missed = [part for part, standing in parts.items() if not self.goal.reached(standing)] or list(parts)
        found = {finding.kind for findings in self.findings.values() for finding in findings}
        left = [f for f in FIXES if f in waiting and f.name not in self.without and f.applies(self.trial.options)]
        left = [fix for fix in left if set(fix.parts) & set(missed)]
        left.sort(key=lambda fix: (missed[0] not in fix.parts, not fix.cures & found, fix.costs))
        return next(iter(left), None)

    def _try(self, fix: Fix) -> bool:
        """Whether it was kept."""
        part = next(part for part in self._parts() if part in fix.parts)
        title, before = f"Fix: {fix.title}", self.trial
        try:
            after = try_options(self.study, fix.apply(before.options))
        except OnnxqError as error:
            self.log.write(title, f"Not possible: {error}")
            return False
        if after.quantized == before.quantized:
            self.log.write(title, "Changes nothing here.")
            return False
        kept, verdict = self._judge(before, after, part)
        lines = [
            f"{part} alone: {self.log.standing(before.parts[part])} -> {self.log.standing(after.parts[part])};"
            f" quantized model: {self.log.standing(before.whole)} -> {self.log.standing(after.whole)}: {verdict}."
        ]
        if kept:
            self.trial = after
            lines += self._repaired(fix.title)
        self.log.write(title, *lines)
        return kept

    def _judge(self, before: Trial, after: Trial, part: Part) -> tuple[bool, str]:
        """Whether to keep a fix for a part, and why."""
        spoilt = [
            p for p in before.parts if self.goal.reached(before.parts[p]) and not self.goal.reached(after.parts[p])
        ]
        if spoilt:
            return False, f"not kept, since it spoils {' and '.join(spoilt)}"
        if max(before.whole.db, after.whole.db) < DROWNED_DB and self.alone:
            gain = self._mean_alone(after) - self._mean_alone(before)
            kept = gain > HEARD_DB
            return kept, (
                f"what is left is chance, but alone the culprits gain {gain:.1f} dB on average: {_kept(kept)}"
            )
        better, worse = self.goal.better(after.whole, before.whole), self.goal.better(before.whole, after.whole)
        kept = better or (self.goal.better(after.parts[part], before.parts[part]) and not worse)
        return kept, _kept(kept)

    def _mean_alone(self, trial: Trial) -> float:
        """SQNR of the outputs with one culprit on its grid, mean over culprits; those that are clear count alike."""
        return sum(min(trial.db_alone(name), CLEAR_DB) for name in self.alone) / len(self.alone)

    def _repaired(self, title: str) -> list[str]:
        """Culprits that now reach the target alone."""
        told = []
        for name in self.findings.keys() - self.repairs.keys():
            if self.goal.reached(self.trial.alone([name])):
                self.repairs[name] = title
                told.append(f"It repairs {name}.")
        return sorted(told)

    # --- single tensors ---------------------------------------------------------------------------------------

    def _repair_tensors(self) -> None:
        if self.reached or not self.trial.units:
            return
        units = {unit.name: unit for unit in self.trial.units}
        ranking = [units[effect.unit] for effect in self._rank().measured]
        ranking += [unit for unit in self.trial.units if unit not in ranking]
        repair = TensorRepair(self.trial, self.goal, self.log, self.without)
        repair.run(ranking)
        repair.take_back()
        self.trial = repair.trial
        given = {name: repair.ladders[name][height].title for name, height in repair.heights.items()}
        for name in {*repair.methods, *given} & self.findings.keys() - self.repairs.keys():
            self.repairs[name] = given.get(name) or f"range by {repair.methods[name]}"

    # --- the end ----------------------------------------------------------------------------------------------

    def _take_back_network(self) -> None:
        """What costs something at run time, and is for all layers."""
        start = self.study.job.options
        if not (self.reached and self.trial.options.per_channel and not start.per_channel):
            return
        fewer = replace(self.trial.options, per_channel=False)
        cured = [name for name, title in self.repairs.items() if title == PER_CHANNEL.title]
        some = tuple(Override(escape(name), per_channel=True) for name in sorted(cured))
        wishes = [("one weight scale for each layer", fewer)]
        if some:
            only = replace(fewer, overrides=(*fewer.overrides, *some))
            wishes.append((f"one weight scale for each channel only for {', '.join(sorted(cured))}", only))
        for title, options in wishes:
            tried = try_options(self.study, options)
            holds = self.goal.reached(tried.whole)
            self.log.write(
                f"Take back: {title}",
                f"{self.log.standing(self.trial.whole)} -> {self.log.standing(tried.whole)}:"
                f" {'taken back' if holds else 'the target would be missed: it stays'}.",
            )
            if holds:
                self.trial = tried
                return

    def _tell_culprits(self) -> None:
        """What became of those that were named."""
        lines, figures = [], []
        for name, before in self.alone.items():
            after = self.trial.db_alone(name)
            fate = f"repaired by: {self.repairs[name]}" if name in self.repairs else "not repaired by itself"
            state = "" if name in self.trial.groups else ", now in float"
            lines.append(f"{name}: outputs {before:.1f} dB alone, {_db(after)} now{state}; {fate}.")
            figures.append((name, after))
        self.log.write("What became of the culprits", *lines, unit="dB", figures=figures)

    def _result(self) -> Debugged:
        study, whole, reached = self.study, self.trial.whole, self.reached
        measures = [Measure(study.metric.name, study.metric.unit, study.float_score, whole.score)]
        lines = [f"{study.metric.name} {self.log.standing(whole)}, float {self.log.score(study.float_score)}."]
        if self.held_out is None:
            lines.append("The samples that chose the fixes measured this, too: others (--eval) may tell another story.")
        else:
            apart, line = _measured_apart(self.held_out, self.trial.quantized)
            measures.append(apart)
            lines.append(line)
            reached = reached and apart.result >= self.target.needed(apart.reference) - TINY
        lines.append(changes(self.study.job.options, self.trial.options))
        self.log.write("Accepted" if reached else "The target is not reached; this is the closest", *lines)
        return Debugged(
            options=self.trial.options,
            metric=study.metric.name,
            score=whole.score,
            float_score=study.float_score,
            reached=reached,
            culprits=self.findings,
            log=tuple(self.log.entries),
            measures=tuple(m for m in measures if math.isfinite(m.reference) and math.isfinite(m.result)),
            ranking=None if self.ranking is None else self.ranking.ranking,
            text=f"{'accepted' if reached else 'the target is not reached; the closest'}: {' '.join(lines)}",
        )


def _measured_apart(study: Study, quantized: ModelProto) -> tuple[Measure, str]:
    """On samples that nothing was learnt from."""
    metric, score = study.metric, study.measured(quantized)
    told = (score_text(value, metric.unit) for value in (score, study.float_score))
    line = f"On {samples_of(study)} samples that decided nothing: {metric.name} %s, float %s." % tuple(told)
    return Measure(f"{metric.name}, other data", metric.unit, study.float_score, score), line


def changes(before: Options, after: Options) -> str:
    """What differs between two choices of options, for a log."""
    told = []
    for field_ in fields(Options):
        value = getattr(after, field_.name)
        if field_.name != "overrides" and value != getattr(before, field_.name):
            told.append(f"{field_.name.replace('_', '-')} {str(value).lower()}")
    for override in after.overrides[len(before.overrides) :]:
        settings = {f.name: getattr(override, f.name) for f in fields(override)}
        given = [f"{n.replace('_', '-')} {str(v).lower()}" for n, v in settings.items() if v not in (None, False)]
        told.append(f"{override.place}: {', '.join(given[1:])}")
    return f"Changed: {'; '.join(told)}." if told else "Nothing was changed."


def _kept(kept: bool) -> str:
    return "kept" if kept else "not kept"


def _db(value: float) -> str:
    return score_text(value, "dB")
