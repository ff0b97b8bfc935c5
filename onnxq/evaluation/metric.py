"""How good a model is: one number, higher is better.

    SQNR                of all float outputs against the float model's, or of what is comparable in front of them, dB
    top-1 agreement     samples with the float model's best class, %
    KL                  -mean KL(p, p^) of the classes' probabilities, nats: 0 at best
    top-k accuracy      samples whose label is among the k best classes, %; needs labels
    module:function     whatever the user's function makes of the stacked outputs

A metric is a frozen record; `start` gives a tally that takes in the samples one after another, in data order, so that
the value depends neither on threads nor on batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from onnx import ModelProto

from ..data import Feed
from ..errors import DataError, UsageError
from ..execution.compare_outputs import Outputs, run_models
from ..execution.observe import observed
from ..graph.comparable import Comparable
from ..numeric.metrics import OutputSqnr, class_scores, kl_divergence, ranks, same_class


class Tally(Protocol):
    """Takes in samples one after another, and gives their score in the end."""

    def update(self, sample: int, reference: Outputs, outputs: Outputs) -> None:
        """One feed, outputs as `by_sample` gives them. sample: the number of its first sample. reference: the float
        model's outputs, if they are known."""

    def value(self) -> float | None:
        """Higher is better. None where there was nothing to measure."""


