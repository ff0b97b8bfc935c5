"""A model quantized with a few samples and a quick correction: good enough to compare steps before the whole is run."""

from __future__ import annotations

from onnx import ModelProto

from ..graph.model import Model
from ..numeric.quant import QuantSpec
from ..passes.base import Pass
from ..passes.correct_bias import CorrectBias
from ..passes.make_exceptions import give_bits, narrow_weights
from .lower import at_sufficient_opset, lowered
from .run_passes import run_passes
from .set_ranges import ranging
from .task import Task

_ANALYTIC = CorrectBias()


def quantized_quickly(
    model: Model, task: Task, correction: Pass = _ANALYTIC, wider: QuantSpec | None = None
) -> ModelProto:
    """A float model quantized with a few samples and a quick correction: good enough to compare steps.

    wider: what weights get that would have fewer bits.
    """
    return lowered(plan_quickly(model, task, correction, wider), task)


def plan_quickly(model: Model, task: Task, correction: Pass = _ANALYTIC, wider: QuantSpec | None = None) -> Model:
    """The same, before it is lowered."""
    model, _ = run_passes(ranging(task.options, correction=correction), model, task.trying)
    if wider is not None:
        for name in narrow_weights(model, wider):
            give_bits(model, name, wider)
    model = at_sufficient_opset(model, task.options)
    if task.options.weight is not None:
        correction.apply(model, task.trying)
    return model
