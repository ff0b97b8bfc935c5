"""Folding keeps the function to rounding; where it would not, the model stays as it is and the reason is told."""

from __future__ import annotations

import re

import numpy as np
import pytest
from graphs import assert_same_function, feeds, model, ops, weights, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxq.graph.model import Model
from onnxq.passes.base import Context, Outcome
from onnxq.passes.fold_batchnorm import FoldBatchNorm

TOLERANCE = 1e-5


def folded(proto: ModelProto) -> tuple[Model, Outcome]:
    after = wrapped(proto)
    return after, FoldBatchNorm().apply(after, Context())


def assert_folds(text: str, expected: str, *, tolerance: float = TOLERANCE, **options: object) -> Model:
    """The operators that are left; every node that went was counted; a second run finds nothing."""
    proto = model(text, **options)  # type: ignore[arg-type]
    before = proto.SerializeToString(deterministic=True)
    after, outcome = folded(proto)
    assert ops(after) == expected.split()
    assert outcome.changed >= 1
    assert not outcome.skips
    assert_same_function(proto, after.to_proto(), tolerance)
    assert FoldBatchNorm().apply(after, Context()).changed == 0
    assert proto.SerializeToString(deterministic=True) == before
    return after


def assert_declines(proto: ModelProto, reason: str, arrays: dict[str, np.ndarray] | None = None) -> None:
    """Nothing changed, and each BatchNormalization says why."""
    after, outcome = folded(proto)
    assert after.to_proto().graph == wrapped(proto).to_proto().graph
    assert outcome.changed == 0
    found = [s.reason for s in outcome.skips]
    assert len(found) == ops(proto).count("BatchNormalization")
    assert all(re.search(reason, text) for text in found), found


def norm(name: str, channels: int) -> str:
    """Declarations of one BatchNormalization's parameters."""
    return ", ".join(f"float[{channels}] {kind}{name}" for kind in ("g", "b", "m", "var"))


BN = "BatchNormalization<epsilon=0.001>"
BN5 = norm("", 5)

LAYERS = {
    "Conv": ("float[N,3,7,7] x", "float[5,3,3,3] w", "Conv(x, w)"),
    "Conv with bias": ("float[N,3,7,7] x", "float[5,3,3,3] w, float[5] c", "Conv(x, w, c)"),
    "Conv with pads": ("float[N,3,7,7] x", "float[5,3,3,3] w", "Conv<pads=[1,2,0,1], strides=[2,1]>(x, w)"),
    "Conv same": ("float[N,3,7,7] x", "float[5,3,2,2] w", 'Conv<auto_pad="SAME_UPPER", dilations=[1,1]>(x, w)'),
    "Conv 1d": ("float[N,3,7] x", "float[5,3,2] w", "Conv<pads=[1,0]>(x, w)"),
    "Conv 3d": ("float[N,3,4,4,4] x", "float[5,3,2,2,2] w, float[5] c", "Conv<dilations=[2,1,1]>(x, w, c)"),
    "Conv depthwise": ("float[N,5,7,7] x", "float[5,1,3,3] w, float[5] c", "Conv<group=5, pads=[1,1,1,1]>(x, w, c)"),
    "ConvTranspose": ("float[N,3,4,4] x", "float[3,5,3,3] w", "ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)"),
    "ConvTranspose with bias": ("float[N,3,4,4] x", "float[3,5,2,2] w, float[5] c", "ConvTranspose(x, w, c)"),
    "ConvTranspose depthwise": ("float[N,5,4,4] x", "float[5,1,2,2] w", "ConvTranspose<group=5>(x, w)"),
    "Gemm": ("float[N,3] x", "float[3,5] w, float[5] c", "Gemm(x, w, c)"),
    "Gemm transposed": ("float[N,3] x", "float[5,3] w", "Gemm<transB=1>(x, w)"),
    "MatMul": ("float[N,3] x", "float[3,5] w", "MatMul(x, w)"),
}


