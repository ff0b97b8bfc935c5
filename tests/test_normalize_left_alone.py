"""What normalization leaves as it is: control flow, other domains, other types, chance, large constants."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import assert_same_function, feeds, model, ops, run, weights
from normalizing import assert_normalizes, normalized

from onnxq.passes import normalize

IF = """(float[N,3] x, bool c) => (float[N,3] y) <float[3] k, float[3] m> {
    s = Mul(k, m) i = Identity(x) h = Add(i, s) u = Constant<value_float=2.0>()
    y = If(c) <
        then_branch = t () => (float[N,3] a) { p = Identity(h) q = Add(p, s) a = Mul(q, u) },
        else_branch = e () => (float[N,3] b) { b = Mul(i, s) }
    >
}"""


@pytest.mark.parametrize("taken", [True, False])
def test_control_flow_is_left_alone_and_what_it_captures_stays(taken: bool) -> None:
    proto = model(IF)
    after, _ = normalized(proto)
    assert ops(after) == ["Add", "If"]
    then = after.graph.nodes[1].attrs["then_branch"]
    assert [n.op for n in then.nodes] == ["Identity", "Add", "Mul"]
    arrays = {"x": np.float32([[1, 2, 3]]), "c": np.array(taken)}
    assert_same_function(proto, after.to_proto(), 0, arrays)
    assert_same_function(proto, after.clone().to_proto(), 0, arrays)


def test_a_branch_on_a_constant_is_taken() -> None:
    assert_normalizes(
        """(float[N,3] x) => (float[N,3] y) <bool c = {1}, float[3] k> {
            s = If(c) <then_branch = t () => (float[3] a) { a = Abs(k) }, else_branch = e () => (float[3] b)
            { b = Neg(k) }>
            y = Add(x, s)
        }""",
        ["Add"],
    )


def test_a_branch_may_read_the_outer_graph_or_pass_it_on() -> None:
    assert_normalizes(
        """(float[N,3] x) => (float[N,3] y, float[N,3] z) <bool no = {0}, float[3] k> {
            a = Relu(x)
            s = If(no) <then_branch = t () => (float[N,3] a2) { a2 = Abs(a) }, else_branch = e () => (float[N,3] b2)
            { m = Constant<value = float[3] {1, 2, 3}>() i = Mul(a, m) b2 = Add(i, k) }>
            u = If(no) <then_branch = f () => (float[N,3] a3) { a3 = Abs(s) }, else_branch = g () => (float[N,3] b3)
            { i = Neg(s) b3 = Exp(i) }>
            y = Add(u, s)
            z = If(no) <then_branch = p () => (float[N,3] a4) { a4 = Abs(s) }, else_branch = q () => (float[N,3] b4)
            { b4 = Identity(a) }>
        }""",
        ["Relu", "Mul", "Add", "Neg", "Exp", "Add"],
    )


def test_a_branch_that_depends_on_the_input_stays() -> None:
    after = assert_normalizes(
        """(float[N,3] x, bool c) => (float[N,3] y) {
            y = If(c) <then_branch = t () => (float[N,3] a) { a = Abs(x) }, else_branch = e () => (float[N,3] b)
            { b = Neg(x) }>
        }""",
        ["If"],
    )
    assert after.graph.nodes[0].op == "If"


def test_a_loop_is_left_alone() -> None:
    proto = model("""(float[3] x, int64 n) => (float[3] y) <float[3] k> {
        go = Constant<value = bool {1}>() i = Identity(k) h = Add(x, i)
        y = Loop(n, go, h) <body = b (int64 t, bool ci, float[3] s) => (bool co, float[3] so) {
            co = Identity(ci) so = Add(s, i)
        }>
    }""")
    after, _ = normalized(proto)
    assert ops(after) == ["Add", "Loop"]
    assert_same_function(proto, after.to_proto(), 0, {"x": np.float32([1, 2, 3]), "n": np.array(3)})


def test_other_domains_are_left_alone_and_unused_ones_go() -> None:
    proto = model(
        "(float[N,3] x) => (float[N,3] y) <float[3] k>"
        " { g = com.microsoft.Gelu(k) h = Add(x, g) i = Identity(h) y = com.microsoft.QuickGelu(i) }",
        domains="com.microsoft unused.domain", check=False,
    )  # fmt: skip
    after, _ = normalized(proto)
    assert ops(after) == ["Gelu", "Add", "QuickGelu"]
    exported = after.to_proto()
    assert {o.domain for o in exported.opset_import} == {"", "com.microsoft"}
    arrays = feeds(proto)
    np.testing.assert_array_equal(run(exported, arrays)["y"], run(proto, arrays)["y"])


def test_types_behind_other_domains_are_observed() -> None:
    proto = model(
        "(float[N,3] x) => (float[N,3] y) { g = com.microsoft.Gelu(x) h = Abs(g) y = Neg(h) }",
        domains="com.microsoft", check=False,
    )  # fmt: skip
    after, outcome = normalized(proto)
    assert not outcome.skips
    assert after.graph.tensors()["g"].dtype == np.float32


def test_types_that_nothing_can_tell_are_reported() -> None:
    proto = model("(float[3] x) => (float[3] y) { g = no.such.Op(x) y = Relu(g) }", domains="no.such", check=False)
    after, outcome = normalized(proto)
    assert [s.where for s in outcome.skips] == ["g"]
    assert "type unknown" in outcome.skips[0].reason
    assert ops(after) == ["Op", "Relu"]


def test_functions_of_the_model_keep_their_domains() -> None:
    proto = model(
        "(float[N,3] x) => (float[N,3] y) { h = local.outer(x) y = Identity(h) }",
        domains="local other unused",
        functions='<domain: "local", opset_import: ["": 17, "other": 1]> outer (q) => (r) { r = other.inner(q) }'
                  '<domain: "other", opset_import: ["": 17]> inner (q) => (r) { r = Relu(q) }',
    )  # fmt: skip
    after, _ = normalized(proto)
    assert ops(after) == ["outer"]
    exported = after.to_proto()
    assert {o.domain for o in exported.opset_import} == {"", "local", "other"}
    assert_same_function(proto, exported, 0)


def test_float16_models_pass() -> None:
    after = assert_normalizes(
        "(float16[N,3] x) => (float16[N,5] y) <float16[3,5] w, float16[3,5] v>"
        " { s = Add(w, v) i = Identity(s) y = MatMul(x, i) }",
        ["MatMul"],
        2e-3,
    )
    assert weights(after.to_proto())["s"].dtype == np.float16


def test_random_values_are_not_folded() -> None:
    proto = model(
        "(float[3] x) => (float[3] y) <float[3] k, int64[1] n={3}>"
        " { r = RandomNormalLike(k) u = RandomUniform<shape=[3]>() b = Bernoulli(k) c = ConstantOfShape(n)"
        " m = RandomUniformLike(c) d = Add(r, u) e = Add(b, m) f = Add(d, e) y = Add(x, f) }"
    )
    after, _ = normalized(proto)
    assert [op for op in ops(after) if op != "Add"] == ["RandomNormalLike", "RandomUniform", "Bernoulli",
                                                        "RandomUniformLike"]  # fmt: skip


def test_dropout_on_a_constant_that_trains_is_not_folded() -> None:
    proto = model(
        "(float[3] x) => (float[3] y) <float[3] k, float r={0.5}, bool t={1}> { d = Dropout(k, r, t) y = Add(x, d) }"
    )
    after, _ = normalized(proto)
    assert ops(after) == ["Dropout", "Add"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{ c = ConstantOfShape(n) y = Add(x, c) }", ["ConstantOfShape", "Add"]),
        ("{ c = Expand(k, n) y = Add(x, c) }", ["Expand", "Add"]),
        ("{ c = ConstantOfShape(n) e = Exp(c) y = Add(x, e) }", ["ConstantOfShape", "Exp", "Add"]),
        ("{ c = Expand(k, n) e = ReduceMax<keepdims=0>(c) y = Add(x, e) }", ["Expand", "ReduceMax", "Add"]),
    ],
)
def test_large_constants_are_not_unfolded(text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize, "LARGEST_FOLDED", 10)
    proto = model(f"(float[4,5] x) => (float[4,5] y) <int64[2] n={{4,5}}, float k={{2}}> {text}")
    after, _ = normalized(proto)
    assert ops(after) == expected
    assert_same_function(proto, after.to_proto(), 0)


def test_something_huge_is_not_even_computed() -> None:
    proto = model(
        "(float[3] x) => (float[3] y) <int64[2] n={300000,10000000}, float[3] k>"
        " { c = ConstantOfShape(n) r = Shape(c) f = Cast<to=1>(r) q = ReduceMax<keepdims=0>(f) h = Exp(k)"
        " a = Add(x, h) y = Add(a, q) }"
    )
    after, _ = normalized(proto)
    assert ops(after) == ["Add", "Add"], "its shape is known all the same"
    assert weights(after.to_proto())["q"] == 1e7


def test_large_weights_are_folded_where_that_does_not_make_them_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize, "LARGEST_FOLDED", 10)
    assert_normalizes(
        "(float[N,5] x) => (float[N,7] y) <float[7,5] w> { t = Transpose(w) y = MatMul(x, t) }", ["MatMul"], 1e-6
    )


def test_a_node_without_kernel_does_not_stop_the_others() -> None:
    proto = model(
        "(float[3] x) => (float[3] y) <float[3] k, float16[1,1,4,4] big>"
        " { b = Cast<to=16>(k) c = Mul(b, b) d = Cast<to=1>(c) h = Exp(k) a = Add(x, h) y = Add(a, d) }"
    )
    after, _ = normalized(proto)
    assert "Exp" not in ops(after)


SCATTERED = """(float[2,300] x) => (float[2,200] y) <int64[2] shape = {300, 200}, int64[40,2] at, float[40] values>
    { zeros = ConstantOfShape(shape) m = ScatterND(zeros, at, values) y = MatMul(x, m) }"""


def test_a_matrix_that_is_scattered_into_zeros_is_not_folded_into_the_file():
    proto = model(SCATTERED, at=np.stack([np.arange(40), np.arange(40)], 1), check=False)
    assert ops(normalized(proto)[0]) == ["ConstantOfShape", "ScatterND", "MatMul"]
    small = SCATTERED.replace("300", "60").replace("200", "50")
    assert ops(normalized(model(small, at=np.stack([np.arange(40), np.arange(40)], 1), check=False))[0]) == ["MatMul"]


def test_a_large_intermediate_result_is_folded_where_what_is_read_is_small():
    text = """(float[2,3] x) => (float[2,3] y) <int64[2] shape = {300, 200}, int64[2] axes = {0, 1}>
        { ones = ConstantOfShape<value = float[1] {1}>(shape) s = ReduceSum<keepdims=0>(ones, axes) y = Mul(x, s) }"""
    assert ops(normalized(model(text, check=False))[0]) == ["Mul"]


def test_integers_cast_to_weights_are_folded():
    text = """(float[2,300] x) => (float[2,200] y) <uint8[300,200] q>
        { w = Cast<to = 1>(q) y = MatMul(x, w) }"""
    assert ops(normalized(model(text, q=np.ones((300, 200), np.uint8), check=False))[0]) == ["MatMul"]
