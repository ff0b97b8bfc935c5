"""ONNX Runtime on CPUs. The rules were found by feeding QDQ models of each operator to ONNX Runtime 1.32 and reading
the graph that it then runs (`tests/test_targets.py` repeats that), not from a list. Pad keeps its grid like all data
movement, but 1.32 pads in float between DequantizeLinear and QuantizeLinear, which is exact. It moves no integers
through SpaceToDepth, GlobalMaxPool and GatherND. It has no integer kernel for 4-bit weights: the same grid in int8 runs
4 to 6 times faster beside quantized activations.

MatMul and Gemm by the types that they read (1.32, one layer on normal values, default session against as written):

    activations       weights                                      what runs                           agreement
    uint8, int8       int8, uint8, a scale a tensor or a channel   QLinearMatMul, MatMulIntegerToFloat exact
    uint8, int8       int4, uint4, 16 bits                         MatMul on dequantized tensors       exact
    float, 16 bits    4 or 8 bits, with zero points or without,    MatMulNBits, accuracy level 4:      45 to 47 dB
                      in blocks or whole channels                  activations in int8, blocks of 32
    float, 16 bits    16 bits                                      MatMul on dequantized weights       exact
    at run time       int8, uint8                                  DynamicQuantizeMatMul               exact

Accuracy levels 0 to 3 of MatMulNBits compute as written. With 128 rows of 384 and 1536 channels it takes 1.1 times as
long as float MatMul, static and dynamic activations 0.14 and 0.15 times (x86 with VNNI). So 16 bits for an activation
buy no more than float does there. Conv computes as written in all of these, in integers where all is in 8 bits.

Integer kernels that are slower than float ones, among integers on both sides (1.32, one thread, x86 with VNNI; time
with the operator in float, between DequantizeLinear and QuantizeLinear, over time with it in integers):

    Conv on 3 channels, 3 x 3 to 7 x 7, to 8 to 64 channels of 112 x 112       0.56 to 0.79
    grouped Conv of 4 channels a group, 14 x 14 to 112 x 112                   0.28 to 0.68; of 8: 0.99 to 1.16
    AveragePool of 3 x 3, stride 1                                             0.18 to 0.58; stride 2: 0.63 to 0.83
    AveragePool of 2 x 2, stride 2: 0.74 to 0.95; of the whole image: 1.06 to 1.18
    depthwise Conv of 3 x 3: 0.97 to 1.6; of 5 x 5: 0.80 to 1.2; pointwise, from 4 channels on: 1.3 to 1.75

HardSwish runs as a look-up and a product (`passes.tabulate_hard_swish`): a PP-LCNet takes 0.88 of the time in float,
1.18 with HardSwish in float. Between HardSwishes in float, a depthwise Conv in float takes 0.85 to 1.03 of the time in
integers (112 x 112 x 32 to 7 x 7 x 512), and its input keeps its precision: channels of very different ranges, on one
grid, are what such networks lose most by. A depthwise Conv at the size of the image takes 2 to 5 times as long. MaxPool
takes 10 to over 100 times as long on integers whose channels are not last, where no convolution computed them, or a
residual block adds them to what one computed in float. ONNX Runtime moves a QuantizeLinear behind it to its front, and
a DequantizeLinear to its back, unless it is kept from that.

`ort-no-vnni`: without VNNI, x86 multiplies uint8 by int8 with VPMADDUBSW, which adds pairs of products in 16 bits and
saturates:  |255 q_1 + 255 q_2| <= 2^15 - 1  holds for |q| <= 64.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_graphsurgeon as gs

from ..numeric.quant import Grid, QuantSpec
from ..operators.linear import LinearLayer, is_depthwise, linear_layer
from ..operators.node import is_op
from .target import MOVES, OpRule, Target, masks_attention, movement, never, no_layer

_LEAST_CHANNELS = 4
"""Input channels from which on a Conv's integer kernel is no slower than its float one."""

_LEAST_POSITIONS = 64 * 64
"""Positions that a Conv on an image must compute for the conversions behind it to pay."""

_LEAST_GROUP = 8
"""Channels of a group from which on a grouped Conv's integer kernel is no slower than its float one."""

_MEASURED = "graphs that ONNX Runtime 1.32 runs, operator by operator"
_DOCUMENTATION = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_ONNX = "https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html"


def _slow_conv(node: gs.Node) -> str | None:
    layer = linear_layer(node)
    if not isinstance(layer, LinearLayer):
        return None
    if _follows_image(layer) or (_reads_image(layer) and _starts_separable(layer)):
        return "the first layers of a depthwise-separable network are faster in float"
    if _reads_image(layer):
        return f"a Conv on an image, of fewer than {_LEAST_CHANNELS} channels, is faster in float"
    if layer.groups > 1 and not is_depthwise(layer) and int(layer.weight.shape[1]) < _LEAST_GROUP:
        return f"a grouped Conv of fewer than {_LEAST_GROUP} channels a group is faster in float"
    return None


def _reads_image(layer: LinearLayer) -> bool:
    """A Conv on an image, whose output is large, or is read by a depthwise Conv alone."""
    if layer.groups > 1 or int(layer.weight.shape[1]) >= _LEAST_CHANNELS:
        return False
    return _positions(layer.output) >= _LEAST_POSITIONS or _starts_separable(layer)


def _positions(output: gs.Tensor) -> int:
    """Of one channel; 0 where that is unknown."""
    sizes = list(output.shape or ())[2:]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if sizes and len(known) == len(sizes) else 0


