"""Rockchip's NPUs: RKNN-Toolkit2 takes QuantizeLinear and DequantizeLinear as they are (`do_quantization=False`), uint8
asymmetric and int8 symmetric alike, with scales per channel and int32 biases inside of Conv; a bias that an Add of its
own adds fails in its build.

Seen with RKNN-Toolkit2 2.5.0 in its simulator of an RK3588: every operator that the rules quantize, between two
convolutions, agrees with ONNX Runtime within 28 to 50 dB (Mul lowest). What stays in float runs in float16 there.
Products of two activations are left to that: quantized, they end its build (`Invalid w_par['dtype'] = float16`).
"""

from __future__ import annotations

from dataclasses import replace

from .ort import ELSEWHERE
from .target import no_weight

_SEEN = "RKNN-Toolkit2 2.5.0, simulator of RK3588"
_SUPPORT = "https://github.com/airockchip/rknn-toolkit2/blob/master/CHANGELOG.md (ONNX: operator sets 12 to 19)"

RKNN = replace(
    ELSEWHERE,
    name="rknn",
    description="Rockchip NPUs by RKNN-Toolkit2: uint8 activations, int8 weights, int32 biases, operator set 13 to 19",
    source=_SEEN,
    rules={
        **ELSEWHERE.rules,
        "MatMul": replace(ELSEWHERE.rules["MatMul"], refuses=no_weight),
    },
    max_opset=19,
    static_shapes=True,
    toolchain="rknn",
    requirements={**dict.fromkeys(ELSEWHERE.requirements, _SEEN), "opset": _SUPPORT},
)
