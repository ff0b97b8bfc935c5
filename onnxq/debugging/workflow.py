"""The debugging workflow of the white paper (section 3.7, figure 9), walked automatically.

    1. Sanity: the float model is sound, and with all quantizers bypassed the network is the float model (`sanity`).
    2. Weights alone on their grids, activations alone: which are to blame.
    3. Every quantizer alone on, and alone off: the sensitive_quantizers, and what is wrong with them (`findings`).
    4. Fixes for the whole network, for the part that is worse, those first that match the findings (`repair_network`).
    5. Where these do not suffice, single tensors get another range method, then more precision (`repair_tensors`).
    6. What costs something at run time is taken back, one by one, as long as the target holds.

Fixes are chosen by a score on calibration data. Other data, where there is some, must agree before a model is taken;
how many models were measured on it is told.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from onnx import ModelProto

from ..data import Preprocess
from ..errors import UsageError, VerificationError
from ..evaluation.sensitivity import SensitivityAnalysis, rank
from ..evaluation.study import Labels, Study, open_study
from ..graph import large
from ..options import Options
from ..report import LogEntry, Measure, SensitivityRanking
from ..thresholds import LEAST_DB, LEAST_GAIN_DB
from .log import Log, Say, score_text
from .network_remedies import NetworkRepair
from .remedies import NAMES
from .sanity_check import check_bypassed, check_float, samples_of
from .sensitive_quantizers import SensitiveQuantizer, find_sensitive_quantizers, tell_fates
from .tensor_remedies import TensorRepair
from .trial import Gate, Goal, Trial, try_options


@dataclass(frozen=True)
class Limit:
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
    reached: whether that is within the target, also on other data.  sensitive_quantizers: with what was found.
    ranking: of the model as it was quantized at first; None where there was no need for one.  text: the verdict.
    """

    options: Options
    metric: str
    score: float
    float_score: float
    reached: bool
    sensitive_quantizers: tuple[SensitiveQuantizer, ...]
    log: tuple[LogEntry, ...]
    measures: tuple[Measure, ...]
    ranking: SensitivityRanking | None
    text: str