def layer(name: str, extra: str, nodes: str, outputs: str = "float[?] y") -> str:
    """A layer making `l`, then `nodes`. Output ranks are filled in."""
    given_, parameters, call = LAYERS[name]
    rank = given_.count(",") + 1
    outputs = outputs.replace("[?]", f"[{','.join('?' * rank)}]")
    return f"({given_}) => ({outputs}) <{parameters}, {extra}> {{ [layer] l = {call} {nodes} }}"


def heart(name: str, *, shifted: bool = True) -> str:
    op = name.split()[0]
    return "MatMul Add" if op == "MatMul" and shifted else op


@pytest.mark.parametrize("name", LAYERS)
def test_batchnorm_behind(name: str) -> None:
    after = assert_folds(layer(name, BN5, f"y = {BN}(l, g, b, m, var)"), heart(name))
    assert after.graph.nodes[-1].outputs[0].name == "y"


@pytest.mark.parametrize("name", LAYERS)
def test_batchnorm_keeps_the_names_of_what_follows(name: str) -> None:
    after = assert_folds(layer(name, BN5, f"n = {BN}(l, g, b, m, var) y = Relu(n)"), f"{heart(name)} Relu")
    assert after.graph.nodes[-1].inputs[0].name == "n"
    assert after.graph.nodes[0].name == "layer"


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_beta_and_gamma_but_for_epsilon(name: str) -> None:
    proto = model(layer(name, BN5, f"n = {BN}(l, g, b, m, var) y = Relu(n)"))
    after, _ = folded(proto)
    parameters = weights(proto)
    assert set(after.moments) == {"n"}
    np.testing.assert_allclose(after.moments["n"].mean, parameters["b"])
    np.testing.assert_allclose(after.moments["n"].std, gamma_behind(parameters))


def gamma_behind(parameters: dict[str, np.ndarray], g: str = "g", var: str = "var") -> np.ndarray:
    """Standard deviation behind BatchNorm: |gamma|, less what epsilon takes where the variance is small."""
    variance = parameters[var].astype(np.float64)
    return np.abs(parameters[g]) * np.sqrt(variance / (variance + 0.001))


def test_moments_follow_later_maps() -> None:
    text = layer("Conv", f"{BN5}, float[5,1,1] s, float[1,5,1,1] t", "n = " + BN + "(l, g, b, m, var) o = Mul(n, s)"
                 " p = Sub(t, o) y = Relu(p)")  # fmt: skip
    proto = model(text)
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed, set(after.moments)) == (["Conv", "Relu"], 3, {"p"})
    p = {k: v.ravel() for k, v in weights(proto).items()}
    np.testing.assert_allclose(after.moments["p"].mean, p["t"] - p["s"] * p["b"], rtol=1e-6)
    np.testing.assert_allclose(after.moments["p"].std, np.abs(p["s"]) * gamma_behind(p), rtol=1e-6)


def test_without_batchnorm_there_are_no_moments() -> None:
    after = assert_folds(layer("Conv", "float s", "n = Mul(l, s) y = Relu(n)"), "Conv Relu")
    assert not after.moments


CONSTANTS = ["float s", "float[1] s", "float[1,1,1,1] s", "float[5,1,1] s", "float[1,5,1,1] s"]


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["Conv with bias", "ConvTranspose"])
def test_constants_behind_convolutions(name: str, op: str, constant: str, first: bool) -> None:
    text = layer(name, constant, f"y = {op}({'s, l' if first else 'l, s'})")
    if op == "Div" and first:
        after, outcome = folded(model(text))
        assert (ops(after), outcome.changed) == ([*heart(name).split(), "Div"], 0)
    else:
        assert_folds(text, heart(name))


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("constant", ["float s", "float[1,1] s", "float[5] s", "float[1,5] s"])
@pytest.mark.parametrize("name", ["Gemm", "Gemm transposed", "MatMul"])
def test_constants_behind_matrices(name: str, op: str, constant: str) -> None:
    if name == "MatMul" and op == "Add" and constant == "float[5] s":
        return  # that is the layer's bias already
    expected = heart(name, shifted=op in ("Add", "Sub"))
    assert_folds(layer(name, constant, f"h = {op}(l, s) y = Relu(h)"), f"{expected} Relu")


