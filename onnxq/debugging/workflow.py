"""The debugging workflow of the white paper (section 3.7, figure 9), run automatically; `_Workflow.run` is the figure.

    1. Sanity check: the float model is sound, and with all quantizers bypassed the network is the float model
       (`sanity_check`).
    2. Weights or activations: each alone quantized, to see which misses the target (`weights_or_activations`).
    3. Root cause: every quantizer alone on, and alone off; what is wrong with the sensitive ones
       (`sensitive_quantizers`, `root_cause`).
    4. Remedies for the whole network, for the part that is worse, those first that match the causes (`remedies`,
       `network_remedies`).
    5. Where these do not suffice, single tensors get another range method, then more precision (`tensor_remedies`).
    6. What costs something at run time is taken back, one by one, as long as the target holds.

Remedies are chosen by a score on calibration data. Held-out data, where there is some, must agree before a model is
accepted; the result says how many models were measured on it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from onnx import ModelProto

from ..data import Preprocess, Transform
from ..errors import UsageError, VerificationError
from ..evaluation.custom_metric import MetricLike
from ..evaluation.evaluator import Evaluator, Labels, open_evaluator
from ..evaluation.sensitivity import SensitivityAnalysis, rank
from ..execution.progress import ProgressLike, called, shows_progress
from ..execution.session import running_on
from ..graph import large
from ..options import Options, with_settings
from ..report import LogEntry, Measure, SensitivityRanking
from ..report.json_format import plain
from ..report.notebook import InNotebook
from ..schema import options_of, toml, toml_table
from ..settings import Settings, Unpack
from ..thresholds import LEAST_DB, LEAST_GAIN_DB
from .candidate import Candidate, Goal, HeldOutCheck, quantized_with
from .log import Log, OnEntry, score_text
from .network_remedies import NetworkRepair
from .remedies import NAMES
from .sanity_check import check_bypassed, check_float, samples_of
from .sensitive_quantizers import SensitiveQuantizer, find_sensitive_quantizers, log_outcomes
from .tensor_remedies import TensorRepair
from .weights_or_activations import log_parts


@dataclass(frozen=True)
class AccuracyTarget:
    """What the quantized model must reach. drop: from the float model's score, in the metric's unit.
    score: instead of a drop. The float model's SQNR is infinite, so that for SQNR only a score makes sense."""

    drop: float = 1.0
    score: float | None = None

    def needed(self, float_score: float) -> float:
        """The lowest score that is accepted."""
        if self.score is not None:
            return self.score
        return float_score - self.drop if math.isfinite(float_score) else LEAST_DB


@dataclass(frozen=True, repr=False)
class DebugResult(InNotebook):
    """options: to quantize with.  score, float_score: by `metric`, of what they give and of the float model.
    reached: whether that is within the target, also on held-out data.  sensitive_quantizers: with their causes.
    samples: that the scores are measured on, of the calibration data.
    ranking: of the model as it was quantized at first; None where there was no need for one.  text: the verdict.
    changes: the options that differ from those given, as lines of TOML for `onnxq quantize --config`.
    """

    options: Options
    metric: str
    score: float
    float_score: float
    samples: int
    reached: bool
    sensitive_quantizers: tuple[SensitiveQuantizer, ...]
    log: tuple[LogEntry, ...]
    measures: tuple[Measure, ...]
    ranking: SensitivityRanking | None
    text: str
    changes: str = ""

    def to_text(self) -> str:
        """The verdict."""
        return self.text

    def to_json(self) -> str:
        """Strict JSON, keys as the fields here; what is infinite is null."""
        return json.dumps(plain(asdict(self)), indent=2, allow_nan=False) + "\n"


