"""Decomposed operators are found whole, in every form that exporters write, and quantizers stay out of them."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import model, run, wrapped
from onnx import ModelProto
from quantized import context, planned, reasons

from onnxq.execution.partial import extract
from onnxq.graph.model import Quantizer
from onnxq.graph.patterns import Composite, feeds_softmax, find_composites
from onnxq.options import Options
from onnxq.passes.set_activation_ranges import SetActivationRanges

CONSTANTS = (
    "float two, float three, float half, float one, float eps, float root, float inverse, float cubic, float outer,"
    " float slope, float[8] g, float[8] b, float[8,8] w"
)
VALUES = {
    "two": 2.0, "three": 3.0, "half": 0.5, "one": 1.0, "eps": 1e-5, "root": 1.4142135, "inverse": 0.70710678,
    "cubic": 0.044715, "outer": 0.79788456, "slope": 1.702,
}  # fmt: skip

DEVIATION = "p = Pow(d, two)  v = ReduceMean<axes=[-1]>(p)  e = Add(v, eps)  s = Sqrt(e)"
SQUARE = "p = Mul(x, x)  v = ReduceMean<axes=[-1]>(p)  e = Add(eps, v)  s = Sqrt(e)"
TANH = "i = Mul(u, outer)  t = Tanh(i)  o = Add(t, one)"

FORMS = {
    "LayerNormalization": {
        "torch": f"m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  {DEVIATION}  n = Div(d, s)  h = Mul(n, g)"
        "  y = Add(h, b)",
        "difference twice": "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  c = Sub(x, m)  p = Mul(c, c)"
        "  v = ReduceMean<axes=[-1]>(p)  e = Add(v, eps)  s = Sqrt(e)  n = Div(d, s)  h = Mul(g, n)  y = Add(b, h)",
        "tensorflow": f"m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  {DEVIATION}  r = Reciprocal(s)  f = Mul(r, g)"
        "  h = Mul(x, f)  k = Mul(m, f)  l = Sub(b, k)  y = Add(h, l)",
        "gamma and beta folded away": f"m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  {DEVIATION}  y = Div(d, s)",
    },
    "RMSNormalization": {
        "T5": f"{SQUARE}  r = Div(one, s)  n = Mul(x, r)  y = Mul(g, n)",
        "Llama": f"{SQUARE}  r = Reciprocal(s)  n = Mul(x, r)  y = Mul(n, g)",
        "without gain": f"{SQUARE}  y = Div(x, s)",
    },
    "Gelu": {
        "erf": "i = Div(x, root)  f = Erf(i)  o = Add(f, one)  q = Mul(x, o)  y = Mul(q, half)",
        "erf, half first": "h = Mul(x, half)  i = Mul(x, inverse)  f = Erf(i)  o = Add(one, f)  y = Mul(h, o)",
        "erf, half on the gate": "i = Div(x, root)  f = Erf(i)  o = Add(f, one)  q = Mul(o, half)  y = Mul(x, q)",
        "half folded away": "i = Div(x, root)  f = Erf(i)  o = Add(f, one)  y = Mul(x, o)",
        "tanh": f"c = Pow(x, three)  k = Mul(cubic, c)  u = Add(x, k)  {TANH}  h = Mul(half, x)  y = Mul(h, o)",
        "tanh, products": f"q = Mul(x, x)  c = Mul(x, q)  k = Mul(cubic, c)  u = Add(x, k)  {TANH}"
        "  h = Mul(half, o)  y = Mul(x, h)",
        "tanh, factored": "q = Mul(x, x)  k = Mul(q, cubic)  f = Add(k, one)  l = Mul(x, outer)  i = Mul(l, f)"
        "  t = Tanh(i)  o = Add(t, one)  h = Mul(half, x)  y = Mul(h, o)",
        "sigmoid": "i = Mul(x, slope)  f = Sigmoid(i)  y = Mul(x, f)",
    },
    "Softmax": {
        "stable": "m = ReduceMax<axes=[-1]>(x)  d = Sub(x, m)  e = Exp(d)  s = ReduceSum(e, axes)  y = Div(e, s)",
        "plain": "e = Exp(x)  s = ReduceSum(e, axes)  y = Div(e, s)",
    },
}  # fmt: skip
CASES = [(operator, form) for operator, forms in FORMS.items() for form in forms]


def written(nodes: str, more: str = "", outputs: str = "float[N,4,8] z", **values: float) -> ModelProto:
    """A linear layer, `nodes` from x to y, and a linear layer."""
    constants = f"{CONSTANTS}, int64[1] axes"
    text = f"(float[N,4,8] a) => ({outputs}) <{constants}> {{ x = MatMul(a, w)  {nodes}  {more}  z = MatMul(y, w) }}"
    return model(text, opset=13, **{**VALUES, "axes": -1, **values})


def found(proto: ModelProto) -> list[Composite]:
    return find_composites(wrapped(proto))


@pytest.mark.parametrize(("operator", "form"), CASES)
def test_every_form_is_found_whole(operator: str, form: str) -> None:
    nodes = FORMS[operator][form]
    (whole,) = found(written(nodes))
    assert whole.operator == operator
    assert (whole.input.name, whole.output.name) == ("x", "y")
    assert len(whole.nodes) == nodes.count("=") - nodes.count("axes=")


@pytest.mark.parametrize(("operator", "form"), CASES)
def test_no_quantizer_stands_inside(operator: str, form: str) -> None:
    proto = written(FORMS[operator][form])
    made, outcome = planned(proto)
    inner = {node.outputs[0].name for node in found(proto)[0].nodes[1:]}
    assert {"a", "y"} <= set(made.quantizers)
    assert not inner & set(made.quantizers)
    assert any(reason.startswith(f"part of {operator}") for reason in reasons(outcome).values())


def test_constants_may_come_from_nodes() -> None:
    nodes = "two_ = Constant<value = float {2.0}>()  " + FORMS["LayerNormalization"]["torch"].replace("two)", "two_)")
    assert [whole.operator for whole in found(written(nodes))] == ["LayerNormalization"]


def test_gamma_and_beta_are_distinguished() -> None:
    (whole,) = found(written(FORMS["LayerNormalization"]["torch"]))
    assert {name: whole.bound[name].name for name in ("gamma", "beta", "epsilon")} == {
        "gamma": "g", "beta": "b", "epsilon": "eps"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "values"),
    [
        ("i = Div(x, root)  f = Erf(i)  o = Add(f, one)  y = Mul(x, o)", {"root": 1.5}),
        ("i = Div(x, root)  f = Erf(i)  o = Add(f, one)  y = Mul(x, o)", {"one": 2.0}),
        ("i = Mul(x, slope)  f = Sigmoid(i)  y = Mul(x, f)", {"slope": 1.0}),
        ("p = Mul(x, a)  v = ReduceMean<axes=[-1]>(p)  e = Add(v, eps)  s = Sqrt(e)  y = Div(x, s)", {}),
    ],
)  # fmt: skip
def test_what_computes_something_else_is_left_alone(nodes: str, values: dict[str, float]) -> None:
    assert found(written(nodes, **values)) == []


def test_what_others_read_inside_is_not_one_operator() -> None:
    nodes = FORMS["Gelu"]["erf"]
    assert found(written(nodes, outputs="float[N,4,8] z, float[N,4,8] f")) == []
    assert found(written(nodes, more="t = Tanh(o)  u = Add(y, t)")) == []


def test_neighbours_do_not_overlap() -> None:
    nodes = FORMS["LayerNormalization"]["torch"].replace("y =", "x2 =") + "  " + FORMS["Gelu"]["erf"]
    nodes = nodes.replace("(x, root)", "(x2, root)").replace("Mul(x, o)", "Mul(x2, o)")
    assert [whole.operator for whole in found(written(nodes))] == ["LayerNormalization", "Gelu"]


SCORES = {
    "directly": ("c = Add(s, m)  y = Softmax(c)", True),
    "reshaped first": ("c = Add(s, m)  r = Reshape(c, to)  y = Softmax(r)", True),
    "masked, then scaled": ("c = Add(s, m)  r = Div(c, eight)  y = Softmax(r)", True),
    "masked twice": ("k = Add(s, m)  c = Add(k, s)  y = Softmax(c)", True),
    "read by others": ("c = Add(s, m)  r = Softmax(c)  y = Add(c, r)", False),
    "no Softmax": ("c = Add(s, m)  y = Tanh(c)", False),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_of_attention_are_known_by_the_softmax_behind(case: str) -> None:
    nodes, expected = SCORES[case]
    text = f"(float[1,4,4] s, float[1,4,4] m) => (float[1,4,4] y) <float eight, int64[3] to> {{ {nodes} }}"
    graph = wrapped(model(text, to=np.array([1, 4, 4]), eight=8.0)).graph
    (mask,) = [node for node in graph.nodes if node.op == "Add" and "m" in [t.name for t in node.inputs]]
    assert feeds_softmax(mask.outputs[0]) is expected


def test_the_output_of_a_decomposed_softmax_is_known_to_be_a_share() -> None:
    made, _ = planned(written(FORMS["Softmax"]["stable"]))
    assert made.quantizers["y"].fixed == (0.0, 1.0)


def test_softmax_that_runs_in_float_has_its_range_all_the_same() -> None:
    made, _ = planned(written("y = Softmax<axis=-1>(x)"), exclude=("Softmax",))
    assert made.quantizers["y"].fixed == (0.0, 1.0)


@pytest.mark.parametrize("mask", [-10000.0, -3.4e38])
@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_masks_do_not_widen_the_range_of_scores(mask: float, method: str) -> None:
    text = """(float[1,4,8] a, float[1,4,4] m) => (float[1,4,4] y) <float[8,4] w, float[4,4] v> {
        s = MatMul(a, w)  c = Add(s, m)  p = Softmax<axis=-1>(c)  y = MatMul(p, v) }"""
    proto = model(text)
    random = np.random.default_rng(0)
    feeds = [
        {
            "a": random.normal(0, 1, (1, 4, 8)).astype(np.float32),
            "m": np.where(random.random((1, 4, 4)) < 0.25, mask, 0).astype(np.float32),
        }
        for _ in range(8)
    ]
    made, _ = planned(proto)
    made.quantizers = {"c": Quantizer("c", Options().activation)}  # as a target does that quantizes all of them
    SetActivationRanges(method).apply(made, context(proto, feeds))
    params = made.quantizers["c"].params
    real = np.concatenate([run(extract(proto, ["s"]), feed)["s"][feed["m"] == 0] for feed in feeds])
    lo, hi = (float(params.dequantize(np.asarray(q, np.int32))) for q in (0, 255))
    assert hi >= real.max() - float(params.scale)
    assert lo == pytest.approx(real.min() - 8, abs=0.2)