def _starts_separable(layer: LinearLayer) -> bool:
    behind = layer.output
    while len(behind.outputs) == 1 and is_op(behind.outputs[0], "Relu", "Clip", "HardSwish"):
        behind = behind.outputs[0].outputs[0]
    readers = [linear_layer(reader) for reader in behind.outputs]
    return len(readers) == 1 and isinstance(readers[0], LinearLayer) and is_depthwise(readers[0])


def _follows_image(layer: LinearLayer) -> bool:
    """A depthwise Conv, right behind a Conv on an image that it alone reads."""
    source = layer.input
    while source.inputs and is_op(source.inputs[0], "Relu", "Clip", "HardSwish"):
        source = source.inputs[0].inputs[0]
    before = linear_layer(source.inputs[0]) if source.inputs else ""
    if not (is_depthwise(layer) and isinstance(before, LinearLayer)):
        return False
    return _reads_image(before) and _starts_separable(before)


def _slow_between_floats(node: gs.Node) -> str | None:
    layer = linear_layer(node)
    if isinstance(layer, LinearLayer) and is_depthwise(layer):
        return "a depthwise Conv between activations in float is no faster in integers"
    return None


def _slow_pool(node: gs.Node) -> str | None:
    if _positions(node.outputs[0]) == 1:
        return None
    return "AveragePool is faster in float, between its conversions"


def _slow_max_pool(node: gs.Node) -> str | None:
    if _is_channels_last(node.inputs[0]):
        return None
    return "MaxPool on integers is slow where they cannot stay in the order that convolutions in integers compute in"


def _is_channels_last(tensor: gs.Tensor) -> bool:
    """Whether ONNX Runtime holds a tensor of integers with its channels last, as its integer convolutions compute it.

    It moves the Transposes in front of and behind these along other operators, where more of their inputs come so than
    do not: of a residual block that starts with a Conv in float, none ever gets through the Add.
    """
    if not tensor.inputs:
        return False
    node = tensor.inputs[0]
    if isinstance(linear_layer(node), LinearLayer):
        return is_op(node, "Conv") and _slow_conv(node) is None
    if node.op not in _KEEPS_ORDER:
        return False
    comes = [_is_channels_last(t) for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
    return bool(comes) and 2 * sum(comes) > len(comes)


_KEEPS_ORDER = (
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "Add", "Mul", "Concat", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Pad", "Slice", "Split", "Tile", "Resize", "Squeeze", "Unsqueeze", "ReduceMax", "ReduceMin",
)  # fmt: skip
"""Operators that it moves a Transpose of integers along."""


def _slow_matmul(node: gs.Node) -> str | None:
    if any(isinstance(t, gs.Constant) for t in node.inputs):
        return None
    return "the product of two activations is faster in float, with its Softmax and scaling"


_ELEMENTWISE = OpRule("elementwise")
_MASKING = OpRule("elementwise", refuses=masks_attention)
_UNIT = OpRule("elementwise", fixed=(0.0, 1.0))

ORT = Target(
    name="ort",
    description="ONNX Runtime on CPUs: uint8 activations, int8 weights, int32 biases",
    source=_MEASURED,
    activation=QuantSpec(Grid(8, signed=False), symmetric=False),
    weight=QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, per_channel=True),
    rules={
        "Conv": OpRule("linear", refuses=no_layer, slow=_slow_conv, between_floats=_slow_between_floats),
        "Gemm": OpRule("linear", output="free", refuses=no_layer),
        "MatMul": OpRule("linear", "free", refuses=no_layer, slow=_slow_matmul, per_channel="matrix"),
        "Add": _MASKING,
        "Mul": _ELEMENTWISE,
        "HardSwish": _ELEMENTWISE,
        "Concat": _ELEMENTWISE,
        "Where": _MASKING,
        "LeakyRelu": _ELEMENTWISE,
        "Sigmoid": _UNIT,
        "Softmax": _UNIT,
        "AveragePool": OpRule("elementwise", slow=_slow_pool),
        "GlobalAveragePool": _ELEMENTWISE,
        **movement(MOVES, but=("GatherND", "SpaceToDepth", "GlobalMaxPool")),
        "MaxPool": replace(MOVES, slow=_slow_max_pool),
    },
    fused=frozenset({"Relu", "Clip"}),
    joins="grids",
    tables="rows",
    fused_needs_grid=True,
    quantizes_float_weights=True,
    runs_here=True,
    dynamic_activations=True,
    rounds_activations=(4, 8),
    tabulates_hard_swish=True,
    stores_int4="weights only",
    zero_points_in_blocks=True,
    max_opset=27,
    requirements={
        "opset": _ONNX,
        "activation-types": _ONNX,
        "weight-types": _ONNX,
        "activation-granularity": _MEASURED,
        "weight-granularity": _MEASURED,
        "bias": _MEASURED,
        "same-grid": _MEASURED,
    },
)

ORT_NO_VNNI = replace(
    ORT,
    name="ort-no-vnni",
    description="ONNX Runtime on x86 CPUs without VNNI, where products saturate in 16 bits: 7-bit weights",
    reduced_weights=True,
    weight_limit=64,
    requirements={**ORT.requirements, "weight-range": f"{_DOCUMENTATION} (When and why do I need to try U8U8?)"},
)

ELSEWHERE = replace(
    ORT,
    rules={op: replace(rule, slow=never, between_floats=never) for op, rule in ORT.rules.items() if op != "HardSwish"},
    tabulates_hard_swish=False,
    quantizes_float_weights=False,
    runs_here=False,
    zero_points_in_blocks=False,
    dynamic_activations=False,
    rounds_activations=(),
    activation_types=("uint8", "int8"),
    weight_types=("int8",),
)
"""What the targets of other tool-chains that read the same QDQ start from: what is slow in ONNX Runtime says nothing
there."""