@pytest.mark.parametrize("constant", ["float s", "float[5] s", "float[1,5] s", "float[1,1,5] s"])
@pytest.mark.parametrize("bias", ["", "a = Add(l, c)", "a = Add(c, l)"])
def test_constants_behind_stacked_matrices(constant: str, bias: str) -> None:
    text = (
        f"(float[N,7,3] x) => (float[N,7,5] y) <float[3,5] w, float[5] c, {constant}, float[5] t>"
        f" {{ l = MatMul(x, w) {bias} h = Mul({'a' if bias else 'l'}, s) y = Add(t, h) }}"
    )
    after, outcome = folded(proto := model(text))
    # Without a bias the first Add becomes the layer's bias when the scale is folded: nothing is left to do.
    assert ops(after) == ["MatMul", "Add"]
    assert outcome.changed == (2 if bias else 1)
    assert_same_function(proto, after.to_proto(), TOLERANCE)


def test_stacked_weights() -> None:
    text = "(float[N,4,7,3] x) => (float[N,4,7,5] y) <float[4,3,5] w, float[5] s, float[1,5] t> {body}"
    assert_folds(text.replace("{body}", "{ l = MatMul(x, w) h = Mul(l, s) y = Sub(h, t) }"), "MatMul Add")


def test_chains() -> None:
    text = layer(
        "Conv with pads",
        f"{BN5}, float[5,1,1] s, float t, {norm('2', 5)}",
        f"n = {BN}(l, g, b, m, var) o = Mul(n, s) p = Add(t, o) q = Div(p, s) y = {BN}(q, g2, b2, m2, var2)",
    )
    after = assert_folds(text, "Conv")
    np.testing.assert_allclose(after.moments["y"].std, gamma_behind(weights(model(text)), "g2", "var2"))


def test_two_layers_in_a_row() -> None:
    assert_folds(
        f"(float[N,3,7,7] x) => (float[N,5,?,?] y) <float[5,3,3,3] w, float[5,5,1,1] v, {BN5}, {norm('2', 5)}>"
        f" {{ l = Conv<pads=[1,1,1,1]>(x, w) n = {BN}(l, g, b, m, var) r = Relu(n) k = Conv(r, v)"
        f" y = {BN}(k, g2, b2, m2, var2) }}",
        "Conv Relu Conv",
    )


BEFORE = {
    "Conv": ("float[N,3,7,7] x", "float[5,3,2,2] w", "Conv(n, w)"),
    "Conv valid": (
        "float[N,3,7,7] x",
        "float[5,3,2,2] w, float[5] c",
        'Conv<auto_pad="VALID", strides=[2,2]>(n, w, c)',
    ),
    "Conv grouped": ("float[N,6,7,7] x", "float[4,3,2,2] w", "Conv<group=2>(n, w)"),
    "Conv depthwise": ("float[N,3,7,7] x", "float[6,1,2,2] w, float[6] c", "Conv<group=3>(n, w, c)"),
    "Conv 1d": ("float[N,3,7] x", "float[5,3,2] w", "Conv(n, w)"),
    "Gemm": ("float[N,3] x", "float[3,5] w, float[5] c", "Gemm(n, w, c)"),
    "Gemm transposed": ("float[N,3] x", "float[5,3] w", "Gemm<transB=1>(n, w)"),
    "MatMul": ("float[N,3] x", "float[3,5] w", "MatMul(n, w)"),
}


def before(name: str, extra: str, call: str) -> str:
    """`call` makes `n` from `x`, which the layer reads."""
    given_, parameters, use = BEFORE[name]
    rank = given_.count(",") + 1
    shape = ",".join("?" * rank)
    return f"({given_}) => (float[{shape}] y) <{parameters}, {extra}> {{ n = {call} [layer] y = {use} }}"


@pytest.mark.parametrize("name", BEFORE)
def test_batchnorm_before(name: str) -> None:
    channels = 6 if name == "Conv grouped" else 3
    after = assert_folds(before(name, norm("", channels), f"{BN}(x, g, b, m, var)"), heart(name))
    assert not after.moments, "they are those of the input, not of the layer"


