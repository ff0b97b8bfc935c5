"""Figure 9, first box: is the float model sound, and is it what the network computes with all quantizers bypassed?"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto

from ..data import Feed
from ..errors import DataError, VerificationError
from ..evaluation.evaluator import Evaluator
from ..evaluation.metric import AccuracyMetric, SqnrMetric
from ..execution.partial import tensor_values
from ..numeric.metrics import class_scores
from ..thresholds import EVALUATION_SAMPLES, PRESERVED_DB
from .candidate import Candidate
from .log import Log, score_text


def check_float(evaluator: Evaluator, log: Log) -> None:
    """Raise DataError where the float model's outputs are not numbers, or no better than guessing."""
    for number, (feed, outputs) in enumerate(zip(evaluator.feeds, evaluator.references, strict=True)):
        broken = [name for name, value in outputs.items() if _holds_nan(value)]
        if broken:
            where = _first_nan(evaluator.task.proto, feed)
            raise DataError(
                f"{evaluator.task.origin}: the float model itself computes not-a-number in {broken[0]!r} for sample"
                f" {number}, first in {where}; repair the model or the data before it is quantized"
            )
    metric, score = evaluator.metric, evaluator.float_score
    if isinstance(metric, AccuracyMetric):
        guessed, spread = _guessing(evaluator, metric.k)
        if score <= guessed + 2 * spread:
            raise DataError(
                f"{evaluator.task.origin}: the float model itself reaches {score:.2f} % {metric.name} on"
                f" {samples_of(evaluator)} samples, and guessing {guessed:.2f} %: labels or preprocessing do not fit it"
            )
    log.write(
        "The float model",
        f"{log.value(score)} {metric.name} on {samples_of(evaluator)} samples." if math.isfinite(score) else
        f"Measured by {metric.name} on {samples_of(evaluator)} samples.",
    )  # fmt: skip


def check_bypassed(candidate: Candidate, log: Log) -> None:
    """Raise VerificationError where the network with all quantizers bypassed is not the float model."""
    evaluator = candidate.evaluator
    proto = candidate.base.to_proto()
    db = evaluator.distance(proto, SqnrMetric(), EVALUATION_SAMPLES)
    score = db if isinstance(evaluator.metric, SqnrMetric) else evaluator.measured(proto)
    if db < PRESERVED_DB:
        raise VerificationError(
            f"{evaluator.task.origin}: with all quantizers bypassed, outputs are at {db:.1f} dB of the float model's,"
            f" and {PRESERVED_DB:.0f} dB were expected: what goes wrong is not quantization but a step that prepares"
            " the network (turn `dead_channels`, `cle` and `absorb` off to leave them out), or the model is numerically"
            " unstable"
        )
    log.write(
        "Sanity: all quantizers bypassed",
        f"{log.value(score)}; outputs against the float model's: {score_text(db, 'dB')}. What is lost from here on is"
        " lost by quantization.",
    )


def samples_of(evaluator: Evaluator) -> int:
    """How many the metric is measured on."""
    return sum(feed.rows or 1 for feed in evaluator.feeds)


def _holds_nan(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isnan(value).any())


def _first_nan(proto: ModelProto, feed: Feed) -> str:
    """The first node that makes not-a-number of numbers."""
    names = [name for node in proto.graph.node for name in node.output if name]
    (found,) = tensor_values(proto, names, [feed])
    fed = next((name for name, value in feed.arrays.items() if _holds_nan(value)), None)
    if fed is not None:
        return f"the input {fed!r}"
    node = next(node for node in proto.graph.node if any(_holds_nan(found.get(name)) for name in node.output))
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def _guessing(evaluator: Evaluator, k: int) -> tuple[float, float]:
    """Expected top-k accuracy of guessing, and its standard deviation on so many samples, in %."""
    scores = [s for outputs in evaluator.references for v in outputs.values() if (s := class_scores(v)) is not None]
    share = min(1.0, k / max((s.shape[1] for s in scores), default=k))
    return 100 * share, 100 * math.sqrt(share * (1 - share) / samples_of(evaluator))