class Metric(Protocol):
    """relative: whether it compares with the float model's outputs, which it then needs."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def relative(self) -> bool: ...
    def start(self) -> Tally: ...


@dataclass(frozen=True)
class SqnrMetric:
    """Signal to quantization noise of all float outputs together, in dB. What `quantize` keeps steps by also looks in
    front of outputs that saturate (`pipeline.keep_if_better`)."""

    name: ClassVar[str] = "SQNR"
    unit: ClassVar[str] = "dB"
    relative: ClassVar[bool] = True

    def start(self) -> Tally:
        return _SqnrTally()


@dataclass
class _SqnrTally:
    total: OutputSqnr = field(default_factory=OutputSqnr)

    def update(self, sample: int, reference: Outputs, outputs: Outputs) -> None:
        self.total.update(reference, outputs)

    def value(self) -> float | None:
        return self.total.db


@dataclass(frozen=True)
class AgreementMetric:
    """Share of samples for which both models find the same best class, in %, over outputs that hold class scores.

    scores: names of these outputs (`graph.class_scores`); None: all that have the shape of class scores.
    """

    scores: frozenset[str] | None = None
    name: ClassVar[str] = "top-1 agreement"
    unit: ClassVar[str] = "%"
    relative: ClassVar[bool] = True

    def start(self) -> Tally:
        return _AgreementTally(self.scores)


@dataclass
class _Mean:
    """Of values per sample."""

    total: float = 0.0
    count: int = 0

    def add(self, values: np.ndarray) -> None:
        self.total += float(np.asarray(values, np.float64).sum())
        self.count += values.size

    def times(self, factor: float) -> float | None:
        """None of no values."""
        return factor * self.total / self.count if self.count else None


@dataclass
class _AgreementTally:
    scores: frozenset[str] | None
    same: _Mean = field(default_factory=_Mean)

    def update(self, sample: int, reference: Outputs, outputs: Outputs) -> None:
        for name, value in reference.items():
            same = same_class(value, outputs.get(name)) if self.scores is None or name in self.scores else None
            if same is not None:
                self.same.add(same)

    def value(self) -> float | None:
        return self.same.times(100.0)


@dataclass(frozen=True)
class KlMetric:
    """Minus the mean KL divergence of the quantized model's class probabilities from the float model's, in nats.

    scores: as those of `AgreementMetric`.
    """

    scores: frozenset[str] | None = None
    name: ClassVar[str] = "-KL"
    unit: ClassVar[str] = "nats"
    relative: ClassVar[bool] = True

    def start(self) -> Tally:
        return _KlTally(self.scores)


@dataclass
class _KlTally:
    scores: frozenset[str] | None
    divergence: _Mean = field(default_factory=_Mean)

    def update(self, sample: int, reference: Outputs, outputs: Outputs) -> None:
        for name, value in reference.items():
            x, y = class_scores(value), class_scores(outputs.get(name))
            known = self.scores is None or name in self.scores
            if known and x is not None and y is not None and x.shape == y.shape:
                self.divergence.add(kl_divergence(x, y))

    def value(self) -> float | None:
        mean = self.divergence.times(-1.0)
        return -np.inf if mean is not None and np.isnan(mean) else mean


@dataclass(frozen=True)
class AccuracyMetric:
    """Share of samples whose label is among the k classes with the highest scores, in %; nothing where all are.

    labels: of the samples in data order, as `labels.read_labels` gives them. output: which output holds the class
    scores; None: the only one that looks like it.
    """

    labels: tuple[int, ...]
    k: int = 1
    output: str | None = None
    unit: ClassVar[str] = "%"
    relative: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"top-{self.k} accuracy"

    def start(self) -> Tally:
        return _AccuracyTally(self)


@dataclass
class _AccuracyTally:
    metric: AccuracyMetric
    hits: _Mean = field(default_factory=_Mean)

    def update(self, sample: int, reference: Outputs, outputs: Outputs) -> None:
        name, scores = _the_scores(outputs, self.metric.output)
        known = np.asarray(self.metric.labels[sample : sample + len(scores)], np.int64)
        if known.size != len(scores):
            raise DataError(
                f"labels: expected one for each sample, got {len(self.metric.labels)}, and output {name!r} has scores"
                f" for samples {sample} to {sample + len(scores) - 1}"
            )
        outside = known[(known < 0) | (known >= scores.shape[1])]
        if outside.size:
            raise DataError(
                f"labels: class {outside[0]} does not exist: output {name!r} has scores of {scores.shape[1]} classes,"
                f" 0 to {scores.shape[1] - 1}"
            )
        if self.metric.k < scores.shape[1]:
            self.hits.add(ranks(scores, known) < self.metric.k)

    def value(self) -> float | None:
        return self.hits.times(100.0)


def _the_scores(outputs: Outputs, wanted: str | None) -> tuple[str, np.ndarray]:
    if wanted is not None and wanted not in outputs:
        raise UsageError(f"the model has no output {wanted!r}; it has {', '.join(outputs)}")
    found = {n: s for n, v in outputs.items() if wanted in (None, n) and (s := class_scores(v)) is not None}
    if len(found) == 1:
        return next(iter(found.items()))
    if wanted is not None:
        raise UsageError(f"output {wanted!r} does not hold class scores (samples x classes)")
    trouble = f"{', '.join(found)} do; name the right one" if found else "none does; give a metric of your own"
    raise UsageError(f"labels are for an output that holds class scores (samples x classes), and {trouble}")


def by_sample(outputs: Outputs, feed: Feed) -> dict[str, Any]:
    """Outputs for `feed`, without padding, with their samples along axis 0.

    An axis of length 1 is put in front where axis 0 counts something else: the feed is then one sample.
    """

    def samples_first(value: Any) -> Any:
        return value if not isinstance(value, np.ndarray) or value.shape[:1] == (feed.rows or 1,) else value[np.newaxis]

    return {name: samples_first(value) for name, value in outputs.items()}


def float_outputs(
    proto: ModelProto, feeds: Iterable[Feed], threads: int, compared: Sequence[Comparable] | None = None
) -> list[dict[str, Any]]:
    """The outputs of a model for each feed: the reference of relative metrics. All are held in memory.

    compared: what of it is comparable, instead of its outputs.
    """
    shown = proto if compared is None else observed(proto, compared)
    wanted = None if compared is None else {each.label for each in compared}
    found = []
    for feed, (outputs,) in run_models((shown,), feeds, threads):
        found.append(by_sample({n: v for n, v in outputs.items() if wanted is None or n in wanted}, feed))
    return found


def score_outputs(
    metric: Metric, references: Sequence[Outputs] | None, outputs: Iterable[tuple[Feed, Outputs]]
) -> float:
    """The value of `metric` for a model's outputs of some feeds.

    references: `float_outputs` of the same feeds, for a relative metric. Raises UsageError where the metric does not
    fit the outputs, DataError where labels do not.
    """
    if metric.relative and references is None:
        raise UsageError(f"{metric.name} compares with the float model's outputs, and none are given")
    tally, first = metric.start(), 0
    for index, (feed, found) in enumerate(outputs):
        tally.update(first, {} if references is None else references[index], by_sample(found, feed))
        first += feed.rows or 1
    value = tally.value()
    if value is None:
        raise UsageError(f"{metric.name} cannot be measured: no output of the model is of that kind")
    return value


def measure(
    proto: ModelProto, feeds: Iterable[Feed], metric: Metric, references: Sequence[Outputs] | None, threads: int
) -> float:
    """The value of `metric` for a model over `feeds`, as `score_outputs`; the same on any number of threads.

    Raises EngineError where the model does not run, and what `score_outputs` raises.
    """
    runs = ((feed, outputs) for feed, (outputs,) in run_models((proto,), feeds, threads))
    return score_outputs(metric, references, runs)
