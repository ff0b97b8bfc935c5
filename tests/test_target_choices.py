"""What stays in float although there is an integer kernel: what is slow, and layers that the user excluded."""

import numpy as np
import pytest
from graphs import assert_close, model, ops, run
from quantized import PLAIN, kernels, samples

import onnxq
from onnxq import Override
from onnxq.execution.session import Session

SEPARABLE = """(float[1,3,8,8] x) => (float[?,?,?,?] y) <float[8,3,3,3] w, float[8,1,3,3] v, float[8,8,1,1] u, float lo,
    float hi, float[4,8,1,1] t>
    { a = Conv(x, w) r = Clip(a, lo, hi) d = Conv<group=8>(r, v) e = Clip(d, lo, hi) f = Conv(e, u) y = Conv(f, t) }"""
ATTENTION = """(float[1,4,6] x) => (float[?,?,?] y) <float[6,6] w, float[6,6] v, float[6,6] u, float c> {
    q = MatMul(x, w) k = MatMul(x, v) t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) d = Mul(s, c)
    p = Softmax<axis=-1>(d) o = MatMul(p, q) y = MatMul(o, u) }"""


def of_default(proto, **options):
    return onnxq.quantize(proto, samples(proto), **{**PLAIN, **options})


def test_the_start_of_a_separable_network_stays_in_float_but_for_every_kernel():
    proto = model(SEPARABLE, check=False, lo=0, hi=6)
    result = of_default(proto)
    assert {(n.node, n.reason) for n in result.report.float_nodes} >= {
        (name, "the first layers of a depthwise-separable network are faster in float") for name in ("Conv_a", "Conv_d")
    }
    found = kernels(result.model)
    assert found["QLinearConv"] == 2
    assert found["Conv"] + found["FusedConv"] + found["NhwcFusedConv"] == 2, found
    every = of_default(proto, force_int_kernels=True)
    assert not every.report.float_nodes
    assert kernels(every.model)["QLinearConv"] == 4


@pytest.mark.parametrize(
    "body",
    [
        SEPARABLE.replace("[1,3,8,8]", "[1,4,8,8]").replace("[8,3,3,3]", "[8,4,3,3]"),  # four channels
        SEPARABLE.replace("<group=8>", "").replace("[8,1,3,3]", "[8,8,3,3]"),  # not depthwise
        SEPARABLE.replace("y = Conv(f, t)", "h = Conv(r, u) s = Conv(f, t) y = Shape(h)").replace(
            "=> (float[?,?,?,?] y)", "=> (int64[4] y, float[?,?,?,?] s)"
        ),  # a second reader
    ],
)
def test_other_starts_run_in_integers(body):
    report = of_default(model(body, check=False, lo=0, hi=6)).report
    assert not any("depthwise-separable" in n.reason for n in report.float_nodes)


DEPTHWISE = """(float[1,4,8,8] x) => (float[?,?,?,?] y) <float[8,4,1,1] w, float[8,1,3,3] v, float[8,8,1,1] u> {{
    a = Conv(x, w) b = {0}(a) d = Conv<group={2}>(b, v) e = {1}(d) y = Conv(e, u) }}"""


@pytest.mark.parametrize(
    ("before", "behind", "stays"),
    [("HardSwish", "HardSwish", True), ("HardSigmoid", "Erf", True), ("HardSwish", "Relu", False),
     ("Relu", "HardSwish", False), ("Sigmoid", "Sigmoid", False)],
)  # fmt: skip
def test_a_depthwise_conv_between_activations_in_float(before, behind, stays):
    proto = model(DEPTHWISE.format(before, behind, 8), check=False)
    reason = "a depthwise Conv between activations in float is no faster in integers"
    result = of_default(proto, hard_swish="float")
    assert [n.node for n in result.report.float_nodes if n.reason == reason] == ["Conv_d"] * stays
    every = of_default(proto, force_int_kernels=True)
    assert "Conv_d" not in {n.node for n in every.report.float_nodes}


def test_any_other_conv_between_activations_in_float_runs_in_integers():
    proto = model(DEPTHWISE.format("HardSwish", "HardSwish", 1).replace("[8,1,3,3]", "[8,8,3,3]"), check=False)
    assert "Conv_d" not in {n.node for n in of_default(proto).report.float_nodes}


