"""Before quantization is blamed: is the float model sound, and does bypassing all quantizers give it back?"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto

from ..data import Feed
from ..errors import DataError, VerificationError
from ..evaluation.metric import AccuracyMetric, SqnrMetric, measure
from ..evaluation.study import Study
from ..execution.session import Session
from ..graph.model import extract
from ..numeric.metrics import class_scores
from ..thresholds import EVALUATION_SAMPLES, PRESERVED_DB
from .log import Log, score_text
from .trial import Trial


def check_float(study: Study, log: Log) -> None:
    """Raise DataError where the float model's outputs are no numbers, or no better than guessing."""
    for number, (feed, outputs) in enumerate(zip(study.feeds, study.references, strict=True)):
        broken = [name for name, value in outputs.items() if _holds_nan(value)]
        if broken:
            where = _first_nan(study.job.proto, feed)
            raise DataError(
                f"{study.job.origin}: the float model itself computes not-a-number in {broken[0]!r} for sample"
                f" {number}, first in {where}; repair the model or the data before it is quantized"
            )
    metric, score = study.metric, study.float_score
    if isinstance(metric, AccuracyMetric):
        guessed, spread = _guessing(study, metric.k)
        if score <= guessed + 2 * spread:
            raise DataError(
                f"{study.job.origin}: the float model itself reaches {score:.2f} % {metric.name} on {samples_of(study)}"
                f" samples, and guessing {guessed:.2f} %: labels or preprocessing do not fit it"
            )
    log.write(
        "The float model",
        f"{log.score(score)} {metric.name} on {samples_of(study)} samples." if math.isfinite(score) else
        f"Measured by {metric.name} on {samples_of(study)} samples.",
    )  # fmt: skip


def check_bypassed(trial: Trial, log: Log) -> None:
    """Raise VerificationError where the network with all quantizers bypassed is not the float model."""
    study = trial.study
    feeds, references = study.feeds[:EVALUATION_SAMPLES], study.references[:EVALUATION_SAMPLES]
    proto, threads = trial.base.to_proto(), study.job.context.services.threads
    db = measure(proto, feeds, SqnrMetric(), references, threads)
    score = db if isinstance(study.metric, SqnrMetric) else study.measured(proto)
    if db < PRESERVED_DB:
        raise VerificationError(
            f"{study.job.origin}: with all quantizers bypassed, outputs are at {db:.1f} dB of the float model's, and"
            f" {PRESERVED_DB:.0f} dB were expected: what goes wrong is not quantization but a step that prepares the"
            " network (--no-dead-channels, --no-cle, --no-absorb leave them out), or the model is numerically unstable"
        )
    log.write(
        "Sanity: all quantizers bypassed",
        f"{log.score(score)}; outputs against the float model's: {score_text(db, 'dB')}. What is lost from here on is"
        " lost by quantization.",
    )


def samples_of(study: Study) -> int:
    """How many the metric is measured on."""
    return sum(feed.rows or 1 for feed in study.feeds)


def _holds_nan(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isnan(value).any())


def _first_nan(proto: ModelProto, feed: Feed) -> str:
    """The first node that makes not-a-number of numbers."""
    names = [name for node in proto.graph.node for name in node.output if name]
    found = {**feed.arrays, **Session(extract(proto, names)).run(feed.arrays)}
    fed = next((name for name, value in feed.arrays.items() if _holds_nan(value)), None)
    if fed is not None:
        return f"the input {fed!r}"
    node = next(node for node in proto.graph.node if any(_holds_nan(found.get(name)) for name in node.output))
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def _guessing(study: Study, k: int) -> tuple[float, float]:
    """Expected top-k accuracy of guessing, and its standard deviation on so many samples, in %."""
    scores = [s for outputs in study.references for v in outputs.values() if (s := class_scores(v)) is not None]
    share = min(1.0, k / max((s.shape[1] for s in scores), default=k))
    return 100 * share, 100 * math.sqrt(share * (1 - share) / samples_of(study))
