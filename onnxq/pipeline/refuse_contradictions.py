"""Options that contradict the target in this very model are refused before any work, by the check that the result would
have to pass: the plan is written with ranges of [-1, 1], and what depends on real ranges is not asked.

What contradicts a target in every model is refused earlier still, by `Options` (`targets.contradictions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from ..checking import check
from ..errors import UsageError
from ..graph.model import Model
from ..options import Options
from ..passes.base import Pass
from ..passes.choose_storage import ChooseStorage
from ..passes.leave_incomplete import LeaveIncompleteOperators
from ..passes.lower_to_qdq import LowerToQdq
from ..passes.set_activation_ranges import SetActivationRanges
from ..passes.set_bias_scales import SetBiasScales
from ..passes.set_weight_ranges import SetWeightRanges
from .run_passes import run_passes
from .task import Task

_OF_VALUES = ("opset", "smallest-range", "fixed-encoding", "shifts")
"""Requirements that real ranges and lowering see to."""

_CHOICES = ("include", "exclude", "tie", "overrides", "from_encodings")
"""Options that change what is quantized, tensor by tensor; without one of them a plan never breaks a rule."""


def with_any_ranges(model: Model, task: Task, placing: Sequence[Pass]) -> Model:
    """A plan for the model, which stays as it is: activations range over [-1, 1], and no data is needed.

    placing: the passes that place quantizers, and say what they are like.
    """
    context = replace(task.context, feeds=(), weight_ranges={})
    plan, _ = run_passes(placing, model.clone(), context)
    tensors = plan.graph.tensors()
    for name, quantizer in plan.quantizers.items():
        if not quantizer.given and isinstance(tensors[name], gs.Variable):
            plan.quantizers[name] = replace(quantizer, fixed=(-1.0, 1.0))
    ranging = (SetWeightRanges("minmax"), SetActivationRanges(), LeaveIncompleteOperators())
    plan, _ = run_passes((*ranging, ChooseStorage(task.options.store_4bit)), plan, context)
    return plan


def refuse_contradictions(model: Model, task: Task, placing: Sequence[Pass]) -> None:
    """Raise UsageError where what the user asked for breaks a requirement of the target. The model stays as it is.

    placing: the passes that place quantizers, and say what they are like.
    """
    chosen = [name for name in _CHOICES if getattr(task.options, name) != getattr(Options(), name)]
    if not chosen:
        return
    plan = with_any_ranges(model, task, placing)
    plan, _ = run_passes((SetBiasScales(), LowerToQdq()), plan, replace(task.context, feeds=()))
    if not any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in plan.graph.nodes):
        return
    target = task.context.target
    found = check(plan.to_proto(), target, task.origin).violations
    found = tuple(violation for violation in found if violation.requirement not in _OF_VALUES)
    if found:
        options = ", ".join(f"`{name}`" for name in chosen)
        some = "; ".join(map(str, found[:3]))
        raise UsageError(f"{options} contradict {target.name}: {some}{'; ...' * (len(found) > 3)}")
