"""How good is a model, float or quantized by any tool, on data: accuracy, and distance from a reference model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from onnx import ModelProto

from ..data import CalibrationData, Preprocess, Transform
from ..errors import ModelError, UsageError
from ..execution.compare_outputs import run_models
from ..execution.observe import observed
from ..execution.progress import ProgressLike, called, shows_progress
from ..execution.session import Session, Source, default_threads, running_on
from ..graph import large
from ..graph.class_scores import class_score_outputs
from ..graph.comparable import Comparable, comparables
from ..numeric.metrics import finite
from ..options import Options, with_settings
from ..pipeline.open_inputs import common_inputs, input_specs, open_data, open_model
from ..report import Measure, printable
from ..report.notebook import InNotebook
from ..settings import Settings, Unpack
from .custom_metric import BUILT_IN, MetricLike, parse_metric
from .labels import read_labels
from .metric import AccuracyMetric, Metric, Tally, by_sample

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Figure:
    """One metric. value: higher is better; None: infinite, the two models agree in every bit.

    reference: the same of the reference model, where the metric does not compare with it anyway.
    """

    name: str
    unit: str
    value: float | None
    reference: float | None = None

    def to_text(self) -> str:
        if self.value is None:
            return "identical"
        digits = ".2f" if self.unit in ("%", "dB") else ".6g"
        text = f"{self.value:{digits}} {self.unit}".rstrip()
        if self.reference is None:
            return text
        return f"{text} (reference {self.reference:{digits}}, difference {self.value - self.reference:+{digits}})"


@dataclass(frozen=True, repr=False)
class Evaluation(InNotebook):
    """What `evaluate` found. samples: how many were used."""

    model: str
    reference: str | None
    data: str | None
    labels: str | None
    samples: int
    figures: tuple[Figure, ...]

    def to_json(self) -> str:
        """Strict JSON, keys as the fields here."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """For a terminal: a line for each figure."""
        against = f" against {self.reference}" if self.reference else ""
        width = max(len(figure.name) for figure in self.figures)
        lines = [f"{self.model}{against}: {self.samples} samples"]
        lines += [f"{figure.name:<{width}}  {figure.to_text()}" for figure in self.figures]
        return "\n".join(printable(line) for line in lines)


@shows_progress
@large.storing()
def evaluate(
    model: Source,
    data: Any,
    *,
    labels: str | os.PathLike[str] | Sequence[int] | None = None,
    metric: MetricLike | Sequence[MetricLike] = (),
    reference: Source | None = None,
    output: str | None = None,
    optimized: bool = False,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    **settings: Unpack[Settings],
) -> Evaluation:
    """Measure a model over data, one sample after another: only a user's metric and its outputs need memory.

    data: as the calibration data of `quantize`. labels: a file as in `labels`, or a class index for each sample.
    metric: one or several of `sqnr`, `agreement`, `kl`, `top1`, `top5`, `module:function`, or a function itself, see
        `onnxq.evaluation.custom_metric`; none: top-1 and top-5 accuracy where there are labels, and the first three
        where there is a reference.
    reference: the float model, against which the model is compared.
    output: which output holds the class scores, where several might.
    optimized: run both models as ONNX Runtime rewrites them, in integer kernels; else as they are written.
    The other arguments are those of `quantize`; of the options, samples, seed, threads, batch_size and provider count.

    Raises a subclass of OnnxqError.
    """
    options = with_settings(options, settings)
    with running_on(options.provider, custom_ops=options.custom_ops):
        proto, name, _ = open_model(model, quantized=True)
        other, other_name, _ = (None, None, 0) if reference is None else open_model(reference, quantized=True)
        inputs = input_specs(proto) if other is None else common_inputs(proto, other, (name, str(other_name)))
        feeds = open_data(data, inputs, options, preprocess, input_keys, other or proto, transform)
        known = None if labels is None else read_labels(labels, feeds)
        scores = None if other is None else class_score_outputs(other)
        chosen = _chosen(_several(metric), known, output, scores)
        found = _Models(proto, other, () if other is None else comparables(other))
        figures, samples = _measured(found, feeds, chosen, options, optimized, called(progress))
        if not figures:
            raise UsageError(f"{name}: no output is of a kind that {', '.join(m.name for m in chosen)} can measure")
        return Evaluation(name, other_name, _path(data), _path(labels), samples, figures)


@dataclass(frozen=True)
class FloatScores:
    """What the user's metrics say of a float model, to stand beside what they say of the quantized one.

    feeds: the samples that both are measured on.  figures: of the metrics that need no other model, by name.
    """

    reference: ModelProto
    feeds: CalibrationData
    metrics: tuple[Metric, ...]
    options: Options
    figures: Mapping[str, float]
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        reference: ModelProto,
        feeds: CalibrationData,
        labels: str | os.PathLike[str] | Sequence[int] | None,
        metric: MetricLike | None,
        options: Options,
        progress: Progress | None,
    ) -> FloatScores:
        """Measure the float model; labels that do not fit, and metrics that fail, are found out before anything else.

        labels, metric: as in `evaluate`; without a metric top-1 and top-5 accuracy. Raises a subclass of OnnxqError.
        """
        known = None if labels is None else read_labels(labels, feeds)
        names: Sequence[MetricLike] = ("top1", "top5") if metric is None else (metric,)
        metrics = _chosen(names, known, None, class_score_outputs(reference))
        absolute = [each for each in metrics if not each.relative]
        found: tuple[Figure, ...] = ()
        if absolute:
            found, _ = _measured(_Models(reference, None, ()), feeds, absolute, options, True, progress)
            if not found:
                raise UsageError(f"`metric` {metric}: no output of the model is of the kind that it measures")
        figures = {figure.name: figure.value for figure in found if figure.value is not None}
        return cls(reference, feeds, metrics, options, figures, progress)

    def beside(self, quantized: ModelProto, origin: str) -> tuple[Measure, ...]:
        """Each metric of both models. origin: what the samples are, for the report."""
        relative = any(metric.relative for metric in self.metrics)
        models = _Models(
            quantized, self.reference if relative else None, comparables(self.reference) if relative else ()
        )
        found, _ = _measured(models, self.feeds, self.metrics, self.options, True, self.progress)
        return tuple(
            Measure(figure.name, figure.unit, self.figures.get(figure.name), figure.value, origin)
            for figure in found
            if figure.value is not None
        )


def _several(metric: MetricLike | Sequence[MetricLike]) -> Sequence[MetricLike]:
    several = isinstance(metric, Sequence) and not isinstance(metric, str)
    return cast("Sequence[MetricLike]", metric if several else (metric,))


def _chosen(
    texts: Sequence[MetricLike], labels: tuple[int, ...] | None, output: str | None, scores: frozenset[str] | None
) -> tuple[Metric, ...]:
    """The metrics to take. Raises UsageError where one lacks what it needs.

    scores: outputs that hold class scores, as the reference's graph says; None without a reference.
    """
    referenced = scores is not None
    names: Sequence[MetricLike] = texts or (("top1", "top5") * (labels is not None) + tuple(BUILT_IN) * referenced)
    if not names:
        raise UsageError("nothing to measure: give `labels`, a `reference`, or a `metric` of your own")
    metrics = [parse_metric(text, labels, None if texts else scores) for text in names]
    for metric in metrics:
        if metric.relative and not referenced:
            raise UsageError(f"`metric` {metric.name} compares with another model: give it as `reference`")
    if output is not None and not any(isinstance(metric, AccuracyMetric) for metric in metrics):
        raise UsageError("`output` names the class scores that labels are for; without `labels` it has no use")
    return tuple(dataclasses.replace(m, output=output) if isinstance(m, AccuracyMetric) else m for m in metrics)


@dataclass(frozen=True)
class _Models:
    """compared: what of the reference is comparable (`graph.comparable`)."""

    model: ModelProto
    reference: ModelProto | None
    compared: Sequence[Comparable]

    def sessions(self, optimized: bool) -> list[Session]:
        """Both, with their own outputs and with what is compared. Raises ModelError for different outputs."""
        models = [m for m in (self.model, self.reference) if m is not None]
        outputs = [[value.name for value in each.graph.output] for each in models]
        if set(outputs[0]) != set(outputs[-1]):
            names = [", ".join(each) for each in outputs]
            raise ModelError(f"the models have different outputs: {names[0]}; the reference {names[1]}")
        return [Session(observed(each, self.compared, keep_outputs=True), optimize=optimized) for each in models]

    def shown(self, metric: Metric, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a metric takes: of relative ones what is comparable, of others the model's own outputs."""
        wanted = {each.label for each in self.compared}
        if not metric.relative:
            wanted = {value.name for value in self.model.graph.output}
        return {name: value for name, value in outputs.items() if name in wanted}