@shows_progress
@large.storing()
def debug(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    *,
    goal: AccuracyTarget | None = None,
    labels: Labels | None = None,
    metric: MetricLike | None = None,
    evaluation_samples: int | None = None,
    evaluation: Any = None,
    evaluation_labels: Labels | None = None,
    without: Collection[str] = (),
    budget: float | None = None,
    closest: bool = False,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    on_entry: OnEntry | None = None,
    **settings: Unpack[Settings],
) -> DebugResult:
    """Find out what quantization with these options breaks, and options that repair it; see the module.

    goal: what the quantized model must reach. labels, metric, evaluation_samples: as in `sensitivity`, the labels being
    those of the calibration data. Without labels and metric, classifiers are measured by top-1 agreement with the float
    model, other models by SQNR. evaluation: held-out data, which must reach the goal, too, before the result is
    accepted; evaluation_labels: of it. without: names of remedies (`remedies.NAMES`) that are not to be tried. budget:
    seconds for each ranking of quantizers. closest: where the goal is not reached, return the best instead of failing.
    on_entry: called with every entry of the log as it is written. The rest as in `quantize`, to which the options that
    are returned belong.

    Raises VerificationError where the target is not reached, and whatever OnnxqError `quantize` does.
    """
    options = with_settings(options, settings)
    if goal is not None and not isinstance(goal, AccuracyTarget):
        raise UsageError(f"`goal` must be onnxq.AccuracyTarget(drop=...) or (score=...), got {type(goal).__name__}")
    unknown = set(without) - set(NAMES)
    if unknown:
        raise UsageError(f"`without` {min(unknown)!r} is unknown; expected one of {', '.join(NAMES)}")
    if evaluation is None and evaluation_labels is not None:
        raise UsageError("`evaluation_labels` belong to `evaluation`: give that, too")
    if evaluation is not None and labels is not None and evaluation_labels is None:
        raise UsageError("the calibration data has `labels`, and `evaluation` has none: give `evaluation_labels`, too")
    with running_on(options.provider, custom_ops=options.custom_ops):
        evaluator = open_evaluator(
            model, calibration, options=options, labels=labels, metric=metric, evaluation_samples=evaluation_samples,
            preprocess=preprocess, input_keys=input_keys, transform=transform, progress=called(progress),
            by_classes=True,
        )  # fmt: skip
        held_out = None
        if evaluation is not None:
            measured_by = None if evaluation_labels is not None and labels is None else metric
            held_out = open_evaluator(
                model, evaluation, options=replace(options, samples=None), labels=evaluation_labels, metric=measured_by,
                preprocess=preprocess, input_keys=input_keys, transform=transform, by_classes=True,
            )  # fmt: skip
        log = Log(evaluator.metric, on_entry)
        found = _Workflow(evaluator, goal or AccuracyTarget(), frozenset(without), budget, held_out, log).run()
    found = replace(found, changes=changed_lines(options, found.options))
    if not found.reached and not closest:
        raise VerificationError(f"{found.text} `closest` takes it all the same")
    return found


