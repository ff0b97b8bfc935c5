"""OpenCV's new engine for networks; the classic one takes every model and computes in float. Seen with OpenCV 5.0.0.93:

refused     Gemm with a quantized output; Relu between Add and QuantizeLinear in a residual block; int16 and int4
wrong       Sigmoid in uint8 (2 to 5 dB); the last n mod 8 of a convolution's n positions, where its kernel is one
            pixel, or larger than the image, or depthwise with n up to 100: 7 x 7, or one pixel behind a global pooling
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace

import onnx_graphsurgeon as gs

from ..operators.linear import LinearLayer, is_depthwise, linear_layer
from .ort import ELSEWHERE
from .target import no_layer

_LANES = 8
"""Positions that its kernels for convolutions compute at once."""

_FEW = 100
"""Positions of a depthwise convolution above which another kernel computes it, as it seems: all of these were right."""

_SEEN = "OpenCV 5.0.0.93, new engine"


def _refused_conv(node: gs.Node) -> str | None:
    """Measured with kernels of 1, 3, 5 and 7 pixels on images of 1 to 35, strides and dilations of 1 and 2: ordinary
    convolutions are right at all sizes, depthwise ones at all above 100 positions."""
    layer = linear_layer(node)
    if not isinstance(layer, LinearLayer):
        return no_layer(node)
    before, behind = (_sizes(tensor) for tensor in (node.inputs[0], node.outputs[0]))
    if not before or not behind:
        return None  # it runs nothing before these are known
    kernel, positions = layer.weight.shape[2:], math.prod(behind)
    is_affected = (
        math.prod(kernel) == 1 or (is_depthwise(layer) and positions <= _FEW) or any(map(operator.gt, kernel, before))
    )
    if is_affected and positions % _LANES:
        return f"OpenCV computes the last of its {positions} positions wrong, which are no multiple of {_LANES}"
    return None


def _sizes(tensor: gs.Tensor) -> list[int]:
    """The sizes behind the channels; none where they are not known."""
    sizes = [size for size in (tensor.shape or ())[2:] if isinstance(size, int)]
    return sizes if tensor.shape is not None and len(sizes) == len(tensor.shape) - 2 else []


OPENCV = replace(
    ELSEWHERE,
    name="opencv",
    description="OpenCV 5, new engine: uint8 activations, int8 weights, int32 biases, Sigmoid in float",
    source=_SEEN,
    rules={
        **{op: rule for op, rule in ELSEWHERE.rules.items() if op != "Sigmoid"},
        "Conv": replace(ELSEWHERE.rules["Conv"], refuses=_refused_conv),
    },
    max_opset=24,
    static_shapes=True,
    toolchain="opencv",
    requirements=dict.fromkeys(ELSEWHERE.requirements, _SEEN),
)