@pytest.mark.parametrize("op", ["Mul(x, s)", "Add(s, x)", "Sub(x, s)", "Sub(s, x)", "Div(x, s)"])
@pytest.mark.parametrize("name", BEFORE)
def test_constants_before(name: str, op: str) -> None:
    channels = 6 if name == "Conv grouped" else 3
    spatial = BEFORE[name][0].count(",") - 1
    constant = f"float[{','.join([str(channels)] + ['1'] * spatial)}] s"
    assert_folds(before(name, constant, op), heart(name, shifted="Add" in op or "Sub" in op))


def test_batchnorm_before_a_matrix_with_bias() -> None:
    text = before("MatMul", f"{norm('', 3)}, float[5] c", f"{BN}(x, g, b, m, var)")
    text = text.replace("[layer] y = MatMul(n, w)", "p = MatMul(n, w) y = Add(p, c)")
    assert_folds(text, "MatMul Add")


@pytest.mark.parametrize("transpose", ["ConvTranspose<group=2>(n, w)", "ConvTranspose<group=2, pads=[1,1,1,1]>(n, w)"])
def test_a_scale_before_a_transposed_convolution(transpose: str) -> None:
    constants = "<float[6,2,3,3] w, float[6,1,1] s>"
    text = f"(float[N,6,4,4] x) => (float[N,4,?,?] y) {constants} {{ n = Mul(x, s) y = {transpose} }}"
    assert_folds(text, "ConvTranspose")


def test_a_scale_before_a_padded_convolution() -> None:
    text = before("Conv", "float[3,1,1] s", "Mul(x, s)").replace("Conv(", "Conv<pads=[1,1,1,1]>(")
    assert_folds(text, "Conv")


def test_batchnorm_without_shift_before_a_padded_convolution() -> None:
    text = before("Conv", norm("", 3), f"{BN}(x, g, b, m, var)").replace("Conv(n", "Conv<pads=[1,1,1,1]>(n")
    assert_folds(text, "Conv", b=0.0, m=0.0)


def test_grouped_transposed_convolutions() -> None:
    text = (
        f"(float[N,6,4,4] x) => (float[N,4,?,?] y) <float[6,2,3,3] w, {norm('', 4)}>"
        f" {{ l = ConvTranspose<group=2, output_padding=[1,0], strides=[2,2]>(x, w) y = {BN}(l, g, b, m, var) }}"
    )
    assert_folds(text, "ConvTranspose")


def test_grouped_convolutions() -> None:
    text = (
        f"(float[N,6,4,4] x) => (float[N,9,?,?] y) <float[9,2,3,3] w, {norm('', 9)}>"
        f" {{ l = Conv<group=3>(x, w) y = {BN}(l, g, b, m, var) }}"
    )
    assert_folds(text, "Conv")


