"""Transposes between operators that work in any order of axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import assert_same_function, model, ops, wrapped

import onnxq
from onnxq.passes.base import Context
from onnxq.passes.move_transposes import MoveTransposes

HEAD = "(float[2,3,4,5] x) => (float[A,B,C,D] y)"
IN, OUT = "t = Transpose<perm=[0,2,3,1]>(x)", "y = Transpose<perm=[0,3,1,2]>(u)"

MOVED = {
    "unary": "u = Sigmoid(t)",
    "two readers": "s = Sigmoid(t) u = Mul(t, s)",
    "chain": "a = Relu(t) b = Exp(a) u = Neg(b)",
    "scalar": "<float[1] c> u = Mul(t, c)",
    "a constant for each channel": "<float[3] c> u = Add(t, c)",
    "a constant of all axes": "<float[1,4,5,3] c> u = Sub(c, t)",
    "a constant of two axes": "<float[5,1] c> u = Div(t, c)",
    "slopes": "<float[3] c> u = PRelu(t, c)",
    "bounds": "<float lo, float hi> u = Clip(t, lo, hi)",
    "selection": "<float[3] c> s = Greater(t, c) u = Where(s, t, c)",
    "type": "s = Cast<to=11>(t) u = Cast<to=1>(s)",
    "mean that keeps axes": "m = ReduceMean<axes=[1,2],keepdims=1>(t) u = Mul(t, m)",
    "mean over channels": "m = ReduceMean<axes=[-1]>(t) u = Sub(t, m)",
    "sum by input": "<int64[2] axes> m = ReduceSum(t, axes) u = Sub(t, m)",
    "concat": "a = Relu(t) u = Concat<axis=-1>(t, a)",
    "concat of a constant": "<float[2,4,5,2] c> u = Concat<axis=3>(t, c)",
    "split": "<int64[2] parts> a, b = Split<axis=3>(t, parts) u = Concat<axis=3>(b, a)",
    "softmax": "u = Softmax<axis=3>(t)",
    "softmax of the last axis by default": "u = Softmax(t)",
    "pad": "<int64[8] pads> u = Pad(t, pads)",
    "pad with a value": "<int64[8] pads, float v> u = Pad<mode=\"constant\">(t, pads, v)",
    "resize": "<float[4] scales> u = Resize<mode=\"nearest\">(t, , scales)",
    "resize to sizes": "<int64[4] sizes> u = Resize<mode=\"linear\">(t, , , sizes)",
    "two transposes": "a = Transpose<perm=[0,3,1,2]>(t) b = Relu(a) u = Transpose<perm=[0,2,3,1]>(b)",
}  # fmt: skip
VALUES = {
    "pads": np.int64([0, 1, 2, 0, 0, 0, 1, 0]), "scales": np.float32([1, 2, 3, 1]), "sizes": np.int64([2, 7, 9, 3]),
    "parts": np.int64([1, 2]), "axes": np.int64([1, 2]), "lo": -0.5, "hi": 0.5,
}  # fmt: skip


def built(nodes: str, head: str = HEAD, **options: object) -> onnx.ModelProto:
    declared, _, rest = nodes.partition("> ") if nodes.startswith("<") else ("", "", nodes)
    declared = f"{declared}>" if declared else ""
    values = {name: value for name, value in VALUES.items() if f" {name}" in declared}
    return model(f"{head} {declared} {{ {rest} }}", **options, **values)  # type: ignore[arg-type]


def moved(proto: onnx.ModelProto) -> list[str]:
    """The operators that are left; the function is the same, and a second run finds nothing."""
    before = proto.SerializeToString(deterministic=True)
    after = wrapped(onnx.shape_inference.infer_shapes(proto))
    outcome = MoveTransposes().apply(after, Context())
    assert proto.SerializeToString(deterministic=True) == before
    assert_same_function(proto, after.to_proto(), 1e-6)
    assert outcome.changed == count([node.op_type for node in proto.graph.node]) - count(ops(after))
    assert MoveTransposes().apply(after, Context()).changed == 0
    return ops(after)


def count(operators: list[str]) -> int:
    return sum(op in ("Transpose", "Reshape") for op in operators)


@pytest.mark.parametrize("name", MOVED)
def test_transposes_around_an_operator_cancel(name: str) -> None:
    declared, _, rest = MOVED[name].partition("> ") if MOVED[name].startswith("<") else ("", "", MOVED[name])
    proto = built(f"{declared}{'> ' * bool(declared)}{IN} {rest} {OUT}")
    assert "Transpose" not in moved(proto)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (0, 2, 1, 3), (3, 2, 1, 0), (1, 0, 2, 3), (2, 3, 0, 1)])
def test_any_order_of_axes(order: tuple[int, ...]) -> None:
    inverse = np.argsort(order).tolist()
    text = f"t = Transpose<perm={list(order)}>(x) a = Concat<axis=1>(t, t) m = ReduceMax<axes=[2]>(a) s = Sub(a, m)"
    proto = built(f"<float[5] c, int64[8] pads> {text} u = Pad(s, pads) y = Transpose<perm={inverse}>(u)")
    assert moved(proto) == ["Concat", "ReduceMax", "Sub", "Pad"]


def test_reductions_that_drop_axes_need_no_transpose() -> None:
    head = HEAD.replace("A,B,C,D", "A,B")
    proto = built(f"{IN} s = Relu(t) m = ReduceMean<axes=[1,2],keepdims=0>(s) y = Relu(m)", head)
    assert moved(proto) == ["Relu", "ReduceMean", "Relu"]
    means = "m = ReduceMean<axes=[1,2],keepdims=0>(s) n = ReduceMax<axes=[1,2],keepdims=0>(t) y = Add(m, n)"
    assert "Transpose" not in moved(built(f"{IN} s = Relu(t) {means}", head))
    crossed = "(float[2,3,4,5] x) => (float[A,B] y)"
    kept = built("t = Transpose<perm=[3,2,1,0]>(x) y = ReduceMean<axes=[1,2],keepdims=0>(t)", crossed)
    assert moved(kept) == ["Transpose", "ReduceMean"]  # 5 x 2, not 2 x 5


@pytest.mark.parametrize(
    "end", ["y = Flatten(u)", "<int64[2] shape> y = Reshape(u, shape)", "<int64[2] axes> y = Squeeze(u, axes)"]
)
def test_what_moves_axes_of_length_one_goes_in_front_of_a_reshape(end: str) -> None:
    declared, _, rest = end.partition("> ") if end.startswith("<") else ("", "", end)
    declared = f"{declared}> " if declared else ""
    text = (
        f"{IN} a = Relu(t) b = Transpose<perm=[0,3,1,2]>(a) p = GlobalAveragePool(b) u = Transpose<perm=[0,2,3,1]>(p)"
    )
    values = {"shape": np.int64([2, -1]), "axes": np.int64([1, 2])}
    declared_names = {name: value for name, value in values.items() if f" {name}" in declared}
    proto = model(f"{HEAD.replace('A,B,C,D', 'A,B')} {declared} {{ {text} {rest} }}", **declared_names)  # type: ignore[arg-type]
    assert "Transpose" not in moved(proto)


GATE = """(float[N,3,4,4] x) => (float[N,?,?,?] y) <int64[4] nchw = {-1, 3, 1, 1}, int64[4] nhwc = {-1, 1, 1, 3},
    float[3,3,1,1] w> { a = Transpose<perm=[0,2,3,1]>(x) h = HardSigmoid(a) b = Transpose<perm=[0,3,1,2]>(h)
    p = GlobalAveragePool(b) c = Conv(p, w) s = Sigmoid(c) g = Reshape(s, nhwc) m = Mul(h, g)
    y = Transpose<perm=[0,3,1,2]>(m) }"""


def test_a_reshape_that_moves_axes_of_length_one_is_a_transpose_as_well() -> None:
    """The gate of a squeeze-and-excite block, as TFLite's exporter writes it: no Transpose is left around it."""
    assert moved(model(GATE)) == ["HardSigmoid", "GlobalAveragePool", "Conv", "Sigmoid", "Mul"]


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Transpose<perm=[0,2,3,1]>(x) s = Relu(t) y = Transpose<perm=[0,2,3,1]>(s)",  # not its inverse
        "t = Transpose<perm=[0,2,3,1]>(x) s = Softmax<axis=3>(t) y = Relu(s)",  # alone
        "t = Transpose<perm=[0,2,3,1]>(x) z = Exp(t) s = Reshape(z, shape) y = Transpose<perm=[0,3,1,2]>(s)",
    ],
)
def test_what_does_not_pay_is_left_alone(nodes: str) -> None:
    declared = "<int64[4] shape>" if "shape" in nodes else ""
    proto = model(f"{HEAD} {declared} {{ {nodes} }}", **({"shape": np.int64([2, 5, 4, 3])} if declared else {}))
    kept = moved(proto)
    if nodes.startswith("t = Transpose<perm=[0,2,3,1]>(x) s = Relu"):
        assert kept.count("Transpose") == 1  # the two are one
    else:
        assert kept == [node.op_type for node in proto.graph.node]


