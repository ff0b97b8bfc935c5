"""Placement, check and verification read one rule: what is written is clean in `check`, whatever stays in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from families import FAMILIES
from graphs import model, run
from quantized import PLAIN, samples

import onnxq
from onnxq import TARGETS, Options, Override
from onnxq.checking import check
from onnxq.errors import UsageError
from onnxq.execution.session import Session

CASES = {
    "computed weight": """(float[1,4,8,8] x, float[4,4,3,3] z) => (float[?,?,?,?] y)
        <float[4,4,3,3] w, float[4,4,1,1] v, float[2,4,1,1] u>
        { a = Conv(x, w) k = Conv(z, v) r = Relu(a) d = Conv(r, k) e = Relu(d) y = Conv(e, u) }""",
    "mask as an input": """(float[1,5,8] x, float[1,5,5] mask) => (float[?,?,?] y)
        <float[8,8] q, float[8,8] k, float[8,8] v>
        { a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) t = Transpose<perm=[0,2,1]>(b) s = MatMul(a, t)
          m = Add(s, mask) p = Softmax<axis=-1>(m) y = MatMul(p, c) }""",
    "attention with a relative bias": """(float[1,5,8] x, float[1,5,5] mask) => (float[?,?,?] y)
        <float[8,8] q, float[8,8] k, float[8,8] v, float[8,5] rel, float root>
        { a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) t = Transpose<perm=[0,2,1]>(b) s = MatMul(a, t)
          r = MatMul(a, rel) e = Add(s, r) f = Div(e, root) m = Add(f, mask) p = Softmax<axis=-1>(m)
          y = MatMul(p, c) }""",
    "constant of four dimensions": """(float[1,4,5,8] x) => (float[?,?,?,?] y) <float[8,8] w, float[1,4,8,6] v>
        { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }""",
    "constant on the left": """(float[1,4,5,8] x) => (float[?,?,?,?] y) <float[8,8] w, float[1,1,6,5] v>
        { a = MatMul(x, w) r = Relu(a) y = MatMul(v, r) }""",
    "residual Add": """(float[1,4,8,8] x) => (float[?,?,?,?] y) <float[4,4,1,1] w, float[4,4,1,1] v, float[2,4,1,1] u>
        { a = Conv(x, w) r = Relu(a) d = Conv(r, v) s = Add(d, r) t = Relu(s) y = Conv(t, u) }""",
    "Gelu in parts": """(float[1,5,8] x) => (float[?,?,?] y)
        <float[8,8] w, float[8,6] v, float root, float one, float half>
        { a = MatMul(x, w) d = Div(a, root) e = Erf(d) f = Add(e, one) g = Mul(a, f) h = Mul(g, half)
          y = MatMul(h, v) }""",
    "a bias that is an operand, too": """(float[2,8] x) => (float[?,?] y, float[?,?] z)
        <float[8,6] w, float[6] b, float[8,6] v>
        { y = Gemm(x, w, b) m = MatMul(x, v) r = Relu(m) s = Add(m, b) z = Add(s, r) }""",
    "a weight that is an operand, too": """(float[1,8,8] x) => (float[?,?,?] y, float[?,?,?] z)
        <float[8,8] w, float[8,4] v>
        { a = MatMul(x, w) s = Mul(a, w) y = MatMul(s, v) z = MatMul(a, v) }""",
    "Relu behind data movement": """(float[1,4,8,8] x) => (float[?,?,?,?] y) <float[4,4,1,1] w, float[2,4,1,1] u>
        { a = Conv(x, w) m = MaxPool<kernel_shape=[2,2]>(a) r = Relu(m) y = Conv(r, u) }""",
    "an input joins a float operator": """(float[1,4,8,8] x) => (float[?,?,?,?] y)
        <float[4,4,1,1] w, float[4,4,1,1] v>
        { e = Erf(x) s = Add(x, e) a = Conv(s, w) c = Conv(x, v) y = Add(a, c) }""",
}  # fmt: skip
VALUES = {"root": 1.41421, "one": 1.0, "half": 0.5}


def case(name: str) -> onnx.ModelProto:
    text = CASES[name]
    return model(text, check=False, **{k: v for k, v in VALUES.items() if f"float {k}" in text})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_what_stays_in_float_for_a_reason_is_no_violation(name: str, target: str) -> None:
    proto = case(name)
    result = onnxq.quantize(proto, samples(proto), target=target, **PLAIN)
    assert not check(result.model, TARGETS[target]).violations
    assert all(np.isfinite(output).all() for output in run(result.model, samples(proto, 1)[0]).values())


@pytest.mark.parametrize("preset", ["w8a16", "w4a8"])
@pytest.mark.parametrize("name", CASES)
def test_at_other_widths(name: str, preset: str) -> None:
    proto = case(name)
    for target in ("qnn", "generic-int8"):
        result = onnxq.quantize(proto, samples(proto), target=target, preset=preset, **PLAIN)
        assert not check(result.model, TARGETS[target]).violations


def test_a_node_kept_in_float_keeps_the_rest_whole() -> None:
    proto = model(
        "(float[1,4,4,4] x) => (float[?,?,?,?] y) <float[4,4,1,1] w, float[4,4,2,2] t, float[2,4,1,1] u>"
        " { a = Conv(x, w) r = Relu(a) d = ConvTranspose<strides=[2,2]>(r, t) e = Relu(d) y = Conv(e, u) }"
    )
    for options in ({"exclude": ("ConvTranspose",)}, {"overrides": (Override(node="ConvTranspose", keep_float=True),)}):
        for target in TARGETS:
            result = onnxq.quantize(proto, samples(proto), target=target, **PLAIN, **options)
            assert not check(result.model, TARGETS[target]).violations


def test_an_operator_that_has_no_range_stays_in_float_whole() -> None:
    text = """(float[1,4,6] x, float[1,4,6] z) => (float[?,?,?] y) <float[6,6] w, float[6,6] v>
        { i = Log(z) a = MatMul(x, w) s = Add(a, i) r = MatMul(s, v) y = Relu(r) }"""
    proto = model(text)
    feeds = samples(proto)
    for feed in feeds:
        feed["z"] = np.abs(feed["z"])
        feed["z"][0, 0, 0] = 0  # its logarithm is no number of a grid
    result = onnxq.quantize(proto, feeds, target="qnn", **PLAIN)
    assert not check(result.model, TARGETS["qnn"]).violations
    reasons = {n.node: n.reason for n in result.report.float_nodes}
    assert "infinite values" in reasons["Add_s"]
    assert "infinite values" in reasons["MatMul_r"]


def test_generic_int8_warns_of_what_qnn_does_to_its_softmax() -> None:
    proto = FAMILIES["attention"]
    warned = {}
    for target in ("generic-int8", "qnn"):
        report = onnxq.quantize(proto, samples(proto), target=target, **PLAIN).report
        warned[target] = any("shifts an int8 Softmax of zero point 0" in text for text in report.warnings)
    assert warned == {"generic-int8": True, "qnn": False}


# --- refused before any work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "tensorrt", "preset": "w4a16"}, "tensorrt takes a8, you asked a16"),
        ({"target": "qnn", "preset": "w4a4"}, "qnn takes a8 or a16, you asked a4"),
        ({"target": "qnn", "preset": "w8"}, "qnn runs operators in integers whole, and the preset leaves activations"),
        ({"target": "tensorrt", "preset": "w4a8"}, "int4 weights only where activations stay in float, you asked w4a8"),
        ({"target": "vitis-ai", "preset": "w4a8"}, r"vitis-ai takes w8, you asked w4 \(int4\)"),
        ({"target": "vitis-ai", "block_size": 32}, "vitis-ai has one weight scale a tensor"),
        ({"target": "tensorrt", "preset": "w8", "block_size": 32}, "tensorrt takes blocks only of int4 weights"),
        ({"target": "qnn", "symmetric_activations": True}, "qnn takes uint8 or uint16 activations"),
        ({"target": "qnn", "asymmetric_weights": True}, "qnn takes weights with zero point 0"),
        ({"target": "ort-no-vnni", "preset": "w16a8"}, "at most 64 steps"),
        ({"target": "qnn", "embeddings": "4"}, "the grid of what is looked up in it on qnn, of 8 or 16 bits; take 8"),
        ({"target": "tensorrt", "embeddings": "4"}, "tensorrt reads int4 as weights of products at most"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_no_model_of_the_target_can_have(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**settings)


# --- how 4 bits are stored -------------------------------------------------------------------------------------------

NET = """(float[1,4,6,6] x) => (float[?,?,?,?] y) <float[4,4,3,3] w, float[2,4,1,1] v>
    { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }"""


def stored(result: onnxq.Result) -> set[str]:
    names = {onnx.TensorProto.INT4: "int4", onnx.TensorProto.INT8: "int8"}
    return {names[t.data_type] for t in result.model.graph.initializer if t.name in ("w_quantized", "v_quantized")}


def test_four_bits_are_stored_in_int8_where_there_is_no_kernel_for_them() -> None:
    proto = model(NET)
    feeds = samples(proto)
    auto = onnxq.quantize(proto, feeds, preset="w4a8", force_int_kernels=True, **PLAIN)
    packed = onnxq.quantize(proto, feeds, preset="w4a8", store_4bit="int4", force_int_kernels=True, **PLAIN)
    assert (stored(auto), stored(packed)) == ({"int8"}, {"int4"})
    assert auto.report.runtime_operators["QLinearConv"] == 2
    assert "QLinearConv" not in packed.report.runtime_operators
    np.testing.assert_array_equal(run(auto.model, feeds[0])["y"], run(packed.model, feeds[0])["y"])
    assert stored(onnxq.quantize(proto, feeds, preset="w4", **PLAIN)) == {"int4"}
    assert stored(onnxq.quantize(proto, feeds, preset="w4", store_4bit="int8", **PLAIN)) == {"int8"}
    mixed = onnxq.quantize(proto, feeds, overrides=(Override(tensor="[wv]", bits=4),), force_int_kernels=True, **PLAIN)
    assert stored(mixed) == {"int8"}


def test_four_bits_of_a_signed_target_load_in_a_default_session() -> None:
    """Between signed grids ONNX Runtime 1.32 fails on data movement from operator set 21 on, which int4 needs."""
    proto = model(
        "(float[1,4,6,6] x) => (float[?,?] y) <float[4,4,3,3] w, int64[2] s, float[64,5] v>"
        " { a = Conv(x, w) r = Relu(a) f = Reshape(r, s) y = Gemm(f, v) }",
        s=np.array([1, -1]),
    )
    result = onnxq.quantize(proto, samples(proto), target="generic-int8", preset="w4a8", **PLAIN)
    Session(result.model, optimize=True).run(samples(proto)[0])
    assert "identical" not in result.report.to_text()


def test_blocks_are_for_matrices_whose_length_they_divide() -> None:
    proto = model(
        "(float[1,4,4,4] x) => (float[?,?] y) <float[8,4,1,1] w, int64[2] s, float[128,12] v, float[12,5] u>"
        " { a = Conv(x, w) r = Relu(a) f = Reshape(r, s) g = Gemm(f, v) y = Gemm(g, u) }",
        s=np.array([1, -1]),
    )
    result = onnxq.quantize(proto, samples(proto), preset="w4", block_size=8, **PLAIN)
    shapes = {t.name: tuple(t.dims) for t in result.model.graph.initializer if t.name.endswith("_scale")}
    assert shapes == {"w_scale": (8,), "v_scale": (16, 12), "u_scale": (5,)}
    notes = next(step.notes for step in result.report.steps if step.name == "AddQuantizers")
    assert {note.partition(":")[2] for note in notes} >= {
        " one scale a channel, not blocks of 8: convolutions have none",
        " one scale a channel, not blocks of 8: they do not divide 12 input channels",
    }