REFUSED = {
    "second reader": (layer("Conv", BN5, f"n = {BN}(l, g, b, m, var) r = Relu(l) y = Add(n, r)"),
                      "output of 'layer' is read elsewhere too"),
    "graph output": (layer("Conv", BN5, f"y = {BN}(l, g, b, m, var)", "float[?] y, float[?] l"),
                     "output of 'layer' is read elsewhere too"),
    "read before the bias": (
        f"(float[N,3] x) => (float[N,5] y, float[N,5] p) <float[3,5] w, float[5] c, {BN5}>"
        f" {{ [layer] p = MatMul(x, w) a = Add(p, c) y = {BN}(a, g, b, m, var) }}", "output of 'layer' is read"),
    "shared weight": (layer("Conv", f"{BN5}, float[1,3,7,7] k",
                            f"n = {BN}(l, g, b, m, var) q = Conv(k, w) y = Add(n, q)"), "weight 'w' is shared"),
    "weight that is an output": (layer("Conv", BN5, f"y = {BN}(l, g, b, m, var)", "float[?] y, float[5,3,3,3] w"),
                                 "weight 'w' is shared"),
    "computed parameters": (layer("Conv", f"{BN5}, float[5] o", f"v = Abs(b) y = {BN}(l, g, v, m, var)"),
                            "parameters are not constant"),
    "training": (layer("Conv", BN5, "y, m2, v2 = BatchNormalization<training_mode=1>(l, g, b, m, var)"),
                 "training mode"),
    "another axis": (f"(float[N,5,3] x) => (float[N,5,5] y) <float[3,5] w, {BN5}>"
                     f" {{ [layer] l = MatMul(x, w) y = {BN}(l, g, b, m, var) }}", "another axis"),
    "computed weight": (f"(float[N,3,7,7] x, float[5,3,3,3] w) => (float[N,5,5,5] y) <{BN5}>"
                        f" {{ l = Conv(x, w) y = {BN}(l, g, b, m, var) }}", "weight 'w' is not constant"),
    "computed bias": (f"(float[N,3,7,7] x, float[5] c) => (float[N,5,5,5] y) <float[5,3,3,3] w, {BN5}>"
                      f" {{ l = Conv(x, w, c) y = {BN}(l, g, b, m, var) }}", "bias 'c' is not constant"),
    "transposed input": (f"(float[3,N] x) => (float[N,5] y) <float[3,5] w, {BN5}>"
                         f" {{ l = Gemm<transA=1>(x, w) y = {BN}(l, g, b, m, var) }}", "transposed"),
    "nothing linear": (f"(float[N,5,3] x) => (float[N,5,3] y) <{BN5}>"
                       f" {{ l = Relu(x) y = {BN}(l, g, b, m, var) }}", "not a linear operator"),
    "at the input": (f"(float[N,5,3] x) => (float[N,5,3] y) <{BN5}> {{ y = {BN}(x, g, b, m, var) }}",
                     "'x' is not computed by a linear layer"),
    "padding before": (before("Conv", norm("", 3), f"{BN}(x, g, b, m, var)").replace("Conv(", "Conv<pads=[0,0,1,0]>("),
                       "pads with zeros"),
    "same padding before": (before("Conv", norm("", 3), f"{BN}(x, g, b, m, var)")
                            .replace("Conv(", 'Conv<auto_pad="SAME_UPPER">('), "pads with zeros"),
    "transposed before": (f"(float[N,3,4,4] x) => (float[N,5,5,5] y) <float[3,5,2,2] w, {norm('', 3)}>"
                          f" {{ n = {BN}(x, g, b, m, var) y = ConvTranspose(n, w) }}",
                          "does not answer a constant with a constant"),
    "two layers before": (f"(float[N,3] x) => (float[N,5] y, float[N,5] z) <float[3,5] w, float[3,5] v, {norm('', 3)}>"
                          f" {{ n = {BN}(x, g, b, m, var) y = MatMul(n, w) z = MatMul(n, v) }}",
                          "not read by one linear layer alone"),
    "as a weight": (f"(float[N,3] x) => (float[7,?] y) <float[7,3] k, {norm('', 3)}>"
                    f" {{ n = {BN}(x, g, b, m, var) t = Transpose(n) y = MatMul(k, t) }}", "not a linear operator"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_declined(name: str) -> None:
    text, reason = REFUSED[name]
    assert_declines(model(text), reason)


def test_statistics_that_are_read_are_declined() -> None:
    text = layer("Conv", BN5, f"y, m2, v2, s2, t2 = {BN}(l, g, b, m, var) r = Relu(m2)", "float[?] y, float[5] r")
    assert_declines(model(text, opset=9, check=False), "training mode")
    text = layer("Conv", BN5, f"y, m2, v2, s2, t2 = {BN}(l, g, b, m, var)", "float[?] y, float[5] t2")
    assert_declines(model(text, opset=9, check=False), "training mode")


def test_an_empty_bias_is_filled() -> None:
    proto = model(layer("Conv", BN5, f"y = {BN}(l, g, b, m, var)"))
    proto.graph.node[0].input.append("")
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed) == (["Conv"], 1)
    assert_same_function(proto, after.to_proto(), TOLERANCE)


def test_negative_variance_is_declined() -> None:
    text = layer("Conv", BN5, f"y = {BN}(l, g, b, m, var)")
    assert_declines(model(text, var=np.float32([1, 1, -1, 1, 1])), "variance is not positive")


def test_weights_that_would_overflow_are_declined() -> None:
    text = layer("Conv", BN5, "y = BatchNormalization<epsilon=0.0>(l, g, b, m, var)")
    assert_declines(model(text, var=1e-38, g=1e30), "finite in float32")


def test_variance_of_zero_stays_finite() -> None:
    text = layer("Conv", BN5, f"y = {BN}(l, g, b, m, var)")
    after = assert_folds(text, "Conv", var=0.0, tolerance=1e-4)
    assert all(np.isfinite(v).all() for v in weights(after.to_proto()).values())


def test_gamma_of_zero_empties_the_channel() -> None:
    text = layer("Conv", BN5, f"y = {BN}(l, g, b, m, var)")
    after = assert_folds(text, "Conv", g=np.float32([1, 0, 2, 0, 3]))
    assert not weights(after.to_proto())["w"][[1, 3]].any()


@pytest.mark.parametrize("constant", ["float[3,5,1,1] s", "float[5,5] s", "float[1,1,1,5] s", "float[5,5,1] s",
                                      "float[1,1,5,1,1] s"])  # fmt: skip
def test_constants_of_other_shapes_stay(constant: str) -> None:
    text = layer("Conv", constant, "m = Mul(l, s) y = Relu(m)")
    if constant.count(",") == 4:
        text = text.replace("(float[?,?,?,?] y)", "(float[?,?,?,?,?] y)")
    proto = model(text.replace("float[N,3", "float[3,3"))
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed) == (["Conv", "Mul", "Relu"], 0)


