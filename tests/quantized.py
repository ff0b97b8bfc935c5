"""From a float model of `graphs` to planned quantizers, to a quantized model, to what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import graphs
import numpy as np
from onnx import ModelProto

import onnxq
from onnxq.data import CalibrationData
from onnxq.execution.services import Services
from onnxq.execution.session import optimized_graph
from onnxq.graph.model import Model, Quantizer
from onnxq.options import Options
from onnxq.passes.add_quantizers import AddQuantizers
from onnxq.passes.base import Context, Outcome
from onnxq.passes.normalize import Normalize
from onnxq.passes.set_activation_ranges import SetActivationRanges
from onnxq.passes.set_bias_scales import SetBiasScales
from onnxq.passes.set_weight_ranges import SetWeightRanges
from onnxq.pipeline.open_inputs import input_specs

PLAIN = {"dead_channels": False, "cle": "off", "absorb": False, "bias_correction": "off", "rounding": "nearest"}
"""Options that leave the float network's weights and biases as they are."""


def samples(proto: ModelProto, count: int = 4, free: int = 1) -> list[dict[str, np.ndarray]]:
    """Random calibration feeds."""
    return [graphs.feeds(proto, seed=seed, free=free) for seed in range(1, count + 1)]


def context(proto: ModelProto, feeds: Any = None, **fields: Any) -> Context:
    """A context with calibration data for `proto`. fields: of the context, or of its services."""
    services = {name: fields.pop(name) for name in Services.__dataclass_fields__ if name in fields}
    data = CalibrationData(samples(proto) if feeds is None else feeds, input_specs(proto))
    return Context(feeds=data, services=Services(**services), **fields)


def planned(proto: ModelProto, **options: Any) -> tuple[Model, Outcome]:
    """The model with quantizers placed wherever there is a kernel, and what `AddQuantizers(**options)` says of it."""
    specs = {"activation": Options().activation, "weight": Options().weight, "force_int_kernels": True}
    model = graphs.wrapped(proto)
    Normalize().apply(model, Context())
    return model, AddQuantizers(**{**specs, **options}).apply(model, Context())


def plan(proto: ModelProto, **options: Any) -> dict[str, Quantizer]:
    """Quantizers by tensor."""
    return planned(proto, **options)[0].quantizers


def reasons(outcome: Outcome) -> dict[str, str]:
    """Why what stayed in float, by node."""
    return {skip.where: skip.reason for skip in outcome.skips}


def with_ranges(proto: ModelProto, feeds: Any = None, **options: Any) -> Model:
    """The model with quantizers placed and their ranges set."""
    model, _ = planned(proto, **options)
    for step in (SetWeightRanges("minmax"), SetActivationRanges("minmax"), SetBiasScales()):
        step.apply(model, context(proto, feeds))
    return model


def quantized(proto: ModelProto, feeds: Any = None, **settings: Any) -> ModelProto:
    """What `onnxq.quantize` makes of it wherever there is a kernel, verification included."""
    settings = {"force_int_kernels": True, "weight_range": "minmax", "activation_range": "minmax", **PLAIN, **settings}
    return onnxq.quantize(proto, samples(proto) if feeds is None else feeds, **settings).model


def kernels(proto: ModelProto) -> Counter[str]:
    """Operators that ONNX Runtime runs, how many of each."""
    return Counter(node.op_type for node in optimized_graph(proto).node)


FLOAT_LINEAR = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def linear_in_float(operators: Iterable[str]) -> list[str]:
    """Linear operators among those that ONNX Runtime runs that compute in float."""
    return [op for op in operators if op in FLOAT_LINEAR]