def _measured(
    models: _Models,
    feeds: CalibrationData,
    metrics: Sequence[Metric],
    options: Options,
    optimized: bool,
    progress: Progress | None,
) -> tuple[tuple[Figure, ...], int]:
    """The figures that there are, and the number of samples."""
    sessions = models.sessions(optimized)
    tallies = [metric.start() for metric in metrics]
    beside: list[Tally | None] = [None if m.relative or len(sessions) < 2 else m.start() for m in metrics]
    threads = options.threads or default_threads()
    samples = 0
    for done, (feed, found) in enumerate(run_models(sessions, feeds, threads, options.batch_size), 1):
        outputs, *rest = (by_sample(each, feed) for each in found)
        reference = rest[0] if rest else {}
        for metric, tally, other in zip(metrics, tallies, beside, strict=True):
            mine, theirs = models.shown(metric, outputs), models.shown(metric, reference)
            tally.update(samples, theirs, mine)
            if other is not None:
                other.update(samples, {}, theirs)
        samples += feed.rows or 1
        if progress is not None:
            progress("evaluating", done, len(feeds))
    figures = (_figure(*each) for each in zip(metrics, tallies, beside, strict=True))
    return tuple(figure for figure in figures if figure is not None), samples


def _figure(metric: Metric, tally: Tally, beside: Tally | None) -> Figure | None:
    value, reference = tally.value(), None if beside is None else beside.value()
    if value is None:
        return None
    return Figure(metric.name, metric.unit, finite(value), None if reference is None else finite(reference))


def _path(source: Any) -> str | None:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
