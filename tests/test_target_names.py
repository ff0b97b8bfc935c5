"""Targets by the names that people have for vendors and devices, and the targets that stand on another one."""

import pytest
from graphs import model
from quantized import PLAIN, samples

import onnxq
from onnxq.errors import UsageError, VerificationError
from onnxq.graph.opset import opset_of
from onnxq.targets import ALIASES, TARGETS, find_target

CONV = model(
    """(float[N,3,8,8] x) => (float[N,5] y) <float[4,3,3,3] w, float[4] b, float[4,5] v, float[5] c> {
    h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(h) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, v, c) }"""
)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_target(alias):
    assert alias not in TARGETS
    assert find_target(alias) is TARGETS[ALIASES[alias]]


@pytest.mark.parametrize(
    ("name", "target"),
    [("TensorRT", "tensorrt"), ("OPENVINO_NPU", "openvino-npu"), ("Ryzen AI", "vitis-ai"), ("Vitis_AI", "vitis-ai")],
)
def test_case_and_hyphens_do_not_count(name, target):
    assert find_target(name) is TARGETS[target]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("otr", "ort"), ("tensorr", "tensorrt"), ("trt10", "tensorrt"), ("vitis", "vitis-ai"), ("snapdragn", "qnn"),
        ("qualcom", "qnn"), ("rk3588s", "rknn"), ("openvno", "openvino"), ("intel-np", "openvino-npu"),
        ("ryzenai-npu", "vitis-ai"), ("stm32n6", "stedgeai"), ("ort-vnni", "ort-no-vnni"), ("rknn2", "rknn"),
    ],
)  # fmt: skip
def test_did_you_mean(name, meant):
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        find_target(name)


@pytest.mark.parametrize("name", ["", "x", "tpu-v5", "zzz"])
def test_nothing_is_suggested_where_nothing_is_like_it(name):
    with pytest.raises(UsageError) as error:
        find_target(name)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(("target", "newest"), [("rknn", 19), ("stedgeai", 20)])
def test_operator_sets_have_a_newest(target, newest):
    proto = model(
        "(float[1,4,8] x) => (float[1,4,5] y) <float[8,8] w, float[8,5] v> {"
        " a = MatMul(x, w) g = Gelu(a) y = MatMul(g, v) }",
        opset=22, ir_version=10,
    )  # fmt: skip
    written = onnxq.quantize(proto, samples(proto), target=target, **PLAIN).model
    assert opset_of(written) == newest
    assert ("Gelu" in [node.op_type for node in written.graph.node]) == (newest >= 20)


@pytest.mark.parametrize("target", ["rknn", "tract", "opencv", "stedgeai"])
def test_results_keep_to_their_target(target):
    written = onnxq.quantize(CONV, samples(CONV), target=target, **PLAIN).model
    assert onnxq.check(written, target).is_clean
    types = {t.name: t.data_type for t in written.graph.initializer}
    bias = next(node for node in written.graph.node if node.op_type == "Conv").input[2]
    maker = next(node for node in written.graph.node if bias in node.output)
    assert types[maker.input[0]] == 6  # int32, inside of Conv


@pytest.mark.parametrize("target", ["rknn", "stedgeai", "opencv", "qnn"])
def test_static_shapes_are_asked_for(target):
    warnings = onnxq.quantize(CONV, samples(CONV), target=target, **PLAIN).report.warnings
    assert any("`freeze` x=1x3x8x8" in warning for warning in warnings)


@pytest.mark.parametrize(("target", "op"), [("tract", "Softmax"), ("opencv", "Sigmoid")])
def test_what_the_tool_gets_wrong_stays_in_float(target, op):
    proto = model(
        f"""(float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] w, float[4,4,1,1] v> {{
        a = Conv(x, w) b = {op}(a) y = Conv(b, v) }}"""
    )
    options = {**PLAIN, "force_int_kernels": True}
    kept = [n.op for n in onnxq.quantize(proto, samples(proto), target=target, **options).report.float_nodes]
    assert op in kept
    assert op not in [n.op for n in onnxq.quantize(proto, samples(proto), target="ort", **options).report.float_nodes]


@pytest.mark.parametrize(("target", "warned"), [("generic-int8", True), ("stedgeai", False), ("qnn", False)])
def test_an_int8_softmax_with_zero_point_0_is_warned_of(target, warned):
    proto = model(
        """(float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] w, float[4,4,1,1] v> {
        a = Conv(x, w) b = Softmax(a) y = Conv(b, v) }"""
    )
    for source, expected in ((proto, warned), (CONV, False)):
        warnings = onnxq.quantize(source, samples(source), target=target, **PLAIN).report.warnings
        assert any("128 steps" in warning for warning in warnings) == expected
        assert all(warnings)


@pytest.mark.parametrize("target", ["rknn", "tract", "opencv", "stedgeai"])
def test_sixteen_bits_are_refused(target):
    with pytest.raises((UsageError, VerificationError)):
        onnxq.quantize(CONV, samples(CONV), target=target, preset="w8a16", **PLAIN)


@pytest.mark.parametrize(
    ("conv", "size", "in_integers"),
    [
        ("Conv(a, p)", 8, True),
        ("Conv(a, p)", 7, False),
        ("Conv<group=8, pads=[1,1,1,1]>(a, d)", 7, False),
        ("Conv<group=8, pads=[1,1,1,1]>(a, d)", 14, True),
        ("Conv<pads=[1,1,1,1]>(a, w)", 7, True),
        ("Conv<pads=[1,1,1,1]>(a, w)", 2, False),
    ],
    ids=[
        "pointwise",
        "pointwise, odd",
        "depthwise, odd",
        "depthwise, large",
        "ordinary, odd",
        "kernel larger than the image",
    ],
)
def test_opencv_gets_no_convolution_whose_last_positions_it_computes_wrong(conv, size, in_integers):
    proto = model(
        f"(float[1,8,{size},{size}] a, float[1,8,8,8] b) => (float[1,8,{size},{size}] y, float[1,8,8,8] z)"
        f" <float[8,8,1,1] p, float[8,1,3,3] d, float[8,8,3,3] w> {{ y = {conv} z = Conv(b, p) }}"
    )
    report = onnxq.quantize(proto, samples(proto), target="opencv", preset="w8a8", **PLAIN).report
    assert ("Conv" not in {node.op for node in report.float_nodes}) == in_integers
