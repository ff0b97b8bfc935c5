"""What is compared of a model whose outputs lie behind operators that select, and which outputs are class scores."""

from __future__ import annotations

import re

import numpy as np
import pytest
from graphs import model, run
from onnx import ModelProto
from quantized import quantized, samples

from onnxq.execution.observe import observed
from onnxq.graph.class_scores import class_score_outputs
from onnxq.graph.comparable import Comparable, comparables, selected_tensors

POSE = """(float[N,3,6,6] x) => (float[N,4] y, float[N,4] s) <float[4,3,3,3] w, int64[3] rows, float six>
    { h = Conv(x, w)  flat = Reshape(h, rows)  i = ArgMax<axis=2,keepdims=0>(flat)  f = Cast<to=1>(i)  y = Div(f, six)
      s = ReduceMax<axes=[2],keepdims=0>(flat) }"""

TOPK = """(float[N,5] x) => (float[N,2] v, int64[N,2] i) <float[5,9] w, int64[1] k>
    { a = Gemm(x, w)  p = Softmax(a)  v, i = TopK(p, k) }"""

NONZERO = """(float[N,5] x) => (float[?] y) <float[5,9] w>
    { a = Gemm(x, w)  r = Relu(a)  i = NonZero(r)  t = Transpose(i)  y = GatherND(r, t) }"""

CODES = """(float[N,5] x) => (int64[N,9] y) <float[5,9] w, float s>
    { a = Gemm(x, w)  b = Mul(a, s)  c = Round(b)  y = Cast<to=7>(c) }"""

WHERE = """(float[N,5] x) => (float[N,9] y) <float[5,9] w, float bound, float zero>
    { a = Gemm(x, w)  p = Sigmoid(a)  m = Greater(p, bound)  y = Where(m, p, zero) }"""

WHILE = """(float[N,5] x) => (float[N,5] y) <float[5,5] w, int64 most, bool go, float half>
    { a = Gemm(x, w)  y = Loop(most, go, a) <body = body (int64 t, bool on, float[N,5] s) => (bool more, float[N,5] n)
      { n = Mul(s, half)  l = ReduceMax<keepdims=0>(n)  more = Greater(l, half) }> }"""

BRANCH = """(float[N,5] x) => (float[N,5] y) <float[5,5] w, float half>
    { a = Gemm(x, w)  l = ReduceMax<keepdims=0>(a)  c = Greater(l, half)
      y = If(c) <then_branch = t () => (float[N,5] u) { u = Identity(a) }, else_branch = e () => (float[N,5] v)
      { v = Mul(a, half) }> }"""

COUNTED = """(float[N,5] x) => (float[N,5] y) <float[5,5] w, int64 most>
    { a = Gemm(x, w)  y = Loop(most, , a) <body = body (int64 t, bool on, float[N,5] s) => (bool more, float[N,5] n)
      { more = Identity(on)  n = Add(s, a) }> }"""

CASCADE = """(float[N,5] x) => (float[?,3] y) <float[5,9] w, float[5,3] v, int64[1] k>
    { a = Gemm(x, w)  m = ReduceMax<axes=[1],keepdims=0>(a)  s, i = TopK(m, k)  g = Gather(x, i)  y = Gemm(g, v) }"""

MASKED = """(float[N,5] x, int64[N,5] mask) => (float[N,5] y) <float[5,5] w, float one, float low>
    { a = Gemm(x, w)  f = Cast<to=1>(mask)  n = Sub(one, f)  b = Cast<to=9>(n)  z = Where(b, low, a)
      y = Softmax(z) }"""

LEAKY = """(float[N,5] x) => (float[N,3] y) <float[5,9] w, float[9,3] v, float zero, float slope>
    { a = Gemm(x, w)  m = Greater(a, zero)  b = Mul(a, slope)  r = Where(m, a, b)  y = Gemm(r, v) }"""

SEQUENCE = """(float[N,5] x) => (seq(float[N,?]) y) <float[5,9] w, int64[2] parts>
    { a = Gemm(x, w)  y = SplitToSequence<axis=1>(a, parts) }"""

VALUES = {
    "rows": [0, 4, 16],
    "k": 2,
    "most": 3,
    "go": True,
    "parts": [4, 5],
    "six": 6,
    "bound": 0.5,
    "zero": 0,
    "half": 0.5,
}


def made(text: str) -> ModelProto:
    declared = text.partition("{")[0]
    return model(text, check=False, **{n: v for n, v in VALUES.items() if re.search(rf" {n}[,>]", declared)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (POSE, [("s", "s", None, ()), ("h", "y", "ArgMax", ())]),
        (TOPK, [("p", "v", "TopK", ("i",))]),
        (NONZERO, [("r", "y", "NonZero", ())]),
        (CODES, [("b", "y", "Round", ())]),
        (WHERE, [("p", "y", "Greater", ())]),
        (WHILE, [("a", "y", "Loop", ())]),
        (BRANCH, [("a", "y", "Greater", ()), ("l", "y", "Greater", ())]),
        (COUNTED, [("y", "y", None, ())]),
        (CASCADE, [("m", "y", "TopK", ())]),
        (MASKED, [("y", "y", None, ())]),
        (LEAKY, [("y", "y", None, ())]),
        (SEQUENCE, [("a", "y", "SplitToSequence", ())]),
        ("(float[N,5] x) => (int64[2,?] y) { y = NonZero(x) }", []),
        ("(float[N,5] x) => (float[N,5] y, int64[2] s) { y = Relu(x)  s = Shape(x) }", [("y", "y", None, ())]),
    ],
)
def test_what_is_compared(text: str, expected: list[tuple[str, str, str | None, tuple[str, ...]]]) -> None:
    assert [(c.tensor, c.output, c.selection, c.more) for c in comparables(made(text))] == expected


