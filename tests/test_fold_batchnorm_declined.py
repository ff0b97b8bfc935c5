"""Where folding would change the function, the model stays as it is and the reason is reported."""

from __future__ import annotations

import numpy as np
import pytest
from folding import BN, BN5, TOLERANCE, assert_declines, assert_folds, before, folded, layer, norm
from graphs import assert_same_function, feeds, model, ops, weights

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
                          "different taps"),
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


WHOLE = {
    "gelu": "i = Div(x, root) f = Erf(i) o = Add(f, one) q = Mul(x, o) y = Mul(q, half)",
    "tanh": "r = Pow(x, three) k = Mul(cubic, r) u = Add(x, k) v = Mul(u, outer) t = Tanh(v) o = Add(t, one)"
    " q = Mul(x, o) y = Mul(q, half)",
    "LayerNormalization": "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<axes=[-1]>(p)"
    " e = Add(v, eps) s = Sqrt(e) n = Div(d, s) h = Mul(n, g) y = Add(h, c)",
    "RMSNormalization": "p = Pow(x, two) v = ReduceMean<axes=[-1]>(p) e = Add(v, eps) s = Sqrt(e) n = Div(x, s)"
    " y = Mul(n, g)",
}  # fmt: skip
CONSTANTS = {
    "two": 2.0, "three": 3.0, "half": 0.5, "one": 1.0, "eps": 1e-5, "root": 1.4142135, "cubic": 0.044715,
    "outer": 0.797885,
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_parts_of_a_decomposed_operator_stay(name: str) -> None:
    """The half of Gelu, gamma and beta: folded into the weight behind, ONNX Runtime would fuse nothing any more."""
    used = {key: value for key, value in CONSTANTS.items() if key in WHOLE[name]}
    declared = "".join(f", float {key}" for key in used)
    text = f"(float[N,3,8] a) => (float[N,3,5] z) <float[8,8] w, float[8,5] u2, float[8] g, float[8] c{declared}>"
    proto = model(f"{text} {{ x = MatMul(a, w) {WHOLE[name]} z = MatMul(y, u2) }}", opset=13, **used)
    after, outcome = folded(proto)
    assert outcome.changed == 0
    assert ops(after) == ops(proto)


def test_a_factor_that_is_no_part_is_folded() -> None:
    text = "(float[N,8] x) => (float[N,5] z) <float[8,5] w, float half, float[N,8] t>"
    proto = model(f"{text} {{ t = Tanh(x) y = Mul(t, half) z = MatMul(y, w) }}", half=0.5)
    assert ops(folded(proto)[0]) == ["Tanh", "MatMul"]
