"""Passes in order, each recorded, and each that claims to preserve the float function held to it.

The function is measured on one sample, before the first pass and after each one that edits the graph:

    SQNR(output before, output after) >= PRESERVED_DB

A pass that cannot keep this is undone and left out, with a note (the model may be numerically unstable): a rewrite is a
convenience, and never a reason to refuse a model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto

from ..calibration.context import Context
from ..errors import EngineError
from ..execution.observe import observed
from ..execution.session import Session
from ..graph.comparable import Comparable, comparables
from ..graph.model import Model
from ..numeric.metrics import Sqnr, comparable
from ..passes.base import Outcome, Pass
from ..report import Step
from ..thresholds import PRESERVED_DB

Steps = tuple[Step, ...]


def run_passes(
    passes: Sequence[Pass], model: Model, context: Context, original: ModelProto | None = None
) -> tuple[Model, Steps]:
    """The model after all passes, which edit the one given unless one of them is undone. Raises OnnxqError.

    original: the float model that passes must preserve the function of; `model` as it is if None.
    """
    steps: list[Step] = []
    feed = next((f.arrays for f in context.feeds), None) if any(p.preserves for p in passes) else None
    function = None if feed is None else _Function(model.clone() if original is None else original, feed)
    for index, step in enumerate(passes):
        context.services.progress(step.title, index, len(passes))
        start = time.perf_counter()
        untouched = model.clone() if step.preserves and function is not None else None
        outcome = step.apply(model, context)
        record = step_record(step, outcome, 0.0)
        if untouched is not None and function is not None and outcome.changed:
            fault = function.difference(model)
            if fault is not None:
                model, record = untouched, _undone(step, f"{fault}; the model may be numerically unstable")
        steps.append(replace(record, seconds=time.perf_counter() - start))
    return model, tuple(steps)


class _Function:
    """What a float model computes of one feed; it is run when something is first compared with it."""

    def __init__(self, model: Model | ModelProto, feed: Mapping[str, np.ndarray]) -> None:
        self._model, self._feed = model, feed

    @cached_property
    def _expected(self) -> tuple[tuple[Comparable, ...], dict[str, Any]]:
        proto = self._model if isinstance(self._model, ModelProto) else self._model.to_proto()
        compared = comparables(proto)
        found = Session(observed(proto, compared, keep_outputs=True)).run(self._feed)
        return compared, {each.label: found[each.label] for each in compared}

    def difference(self, model: Model) -> str | None:
        """How a model's outputs differ from the expected ones by more than rounding; None where they do not."""
        compared, expected = self._expected
        return _difference(observed(model.to_proto(), compared, keep_outputs=True), self._feed, expected)


def _difference(proto: ModelProto, feed: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> str | None:
    """How the float model's outputs differ from the expected ones by more than rounding; None where they do not."""
    try:
        found = Session(proto).run(feed)
    except EngineError as error:
        return f"the float model does not run with it ({error})"
    for output, x in expected.items():
        if comparable(x, found.get(output)):
            distance = Sqnr()
            distance.update(x, found[output])
            if distance.db < PRESERVED_DB and distance.noise > np.finfo(np.float32).tiny:
                return (
                    f"it changed the float model's output {output!r} (SQNR {distance.db:.1f} dB, expected at"
                    f" least {PRESERVED_DB:.0f})"
                )
    return None


def step_record(step: Pass, outcome: Outcome, seconds: float) -> Step:
    """What is reported of a pass that was applied."""
    options = repr(step).partition("(")[2].removesuffix(")")
    skips = tuple((skip.where, skip.reason) for skip in outcome.skips)
    return Step(
        type(step).__name__,
        step.title,
        options,
        outcome.changed,
        seconds,
        outcome.notes,
        skips,
        status="done" if outcome.changed else "nothing to do",
        rounded=outcome.rounded,
        warnings=outcome.warnings,
    )


def not_run(step: Pass, reason: str) -> Step:
    """What is reported of a pass that there was a reason not to run."""
    return replace(step_record(step, Outcome(notes=(f"not run: {reason}",)), 0.0), status="not run")


def _undone(step: Pass, fault: str) -> Step:
    record = step_record(step, Outcome(notes=(f"undone: {fault}",)), 0.0)
    return replace(record, status="undone", warnings=(f"{step.title} was left out: {fault}",))
