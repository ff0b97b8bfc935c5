"""What operators mean to quantization, read off nodes."""

from __future__ import annotations

import re

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from graphs import feeds, model, run, wrapped
from onnx import ModelProto

from onnxq.operators.elementwise import clip_bounds
from onnxq.operators.linear import LinearLayer, layer_ending_in, linear_layer
from onnxq.operators.node import channel_vector, is_float, is_op, rank
from onnxq.operators.registry import preserves_grid


def nodes(text: str, **options: object) -> list[gs.Node]:
    return list(wrapped(model(text, **options)).graph.nodes)  # type: ignore[arg-type]


def layer(text: str) -> LinearLayer:
    found = next(linear_layer(n) for n in nodes(text) if n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"))
    assert isinstance(found, LinearLayer), found
    return found


CONV = "(float[N,6,7,7] x) => (float[N,4,?,?] y) <float[4,3,3,3] w, float[4] b> { y = Conv<group=2>(x, w, b) }"
TRANSPOSE = "(float[N,6,7,7] x) => (float[N,4,?,?] y) <float[6,2,3,3] w> { y = ConvTranspose<group=2>(x, w) }"
GEMM = "(float[N,3] x) => (float[N,5] y) <float[3,5] w, float[5] b> { y = Gemm(x, w, b) }"
GEMM_T = "(float[N,3] x) => (float[N,5] y) <float[5,3] w> { y = Gemm<transB=1>(x, w) }"
MATMUL = "(float[N,7,3] x) => (float[N,7,5] y) <float[3,5] w, float[5] b> { p = MatMul(x, w) y = Add(p, b) }"
MATMUL_3D = "(float[4,7,3] x) => (float[4,7,5] y) <float[4,3,5] w> { y = MatMul(x, w) }"


@pytest.mark.parametrize(
    ("text", "axis", "channels", "groups", "output_axis", "bias"),
    [(CONV, 0, 4, 2, 1, "b"), (TRANSPOSE, 1, 4, 2, 1, None), (GEMM, 1, 5, 1, 1, "b"), (GEMM_T, 0, 5, 1, 1, None),
     (MATMUL, 1, 5, 1, -1, "b"), (MATMUL_3D, 2, 5, 1, -1, None)],
)  # fmt: skip
def test_linear_layers(text: str, axis: int, channels: int, groups: int, output_axis: int, bias: str | None) -> None:
    found = layer(text)
    assert (found.axis, found.channels, found.groups, found.output_axis) == (axis, channels, groups, output_axis)
    assert (found.input.name, found.weight.name, found.output.name) == ("x", "w", "y")
    assert (found.bias.name if found.bias else None) == bias
    assert (found.bias_node is None) == (bias is None)
    assert layer_ending_in(found.output) == found


def test_the_bias_of_a_product_on_either_side() -> None:
    found = layer(MATMUL.replace("Add(p, b)", "Add(b, p)"))
    assert (found.bias.name, found.bias_node.op, found.output.name) == ("b", "Add", "y")


@pytest.mark.parametrize(
    "text",
    [
        MATMUL.replace("float[5] b", "float b"),
        MATMUL.replace("float[5] b", "float[7,5] b"),
        MATMUL.replace("float[5] b", "float[1,5] b"),
        MATMUL.replace("y = Add(p, b)", "q = Add(p, b) r = Relu(p) y = Add(q, r)"),
        MATMUL.replace("Add(p, b)", "Add(p, p)"),
        MATMUL.replace("Add(p, b)", "Sub(p, b)"),
    ],
)
def test_what_is_no_bias_of_a_product(text: str) -> None:
    found = layer(text)
    assert (found.bias, found.bias_node, found.output.name) == (None, None, "p")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", "Relu is not a linear operator"),
        ("(float[N,3] x, float[3,5] w) => (float[N,5] y) { y = MatMul(x, w) }", "weight 'w' is not constant"),
        ("(float[5,7] x) => (float[3,7] y) <float[3,5] w> { y = MatMul(w, x) }", "weight 'x' is not constant"),
        ("(float[3] x) => (float[3,5] y) <float[3,3] v, float[3,5] w> { y = MatMul(v, w) }", "input is a constant"),
        ("(float[N,3] x) => (float[N] y) <float[3] w> { y = MatMul(x, w) }", "weight 'w' is a vector"),
        ("(float[3,N] x) => (float[N,5] y) <float[3,5] w> { y = Gemm<transA=1>(x, w) }", "transposed"),
        (GEMM.replace("Gemm", "Gemm<alpha=0.5>"), "alpha or beta"),
        (GEMM.replace("Gemm", "Gemm<beta=0.5>"), "alpha or beta"),
        (GEMM.replace("float[5] b", "float[1,5] b"), r"bias 'b' of shape \(1, 5\) is not one value a channel"),
        ("(float[N,3] x, float[5] b) => (float[N,5] y) <float[3,5] w> { y = Gemm(x, w, b) }", "'b' is not constant"),
    ],
)
def test_what_is_no_linear_layer(text: str, reason: str) -> None:
    found = linear_layer(nodes(text)[0])
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_beta_without_bias_does_not_matter() -> None:
    assert isinstance(linear_layer(nodes(GEMM_T.replace("transB=1", "transB=1, beta=2.0"))[0]), LinearLayer)