@pytest.mark.parametrize("zero", [0.0, np.float32([1, 2, 0, 3, 4]).reshape(5, 1, 1)])
def test_division_by_zero_stays(zero: float) -> None:
    with np.errstate(divide="raise"):
        after, outcome = folded(model(layer("Conv", "float[5,1,1] s", "y = Div(l, s)"), s=zero))
    assert (ops(after), outcome.changed) == (["Conv", "Div"], 0)


def test_a_constant_that_widens_the_input_stays() -> None:
    proto = model(
        "(float[N,1,7,7] x) => (float[N,5,?,?] y) <float[3,1,1] s, float[5,3,2,2] w> { n = Mul(x, s) y = Conv(n, w) }"
    )
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed) == (["Mul", "Conv"], 0)


def test_a_constant_that_adds_dimensions_stays() -> None:
    proto = model(
        "(float[7,3] x) => (float[1,7,5] y) <float[3,5] w, float[1,1,5] s> { l = MatMul(x, w) y = Mul(l, s) }"
    )
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed) == (["MatMul", "Mul"], 0)
    unknown = model("(float[7,3] x, int64[R] r) => (float[?,?,?] y) <float[3,5] w, float[1,1,5] s>"
                    " { h = Reshape(x, r) l = MatMul(h, w) y = Mul(l, s) }")  # fmt: skip
    after, outcome = folded(unknown)
    assert outcome.changed == 0


def test_two_computed_operands_stay() -> None:
    proto = model(layer("Conv", BN5, "r = Relu(l) y = Add(l, r)"))
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed, outcome.skips) == (["Conv", "Relu", "Add"], 0, ())


def test_the_raw_product_as_an_output_keeps_its_value() -> None:
    proto = model(
        f"(float[N,3] x) => (float[N,5] y, float[N,5] p) <float[3,5] w, float[5] c, {norm('', 3)}>"
        f" {{ n = {BN}(x, g, b, m, var) p = MatMul(n, w) y = Add(p, c) }}"
    )
    after, _ = folded(proto)
    assert_same_function(proto, after.to_proto(), TOLERANCE)


@pytest.mark.parametrize("dtype", ["int32", "double", "float16"])
def test_other_types_stay(dtype: str) -> None:
    proto = model(
        f"({dtype}[N,3] x) => ({dtype}[N,5] y) <{dtype}[3,5] w, {dtype}[5] s> {{ l = MatMul(x, w) y = Mul(l, s) }}"
    )
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed) == (["MatMul", "Mul"], 0)