@large.storing()
def debug(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    *,
    target: Limit | None = None,
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
    evaluation: other data, which must reach the target, too, before the result is accepted; evaluation_labels: of it.
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
    study = open_study(
        model, calibration, options=options, labels=labels, metric=metric, judged=judged,
        preprocess=preprocess, input_keys=input_keys, progress=progress, by_classes=True,
    )  # fmt: skip
    held_out = None
    if evaluation is not None:
        measured_by = None if evaluation_labels is not None and labels is None else metric
        held_out = open_study(
            model, evaluation, options=replace(options, samples=None), labels=evaluation_labels, metric=measured_by,
            preprocess=preprocess, input_keys=input_keys, by_classes=True,
        )  # fmt: skip
    found = _Walk(study, target or Limit(), frozenset(without), budget, held_out, Log(study.metric, say)).run()
    if not found.reached and not closest:
        raise VerificationError(f"{found.text} --closest takes it all the same")
    return found


@dataclass
class _Walk:
    """trial: the best so far.  held_out: what measures the result by data that decided nothing."""

    study: Study
    target: Limit
    without: frozenset[str]
    budget: float | None
    held_out: Study | None
    log: Log
    trial: Trial = field(init=False)
    goal: Goal = field(init=False)
    ranking: SensitivityAnalysis | None = None
    sensitive_quantizers: list[SensitiveQuantizer] = field(default_factory=list)

    def run(self) -> Debugged:
        check_float(self.study, self.log)
        if self.held_out is not None:
            check_float(self.held_out, Log(self.held_out.metric))
        self.goal = self._goal()
        self.trial = try_options(self.study, self.study.job.options)
        check_bypassed(self.trial, self.log)
        verdict = "reached: nothing to repair" if self.reached else "missed"
        self.log.write(
            "Quantized as asked for",
            f"{self.log.standing(self.trial.whole)}; the target, {self.log.score(self.goal.needed)}, is {verdict}.",
        )
        if not self.reached:
            self._blame()
            self.ranking = self._rank()
            self.sensitive_quantizers = find_sensitive_quantizers(self.trial, self.goal, self.ranking, self.log)
            self._repair()
            tell_fates(self.trial, self.sensitive_quantizers, self.log)
        return self._result()

    @property
    def reached(self) -> bool:
        return self.goal.accepts(self.trial)

    def _goal(self) -> Goal:
        """Shares of few samples are off by chance, here by one standard error at the most."""
        noise = {"%": 50 / math.sqrt(samples_of(self.study)), "dB": LEAST_GAIN_DB}.get(self.study.metric.unit, 0.0)
        held_out = self.held_out
        gate = None if held_out is None else Gate(held_out, self.target.needed(held_out.float_score))
        return Goal(self.target.needed(self.study.float_score), noise, gate)

    def _blame(self) -> None:
        parts = {part: self.trial.parts[part] for part in self.goal.worse_first(self.trial)}
        told = [
            f"{part.capitalize()} alone on their grids: {self.log.standing(found)}." for part, found in parts.items()
        ]
        missed = [part for part, found in parts.items() if not self.goal.reached(found)]
        verdict = f"To blame: {' and '.join(missed)}." if missed else "Either alone is good enough; both add up."
        figures = [(part, found.score) for part, found in parts.items()]
        self.log.write("Weights or activations", *told, verdict, unit=self.study.metric.unit, figures=figures)

    def _rank(self) -> SensitivityAnalysis:
        trial = self.trial
        return rank(self.study, trial.base, trial.groups, trial.units, self.budget)

    def _repair(self) -> None:
        network = NetworkRepair(self.trial, self.goal, self.log, self.without, self.sensitive_quantizers)
        network.run()
        self.trial = network.trial
        if not self.reached:
            self._repair_tensors()
            network.trial = self.trial
        network.take_back(self.study.job.options)
        self.trial = network.trial

    def _repair_tensors(self) -> None:
        units = {unit.name: unit for unit in self.trial.units}
        ranking = [units[effect.unit] for effect in self._rank().measured]
        ranking += [unit for unit in self.trial.units if unit not in ranking]
        repair = TensorRepair(self.trial, self.goal, self.log, self.without)
        repair.run(ranking)
        repair.take_back()
        self.trial = repair.trial
        for culprit in self.sensitive_quantizers:
            culprit.repaired_by = culprit.repaired_by or repair.given(culprit.name)

    def _result(self) -> Debugged:
        study, whole, reached = self.study, self.trial.whole, self.reached
        measures = [Measure(study.metric.name, study.metric.unit, study.float_score, whole.score)]
        lines = [f"{study.metric.name} {self.log.standing(whole)}, float {self.log.score(study.float_score)}."]
        if self.goal.gate is None:
            lines.append("The samples that chose the fixes measured this, too: others (--eval) may tell another story.")
        else:
            apart, line = _measured_apart(self.goal.gate, self.trial)
            measures.append(apart)
            lines.append(line)
        lines.append(changes(self.study.job.options, self.trial.options))
        self.log.write("Accepted" if reached else "The target is not reached; this is the closest", *lines)
        return Debugged(
            options=self.trial.options,
            metric=study.metric.name,
            score=whole.score,
            float_score=study.float_score,
            reached=reached,
            sensitive_quantizers=tuple(self.sensitive_quantizers),
            log=tuple(self.log.entries),
            measures=tuple(m for m in measures if math.isfinite(m.reference) and math.isfinite(m.result)),
            ranking=None if self.ranking is None else self.ranking.ranking,
            text=f"{'accepted' if reached else 'the target is not reached; the closest'}: {' '.join(lines)}",
        )


def _measured_apart(gate: Gate, trial: Trial) -> tuple[Measure, str]:
    """On samples that fixes were not chosen on, and how far these are still independent."""
    gate.passes(trial)
    assert trial.apart is not None
    metric, reference, count = gate.study.metric, gate.study.float_score, len(gate.scores)
    told = (score_text(value, metric.unit) for value in (trial.apart, reference))
    line = f"On {samples_of(gate.study)} other samples: {metric.name} {', float '.join(told)};" + (
        " no other model was measured on them."
        if count == 1
        else f" {count} models were measured on them, so that they have had some say in the choice, too."
    )
    return Measure(f"{metric.name}, other data", metric.unit, reference, trial.apart), line


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
