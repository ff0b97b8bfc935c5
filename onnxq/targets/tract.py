"""tract, a runtime in Rust for small devices. Seen with tract 0.23.9: what is quantized for ONNX Runtime computes the
same to 140 dB, but for Softmax between QuantizeLinear and DequantizeLinear (4 dB); 16- and 4-bit integers are refused.
"""

from __future__ import annotations

from dataclasses import replace

from .ort import ELSEWHERE

_SEEN = "tract 0.23.9"

TRACT = replace(
    ELSEWHERE,
    name="tract",
    description="tract: uint8 activations, int8 weights, int32 biases, Softmax in float",
    source=_SEEN,
    rules={op: rule for op, rule in ELSEWHERE.rules.items() if op != "Softmax"},
    max_opset=24,
    toolchain="tract",
    weight_types=("int8", "uint8"),
    requirements=dict.fromkeys(ELSEWHERE.requirements, _SEEN),
)
