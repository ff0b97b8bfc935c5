"""A step is kept where the quantized model is no worse with it.

    dB(model) = SQNR of all float outputs, the original's against the quantized model's, on the choosing samples;
                of outputs behind a selection, that of the tensors in front of it; of a Softmax or another function
                that saturates, the worse of both sides; of joined outputs, the parts (`graph.comparable.telling`)

A step is tried on a copy, which is then quantized to the end: what counts is the result, not how the weights look. It
is kept unless it costs more than `TOLERANCE_DB`. Ranges of the copy come from other samples than those compared: a
step may shift what the former clip. Where nothing is comparable, the quality is unknown and chooses nothing: then a
step is kept where it leaves the function as it is in exact arithmetic, and only there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from onnx import ModelProto

from ..calibration.context import Context
from ..data import Feed
from ..errors import EngineError
from ..execution.compare_outputs import Outputs, Reference, output_losses, output_sqnr
from ..execution.memory import return_freed_memory
from ..execution.observe import observed
from ..execution.services import Services
from ..graph import large
from ..graph.comparable import Comparable, telling
from ..graph.model import Model
from ..numeric.metrics import comparable, gain
from ..passes.base import Outcome, Pass
from ..report import Step
from ..thresholds import TOLERANCE_DB
from .run_passes import Steps, step_record

T = TypeVar("T")

WORSE = "it makes the result worse"
UNKNOWN = "whether it makes the result better is unknown"
"""Why a step is dropped."""


@dataclass(frozen=True)
class QualityMeasure:
    """original: the float model, which runs once.  feeds: samples to compare on.  services: how models are run.

    optimize: whether ONNX Runtime's optimisations are on, as where it is what will run the result: integer kernels take
    a sixth of the time of the model as written. A model that does not run with them is measured as written, and it is
    verification that refuses it.
    """

    original: ModelProto
    feeds: Iterable[Feed]
    services: Services = field(default_factory=Services)
    optimize: bool = False

    def db(self, quantized: ModelProto) -> float | None:
        """SQNR over all float outputs together, each in units of its own power; None where nothing is comparable."""
        return self._beside(quantized, partial(output_sqnr, compared=self.compared)) if self.compared else None

    def gain(self, before: ModelProto, after: ModelProto) -> tuple[float, float] | None:
        """The share of what one quantized model has lost that another has not, and its standard error
        (`numeric.metrics.gain`)."""
        if not self.compared:
            return None
        return gain(*(self._beside(m, partial(output_losses, compared=self.compared)) for m in (before, after)))

    def bias_share(self, quantized: ModelProto) -> float:
        """The share of the noise of all float outputs that a constant for each channel would take away; 0 where that is
        unknown. Means of few samples hold some noise, which is counted out:

            r samples, e_rc the mean error of channel c (axis 1) in one of them:   bias_c^2 = mean(e_c)^2 - var(e_c) / r
        """
        fronts = {each.label for each in self.compared if each.front is not None}
        return self._beside(quantized, partial(_bias_share, without=fronts)) if self.compared else 0.0

    def _beside(self, quantized: ModelProto, measure: Callable[[Iterable[tuple[Outputs, Outputs]]], T]) -> T:
        """What `measure` makes of the outputs of both models."""
        shown = observed(quantized, self.compared)
        if self.optimize and not large.references(quantized):  # the optimiser would copy the weights of large models
            with contextlib.suppress(EngineError):
                return measure(self._optimised.beside(shown))
        return measure(self._as_written.beside(shown))

    @cached_property
    def compared(self) -> tuple[Comparable, ...]:
        """The tensors that are compared."""
        return telling(self.original)

    @cached_property
    def _optimised(self) -> Reference:
        return Reference(observed(self.original, self.compared), self.feeds, self.services, optimize=True)

    @cached_property
    def _as_written(self) -> Reference:
        return Reference(observed(self.original, self.compared), self.feeds, self.services)


@dataclass
class _Bias:
    """Errors of one output. means: of each channel in one sample, with the values that a channel has there."""

    signal: float = 0.0
    noise: float = 0.0
    means: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def update(self, reference: np.ndarray, other: np.ndarray) -> None:
        error = np.asarray(other, np.float64) - reference
        self.signal += float(np.square(reference, dtype=np.float64).sum())
        self.noise += float(np.square(error).sum())
        axes = tuple(axis for axis in range(error.ndim) if axis != 1)
        self.means.append((error.mean(axis=axes), error.size // max(error.shape[1], 1)))

    def bias(self) -> float:
        """Its squared error; 0 where samples differ in their channels, or there is but one."""
        if len(self.means) < 2 or len({mean.size for mean, _ in self.means}) > 1:
            return 0.0
        means = np.stack([mean for mean, _ in self.means])
        squared = np.square(means.mean(axis=0)) - means.var(axis=0, ddof=1) / len(means)
        return max(float(squared.sum()) * sum(count for _, count in self.means), 0.0)


def _bias_share(pairs: Iterable[tuple[Outputs, Outputs]], without: Collection[str] = ()) -> float:
    """without: names of tensors that are not looked at."""
    found: dict[str, _Bias] = {}
    for reference, other in pairs:
        for name, x in reference.items():
            if name not in without and comparable(x, other.get(name)) and x.ndim > 1:
                found.setdefault(name, _Bias()).update(x, other[name])
    noise = sum(each.noise / each.signal for each in found.values() if each.signal)
    return sum(each.bias() / each.signal for each in found.values() if each.signal) / noise if noise else 0.0


def keep_if_better(
    passes: Sequence[Pass],
    model: Model,
    context: Context,
    finish: Callable[[Model], ModelProto],
    quality: QualityMeasure,
    few: Context | None = None,
    before: Callable[[], float | None] | None = None,
) -> tuple[Model, Steps]:
    """The model with those passes, one after another, that do not make the quantized model worse.

    `model` is left as it is. finish: quantizes a copy, which it may change, to the end.
    few: a context of fewer samples, in which a step is tried; one that is kept is then taken on all of them: it knows
    more there, and leaves more as it is. before: measures the quality of the model as it is; asked once, where a step
    changes something.
    """
    steps = []
    measured, db = False, None
    for index, step in enumerate(passes):
        context.services.progress(f"trying {step.title}", index, len(passes))
        start = time.perf_counter()
        return_freed_memory()
        tried, kept, after = model.clone(), True, None
        outcome = step.apply(tried, few or context)
        if outcome.changed:
            if not measured:
                measured, db = True, before() if before is not None else quality.db(finish(model.clone()))
            after = quality.db(finish(tried.clone()))
            kept = step.preserves is True if db is None or after is None else after >= db - TOLERANCE_DB
            if kept and few is not None:
                tried = model.clone()
                outcome = step.apply(tried, context)
        steps.append(_record(step, outcome, db, after, kept, time.perf_counter() - start))
        if kept and outcome.changed:
            model, db = tried, after
    return model, tuple(steps)


def better_of(
    best: Model,
    step: Pass,
    model: Model,
    context: Context,
    finish: Callable[[Model], ModelProto],
    quality: QualityMeasure,
    gain: float,
) -> tuple[Model, Step]:
    """`best`, or the model with another step instead of those that led to `best`, where that is better by more than
    `gain`, dB; and its record.

    Both are left as they are. finish: as in `keep_if_better`.
    """
    start, copy = time.perf_counter(), model.clone()
    outcome = step.apply(copy, context)
    before, after = quality.db(finish(best.clone())), quality.db(finish(copy.clone()))
    kept = outcome.changed > 0 and before is not None and after is not None and after > before + gain
    return copy if kept else best, _record(step, outcome, before, after, kept, time.perf_counter() - start)


def _record(
    step: Pass, outcome: Outcome, before: float | None, after: float | None, kept: bool, seconds: float
) -> Step:
    if not outcome.changed:
        return replace(step_record(step, outcome, seconds), before_db=before, after_db=before)
    compared = before is not None and after is not None
    if compared:
        note = f"outputs at {before:.1f} dB, then {after:.1f} dB; {'kept' if kept else f'dropped: {WORSE}'}"
    else:
        note = f"no output can be compared; {'kept: it preserves the function' if kept else f'dropped: {UNKNOWN}'}"
    outcome = replace(outcome, notes=(note, *outcome.notes)) if kept else Outcome(notes=(note,))
    record = step_record(step, outcome, seconds)
    return replace(record, before_db=before, after_db=after, status="kept" if kept else "dropped")
