"""OpenCV's new engine for networks; the classic one takes every model and computes in float. Seen with OpenCV 5.0.0.93:

refused     Gemm with a quantized output; Relu between Add and QuantizeLinear in a residual block; int16 and int4
wrong       Sigmoid in uint8 (2 to 5 dB); pooling to one pixel in front of a convolution, as squeeze-and-excitation
            has it (-2 to 13 dB), which no placement mends
"""

from __future__ import annotations

from dataclasses import replace

from .ort import ORT
from .target import never

_SEEN = "OpenCV 5.0.0.93, new engine"

OPENCV = replace(
    ORT,
    name="opencv",
    description="OpenCV 5, new engine: uint8 activations, int8 weights, int32 biases, Sigmoid in float",
    source=_SEEN,
    rules={op: replace(rule, slow=never) for op, rule in ORT.rules.items() if op != "Sigmoid"},
    quantizes_float_weights=False,
    runs_here=False,
    dynamic_activations=False,
    rounds_activations=(),
    max_opset=24,
    static_shapes=True,
    toolchain="opencv",
    activation_types=("uint8", "int8"),
    weight_types=("int8",),
    requirements=dict.fromkeys(ORT.requirements, _SEEN),
)
