"""Qualcomm QNN: the whole network is quantized, inputs and outputs included. `--preset w8a8` gives uint8 activations,
`w8a16` uint16 ones, for which Sigmoid and Tanh have encodings that the backend insists on. A decomposed Gelu becomes
the operator: with its parts in float MiniLM cannot be finalised (onnxruntime-qnn 2.7.0, error 1002), with it all runs.
"""

from __future__ import annotations

from ..numeric.quant import Grid, QuantSpec
from .target import (
    MOVES,
    POOLS,
    FixedEncoding,
    OpRule,
    Target,
    masks_attention,
    movement,
    no_layer,
)

_CONFIG = (
    "https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/python/tools/quantization/execution_providers/qnn"
)
_QUANT_CONFIG = f"{_CONFIG}/quant_config.py"
_PROVIDER = "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html"
_ONNX = "https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html"

_ELEMENTWISE = OpRule("elementwise")
_SIGMOID = (FixedEncoding("uint16", 2.0**-16, 0), FixedEncoding("int16", 2.0**-15, 0))
_TANH = (FixedEncoding("uint16", 2.0**-15, 2**15), FixedEncoding("int16", 2.0**-15, 0))

QNN = Target(
    name="qnn",
    description="Qualcomm QNN: uint8 (preset w8a8) or uint16 (w8a16) activations, int8 weights, all of the network",
    source=_QUANT_CONFIG,
    activation=QuantSpec(Grid(8, signed=False), symmetric=False),
    weight=QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, per_channel=True),
    rules={
        "Conv": OpRule("linear", refuses=no_layer),
        "ConvTranspose": OpRule("linear", refuses=no_layer),
        "Gemm": OpRule("linear", refuses=no_layer, per_channel="never"),
        "MatMul": OpRule("linear", refuses=no_layer, per_channel="never"),
        "Add": OpRule("elementwise", refuses=masks_attention),
        **dict.fromkeys(
            (
                "Sub", "Mul", "Div", "Min", "Max", "Concat", "Relu", "LeakyRelu", "Elu", "HardSwish", "HardSigmoid",
                "Gelu", "ReduceMean",
            ),
            _ELEMENTWISE,
        ),
        "Clip": OpRule("elementwise", data="first"),
        "Sigmoid": OpRule("elementwise", fixed=(0.0, 1.0), encodings=_SIGMOID),
        "Tanh": OpRule("elementwise", fixed=(-1.0, 1.0), encodings=_TANH),
        "Softmax": OpRule("elementwise", fixed=(0.0, 1.0)),
        "AveragePool": POOLS,
        "GlobalAveragePool": _ELEMENTWISE,
        **movement(MOVES),
    },
    fused=frozenset({"Relu", "Clip"}),
    joins="everywhere",
    outputs="grid",
    added_bias="operator",
    smallest_range=1e-4,
    tables="grid",
    whole_gelu=True,
    static_shapes=True,
    toolchain="qnn",
    requirements={
        "opset": _ONNX,
        "activation-types": _PROVIDER,
        "weight-types": _PROVIDER,
        "weight-zero-point": f"{_QUANT_CONFIG} (weight_symmetric where weights are signed)",
        "activation-granularity": _PROVIDER,
        "weight-granularity": f"{_QUANT_CONFIG} (QNN does not support per-channel MatMul)",
        "bias": _PROVIDER,
        "smallest-range": f"{_QUANT_CONFIG} (MinimumRealRange)",
        "same-grid": "https://github.com/microsoft/onnxruntime/tree/main/onnxruntime/python/tools/quantization/operators",
        "fixed-encoding": f"{_QUANT_CONFIG} (_process_sigmoid, _process_tanh)",
        "whole-operators": f"{_PROVIDER} (the HTP backend runs quantized operators only)",
        "one-width": f"{_CONFIG}/mixed_precision_overrides_utils.py",
    },
    activation_types=("uint8", "uint16"),
    weight_types=("int8", "uint8", "int4", "int16"),
    weight_zero_points="signed zero",
    blocks=(),
    simulates_widths=False,
)  # fmt: skip
