"""AMD Vitis AI and Ryzen AI for convolutional networks, the type that Quark calls XINT8: int8 with zero point 0, scales
that are powers of two, one a tensor; the accelerator rescales by shifts, whose lengths are bounded.
"""

from __future__ import annotations

from ..numeric.quant import Grid, QuantSpec
from .target import (
    MOVES,
    POOLS,
    OpRule,
    Shifts,
    Target,
    masks_attention,
    movement,
    no_layer,
)

_QUARK = "https://github.com/amd/Quark/blob/main/quark/onnx"
_REFINE = f"{_QUARK}/postprocess/refinement/refine.py"
_NPU = f"{_QUARK}/quantizers/npu_cnn_quantizer.py"

_LINEAR = OpRule("linear", refuses=no_layer, per_channel="never")
_ELEMENTWISE = OpRule("elementwise")

VITIS_AI = Target(
    name="vitis-ai",
    description="AMD Vitis AI (XINT8): symmetric int8, scales that are powers of two, per tensor",
    source=_REFINE,
    activation=QuantSpec(Grid(8, signed=True), symmetric=True, power_of_two=True),
    weight=QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, power_of_two=True),
    rules={
        **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _LINEAR),
        "Add": OpRule("elementwise", refuses=masks_attention),
        **dict.fromkeys(("Sub", "Mul", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Softmax"), _ELEMENTWISE),
        "Concat": OpRule("elementwise", tie="all"),
        "AveragePool": POOLS,
        "GlobalAveragePool": POOLS,
        **movement(MOVES),
    },
    fused=frozenset({"Relu", "Clip"}),
    outputs="grid",
    tables="rows",
    added_bias="operator",
    bias="int8",
    shifts=Shifts(),
    requirements={
        "opset": "https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html",
        "activation-types": _NPU,
        "weight-types": _NPU,
        "activation-zero-point": f"{_NPU} (ActivationSymmetric must be true)",
        "weight-zero-point": f"{_NPU} (WeightSymmetric must be true)",
        "activation-granularity": _NPU,
        "weight-granularity": _NPU,
        "power-of-two": f"{_REFINE} (positions)",
        "bias": f"{_NPU} (Int32Bias is false)",
        "same-grid": f"{_REFINE} (align_pool, align_pad, align_slice)",
        "shared-grid": f"{_REFINE} (align_concat)",
        "fused-activation": _NPU,
        "whole-operators": _NPU,
        "shifts": f"{_REFINE} (adjust_shift_cut, adjust_shift_bias, adjust_shift_read, adjust_shift_write)",
    },
    activation_types=("int8",),
    weight_types=("int8",),
    activation_zero_points="zero",
    weight_zero_points="zero",
    blocks=(),
    simulates_widths=False,
)