def test_softmax_of_old_operator_sets_flattens_and_stays() -> None:
    proto = built(f"{IN} u = Softmax<axis=3>(t) {OUT}", opset=11)
    assert moved(proto) == ["Transpose", "Softmax", "Transpose"]


def test_outputs_keep_their_names_and_stay_behind_the_transposes() -> None:
    head = "(float[2,3,4,5] x) => (float[2,3,4,5] y, float[2,4,5,3] s)"
    proto = built(f"{IN} s = Sigmoid(t) u = Mul(t, s) {OUT}", head)
    assert sorted(moved(proto)) == ["Mul", "Sigmoid", "Transpose"]


def nhwc(seed: int = 0) -> onnx.ModelProto:
    """A block of a TensorFlow export: Pad in front of a VALID convolution, squeeze and excitation by means."""
    return model(
        "(float[1,16,16,3] x) => (float[1,8] y)"
        "<int64[8] pads, float[8,3,3,3] w, float[8] b, float[8,8,1,1] v, float[8,8] e> {"
        " p = Pad(x, pads) i = Transpose<perm=[0,3,1,2]>(p) c = Conv<strides=[2,2]>(i, w, b)"
        " o = Transpose<perm=[0,2,3,1]>(c) s = Sigmoid(o) a = Mul(o, s)"
        " m = ReduceMean<axes=[1,2],keepdims=1>(a) n = Transpose<perm=[0,3,1,2]>(m) g = Conv(n, v)"
        " h = Sigmoid(g) k = Transpose<perm=[0,2,3,1]>(h) z = Mul(k, a)"
        " f = ReduceMean<axes=[1,2],keepdims=0>(z) y = MatMul(f, e) }",
        seed=seed,
        pads=np.int64([0, 0, 0, 0, 0, 1, 1, 0]),
    )


def test_an_nhwc_export_gets_the_kernels_of_an_nchw_one() -> None:
    data = np.random.default_rng(0).standard_normal((24, 16, 16, 3)).astype(np.float32)
    result = onnxq.quantize(nhwc(), data, rounding="nearest")
    runs = result.report.runtime_operators
    assert runs["QLinearGlobalAveragePool"] == 2
    assert not {"ReduceMean", "Pad"} & set(runs), runs
    assert count([node.op_type for node in result.model.graph.node]) == 1  # of the model's input


@pytest.mark.parametrize("perm", [[0, 2, 3, 4], [0, 1, 1, 2]])
def test_an_order_that_is_none_is_left_to_the_runtime_to_refuse(perm: list[int]) -> None:
    proto = built(f"t = Relu(x) y = Transpose<perm={perm}>(t)", check=False)
    after = wrapped(proto)
    assert MoveTransposes().apply(after, Context()).changed == 0
    assert ops(after) == ["Relu", "Transpose"]