def test_an_output_that_is_compared_anyway_stands_for_what_is_selected_from_it() -> None:
    proto = model(
        "(float[N,5] x) => (float[N,9] s, int64[N,1] i) <float[5,9] w> { s = Gemm(x, w)  i = ArgMax<axis=1>(s) }"
    )
    assert comparables(proto) == (Comparable("s", "s", more=("i",)),)
    assert observed(proto, comparables(proto)) is proto


def test_behind_a_layer_a_threshold_that_makes_indices_still_selects() -> None:
    text = """(float[N,5] x) => (float[N,3] y) <float[5,1] w, float[7,4] table, float[4,3] v, int64[1] one>
        {{ a = MatMul(x, w)  i = Cast<to=7>(a)  {nodes} }}"""
    indexed = text.format(nodes="j = Squeeze(i, one)  g = Gather(table, j)  y = Gemm(g, v)")
    counted = text.format(
        nodes="j = Squeeze(i, one)  f = Cast<to=1>(i)  e = Concat<axis=1>(f, f, f, a)  y = Gemm(e, v)"
    )
    assert [c.tensor for c in comparables(model(indexed, check=False, one=1))] == ["a"]
    assert [c.tensor for c in comparables(model(counted, check=False, one=1))] == ["y"]


def test_names_of_what_is_selected() -> None:
    assert selected_tensors(made(POSE)) == {"i", "f", "y"}
    assert selected_tensors(made(LEAKY)) == {"m", "r"}
    assert not selected_tensors(made(MASKED))


@pytest.mark.parametrize("text", [POSE, TOPK, NONZERO, WHERE, CODES, BRANCH])
def test_the_quantized_model_shows_the_tensor_as_its_readers_see_it(text: str) -> None:
    proto = made(text)
    found, feeds = comparables(proto), samples(proto, 8)
    result = quantized(proto, feeds)
    shown, reference = (observed(each, found) for each in (result, proto))
    labels = [c.label for c in found]
    assert (
        [v.name for v in shown.graph.output]
        == [v.name for v in reference.graph.output]
        == sorted(labels, key=lambda label: "in front" in label)
    )
    for label in labels:
        x, y = run(reference, feeds[0])[label], run(shown, feeds[0])[label]
        assert x.shape == y.shape
        assert 0 < np.abs(x - y).max() < 0.1 * np.abs(x).max()
    inner = next(c for c in found if c.selection is not None)
    scales = {t.name: t for t in result.graph.initializer if t.name == f"{inner.tensor}_scale"}
    if scales:  # what is quantized takes at most 256 values
        assert len(np.unique(np.concatenate([run(shown, f)[inner.label].ravel() for f in feeds]))) <= 256
    assert all(node.op_type != "ArgMax" and node.op_type != "TopK" for node in shown.graph.node)
    whole = observed(result, found, keep_outputs=True)
    assert [v.name for v in whole.graph.output] == [*(v.name for v in proto.graph.output), *(
        c.label for c in found if c.selection is not None
    )]  # fmt: skip


SCORES = {
    "(float[N,5] x) => (float[N,9] y) <float[5,9] w> { y = Gemm(x, w) }": {"y"},
    "(float[N,5] x) => (float[N,9] y) <float[5,9] w> { a = Gemm(x, w)  y = Sigmoid(a) }": {"y"},
    "(float[N,5] x) => (float[N,9] y) <float[5,9] w, float[9] b> { a = MatMul(x, w)  y = Add(a, b) }": {"y"},
    "(float[N,3,6,6] x) => (float[N,9] y) <float[9,3,1,1] w> { a = Conv(x, w)  b = GlobalAveragePool(a)  "
    "y = Flatten(b) }": {"y"},
    "(float[N,3,6,6] x) => (float[N,9] y) <float[9,3,1,1] w> { a = Conv(x, w)  r = Relu(a)  b = GlobalAveragePool(r)  "
    "f = Flatten(b)  y = Softmax(f) }": {"y"},
    "(float[N,3,6,6] x) => (float[N,9] y) <float[9,3,1,1] w> { a = Conv(x, w)  r = Relu(a)  b = GlobalAveragePool(r)  "
    "y = Flatten(b) }": set(),
    "(float[N,5] x) => (float[N,9] y) <float[5,9] w> { a = Gemm(x, w)  y = LpNormalization(a) }": set(),
    "(float[N,5] x) => (float[N,9] y) <float[5,9] w> { a = Gemm(x, w)  y = Tanh(a) }": set(),
    "(float[N,5] x) => (float[N,9] embedding) <float[5,9] w> { embedding = Gemm(x, w) }": set(),
    "(float[N,5] x) => (float[N,4] y, float[N,9] z) <float[5,4] w, float[5,9] v> { y = Gemm(x, w)  z = Gemm(x, v) }":
    set(),
    "(float[N,5] x) => (float[N,4] y, float[N,9] z) <float[5,4] w, float[5,9] v> { y = Gemm(x, w)  a = Gemm(x, v)  "
    "z = Softmax(a) }": {"z"},
    "(float[N,5] x) => (float[N,9] y, int64[N,1] i) <float[5,9] w> { y = Gemm(x, w)  i = ArgMax<axis=1>(y) }": {"y"},
    "(float[N,5] x, float[5,N] z) => (float[N,N] y) { y = MatMul(x, z) }": set(),
    TOPK: set(),
}  # fmt: skip


@pytest.mark.parametrize("text", SCORES)
def test_which_outputs_are_class_scores(text: str) -> None:
    assert class_score_outputs(made(text)) == SCORES[text]
