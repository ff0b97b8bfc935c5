"""What ONNX Runtime really runs in integers, operator by operator: the rules in `targets.ORT` are measured here."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import model
from quantized import kernels, linear_in_float, quantized

from onnxq.targets import ORT, TARGETS, OpRule

CHAIN = """(float[1,4,8,8] x) => (float[?,?,?,?] y) <float[4,4,3,3] w1, float[4,4,1,1] w2, float[4] b {declared}>
    {{ a = Conv<pads=[1,1,1,1]>(x, w1, b) {body} y = Conv(z, w2) }}"""


def chain(body, declared="", **values):
    """`body` turns `a`, computed in integers, into `z`, which is read in integers."""
    return model(CHAIN.format(body=body, declared=declared), check=False, **values)


KERNELS = {
    "Add": ("QLinearAdd", chain("z = Add(a, a)")),
    "Mul": ("QLinearMul", chain("s = Sigmoid(a) z = Mul(a, s)")),
    "Sigmoid": ("QLinearSigmoid", chain("z = Sigmoid(a)")),
    "Concat": ("QLinearConcat", chain("s = Sigmoid(a) z = Concat<axis=2>(a, s)")),
    "Where": ("QLinearWhere", chain("z = Where(c, a, k)", ", bool[8,8] c, float[4,1,1] k")),
    "HardSwish": ("QLinearMul", chain("z = HardSwish(a)")),
    "LeakyRelu": ("QLinearLeakyRelu", chain("z = LeakyRelu<alpha=0.1>(a)")),
    "Softmax": ("QLinearSoftmax", chain("z = Softmax<axis=-1>(a)")),
    "AveragePool": ("QLinearAveragePool", chain("z = AveragePool<kernel_shape=[2,2]>(a)")),
    "GlobalAveragePool": ("QLinearGlobalAveragePool", chain("z = GlobalAveragePool(a)")),
}

MOVEMENT = {
    "MaxPool": ("NhwcMaxPool", chain("z = MaxPool<kernel_shape=[2,2]>(a)")),
    "Reshape": ("Reshape", chain("z = Reshape(a, s)", ", int64[4] s", s=[1, 4, 4, 16])),
    "Flatten": (
        "Flatten",
        model(
            "(float[1,4,8,8] x) => (float[?,?] y) <float[3,4,3,3] w, float[108,5] v>"
            " { a = Conv(x, w) z = Flatten(a) y = Gemm(z, v) }"
        ),
    ),
    "Squeeze": ("Squeeze", chain("s = Squeeze(a, i) z = Unsqueeze(s, i)", ", int64[1] i", i=[0])),
    "Unsqueeze": ("Unsqueeze", chain("s = Squeeze(a, i) z = Unsqueeze(s, i)", ", int64[1] i", i=[0])),
    "Transpose": ("Transpose", chain("z = Transpose<perm=[0,1,3,2]>(a)")),
    "Slice": ("Slice", chain("z = Slice(a, s, e, i)", ", int64[1] s, int64[1] e, int64[1] i", s=[1], e=[7], i=[2])),
    "Gather": ("Gather", chain("z = Gather<axis=2>(a, i)", ", int64[3] i", i=[2, 0, 5])),
    "Split": ("Split", chain("s, t = Split<axis=2>(a, i) z = Add(s, t)", ", int64[2] i", i=[4, 4])),
    "Expand": ("Expand", chain("s = GlobalAveragePool(a) z = Expand(s, i)", ", int64[4] i", i=[1, 4, 5, 5])),
    "Tile": ("Tile", chain("z = Tile(a, i)", ", int64[4] i", i=[1, 1, 2, 1])),
    "DepthToSpace": (
        "DepthToSpace",
        chain("s = Conv(a, v) z = DepthToSpace<blocksize=2>(s)", ", float[16,4,1,1] v"),
    ),
    "ReduceMax": ("ReduceMax", chain("s = ReduceMax<axes=[2],keepdims=1>(a) z = Add(a, s)")),
    "ReduceMin": ("ReduceMin", chain("s = ReduceMin<axes=[2],keepdims=1>(a) z = Add(a, s)")),
    "Resize": ("Resize", chain('z = Resize<mode="nearest">(a, , s)', ", float[4] s", s=[1, 1, 2, 2])),
}
SOFT_PAD = chain("q = Pad(a, p) z = MaxPool<kernel_shape=[1,1]>(q)", ", int64[8] p", p=[0, 0, 1, 1, 0, 0, 1, 1])

LINEAR = {
    "Conv": ("QLinearConv", chain("z = Conv(a, v)", ", float[4,4,3,3] v")),
    "Conv, one dimension": (
        "QLinearConv",
        model("(float[1,3,8] x) => (float[?,?,?] y) <float[5,3,3] w> { y = Conv(x, w) }"),
    ),
    "Conv, depthwise": (
        "QLinearConv",
        model("(float[1,3,8,8] x) => (float[?,?,?,?] y) <float[3,1,3,3] w> { y = Conv<group=3>(x, w) }"),
    ),
    "Gemm, to integers": (
        "QGemm",
        model(
            "(float[2,3] x) => (float[?,?] y) <float[3,5] w, float[5] b, float[7,5] v>"
            " { a = Gemm(x, w, b) y = Gemm<transB=1>(a, v) }"
        ),
    ),
    "Gemm, to float": (
        "QGemm",
        model("(float[2,3] x) => (float[?,?] y) <float[5,3] w, float[5] b> { y = Gemm<transB=1>(x, w, b) }"),
    ),
    "MatMul, to integers": (
        "QLinearMatMul",
        model("(float[2,3] x) => (float[?,?] y) <float[3,5] w, float[5,7] v> { a = MatMul(x, w) y = MatMul(a, v) }"),
    ),
    "MatMul, to float": (
        "MatMulIntegerToFloat",
        model("(float[2,3] x) => (float[?,?] y) <float[3,5] w> { y = MatMul(x, w) }"),
    ),
    "MatMul, batched weight": (
        "MatMulIntegerToFloat",
        model("(float[4,2,3] x) => (float[?,?,?] y) <float[4,3,5] w> { y = MatMul(x, w) }"),
    ),
    "MatMul, two activations": (
        "MatMulIntegerToFloat",
        model("(float[2,3] x, float[3,5] v) => (float[?,?] y) { y = MatMul(x, v) }"),
    ),
}


@pytest.mark.parametrize("case", [*LINEAR, *KERNELS])
def test_the_operator_runs_as_an_integer_kernel(case):
    kernel, proto = {**LINEAR, **KERNELS}[case]
    found = kernels(quantized(proto))
    assert found[kernel], found
    assert case not in found, found
    assert not linear_in_float(found), found


@pytest.mark.parametrize("op", MOVEMENT)
def test_data_movement_runs_on_integers(op):
    kernel, proto = MOVEMENT[op]
    found = kernels(quantized(proto))
    assert found[kernel], found
    assert found["DequantizeLinear"] <= 1, found  # of the output
    assert found["QuantizeLinear"] <= 1, found  # of the input


def test_pad_runs_in_float_but_on_its_grid():
    """The one exception, as the module says: when this fails, ONNX Runtime has learnt it."""
    found = kernels(quantized(SOFT_PAD))
    assert (found["Pad"], found["DequantizeLinear"], found["QuantizeLinear"]) == (1, 2, 2)


@pytest.mark.parametrize("layer", ["a = Gemm(x, w, b)", "m = MatMul(x, w) a = Add(m, b)", "a = MatMul(x, w)"])
@pytest.mark.parametrize("activation", ["Relu(a)", "Clip(a, lo, hi)"])
@pytest.mark.parametrize("tail", ["y = Identity(r)", "y = Tanh(r)", "s = Tanh(r) y = Sub(r, s)"])
def test_a_matrix_product_with_an_activation_that_is_read_in_float(layer, activation, tail):
    proto = model(
        "(float[2,3] x) => (float[2,?] y) <float[3,5] w, float[5] b, float lo, float hi>"
        f" {{ {layer} r = {activation} {tail} }}",
        lo=0,
        hi=6,
    )
    found = kernels(quantized(proto))
    assert not linear_in_float(found), found


def test_every_rule_of_the_target_is_measured():
    measured = {case.partition(",")[0] for case in LINEAR} | set(KERNELS) | set(MOVEMENT) | {"Pad", "Identity"}
    assert measured == set(ORT.rules)


@pytest.mark.parametrize("activation", ["Relu(a)", "Clip(a, lo, hi)"])
def test_fused_activations_cost_nothing(activation):
    found = kernels(quantized(chain(f"z = {activation}", ", float lo, float hi", lo=0, hi=1)))
    assert not {"Relu", "Clip"} & set(found), found
    assert sum(found.values()) == sum(kernels(quantized(chain("z = Identity(a)"))).values())


MISSING = {
    "GatherND": (
        "movement",
        chain("s = GatherND(a, i) z = Reshape(s, t)", ", int64[1,1] i, int64[4] t", i=[[0]], t=[1, 4, 8, 8]),
    ),
    "SpaceToDepth": ("movement", chain("s = SpaceToDepth<blocksize=2>(a) z = DepthToSpace<blocksize=2>(s)")),
    "GlobalMaxPool": ("movement", chain("s = GlobalMaxPool(a) z = Expand(s, i)", ", int64[4] i", i=[1, 4, 5, 5])),
    "ConvTranspose": ("linear", chain("z = ConvTranspose(a, v)", ", float[4,4,2,2] v")),
    "Sub": ("elementwise", chain("s = Sigmoid(a) z = Sub(a, s)")),
    "Div": ("elementwise", chain("s = Sigmoid(a) t = Div(s, k) z = MaxPool<kernel_shape=[2,2]>(t)", ", float k", k=2)),
    "Min": ("elementwise", chain("s = Sigmoid(a) z = Min(a, s)")),
    "HardSigmoid": ("elementwise", chain("z = HardSigmoid(a)")),
    "Tanh": ("elementwise", chain("z = Tanh(a)")),
}


@pytest.mark.parametrize("op", MISSING)
def test_no_integer_kernel_was_overlooked(op, monkeypatch):
    kind, proto = MISSING[op]
    rules = {**ORT.rules, op: OpRule(kind, grid="same" if kind == "movement" else "own")}
    monkeypatch.setitem(TARGETS, "ort", replace(ORT, rules=rules))
    found = kernels(quantized(proto))
    assert op not in ORT.rules
    assert found[op] == 1, found
    assert found["DequantizeLinear"] > 1, found


def test_types_of_the_target():
    assert str(ORT.activation) == "uint8 asymmetric per tensor"
    assert str(ORT.weight) == "int8 narrow symmetric per channel"


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("settings", [{}, {"asymmetric_weights": True}, {"block_size": 16}])
@pytest.mark.parametrize("activations", ["", "a16"])
def test_onnx_runtime_rounds_activations_beside_the_weights_that_the_target_says(bits, settings, activations):
    w = np.random.default_rng(2).normal(0, 1, (32, 16))
    proto = model("(float[N,32] x) => (float[N,16] y) <float[32,16] w> { y = MatMul(x, w) }", w=w)
    runs = kernels(quantized(proto, preset=f"w{bits}{activations}", rounding="nearest", **settings))
    assert ("MatMulNBits" in runs) == (bits in ORT.rounds_activations)
