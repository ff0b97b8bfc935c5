"""Operators that exporters decomposed are fused again, in every form, and nothing else is touched."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from graphs import assert_same_function, model, wrapped
from onnx import ModelProto

from onnxq.graph.model import Model
from onnxq.passes.base import Context, Outcome
from onnxq.passes.fuse_decomposed import FuseDecomposedOperators
from onnxq.passes.normalize import Normalize
from onnxq.targets import ORT, QNN, Target

CONSTANTS = "float three, float zero, float six, float sixth, float steep, float[3] s, float[5,3,3,3] w, int64[8] p"
VALUES = {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6, "steep": 0.2}

RAMP = "b = Add(x, three)  c = Clip(b, zero, six)"
HARD_SWISH = {
    "paddle": f"{RAMP}  m = Mul(x, c)  y = Div(m, six)",
    "product of three": f"{RAMP}  m = Mul(c, x)  y = Mul(sixth, m)",
    "gate first": f"{RAMP}  g = Div(c, six)  y = Mul(x, g)",
    "gate by product": f"{RAMP}  g = Mul(c, sixth)  y = Mul(g, x)",
    "tensorflow": "b = Add(x, three)  r = Relu(b)  c = Min(r, six)  g = Mul(c, sixth)  y = Mul(x, g)",
    "separate bounds": "b = Add(three, x)  r = Max(b, zero)  c = Min(r, six)  m = Mul(x, c)  y = Div(m, six)",
    "hard sigmoid": "g = HardSigmoid<alpha=0.1666667>(x)  y = Mul(x, g)",
}
HARD_SIGMOID = {"quotient": f"{RAMP}  y = Div(c, six)", "product": f"{RAMP}  y = Mul(c, sixth)"}
POOLING = {
    "axes stay": ("y = ReduceMean<axes=[2,3]>(x)", ["GlobalAveragePool"]),
    "axes from the end": ("y = ReduceMean<axes=[-1,-2]>(x)", ["GlobalAveragePool"]),
    "pooling of all": ("y = AveragePool<kernel_shape=[7,5]>(x)", ["GlobalAveragePool"]),
    "pooling of all, in steps": ("y = AveragePool<kernel_shape=[7,5], strides=[3,3]>(x)", ["GlobalAveragePool"]),
    "axes go": ("y = ReduceMean<axes=[2,3], keepdims=0>(x)", ["GlobalAveragePool", "Squeeze"]),
}
LEFT = {
    "another slope": "g = HardSigmoid<alpha=0.2>(x)  y = Mul(x, g)",
    "another bound": "b = Add(x, three)  c = Clip(b, zero, three)  m = Mul(x, c)  y = Div(m, six)",
    "another gate": f"a = Abs(x)  {RAMP}  m = Mul(a, c)  y = Div(m, six)",
    "pooling of a part": "y = AveragePool<kernel_shape=[7,4]>(x)",
    "pooling of all and zeros": "y = AveragePool<kernel_shape=[7,5], pads=[1,0,1,0], count_include_pad=1>(x)",
    "mean of a row": "y = ReduceMean<axes=[3]>(x)",
    "mean of the channels": "y = ReduceMean<axes=[1,2,3]>(x)",
    "normalization": "m = ReduceMean<axes=[2,3]>(x)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean<axes=[2,3]>(q)"
    "  e = Add(v, sixth)  r = Sqrt(e)  y = Div(d, r)",
    "slopes a channel": "u = Unsqueeze(s, ax)  y = PRelu(x, u)",
}
PADDING = "q = Pad(x, p)  y = Conv<pads=[1,0,1,0]>(q, w)"


def written(nodes: str, outputs: str = "float[N,?,?,?] y", opset: int = 13, **values: object) -> ModelProto:
    text = f"(float[N,3,7,5] x) => ({outputs}) <{CONSTANTS}, int64[2] ax> {{ {nodes} }}"
    given = {"p": np.zeros(8), "ax": [1, 2], **VALUES, **values}
    return model(text, opset=opset, check=False, **given)


def restored(proto: ModelProto, **fields: object) -> tuple[Model, Outcome]:
    made = wrapped(proto)
    Normalize().apply(made, Context())
    outcome = FuseDecomposedOperators().apply(made, Context(**fields))
    return made, outcome


def ops(made: Model) -> list[str]:
    return [node.op for node in made.graph.nodes]


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("form", HARD_SWISH)
def test_hard_swish_in_every_form(form: str, opset: int) -> None:
    proto = written(HARD_SWISH[form], opset=opset)
    made, outcome = restored(proto)
    assert (ops(made), outcome.changed) == (["HardSwish"], 1)
    assert made.graph.opset == max(opset, 14)
    assert_same_function(proto, made.to_proto(), 1e-6)


@pytest.mark.parametrize("form", HARD_SIGMOID)
def test_hard_sigmoid_in_every_form(form: str) -> None:
    proto = written(HARD_SIGMOID[form])
    made, _ = restored(proto)
    assert (ops(made), made.graph.opset) == (["HardSigmoid"], 13)
    assert_same_function(proto, made.to_proto(), 1e-6)


@pytest.mark.parametrize("form", POOLING)
def test_a_mean_over_the_image_is_a_pooling(form: str) -> None:
    nodes, expected = POOLING[form]
    proto = written(nodes, outputs="float[N,3] y" if len(expected) > 1 else "float[N,3,1,1] y")
    made, _ = restored(proto)
    assert ops(made) == expected
    assert_same_function(proto, made.to_proto(), 1e-6)


@pytest.mark.parametrize("form", LEFT)
def test_what_is_another_operator_is_left_alone(form: str) -> None:
    proto = written(LEFT[form])
    made, outcome = restored(proto)
    before = wrapped(proto)
    Normalize().apply(before, Context())
    assert outcome.changed == 0
    assert ops(made) == ops(before)


def test_one_slope_for_all_channels_is_leaky_relu() -> None:
    proto = written("y = PRelu(x, steep)")
    made, _ = restored(proto)
    assert ops(made) == ["LeakyRelu"]
    assert_same_function(proto, made.to_proto(), 1e-6)


def test_what_is_read_inside_stays_decomposed() -> None:
    proto = written(HARD_SWISH["gate first"], outputs="float[N,?,?,?] y, float[N,?,?,?] c")
    assert Counter(ops(restored(proto)[0])) == Counter(["Add", "Clip", "Div", "Mul"])


def test_a_target_without_the_operator_set_keeps_the_pieces() -> None:
    from dataclasses import replace

    made, _ = restored(written(HARD_SWISH["paddle"]), target=replace(ORT, max_opset=13))
    assert (made.graph.opset, "HardSwish" in ops(made)) == (13, False)


def test_a_convolution_pads_by_itself() -> None:
    proto = written(PADDING, p=[0, 0, 2, 0, 0, 0, 1, 3])
    made, _ = restored(proto)
    assert ops(made) == ["Conv"]
    assert made.graph.nodes[0].attrs["pads"] == [3, 0, 2, 3]
    assert_same_function(proto, made.to_proto(), 0)


@pytest.mark.parametrize(
    ("nodes", "p"),
    [
        (PADDING.replace("Pad(", 'Pad<mode="edge">('), [0, 0, 1, 0, 0, 0, 0, 0]),
        (PADDING.replace("(x, p)", "(x, p, six)"), [0, 0, 1, 0, 0, 0, 0, 0]),
        (PADDING, [0, 0, -1, 0, 0, 0, 0, 0]),
        (PADDING.replace("w)", "v)").replace("q =", "v = Concat<axis=1>(w, w)  q ="), [0, 1, 0, 0, 0, 2, 0, 0]),
        (PADDING.replace("pads=[1,0,1,0]", 'auto_pad="SAME_UPPER"'), [0, 0, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_other_padding_stays(nodes: str, p: list[int]) -> None:
    made, outcome = restored(written(nodes, p=p))
    assert (ops(made), outcome.changed) == (["Pad", "Conv"], 0)


POOL = "q = Pad(x, p)  y = AveragePool<kernel_shape=[3,3]{}>(q)"


@pytest.mark.parametrize("more", ["", ", strides=[2,2]", ", pads=[1,1,1,1], count_include_pad=1"])
def test_a_mean_counts_the_padding_in_front(more: str) -> None:
    proto = written(POOL.format(more), p=[0, 0, 1, 0, 0, 0, 1, 1])
    made, _ = restored(proto)
    assert ops(made) == ["AveragePool"]
    assert made.graph.nodes[0].attrs["count_include_pad"] == 1
    assert_same_function(proto, made.to_proto(), 1e-6)


@pytest.mark.parametrize(
    ("more", "p"),
    [
        (", pads=[1,1,1,1]", [0, 0, 1, 0, 0, 0, 0, 0]),
        (", ceil_mode=1, strides=[2,2]", [0, 0, 1, 0, 0, 0, 0, 0]),
        ("", [0, 0, 3, 0, 0, 0, 0, 0]),
    ],
    ids=["leaves its own out", "rounds up", "wider than the kernel"],
)
def test_padding_that_no_mean_counts_stays(more: str, p: list[int]) -> None:
    made, outcome = restored(written(POOL.format(more), p=p))
    assert (ops(made), outcome.changed) == (["Pad", "AveragePool"], 0)


GELU = {
    "erf": ("i = Div(x, root)  f = Erf(i)  o = Add(f, one)  q = Mul(x, o)  y = Mul(q, half)", {}),
    "tanh": (
        "c = Pow(x, three)  k = Mul(cubic, c)  u = Add(x, k)  i = Mul(u, outer)  t = Tanh(i)  o = Add(t, one)"
        "  h = Mul(half, x)  y = Mul(h, o)",
        {"approximate": "tanh"},
    ),
}
HALF_FOLDED = "i = Div(x, root)  f = Erf(i)  o = Add(f, one)  y = Mul(x, o)"


def gelu(nodes: str, opset: int = 13) -> ModelProto:
    constants = "float root, float one, float half, float three, float cubic, float outer"
    text = f"(float[N,4,8] x) => (float[N,4,8] z) <{constants}> {{ {nodes}  z = Neg(y) }}"
    values = {"root": 2**0.5, "one": 1, "half": 0.5, "three": 3, "cubic": 0.044715, "outer": (2 / np.pi) ** 0.5}
    return model(text, opset=opset, **values)


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("form", GELU)
def test_gelu_is_one_operator_for_targets_that_take_it_whole_only(form: str, opset: int) -> None:
    nodes, attributes = GELU[form]
    proto = gelu(nodes, opset)
    made, outcome = restored(proto, target=QNN)
    assert (ops(made), made.graph.opset, outcome.notes) == (["Gelu", "Neg"], 20, ("Gelu: 1",))
    assert made.graph.nodes[0].attrs == attributes
    assert_same_function(proto, made.to_proto(), 1e-5)


@pytest.mark.parametrize(
    ("nodes", "target"),
    [(GELU["erf"][0], ORT), (HALF_FOLDED, QNN), (GELU["erf"][0], replace(QNN, max_opset=19))],
    ids=["other target", "twice a Gelu", "older operator set"],
)
def test_gelu_stays_decomposed(nodes: str, target: Target) -> None:
    made, outcome = restored(gelu(nodes), target=target)
    assert ("Gelu" in ops(made), made.graph.opset, outcome.changed) == (False, 13, 0)
    assert len(outcome.skips) == (target.max_opset == 19)
