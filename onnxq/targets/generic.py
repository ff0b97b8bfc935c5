"""Symmetric int8 everywhere: what nearly every integer accelerator can do, and the base of targets written in TOML."""

from __future__ import annotations

from dataclasses import replace

from ..numeric.quant import Grid, QuantSpec
from .target import MOVES, POOLS, OpRule, Target, masks_attention, movement, no_layer

_PAPER = (
    "arXiv:2106.08295, section 2.2 (symmetric, equation 7), section 2.3.1 (biases), section 2.3.3 (grids by operator)"
)

_LINEAR = OpRule("linear", refuses=no_layer)
_ELEMENTWISE = OpRule("elementwise")
_UNIT = OpRule("elementwise", fixed=(0.0, 1.0))
_SOFTMAX = replace(
    _UNIT,
    caution="Qualcomm's QNN (2.7.0 with the HTP simulator) shifts an int8 Softmax of zero point 0 by 128 steps: take"
    " `target` qnn there",
)

GENERIC_INT8 = Target(
    name="generic-int8",
    description="Symmetric int8 everywhere, zero points 0, int32 biases: any integer accelerator",
    source=_PAPER,
    activation=QuantSpec(Grid(8, signed=True), symmetric=True),
    weight=QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, per_channel=True),
    rules={
        **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), _LINEAR),
        "MatMul": OpRule("linear", refuses=no_layer, per_channel="matrix"),
        "Add": OpRule("elementwise", refuses=masks_attention),
        **dict.fromkeys(("Sub", "Mul", "LeakyRelu", "HardSigmoid", "HardSwish"), _ELEMENTWISE),
        "Sigmoid": _UNIT,
        "Softmax": _SOFTMAX,
        "Tanh": OpRule("elementwise", fixed=(-1.0, 1.0)),
        "Concat": OpRule("elementwise", tie="all"),
        "AveragePool": POOLS,
        "GlobalAveragePool": _ELEMENTWISE,
        **movement(MOVES),
    },
    fused=frozenset({"Relu", "Clip"}),
    outputs="grid",
    requirements=dict.fromkeys(
        (
            "opset", "activation-types", "weight-types", "activation-zero-point", "weight-zero-point",
            "activation-granularity", "weight-granularity", "bias", "same-grid", "shared-grid", "fused-activation",
            "whole-operators",
        ),
        _PAPER,
    ),
    activation_types=("int8", "int16"),
    weight_types=("int8", "int16", "int4"),
    activation_zero_points="zero",
    weight_zero_points="zero",
    stores_int4="weights only",
)  # fmt: skip
