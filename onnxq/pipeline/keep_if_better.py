"""Is a step worth taking? The quantized model answers: the signal to quantization noise ratio of its outputs.

    db(model) = SQNR of all float outputs, the original's against the quantized model's, on a few calibration samples

A step is tried on a copy, which is then quantized to the end: what counts is the result, not how the weights look. It
is kept unless it costs more than `tolerance` dB. Ranges of the copy come from other samples than those compared: a
step may shift what the former clip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from ..data import CalibrationData, Feed
from ..execution.session import Session, parallel_map, without_padding
from ..graph.model import Model
from ..numeric.metrics import OutputSqnr
from ..passes.base import Context, Outcome, Pass
from ..thresholds import TOLERANCE_DB, TRIAL_SAMPLES


def split(feeds: CalibrationData) -> tuple[list[Feed], list[Feed]]:
    """Feeds to set ranges on, and feeds to compare on: no sample is among both, unless there is but one feed."""
    drawn = feeds.take(2 * TRIAL_SAMPLES)
    return (drawn[::2], drawn[1::2]) if len(drawn) > 1 else (drawn, drawn)


@dataclass(frozen=True)
class Trial:
    """A step that was tried: `before` and `after` are SQNR in dB of the quantized model; `outcome` None if not kept."""

    step: Pass
    before: float
    after: float
    outcome: Outcome | None
    seconds: float

    def __str__(self) -> str:
        verdict = "kept" if self.outcome is not None else "dropped: it makes the result worse"
        return f"{type(self.step).__name__}: outputs at {self.before:.1f} dB, then {self.after:.1f} dB; {verdict}"


@dataclass(frozen=True)
class QualityMeasure:
    """original: the float model. feeds: samples to compare on."""

    original: ModelProto
    feeds: Sequence[Feed]
    threads: int = 1

    def db(self, quantized: ModelProto) -> float:
        """SQNR over all float outputs together, each in units of its own power."""
        sessions = Session(self.original), Session(quantized)
        total = OutputSqnr()
        runs = parallel_map(lambda feed: (feed, [s.run(feed.arrays) for s in sessions]), self.feeds, self.threads)
        for feed, outputs in runs:
            reference, other = ({name: without_padding(v, feed) for name, v in found.items()} for found in outputs)
            total.update(reference, other)
        return total.db


def keep_if_better(
    model: Model,
    steps: Sequence[Pass],
    context: Context,
    finish: Callable[[Model], ModelProto],
    judge: QualityMeasure,
    tolerance: float = TOLERANCE_DB,
) -> tuple[Model, list[Trial]]:
    """The model with those of `steps`, one after another, that do not make the quantized model worse.

    finish: quantizes a copy, which it may change, to the end. tolerance: dB that a step may cost.
    """
    trials = []
    before = judge.db(finish(model.clone()))
    for step in steps:
        start = time.perf_counter()
        copy = model.clone()
        outcome = step.apply(copy, context)
        after = judge.db(finish(copy.clone())) if outcome.changed else before
        kept = after >= before - tolerance
        trials.append(Trial(step, before, after, outcome if kept else None, time.perf_counter() - start))
        if kept:
            model, before = copy, after
    return model, trials
