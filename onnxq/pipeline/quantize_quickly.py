"""A model quantized with a few samples and a quick correction: good enough to compare steps before the whole is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onnx import ModelProto

from ..calibration.context import Context
from ..data import Feed
from ..execution.services import no_progress
from ..graph.model import Model
from ..passes.base import Pass
from ..passes.correct_bias import CorrectBias
from .lower import at_sufficient_opset, lowered
from .run_passes import run_passes
from .set_ranges import ranging
from .task import Task

_ANALYTIC = CorrectBias()


def quantized_quickly(model: Model, task: Task, correction: Pass = _ANALYTIC) -> ModelProto:
    """A float model quantized with a few samples and a quick correction: good enough to compare steps."""
    return lowered(plan_quickly(model, task, correction), task)


def plan_quickly(model: Model, task: Task, correction: Pass = _ANALYTIC) -> Model:
    """The same, before it is lowered."""
    few = silent(task.context, task.samples.trial)
    model, _ = run_passes(ranging(task.options, correction=correction), model, few)
    model = at_sufficient_opset(model, task.options)
    if task.options.weight is not None:
        correction.apply(model, few)
    return model


def silent(context: Context, feeds: Iterable[Feed]) -> Context:
    """The context for a trial on some feeds, which shows no progress of its own."""
    return replace(context, feeds=feeds, services=replace(context.services, progress=no_progress))