def test_products_of_activations_stay_in_float_but_for_every_kernel():
    proto = model(ATTENTION, c=0.4)
    result = of_default(proto)
    slow = {n.node for n in result.report.float_nodes if "product of two activations is faster" in n.reason}
    assert slow == {"MatMul_s", "MatMul_o"}
    others = {n.op for n in result.report.float_nodes} - {"MatMul"}
    assert others == {"Mul", "Softmax"}
    every = of_default(proto, force_int_kernels=True)
    assert not any(n.op == "MatMul" for n in every.report.float_nodes)
    assert not {"MatMul", "FusedMatMul"} & set(kernels(every.model))


def test_elementwise_operators_behind_a_kernel_that_writes_float():
    """Gemm can write float, for nothing; Conv cannot, so what follows it joins."""
    text = "(float[2,3] x) => (float[2,?] y) <float[3,5] w, float[5,7] v> {{ a = {} s = Sigmoid(a) y = MatMul(s, v) }}"
    proto = model(text.format("MatMul(x, w)"))
    assert [n.op for n in of_default(proto).report.float_nodes] == ["Sigmoid"]
    assert not of_default(proto, force_int_kernels=True).report.float_nodes
    conv = model(
        "(float[1,3,4,4] x) => (float[?,?,?,?] y) <float[5,3,1,1] w, float[2,5,1,1] v>"
        " { a = Conv(x, w) s = Sigmoid(a) y = Conv(s, v) }"
    )
    assert not of_default(conv).report.float_nodes


IMAGE = "(float[1,4,6,6] x) => (float[?,?,?,?] y) <float[4,4,1,1] u, float[4,4,3,3] w, float[4] b, float lo, float hi>"
MATRIX = "(float[2,4] x) => (float[?,?] y) <float[4,4] u, float[4,4] w, float[4] b, float lo, float hi>"
BETWEEN = {
    "Conv": f"{IMAGE} {{ a = Conv(x, u) m = Conv(a, w) y = Conv(m, u) }}",
    "Conv with a bias": f"{IMAGE} {{ a = Conv(x, u) m = Conv(a, w, b) y = Conv(m, u) }}",
    "Conv-Relu": f"{IMAGE} {{ a = Conv(x, u) m = Conv(a, w) r = Relu(m) y = Conv(r, u) }}",
    "Conv-Relu, kept": f"{IMAGE} {{ a = Conv(x, u) m = Conv(a, w) r = Relu(m) y = Conv(r, u) }}",
    "Conv-Clip": f"{IMAGE} {{ a = Conv(x, u) m = Conv(a, w) r = Clip(m, lo, hi) y = Conv(r, u) }}",
    "ConvTranspose": f"{IMAGE} {{ a = Conv(x, u) m = ConvTranspose(a, w) y = Conv(m, u) }}",
    "Gemm": f"{MATRIX} {{ a = Gemm(x, u) m = Gemm(a, w, b) y = Gemm(m, u) }}",
    "Gemm-Relu": f"{MATRIX} {{ a = Gemm(x, u) m = Gemm(a, w, b) r = Relu(m) y = Gemm(r, u) }}",
    "MatMul-Add": f"{MATRIX} {{ a = Gemm(x, u) p = MatMul(a, w) m = Add(p, b) y = Gemm(m, u) }}",
}


@pytest.mark.parametrize("case", BETWEEN)
def test_a_float_layer_between_grids_really_runs_with_float_weights(case):
    """ONNX Runtime would quantize its weights by itself. Columns of very different magnitude would show it."""
    shape = (4, 4) if BETWEEN[case].startswith(MATRIX) else (4, 4, 3, 3)
    values = np.random.default_rng(0).uniform(-1, 1, shape)
    values *= 10.0 ** -np.arange(4).reshape((1, 4) + (1,) * (len(shape) - 2))
    proto = model(BETWEEN[case], check=False, lo=-1, hi=1, w=values)
    kept = {"overrides": (Override(tensor="r", range=(-1, 4)),)} if "kept" in case else {}  # below Relu's bound
    result = of_default(proto, force_int_kernels=True, exclude=("MatMul" if "MatMul" in case else "*_m",), **kept)
    assert ("Relu" in ops(result.model)) == bool(kept)
    layers = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul")
    found = kernels(result.model)
    assert sum(found[op] for op in layers) == 1, found
    assert found["QLinearConv"] + found["QGemm"] == 2, found
    feed = samples(proto)[0]
    plain, optimised = run(result.model, feed)["y"], Session(result.model, optimize=True).run(feed)["y"]
    assert_close(optimised, plain, 0.02)


def test_no_shield_where_nothing_is_in_float():
    proto = model(BETWEEN["Conv with a bias"], check=False, lo=-1, hi=1)
    assert "Sum" not in ops(of_default(proto).model)
    assert "Sum" not in ops(of_default(proto, overrides=(Override(tensor="w", bits=4),)).model)