def test_operators_of_other_domains_are_others() -> None:
    (node,) = nodes("(float[N,3] x) => (float[N,5] y) <float[3,5] w> { y = other.MatMul(x, w) }", domains="other",
                    check=False)  # fmt: skip
    assert not is_op(node, "MatMul")
    assert linear_layer(node) == "MatMul is not a linear operator"
    assert not preserves_grid(node)


def test_layers_that_do_not_end_in_a_tensor() -> None:
    text = MATMUL.replace("=> (float[N,7,5] y)", "=> (float[N,7,5] y, float[N,7,5] z)").replace("}", "z = Relu(y) }")
    tensors = wrapped(model(text)).graph.tensors()
    assert layer_ending_in(tensors["y"]).output.name == "y"
    assert layer_ending_in(tensors["p"]) == "'p' is not computed by a linear layer alone"
    assert layer_ending_in(tensors["x"]) == "'x' is not computed by a linear layer"
    assert layer_ending_in(tensors["w"]) == "'w' is not computed by a linear layer"
    assert layer_ending_in(tensors["z"]) == "Relu is not a linear operator"


@pytest.mark.parametrize(
    ("dims", "axis", "ndim", "is_vector"),
    [
        ((), 1, 4, True), ((1,), 1, 4, True), ((1, 1, 1, 1), 1, 4, True), ((5, 1, 1), 1, 4, True),
        ((1, 5, 1, 1), 1, 4, True), ((5,), 1, 4, False), ((1, 1, 1, 5), 1, 4, False), ((5, 1), 1, 4, False),
        ((2, 5, 1, 1), 1, 4, False), ((1, 1, 5, 1, 1), 1, 4, False), ((1, 1, 1, 1, 1), 1, 4, False),
        ((5,), 1, 2, True), ((1, 5), 1, 2, True), ((5, 1), 1, 2, False), ((5,), -1, 3, True), ((1, 1, 5), -1, 3, True),
        ((1, 1, 1, 5), -1, 3, False), ((5, 1), -1, 3, False), ((7, 5), -1, 3, False), ((), 1, None, True),
        ((5,), -1, None, True), ((1,), -1, None, True), ((1, 5), -1, None, False), ((1, 1), -1, None, False),
        ((5, 1, 1), 1, None, False),
    ],
)  # fmt: skip
def test_channel_vectors(dims: tuple[int, ...], axis: int, ndim: int | None, is_vector: bool) -> None:
    values = np.arange(1, 1 + np.prod(dims), dtype=np.float32).reshape(dims)
    found = channel_vector(gs.Constant("c", values), 5, axis, ndim)
    if not is_vector:
        assert found is None
    else:
        np.testing.assert_array_equal(found, np.broadcast_to(values.ravel(), 5))


