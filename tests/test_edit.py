"""Edits keep the graph valid and the names of inputs and outputs."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import assert_same_function, model, ops, wrapped

from onnxq.graph import edit
from onnxq.graph.model import Model


def node(wrapper: Model, op: str) -> object:
    return next(n for n in wrapper.graph.nodes if n.op == op)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(float[3] x) => (float[3] y) { i = Identity(x) y = Mul(i, i) }", ["Mul"]),
        ("(float[3] x) => (float[3] y) { h = Relu(x) i = Identity(h) y = Add(i, h) }", ["Relu", "Add"]),
        ("(float[3] x) => (float[3] y) { h = Relu(x) y = Identity(h) }", ["Relu"]),
        ("(float[3] x) => (float[3] y, float[3] z) { h = Relu(x) y = Identity(h) z = Mul(h, h) }", ["Relu", "Mul"]),
        ("(float[6] x) => (float[3] y, float[3] z) { a, b = Split<num_outputs=2>(x) y = Identity(b) z = Neg(a) }",
         ["Split", "Neg"]),
        ("(float[3] x) => (float[3] y) <float[3] k> { i = Identity(k) y = Add(x, i) }", ["Add"]),
    ],
)  # fmt: skip
def test_bypass(text: str, expected: list[str]) -> None:
    proto = model(text, opset=18)
    wrapper = wrapped(proto)
    identity = node(wrapper, "Identity")
    assert edit.bypass(wrapper, identity)
    assert not identity.inputs
    assert not identity.outputs
    edit.remove(wrapper, [identity])
    assert ops(wrapper) == expected
    assert_same_function(proto, wrapper.to_proto(), 0)


@pytest.mark.parametrize(
    "text",
    [
        "(float[3] x) => (float[3] y) { y = Identity(x) }",
        "(float[3] x) => (float[3] y) <float[3] k> { y = Identity(k) }",
        "(float[3] x) => (float[3] h, float[3] y) { h = Relu(x) y = Identity(h) }",
    ],
)
def test_bypass_where_it_cannot_be(text: str) -> None:
    wrapper = wrapped(model(text))
    before = wrapper.to_proto()
    assert not edit.bypass(wrapper, node(wrapper, "Identity"))
    assert wrapper.to_proto() == before


@pytest.mark.parametrize("inner", ["a = Neg(i)", "a = Add(i, i)"])
@pytest.mark.parametrize("outer", ["i = Identity(h) z = Abs(i)", "i = Identity(h) z = Abs(h)"])
def test_bypass_reaches_into_branches(inner: str, outer: str) -> None:
    proto = model(
        f"""(float[3] x, bool c) => (float[3] y, float[3] z) {{ h = Relu(x) {outer}
            y = If(c) <then_branch = t () => (float[3] a) {{ {inner} }},
                       else_branch = e () => (float[3] b) {{ b = Exp(i) }}> }}"""
    )
    wrapper = wrapped(proto)
    identity = node(wrapper, "Identity")
    assert edit.bypass(wrapper, identity)
    edit.remove(wrapper, [identity])
    for taken in (True, False):
        arrays = {"x": np.float32([-1, 2, 3]), "c": np.array(taken)}
        assert_same_function(proto, wrapper.to_proto(), 0, arrays)


def test_take_over_moves_the_readers_of_the_old_output() -> None:
    proto = model("(float[3] x) => (float[3] y, float[3] z) { h = Relu(x) y = Relu(h) z = Neg(h) }")
    wrapper = wrapped(proto)
    first, second, third = wrapper.graph.nodes
    edit.take_over(second, first, first.outputs[0])
    edit.remove(wrapper, [second])
    assert first.outputs[0].name == "y"
    assert third.inputs[0] is first.outputs[0]
    assert_same_function(proto, wrapper.to_proto(), 0)


def test_replace_input_replaces_every_mention() -> None:
    wrapper = wrapped(model("(float[3] x) => (float[3] y) <float[3] k> { h = Relu(x) y = Max(h, k, h) }"))
    tensors = wrapper.graph.tensors()
    edit.replace_input(wrapper.graph.nodes[1], tensors["h"], tensors["x"])
    assert [t.name for t in wrapper.graph.nodes[1].inputs] == ["x", "k", "x"]
    assert not tensors["h"].outputs


def test_constants_get_free_names_and_contiguous_values() -> None:
    wrapper = wrapped(model("(float[3] x) => (float[3] y) <float[3] k> { y = Add(x, k) }"))
    first = edit.constant(wrapper, "k", np.ones((3, 5)).T)
    second = edit.constant(wrapper, "k", np.asarray(1.0))
    assert (first.name, second.name) == ("k_1", "k_2")
    assert first.values.flags.c_contiguous
    assert second.values.shape == ()


def test_remove_looks_at_identity_not_equality() -> None:
    wrapper = wrapped(model("(float[3] x) => (float[3] y) { a = Relu(x) b = Relu(x) y = Add(a, b) }"))
    first, second, _ = wrapper.graph.nodes
    for node_ in (first, second):
        node_.inputs.clear()
        node_.outputs.clear()
    assert first == second
    edit.remove(wrapper, [second])
    assert wrapper.graph.nodes[0] is first
    assert ops(wrapper) == ["Relu", "Add"]


def test_dangling_nodes_go_but_not_inputs() -> None:
    proto = model("(float[3] x, float[3] unused) => (float[3] y) { a = Relu(x) b = Abs(a) y = Neg(x) c = Exp(y) }")
    wrapper = wrapped(proto)
    assert edit.drop_dangling(wrapper) == 3
    assert ops(wrapper) == ["Neg"]
    assert_same_function(proto, wrapper.to_proto(), 0)
    assert edit.drop_dangling(wrapper) == 0


def test_what_branches_capture_is_not_dangling() -> None:
    proto = model(
        """(float[3] x, bool c) => (float[3] y) { h = Relu(x) u = Abs(x)
            y = If(c) <then_branch = t () => (float[3] a) { a = Neg(h) },
                       else_branch = e () => (float[3] b) { b = Exp(x) }> }"""
    )
    wrapper = wrapped(proto)
    assert edit.drop_dangling(wrapper) == 1
    assert ops(wrapper) == ["Relu", "If"]


def test_names_of_nodes() -> None:
    wrapper = wrapped(
        model(
            "(float[3] x) => (float[3] y) { [a] b = Relu(x) c = Abs(b) [a] d = Neg(c) [a_1] e = Exp(d)"
            " [Abs_c] y = Log(e) }"
        )
    )
    edit.name_nodes(wrapper.graph.nodes)
    names = [n.name for n in wrapper.graph.nodes]
    assert names == ["a", "Abs_c_1", "a_2", "a_1", "Abs_c"]
    edit.name_nodes(wrapper.graph.nodes)
    assert [n.name for n in wrapper.graph.nodes] == names


def test_removed_nodes_are_no_readers() -> None:
    after = wrapped(model("(float[N,3] x) => (float[N,3] y) <float[3] c> { d = Neg(c) y = Add(x, d) }"))
    gone = after.graph.nodes[0]
    constant = gone.inputs[0]
    edit.remove(after, [gone])
    assert after.consumers(constant) == []
