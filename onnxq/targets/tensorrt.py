"""TensorRT's explicit quantization: symmetric int8 with zero point 0 on the inputs of weighted operators.

The compiler fuses what follows a convolution (bias, Add, activation) and moves quantization past operators that
commute with it. So nothing is quantized on the outputs of weighted operators or around Relu, Concat and data movement;
a pair stands directly before its reader. SpaceToDepth and GlobalMaxPool, which are not among the operators that
quantization is documented to move past, get a pair on both sides, on one grid. Of a residual Add the branch that comes
straight from a convolution stays unquantized, so that it fuses, and the other one is quantized, so that the result can
be int8.
"""

from __future__ import annotations

from dataclasses import replace

from ..numeric.quant import Grid, QuantSpec
from .target import POOLS, OpRule, Target, movement, no_weight

_EXPLICIT = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
)
_TYPES = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"
_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
_PLACEMENT = f"{_EXPLICIT} (Q/DQ Layer-Placement Recommendations)"
_MODELOPT = "https://github.com/NVIDIA/Model-Optimizer/tree/main/modelopt/onnx/quantization"

_WEIGHTED = OpRule("linear", "free", refuses=no_weight)
_COMMUTES = OpRule("commuting", "free")
_EITHER = OpRule("either", "free")

TENSORRT = Target(
    name="tensorrt",
    description="TensorRT on NVIDIA GPUs: symmetric int8, zero points 0, biases in float, Relu kept",
    source=_EXPLICIT,
    activation=QuantSpec(Grid(8, signed=True), symmetric=True),
    weight=QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, per_channel=True),
    rules={
        **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), _WEIGHTED),
        "MatMul": replace(_WEIGHTED, per_channel="matrix"),
        "Add": OpRule("residual", "free"),
        **movement(_COMMUTES),
        "Relu": _COMMUTES,
        "Clip": _COMMUTES,
        **dict.fromkeys(("SpaceToDepth", "GlobalMaxPool"), POOLS),
        **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "Mul", "BatchNormalization"), _EITHER),
        "Concat": OpRule("commuting", "free", tie="all"),
    },
    pairs="reader",
    outputs="float",
    bias="float",
    max_opset=24,
    toolchain="tensorrt",
    requirements={
        "opset": f"{_OPERATORS} (TensorRT 10.15: operator sets 9 to 24; 13 brings scales per channel)",
        "activation-types": _TYPES,
        "weight-types": f"{_TYPES} (int4 for weights only)",
        "activation-zero-point": f"{_TYPES} (symmetric quantization)",
        "weight-zero-point": f"{_TYPES} (symmetric quantization)",
        "activation-granularity": f"{_PLACEMENT}: per tensor for activations, per channel for weights",
        "weight-granularity": f"{_PLACEMENT}: per tensor for activations, per channel for weights",
        "bias": f"{_MODELOPT} (biases stay in float)",
        "fused-activation": f"{_PLACEMENT}: do not simulate fusions with Relu",
        "integer-readers": f"{_PLACEMENT}: by default, do not quantize the outputs of weighted operations",
        "float-outputs": f"{_PLACEMENT}: by default, do not quantize the outputs of weighted operations",
        "residual-add": f"{_PLACEMENT}: quantize the residual input in skip connections",
        "shared-grid": f"{_MODELOPT} (concat_elimination)",
    },
    activation_types=("int8",),
    weight_types=("int8", "int4"),
    activation_zero_points="zero",
    weight_zero_points="zero",
    weights_only=("int4",),
    blocks=("int4",),
    simulates_widths=False,
)
