"""OpenVINO, by the hardware setups of its own quantizer, NNCF: operators that read integers have all their inputs
quantized; what they write is so only where the next operator wants it. `openvino-npu` shares scales beyond Concat.

Measured with OpenVINO 2026.4.1 on a CPU with AMX (tests/test_openvino.py repeats it):

    int8 kernels    Conv, depthwise Conv, Gemm and MatMul run in u8 or i8 where weights are symmetric, per tensor or per
                    channel, whether activations are uint8 or int8. Where weights have zero points or 4 bits, Conv
                    runs in float.
    biases          A Conv loses its bias, input 2 of the node, where its output is quantized, the batch size is dynamic
                    and anything reads a Shape (ViT: 91.8 instead of 93.0 %). A bias that an Add behind it adds stays.
    activations     Relu, Clip, LeakyRelu, PRelu, Elu, Sigmoid, Tanh, Gelu, Mish, HardSwish and x Sigmoid(x) run as the
                    end of a Conv whose output is not quantized, by themselves where it is. HardSigmoid runs in
                    float. QuantizeLinear of 16 bits is dropped, and with it the work of a Relu left to its grid
                    (ResNet: 11 % top-1). A Relu that stays costs nothing: it is fused in 8 bits, too.
    data movement   SpaceToDepth and GatherND run in float, GlobalMaxPool as a reduction of integers.
"""

from __future__ import annotations

from dataclasses import replace

from ..numeric.quant import Grid, QuantSpec
from .target import FUSIBLE, MOVES, OpRule, Target, masks_attention, movement, no_layer

_CPU = "https://github.com/openvinotoolkit/nncf/blob/develop/src/nncf/common/hardware/configs/cpu.json"
_NPU = _CPU.replace("cpu.json", "npu.json")
_OPSETS = "https://github.com/openvinotoolkit/openvino/tree/master/src/frontends/onnx (axis of DequantizeLinear: 13)"

_ELEMENTWISE = OpRule("elementwise", "free", followed=True)
_UNIFIED = OpRule("elementwise", "free", followed=True, tie="inputs")

OPENVINO = Target(
    name="openvino",
    description="OpenVINO on CPUs and GPUs: uint8 activations, int8 weights, biases in float",
    source=_CPU,
    activation=QuantSpec(Grid(8, signed=False), symmetric=False),
    weight=QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, per_channel=True),
    rules={
        "Conv": OpRule("linear", "free", followed=True, refuses=no_layer),
        "ConvTranspose": OpRule("linear", "free", followed=True, refuses=no_layer),
        "Gemm": OpRule("linear", "free", refuses=no_layer),
        "MatMul": OpRule("linear", "free", refuses=no_layer, per_channel="matrix"),
        "Add": OpRule("elementwise", "free", followed=True, refuses=masks_attention),
        **dict.fromkeys(("Sub", "Mul", "AveragePool", "GlobalAveragePool", "ReduceMean"), _ELEMENTWISE),
        "Concat": _UNIFIED,
        **movement(MOVES, but=("GatherND", "SpaceToDepth")),
    },
    fused=frozenset(FUSIBLE),
    joins="grids",
    outputs="float",
    bias="float",
    adds_biases=True,
    keeps_activations=True,
    toolchain="openvino",
    stores_int4="weights only",
    requirements={
        "opset": _OPSETS,
        "activation-types": _CPU,
        "weight-types": _CPU,
        "activation-granularity": _CPU,
        "weight-granularity": _CPU,
        "same-grid": f"{_CPU} (operators without a quantization of their own)",
        "shared-grid": f"{_CPU} (scales: unified)",
        "fused-activation": "https://docs.openvino.ai/2025/documentation/openvino-extensibility/openvino-plugin-library/advanced-guides/low-precision-transformations.html",
    },
)  # fmt: skip

OPENVINO_NPU = replace(
    OPENVINO,
    name="openvino-npu",
    description="OpenVINO on NPUs: as on CPUs, and the inputs of elementwise operators share a scale",
    source=_NPU,
    rules={
        **OPENVINO.rules,
        "Add": replace(OPENVINO.rules["Add"], tie="inputs"),
        **dict.fromkeys(("Sub", "Mul"), _UNIFIED),
    },
    requirements={id: source.replace(_CPU, _NPU) for id, source in OPENVINO.requirements.items()},
)
