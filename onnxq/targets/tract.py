"""tract, a runtime in Rust for small devices. Seen with tract 0.23.9: what is quantized for ONNX Runtime computes the
same to 140 dB, but for Softmax between QuantizeLinear and DequantizeLinear (4 dB); 16- and 4-bit integers are refused.
"""

from __future__ import annotations

from dataclasses import replace

from .ort import ORT
from .target import never

_SEEN = "tract 0.23.9"

TRACT = replace(
    ORT,
    name="tract",
    description="tract: uint8 activations, int8 weights, int32 biases, Softmax in float",
    source=_SEEN,
    rules={op: replace(rule, slow=never) for op, rule in ORT.rules.items() if op != "Softmax"},
    quantizes_float_weights=False,
    runs_here=False,
    dynamic_activations=False,
    rounds_activations=(),
    max_opset=24,
    toolchain="tract",
    activation_types=("uint8", "int8"),
    weight_types=("int8", "uint8"),
    requirements=dict.fromkeys(ORT.requirements, _SEEN),
)
