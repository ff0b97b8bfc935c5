"""A metric of the user's own: `--metric module:function`.

    def function(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> float

outputs: every output of the model, the samples stacked along axis 0 in data order; a list with one array for each
    feed (mostly one sample) where their sizes differ, as numbers of detections do.
labels: (N,) int64, what the option `labels` holds for these samples; None without it.
It returns one number, higher is better. The module is imported as `python -m` does, from the current folder first.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..errors import UsageError
from ..execution.compare_outputs import Outputs
from .metric import (
    AccuracyMetric,
    AgreementMetric,
    KlMetric,
    Metric,
    SqnrMetric,
    Tally,
)

Function = Callable[[dict[str, Any], np.ndarray | None], float]

MetricLike: TypeAlias = str | Function
"""What the argument `metric` takes: a name of BUILT_IN, top1, top5, `module:function`, or the function itself."""

BUILT_IN: dict[str, Metric] = {"sqnr": SqnrMetric(), "agreement": AgreementMetric(), "kl": KlMetric()}
"""By the names that the option `metric` takes; beside them top1 and top5, which need labels."""


def parse_metric(
    text: MetricLike | None, labels: tuple[int, ...] | None = None, scores: frozenset[str] | None = None
) -> Metric:
    """What the option `metric` names; None: top-1 accuracy where there are labels, else SQNR. Raises UsageError.

    scores: names of the outputs that agreement and KL are measured on; None: by their shape, since the user named the
    metric, and should know.
    """
    if text is None:
        return SqnrMetric() if labels is None else AccuracyMetric(labels)
    if not isinstance(text, str):
        if not callable(text):
            raise UsageError(f"`metric` must be a name or a function, got {type(text).__name__}")
        return CustomMetric(getattr(text, "__name__", type(text).__name__), text, labels)
    if text in ("agreement", "kl") and scores is not None:
        return AgreementMetric(scores) if text == "agreement" else KlMetric(scores)
    if text in BUILT_IN:
        return BUILT_IN[text]
    if text in ("top1", "top5"):
        if labels is None:
            raise UsageError(f"`metric` {text} needs `labels`")
        return AccuracyMetric(labels, int(text.removeprefix("top")))
    if ":" not in text:
        known = ", ".join((*BUILT_IN, "top1", "top5"))
        raise UsageError(
            f"`metric` {text!r}: expected {known}, a function of your own as module:function, or in Python the function"
        )
    return CustomMetric(text, load_function(text, "metric"), labels)


def load_function(name: str, option: str) -> Callable[..., Any]:
    """The user's function `module:function`, which `option` names. The current folder is put on sys.path, and stays
    there. Raises UsageError."""
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # whatever the user's module does when it is imported
        trouble = describe(error)
        raise UsageError(f"`{option}` {name}: module {module_name!r} cannot be imported: {trouble}") from None
    if not callable(function):
        raise UsageError(f"`{option}` {name}: module {module_name!r} has no function {function_name!r}")
    loaded: Callable[..., Any] = function
    return loaded


@dataclass(frozen=True)
class CustomMetric:
    """name: `module:function`. labels: of the samples, in data order."""

    name: str
    function: Function
    labels: tuple[int, ...] | None = None
    unit: ClassVar[str] = ""
    relative: ClassVar[bool] = False

    def start(self) -> Tally:
        return _Stack(self)


@dataclass
class _Stack:
    metric: CustomMetric
    parts: dict[str, list[Any]] = field(default_factory=dict)

    def update(self, sample: int, reference: Outputs, outputs: Outputs) -> None:
        for name, value in outputs.items():
            self.parts.setdefault(name, []).append(value)

    def value(self) -> float:
        metric = self.metric
        labels = None if metric.labels is None else np.asarray(metric.labels, np.int64)
        try:
            found = metric.function({name: _stacked(parts) for name, parts in self.parts.items()}, labels)
            value = float(found)
        except Exception as error:  # whatever the user's function does
            raise UsageError(f"`metric` {metric.name} failed: {describe(error)}") from None
        if not np.isfinite(value):
            raise UsageError(f"`metric` {metric.name} returned {value}; it must return a finite number")
        return value


def _stacked(parts: Sequence[Any]) -> Any:
    same = all(isinstance(p, np.ndarray) and p.shape[1:] == parts[0].shape[1:] for p in parts)
    return np.concatenate(parts) if same else list(parts)


def describe(error: Exception) -> str:
    """Its type, its first line, and the line of the user's file where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
