"""What measures quantized variants of one float model: the quantization itself, samples, references and a metric."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from onnx import ModelProto

from ..data import CalibrationData, Feed, Preprocess, Transform, replayable
from ..errors import UsageError
from ..execution.compare_outputs import Outputs
from ..execution.layerwise import isolate
from ..execution.observe import observed
from ..execution.services import Workers
from ..execution.switches import Switch, Switchboard, switches_of
from ..graph.class_scores import class_score_outputs
from ..graph.comparable import Comparable, comparables
from ..graph.model import Model
from ..numeric.metrics import class_scores
from ..options import Options
from ..pipeline.open_inputs import input_specs, open_data, open_model
from ..pipeline.pipeline import make_plan
from ..pipeline.plan import Plan
from ..pipeline.task import Task
from ..thresholds import COUNTED_SAMPLES, EVALUATION_SAMPLES
from .custom_metric import MetricLike, parse_metric
from .labels import read_labels
from .metric import Metric, float_outputs, measure, score_outputs

Labels = str | os.PathLike[str] | Sequence[int]


@dataclass
class Evaluator:
    """Measures models by one metric on the same samples.

    task: the quantization as the options want it.  feeds: the samples that the metric is measured on.  references: what
    is comparable of the float model's outputs for them (`graph.comparable`), which relative metrics compare with.
    """

    task: Task
    metric: Metric
    feeds: Sequence[Feed]
    references: Sequence[Outputs] = field(init=False)

    def __post_init__(self) -> None:
        self.references = float_outputs(self.task.proto, self.feeds, self.task.context.services.threads, self.compared)

    @cached_property
    def compared(self) -> tuple[Comparable, ...]:
        """The tensors by which models are compared with the float one."""
        return comparables(self.task.proto)

    @cached_property
    def float_score(self) -> float:
        """Of the model as it came."""
        return self.measured(self.task.proto)

    def measured(self, proto: ModelProto) -> float:
        """What the metric says of a model."""
        return self.distance(proto, self.metric, None)

    def distance(self, proto: ModelProto, metric: Metric, most: int | None) -> float:
        """What another metric says of a model, on the evaluator's samples or at `most` so many of them."""
        feeds, references = self.feeds[:most], self.references[:most]
        return measure(self.shown(proto, metric), feeds, metric, references, self.task.context.services.threads)

    def shown(self, proto: ModelProto, metric: Metric) -> ModelProto:
        """A model, made of the float one, with the outputs that a metric takes."""
        return observed(proto, self.compared) if metric.relative else proto

    @cached_property
    def plan(self) -> Plan:
        """Of the task, with all its steps. Raises OnnxqError."""
        return make_plan(self.task)

    def planned(self) -> tuple[Model, dict[str, Switch]]:
        """The float model, and the switches of everything that the options would quantize in it."""
        base = self.plan.ranged.clone()
        isolate(base)
        return base, switches_of(base, self.plan.model)

    def switchboard(
        self, base: Model, switches: Iterable[Switch], metric: Metric | None = None, most: int | None = None
    ) -> Switchboard:
        """A switchboard for these switches, on the evaluator's samples or at `most` so many of them."""
        metric, feeds, references = metric or self.metric, self.feeds[:most], self.references[:most]
        threads, memory = self.task.context.services.threads, self.task.context.services.max_memory
        score = partial(score_outputs, metric, references)
        proto = self.shown(base.to_proto(), metric)
        return Switchboard(proto, switches, feeds, score, threads=threads, max_memory=memory)


def open_evaluator(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    *,
    options: Options,
    labels: Labels | None = None,
    metric: MetricLike | None = None,
    evaluation_samples: int | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    by_classes: bool = False,
    eval_data: Any = None,
    workers: Workers | None = None,
) -> Evaluator:
    """Open the model and its data; nothing is planned yet.

    labels, metric: as `evaluate` takes them, the labels being those of the samples that are measured on.
    eval_data: the data that these samples are of; None: the calibration data.
    by_classes: whether, without labels and metric, agreement counts where the model has class scores; else SQNR does.
    evaluation_samples: how many calibration samples the metric is measured on; None: `EVALUATION_SAMPLES` for a
    distance, `COUNTED_SAMPLES` for a share.
    workers: who collects statistics, and scores switches. The rest as in `quantize`. Raises a subclass of OnnxqError.
    """
    if options.data_free:
        raise UsageError("without calibration data nothing can be measured: leave out `data_free`")
    if options.from_encodings is not None:
        raise UsageError("grids that `from_encodings` gives are neither chosen nor ranked: leave it out")
    proto, origin, _ = open_model(model, freeze=options.freeze)
    calibration = replayable(calibration, options.max_memory * 2**20)
    feeds = open_data(calibration, input_specs(proto), options, preprocess, input_keys, proto, transform)
    where = os.fspath(calibration) if isinstance(calibration, (str, os.PathLike)) else None
    evaluation = None
    if eval_data is not None:
        every = replace(options, samples=None)
        evaluation = open_data(
            replayable(eval_data, options.max_memory * 2**20),
            input_specs(proto),
            every,
            preprocess,
            input_keys,
            proto,
            transform,
        )
    task = Task(
        proto, origin, feeds, options, where, input_keys or {}, workers=workers, progress=progress,
        evaluation=evaluation, evaluation_samples=evaluation_samples,
    )  # fmt: skip
    scores = class_score_outputs(proto) if by_classes and metric is None and labels is None else frozenset()
    if scores and _classifies(proto, feeds, scores):
        metric = "agreement"
    if evaluation_samples is None:
        distance = labels is None and metric in (None, "sqnr", "kl")
        evaluation_samples = EVALUATION_SAMPLES if distance else COUNTED_SAMPLES
    samples = task.samples.reporting
    if evaluation is None:
        fewer = replace(options, samples=min(evaluation_samples, options.samples or evaluation_samples))
        samples = open_data(calibration, input_specs(proto), fewer, preprocess, input_keys, proto, transform)
    known = None if labels is None else read_labels(labels, samples)
    return Evaluator(task, parse_metric(metric, known, scores or None), list(samples))


def _classifies(proto: ModelProto, feeds: CalibrationData, scores: Collection[str]) -> bool:
    """Whether outputs that may hold class scores have the shape of them."""
    (feed,) = feeds.take(1)
    (outputs,) = float_outputs(proto, (feed,), 1)
    found = [class_scores(outputs[name]) for name in scores]
    return any(each is not None and len(each) == (feed.rows or feed.batch) for each in found)
