"""The last box of figure 8: a plan is written down as a model with QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import time
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import version

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto

from ..calibration.context import Context
from ..encodings import Encoding, encoding_of
from ..graph.model import Model
from ..graph.opset import convert_opset, opset_of
from ..graph.stored_weights import StoredWeights
from ..options import Options
from ..passes.base import Pass
from ..passes.fuse_activation import FuseActivation
from ..passes.lower_to_qdq import LowerToQdq
from ..passes.set_bias_scales import SetBiasScales
from ..passes.tabulate_hard_swish import TabulateHardSwish
from ..report import Step
from ..targets import find_target
from .run_passes import Steps, run_passes
from .task import Task

LOWERING: tuple[Pass, ...] = (SetBiasScales(), FuseActivation(), LowerToQdq(), TabulateHardSwish())


def lower(model: Model, context: Context) -> tuple[ModelProto, Steps]:
    """A plan, which stays as it is, as a model with QuantizeLinear and DequantizeLinear."""
    model, steps = run_passes(LOWERING, model.clone(), replace(context, feeds=()))
    return _signed(model), steps


def lowered(model: Model, task: Task) -> ModelProto:
    """A plan, which may be changed, as a quantized model to compare."""
    model = at_sufficient_opset(model, task.options)
    model, _ = run_passes(LOWERING, model, replace(task.context, feeds=()))
    return model.to_proto()


def at_sufficient_opset(model: Model, options: Options) -> Model:
    """The planned model at an operator set that has its grids; itself where its own has them."""
    proto, target = model.outline(), find_target(options.target)
    needed = max([target.min_opset, *(quantizer.spec.min_opset for quantizer in model.quantizers.values())])
    inner = stored_weights(options)
    if inner.weight is not None and inner.applies(proto):
        needed = max(needed, inner.weight.min_opset)
    if opset_of(proto) == opset_of(convert_opset(proto, needed, model.origin, target.max_opset)):
        return model
    return model.converted(lambda outline: convert_opset(outline, needed, model.origin, target.max_opset))


def stored_weights(options: Options) -> StoredWeights:
    """What is stored of weights that passes do not reach: those of recurrent operators, branches and loops, and of
    layers that the target computes in float only. These have 8 bits at least, since they are rounded to nearest.
    """

    def keeps_float(node: NodeProto) -> bool:
        def matches(pattern: str) -> bool:
            return fnmatchcase(node.name, pattern) or fnmatchcase(node.op_type, pattern)

        kept = (*options.exclude, *(o.node for o in options.overrides if o.node is not None and o.keep_float))
        return any(map(matches, kept)) or bool(options.include and not any(map(matches, options.include)))

    weight = None if options.from_encodings is not None else options.weight
    target, computed = find_target(options.target), None
    if weight is not None and target.runs_here:  # elsewhere nobody has seen that such layers read integers
        grid = target.weight_of(max(weight.grid.bits, 8)).grid
        computed = replace(weight, grid=grid, symmetric=True, per_channel=options.per_channel, block=None)
    return StoredWeights(
        weight, options.table, options.weight_method, keeps_float, computed, lambda node: node.op_type in target.rules
    )


def store_inner_weights(proto: ModelProto, options: Options) -> tuple[ModelProto, Steps, tuple[str, ...]]:
    """The model with what is stored of weights that passes do not reach."""
    start = time.perf_counter()
    proto, nodes = stored_weights(options).store(proto)
    if not nodes:
        return proto, (), ()
    title = "Store weights of recurrent operators, branches, loops and layers without integer kernels"
    return proto, (Step("StoredWeights", title, "", len(nodes), time.perf_counter() - start),), nodes


def float_model_of(plan: Model, context: Context) -> tuple[ModelProto, tuple[Encoding, ...]]:
    """The float model that was quantized at last, and encodings of its tensors: the grids of the quantized one."""
    model = plan.clone()
    SetBiasScales().apply(model, context)
    tensors = model.graph.tensors()
    found = [(q.tensor, q.params) for q in model.quantizers.values() if q.params is not None]
    return _signed(model), tuple(encoding_of(n, params, isinstance(tensors[n], gs.Constant)) for n, params in found)


def _signed(model: Model) -> ModelProto:
    model.graph.producer_name, model.graph.producer_version = "onnxq", version("onnxq")
    return model.to_proto()
