"""A step is kept where the quantized model is no worse with it.

    dB(model) = SQNR of all float outputs, the original's against the quantized model's, on the choosing samples;
                of outputs behind a selection, that of the tensors in front of it (`graph.comparable`)

A step is tried on a copy, which is then quantized to the end: what counts is the result, not how the weights look. It
is kept unless it costs more than `TOLERANCE_DB`. Ranges of the copy come from other samples than those compared: a
step may shift what the former clip. Where nothing is comparable, the quality is unknown and chooses nothing: then a
step is kept where it leaves the function as it is in exact arithmetic, and only there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from onnx import ModelProto

from ..calibration.context import Context
from ..data import Feed
from ..execution.compare_outputs import output_sqnr, run_models
from ..execution.observe import observed
from ..graph.comparable import Comparable, comparables
from ..graph.model import Model
from ..passes.base import Outcome, Pass
from ..report import Step
from ..thresholds import TOLERANCE_DB
from .run_passes import Steps, step_record

WORSE = "it makes the result worse"
UNKNOWN = "whether it makes the result better is unknown"
"""Why a step is dropped."""


@dataclass(frozen=True)
class QualityMeasure:
    """original: the float model. feeds: samples to compare on."""

    original: ModelProto
    feeds: Iterable[Feed]
    threads: int = 1

    def db(self, quantized: ModelProto) -> float | None:
        """SQNR over all float outputs together, each in units of its own power; None where nothing is comparable."""
        if not self.compared:
            return None
        models = self._observed_original, observed(quantized, self.compared)
        runs = run_models(models, self.feeds, self.threads)
        return output_sqnr((reference, other) for _, (reference, other) in runs)

    @cached_property
    def compared(self) -> tuple[Comparable, ...]:
        """The tensors that are compared."""
        return comparables(self.original)

    @cached_property
    def _observed_original(self) -> ModelProto:
        return observed(self.original, self.compared)


def keep_if_better(
    passes: Sequence[Pass],
    model: Model,
    context: Context,
    finish: Callable[[Model], ModelProto],
    quality: QualityMeasure,
) -> tuple[Model, Steps]:
    """The model with those passes, one after another, that do not make the quantized model worse.

    `model` is left as it is. finish: quantizes a copy, which it may change, to the end.
    """
    steps = []
    before = quality.db(finish(model.clone()))
    for step in passes:
        start = time.perf_counter()
        copy = model.clone()
        outcome = step.apply(copy, context)
        after = quality.db(finish(copy.clone())) if outcome.changed else before
        if before is None or after is None:
            kept = not outcome.changed or step.preserves is True
        else:
            kept = after >= before - TOLERANCE_DB
        steps.append(_record(step, outcome, before, after, kept, time.perf_counter() - start))
        if kept:
            model, before = copy, after
    return model, tuple(steps)


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