# Each keeps the values of its input: that is what `preserves_grid` claims.
MOVES = {
    "Reshape": "Reshape(x, s)", "Flatten": "Flatten(x)", "Transpose": "Transpose<perm=[0,2,3,1]>(x)",
    "Slice": "Slice(x, one, nine, one)", "Gather": "Gather<axis=1>(x, index)", "Expand": "Expand(x, four)",
    "Tile": "Tile(x, four)", "Identity": "Identity(x)", "DepthToSpace": "DepthToSpace<blocksize=2>(x)",
    "SpaceToDepth": "SpaceToDepth<blocksize=2>(x)", "MaxPool": "MaxPool<kernel_shape=[2,2]>(x)",
    "GlobalMaxPool": "GlobalMaxPool(x)", "ReduceMax": "ReduceMax<axes=[1]>(x)", "ReduceMin": "ReduceMin(x)",
    "Pad with zero": "Pad(x, pads)", "Pad with 0": "Pad(x, pads, zero)", "Pad reflect": 'Pad<mode="reflect">(x, pads)',
    "Pad edge": 'Pad<mode="edge">(x, pads, half)', "Unsqueeze": "Unsqueeze(x, one)",
    "Resize nearest": "Resize(x, , scales)",
    "Resize nearest, asymmetric": 'Resize<coordinate_transformation_mode="asymmetric">(x, , scales)',
}  # fmt: skip
COMPUTES = {
    "Resize linear": 'Resize<mode="linear">(x, , scales)', "Resize cubic": 'Resize<mode="cubic">(x, , scales)',
    "Pad with a half": "Pad(x, pads, half)", "Relu": "Relu(x)", "AveragePool": "AveragePool<kernel_shape=[2,2]>(x)",
    "ReduceMean": "ReduceMean(x)", "Resize crop": 'Resize<coordinate_transformation_mode="tf_crop_and_resize",'
    " extrapolation_value=0.5>(x, roi, scales)",
}  # fmt: skip


def moving(call: str) -> ModelProto:
    return model(
        "(float[2,4,4,4] x) => (float y) <int64[3] s={2,4,16}, int64[1] one={1}, int64[1] nine={9},"
        " int64[2] index={3,1}, int64[4] four={2,1,1,1}, int64[8] pads={0,0,1,1,0,0,1,1}, float zero={0},"
        " float half={0.5}, float[4] scales={1,1,1.5,2}, float[8] roi={0,0,0,0,1,1,2,2}>"
        f" {{ y = {call} }}",
        check=False,
    )


@pytest.mark.parametrize("name", MOVES)
def test_data_movement_keeps_values(name: str) -> None:
    proto = moving(MOVES[name])
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (node,) = wrapped(proto).graph.nodes
    assert preserves_grid(node)
    arrays = feeds(proto)
    (output,) = run(proto, arrays).values()
    assert np.isin(output, [*arrays["x"].ravel(), 0.0]).all()


@pytest.mark.parametrize("name", COMPUTES)
def test_what_computes_new_values(name: str) -> None:
    proto = moving(COMPUTES[name])
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (node,) = wrapped(proto).graph.nodes
    assert not preserves_grid(node)


def test_padding_with_a_computed_value_is_not_known_to_keep_the_grid() -> None:
    (node,) = nodes("(float[3] x, float v) => (float[5] y) <int64[2] p={1,1}> { y = Pad(x, p, v) }")
    assert not preserves_grid(node)


@pytest.mark.parametrize(
    ("call", "bounds"),
    [
        ("Relu(x)", (0, np.inf)), ("Clip(x, a, b)", (-1, 6)), ("Clip(x, a)", (-1, np.inf)),
        ("Clip(x, , b)", (-np.inf, 6)), ("Clip(x)", (-np.inf, np.inf)), ("Clip(x, v)", None), ("Clip(x, a, v)", None),
        ("Abs(x)", None),
    ],
)  # fmt: skip
def test_clip_bounds(call: str, bounds: tuple[float, float] | None) -> None:
    (node,) = nodes(f"(float[3] x, float v) => (float[3] y) <float a={{-1}}, float b={{6}}> {{ y = {call} }}")
    assert clip_bounds(node) == bounds


def test_rank_and_type() -> None:
    tensors = wrapped(
        model("(float[N,3] x, int64[2] i, float16[2] f, float s) => (float[N,3] y) { h = Relu(x) y = Add(h, s) }")
    ).graph.tensors()
    assert {n: rank(tensors[n]) for n in "xish"} == {"x": 2, "i": 1, "s": 0, "h": None}
    assert {n: is_float(tensors[n]) for n in "xifh"} == {"x": True, "i": False, "f": False, "h": False}