@dataclass
class _Workflow:
    """candidate: the best so far.  held_out: what measures the result by data that decided nothing."""

    evaluator: Evaluator
    target: AccuracyTarget
    without: frozenset[str]
    budget: float | None
    held_out: Evaluator | None
    log: Log
    candidate: Candidate = field(init=False)
    goal: Goal = field(init=False)
    ranking: SensitivityAnalysis | None = None
    sensitive: list[SensitiveQuantizer] = field(default_factory=list)

    def run(self) -> DebugResult:
        """Figure 9 from top to bottom."""
        self._sanity_check()
        if not self.reached:
            log_parts(self.candidate, self.goal, self.log)
            self._root_causes()
            network = self._network_remedies()
            if not self.reached:
                self._tensor_remedies()
            self._take_back(network)
            log_outcomes(self.candidate, self.sensitive, self.log)
        return self._result()

    @property
    def reached(self) -> bool:
        return self.goal.accepts(self.candidate)

    def _sanity_check(self) -> None:
        check_float(self.evaluator, self.log)
        if self.held_out is not None:
            check_float(self.held_out, Log(self.held_out.metric))
        self.goal = self._goal()
        self.candidate = quantized_with(self.evaluator, self.evaluator.task.options)
        check_bypassed(self.candidate, self.log)
        verdict = "reached: nothing to repair" if self.reached else "missed"
        self.log.write(
            "Quantized with the given options",
            f"{self.log.score(self.candidate.whole)}; the target, {self.log.value(self.goal.needed)}, is {verdict}.",
        )

    def _root_causes(self) -> None:
        self.ranking = self._rank()
        self.sensitive = find_sensitive_quantizers(self.candidate, self.goal, self.ranking, self.log)

    def _network_remedies(self) -> NetworkRepair:
        repair = NetworkRepair(self.candidate, self.goal, self.log, self.without, self.sensitive)
        repair.run()
        self.candidate = repair.candidate
        return repair

    def _tensor_remedies(self) -> None:
        units = {unit.name: unit for unit in self.candidate.units}
        ranking = [units[effect.unit] for effect in self._rank().measured]
        ranking += [unit for unit in self.candidate.units if unit not in ranking]
        repair = TensorRepair(self.candidate, self.goal, self.log, self.without)
        repair.run(ranking)
        repair.take_back()
        self.candidate = repair.candidate
        for quantizer in self.sensitive:
            quantizer.repaired_by = quantizer.repaired_by or repair.given(quantizer.name)

    def _take_back(self, network: NetworkRepair) -> None:
        network.candidate = self.candidate
        network.take_back(self.evaluator.task.options)
        self.candidate = network.candidate

    def _rank(self) -> SensitivityAnalysis:
        candidate = self.candidate
        return rank(self.evaluator, candidate.base, candidate.switches, candidate.units, self.budget)

    def _goal(self) -> Goal:
        """Shares of few samples are off by chance, here by one standard error at the most."""
        noise = {"%": 50 / math.sqrt(samples_of(self.evaluator)), "dB": LEAST_GAIN_DB}.get(
            self.evaluator.metric.unit, 0.0
        )
        check = None
        if self.held_out is not None:
            check = HeldOutCheck(self.held_out, self.target.needed(self.held_out.float_score))
        return Goal(self.target.needed(self.evaluator.float_score), noise, check)

    def _result(self) -> DebugResult:
        evaluator, whole, reached = self.evaluator, self.candidate.whole, self.reached
        measures = [Measure(evaluator.metric.name, evaluator.metric.unit, evaluator.float_score, whole.value)]
        lines = [f"{evaluator.metric.name} {self.log.score(whole)}, float {self.log.value(evaluator.float_score)}."]
        if self.goal.held_out_check is None:
            lines.append("This was measured on the samples that chose the remedies, not on held-out ones.")
        else:
            measure, line = _held_out_measure(self.goal.held_out_check, self.candidate)
            measures.append(measure)
            lines.append(line)
        lines.append(changes(self.evaluator.task.options, self.candidate.options))
        self.log.write("Accepted" if reached else "The target is not reached; this is the closest", *lines)
        return DebugResult(
            options=self.candidate.options,
            metric=evaluator.metric.name,
            score=whole.value,
            float_score=evaluator.float_score,
            samples=samples_of(evaluator),
            reached=reached,
            sensitive_quantizers=tuple(self.sensitive),
            log=tuple(self.log.entries),
            measures=tuple(m for m in measures if math.isfinite(m.reference or 0.0) and math.isfinite(m.result)),
            ranking=None if self.ranking is None else self.ranking.ranking,
            text=f"{'accepted' if reached else 'the target is not reached; the closest'}: {' '.join(lines)}",
        )


def _held_out_measure(check: HeldOutCheck, candidate: Candidate) -> tuple[Measure, str]:
    """On samples that remedies were not chosen on, and how far these are still independent."""
    check.passes(candidate)
    assert candidate.held_out_score is not None
    metric, reference, count = check.evaluator.metric, check.evaluator.float_score, len(check.scores)
    scores = (score_text(value, metric.unit) for value in (candidate.held_out_score, reference))
    independence = "no other model was measured on them."
    if count > 1:
        independence = f"{count} models were measured on them, so that they had some influence on the choice."
    line = f"On {samples_of(check.evaluator)} held-out samples: {metric.name} {', float '.join(scores)}; {independence}"
    return Measure(f"{metric.name}, held-out data", metric.unit, reference, candidate.held_out_score), line


def changed_lines(before: Options, after: Options) -> str:
    """What differs between two choices of options, in TOML: keys, then tables."""
    keys = [
        f"{each.long_name} = {toml(getattr(after, each.name))}"
        for each in options_of(Options)
        if getattr(after, each.name) != getattr(before, each.name)
    ]
    tables = [toml_table("override", override) for override in after.overrides[len(before.overrides) :]]
    return "\n\n".join(part for part in ("\n".join(keys), *tables) if part)


def changes(before: Options, after: Options) -> str:
    """What differs between two choices of options, for a log."""
    changed = []
    for field_ in fields(Options):
        value = getattr(after, field_.name)
        if field_.name != "overrides" and value != getattr(before, field_.name):
            changed.append(f"{field_.name.replace('_', '-')} {str(value).lower()}")
    for override in after.overrides[len(before.overrides) :]:
        settings = {f.name: getattr(override, f.name) for f in fields(override)}
        given = [f"{n.replace('_', '-')} {str(v).lower()}" for n, v in settings.items() if v not in (None, False)]
        changed.append(f"{override.place}: {', '.join(given[1:])}")
    return f"Changed: {'; '.join(changed)}." if changed else "Nothing was changed."