def test_a_bias_shared_with_another_layer_changes_for_one_only() -> None:
    text = (
        f"(float[N,3,7,7] x) => (float[N,5,?,?] y) <float[5,3,3,3] w, float[5,3,3,3] v, float[5] c, {BN5}>"
        f" {{ l = Conv(x, w, c) n = {BN}(l, g, b, m, var) k = Conv(x, v, c) y = Add(n, k) }}"
    )
    after = assert_folds(text, "Conv Conv Add")
    assert set(weights(after.to_proto())) == {"w", "v", "c", "c_1"}


def test_a_layer_read_by_a_branch_is_declined() -> None:
    proto = model(
        f"""(float[N,3,7,7] x, bool t) => (float[N,5,?,?] y) <float[5,3,3,3] w, {BN5}> {{
            [layer] l = Conv(x, w) n = {BN}(l, g, b, m, var)
            y = If(t) <
                then_branch = a () => (float[N,5,?,?] p) {{ p = Relu(l) }},
                else_branch = o () => (float[N,5,?,?] q) {{ q = Relu(n) }}
            >
        }}"""
    )
    assert_declines(proto, "output of 'layer' is read elsewhere too")


def test_a_branch_reads_what_was_folded() -> None:
    proto = model(
        f"""(float[N,3,7,7] x, bool t) => (float[N,5,?,?] y) <float[5,3,3,3] w, {BN5}> {{
            l = Conv(x, w) n = {BN}(l, g, b, m, var)
            y = If(t) <
                then_branch = a () => (float[N,5,?,?] p) {{ p = Relu(n) }},
                else_branch = o () => (float[N,5,?,?] q) {{ q = Neg(n) }}
            >
        }}"""
    )
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed) == (["Conv", "If"], 1)
    for taken in (True, False):
        arrays = {**feeds(proto), "t": np.array(taken)}
        assert_same_function(proto, after.to_proto(), TOLERANCE, arrays)


MAPS = ["BatchNormalization(h{i}, g{i}, b{i}, m{i}, var{i})", "Mul(h{i}, s{i})", "Mul(s{i}, h{i})", "Add(h{i}, s{i})",
        "Sub(h{i}, s{i})", "Sub(s{i}, h{i})", "Relu(h{i})"]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(MAPS), max_size=5),
    st.lists(st.sampled_from(["Conv", "Conv with bias", "Conv with pads", "ConvTranspose"]), min_size=1, max_size=2),
    st.integers(0, 5),
    st.integers(0, 2**16),
)
def test_random_chains_keep_their_function(maps: list[str], layers: list[str], split: int, seed: int) -> None:
    """Maps, a layer, maps, perhaps a second layer: whatever is folded, the function stays."""
    steps: list[str] = [*maps[:split], layers[0], *maps[split:], *layers[1:]]
    nodes, parameters, channels = ["h0 = Identity(x)"], [], 3
    for i, step in enumerate(steps):
        if step in LAYERS:
            call = LAYERS[step][2].replace("x", f"h{i}").replace("w", f"w{i}").replace("c)", f"c{i})")
            shape = f"{channels},5" if step == "ConvTranspose" else f"5,{channels}"
            parameters += [f"float[{shape},3,3] w{i}"] + [f"float[5] c{i}"] * ("bias" in step)
            channels = 5
        else:
            call = step.format(i=i)
            parameters += [norm(str(i), channels)] * ("Batch" in step) + [f"float[{channels},1,1] s{i}"] * (
                "s{" in step
            )
        nodes.append(f"h{i + 1} = {call}")
    text = f"(float[N,3,9,9] x) => (float[N,5,?,?] h{len(steps)}) <{', '.join(parameters)}> {{ {' '.join(nodes)} }}"
    proto = model(text, seed=seed)
    after, outcome = folded(proto)
    assert len(ops(after)) == len(nodes) - outcome.changed
    assert_same_function(proto, after.to_proto(), TOLERANCE)
