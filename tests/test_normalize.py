"""One form for what exporters write in many: operators before and after, the function unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import assert_same_function, feeds, model, ops, weights, wrapped
from normalizing import assert_normalizes, normalized
from onnx import TensorProto, helper

from onnxq.graph.opset import convert_opset
from onnxq.passes.base import Context
from onnxq.passes.normalize import Normalize

REAL = Path(__file__).parents[2] / "shared" / "realmodels"

UNCHANGED = {
    "nothing to do": "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }",
    "Identity from input to output": "(float[N,3] x) => (float[N,3] y) { y = Identity(x) }",
    "Identity of a constant": "(float[N,3] x) => (float[3] y) <float[3] k> { y = Identity(k) }",
    "Identity between outputs": "(float[N,3] x) => (float[N,3] a, float[N,3] b) { a = Relu(x) b = Identity(a) }",
    "Constant that is an output": "(float[N,3] x) => (float[2] y, float[N,3] z)"
                                  " { y = Constant<value_floats=[1.0,2.0]>() z = Relu(x) }",
    "computed constant that is an output": "(float[N,3] x) => (float[3] y) <float[3] k> { y = Abs(k) }",
    "Shape that is an output": "(float[5,3] x) => (int64[2] y) { y = Shape(x) }",
    "Dropout with its mask read": "(float[N,3] x) => (float[N,3] y, bool[N,3] z)"
                                  " { d, m = Dropout(x) y = Relu(d) z = Not(m) }",
    "Dropout with its mask an output": "(float[N,3] x) => (float[N,3] y, bool[N,3] m)"
                                       " { d, m = Dropout(x) y = Relu(d) }",
    "shape of a dynamic tensor": "(float[N,3] x) => (int64[2] y) <int64 two={2}> { s = Shape(x) y = Mul(s, two) }",
    "Reshape to dimensions of another tensor": "(float[N,6] x, float[N,?] z) => (float[?,?] y)"
                                               " { s = Shape(z) y = Reshape(x, s) }",
}  # fmt: skip


@pytest.mark.parametrize("name", UNCHANGED)
def test_left_as_it_is(name: str) -> None:
    proto = model(UNCHANGED[name])
    after, outcome = normalized(proto)
    assert ops(after) == ops(proto)
    assert outcome.changed == 0
    assert_same_function(proto, after.to_proto(), 0, feeds(proto, free=6))


CHANGED = {
    "Identity": ("(float[N,3] x) => (float[N,3] y) { h = Relu(x) i = Identity(h) y = Abs(i) }", "Relu Abs"),
    "Identity at the input": ("(float[N,3] x) => (float[N,3] y) { i = Identity(x) y = Abs(i) }", "Abs"),
    "Identity at the output": ("(float[N,3] x) => (float[N,3] y) { h = Relu(x) y = Identity(h) }", "Relu"),
    "Identity at the output, with other readers": (
        "(float[N,3] x) => (float[N,3] y, float[N,3] z) { h = Relu(x) y = Identity(h) z = Abs(h) }", "Relu Abs"),
    "Identity twice": ("(float[N,3] x) => (float[N,3] y) { a = Identity(x) b = Identity(a) h = Relu(b)"
                       " c = Identity(h) y = Identity(c) }", "Relu"),
    "Identity of a constant": ("(float[N,3] x) => (float[N,3] y) <float[3] k> { i = Identity(k) y = Add(x, i) }",
                               "Add"),
    "Dropout": ("(float[N,3] x) => (float[N,3] y) { h = Relu(x) d = Dropout(h) y = Abs(d) }", "Relu Abs"),
    "Dropout, mask unread": ("(float[N,3] x) => (float[N,3] y) { d, m = Dropout(x) y = Abs(d) }", "Abs"),
    "Dropout, not training": ("(float[N,3] x) => (float[N,3] y) <float r={0.5}, bool t={0}>"
                              " { d = Dropout(x, r, t) y = Abs(d) }", "Abs"),
    "Reshape to the same shape": ("(float[N,3,1] x) => (float[N,3,1] y) <int64[3] s={-1,3,1}>"
                                  " { h = Relu(x) r = Reshape(h, s) y = Abs(r) }", "Relu Abs"),
    "Reshape to another shape": ("(float[N,3,1] x) => (float[N,1,3] y) <int64[3] s={-1,1,3}>"
                                 " { h = Relu(x) r = Reshape(h, s) y = Abs(r) }", "Relu Reshape Abs"),
    "Expand and Flatten to the same shape": (
        "(float[2,3] x) => (float[2,3] y) <int64[2] s={1,3}>"
        " { h = Relu(x) e = Expand(h, s) f = Flatten(e) y = Abs(f) }", "Relu Abs"),
    "Constant": ("(float[N,3] x) => (float[N,3] y) { k = Constant<value = float[3] {1,2,3}>() y = Add(x, k) }", "Add"),
    "Constant, number": ("(float[N,3] x) => (float[N,3] y) { k = Constant<value_float=2.5>() y = Mul(x, k) }", "Mul"),
    "Constant, numbers": ("(float[N,6] x) => (float[N,2,3] y)"
                          " { k = Constant<value_ints=[-1,2,3]>() y = Reshape(x, k) }", "Reshape"),
    "constant expression": ("(float[N,3] x) => (float[N,3] y) <float[3] k, float[3] m>"
                            " { a = Mul(k, m) b = Exp(a) c = Sub(b, m) y = Add(x, c) }", "Add"),
    "several outputs": ("(float[N,3] x) => (float[N,3] y) <float[6] k>"
                        " { a, b = Split<axis=0>(k) h = Add(x, a) y = Mul(h, b) }", "Add Mul"),
    "shape of a fixed tensor": ("(float[2,3,4] x) => (float[?,?] y) <int64[1] z={0}, int64 i={1}, int64[1] m={-1}>"
                                " { s = Shape(x) n = Gather(s, i) u = Unsqueeze(n, z) c = Concat<axis=0>(u, m)"
                                " y = Reshape(x, c) }", "Reshape"),
    "fixed dimensions of a dynamic tensor": (
        "(float[N,3,4] x) => (float[N,3,4] y) <int64 i={-1}> { s = Shape(x) n = Gather(s, i) f = Cast<to=1>(n)"
        " r = Sqrt(f) y = Div(x, r) }", "Div"),
    "slices of shapes": ("(float[N,3,4] x) => (float[4,3] y) <int64[1] a={1}, int64[1] b={9}, int64[1] o={0},"
                         " float[4,3] k> { s = Shape(x) t = Slice(s, a, b, o) h = Reshape(k, t) g = Transpose(h)"
                         " r = ReduceSum(x) q = Squeeze(r) y = Add(g, q) }", "ReduceSum Squeeze Add"),
    "flattening": ("(float[N,3,4] x) => (float[?,?] y) <int64 i={0}, int64[1] z={0}, int64[1] m={-1}>"
                   " { h = Relu(x) s = Shape(h) n = Gather(s, i) u = Unsqueeze(n, z) c = Concat<axis=0>(u, m)"
                   " y = Reshape(h, c) }", "Relu Reshape"),
    "flattening, whole batch": ("(float[N,3,4] x) => (float[?,?] y) <int64[1] a={0}, int64[1] b={1}, int64[1] m={12}>"
                                " { s = Shape(x) n = Slice(s, a, b) c = Concat<axis=0>(n, m) y = Reshape(x, c) }",
                                "Reshape"),
    "dangling nodes": ("(float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Abs(a) y = Neg(x) }", "Neg"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_simplified(name: str) -> None:
    text, expected = CHANGED[name]
    assert_normalizes(text, expected.split(), 1e-6)


def test_reshape_keeps_the_batch_dimension_by_zero() -> None:
    after = assert_normalizes(*CHANGED["flattening"][:1], ["Relu", "Reshape"])
    assert after.graph.nodes[1].inputs[1].values.tolist() == [0, -1]


def test_shape_with_start_and_end() -> None:
    after = assert_normalizes(
        "(float[N,3,4] x) => (float[?,4] y) <int64[1] m={-1}>"
        " { s = Shape<start=-1>(x) c = Concat<axis=0>(m, s) y = Reshape(x, c) }", ["Reshape"]
    )  # fmt: skip
    assert after.graph.nodes[0].inputs[1].values.tolist() == [-1, 4]


def test_a_shape_read_by_name_only_where_it_is_the_same_dimension() -> None:
    text = (
        "(float[N,3,4] x, float[M,3] other) => (float[?,?] y) <int64[1] z={0}, int64[1] o={1}, int64[1] m={-1}>"
        " { s = Shape(other) n = Slice(s, z, o) c = Concat<axis=0>(n, m) y = Reshape(x, c) }"
    )
    proto = model(text)
    after, _ = normalized(proto)
    assert ops(after) == ["Shape", "Slice", "Concat", "Reshape"]
    arrays = {"x": np.ones((2, 3, 4), np.float32), "other": np.ones((6, 3), np.float32)}
    assert_same_function(proto, after.to_proto(), 0, arrays)


def test_lifted_constants_keep_name_value_and_type() -> None:
    after = assert_normalizes(
        "(int32[N,3] x) => (int32[N,3] y) { k = Constant<value = int32[3] {1,2,3}>() y = Add(x, k) }", ["Add"]
    )
    constant = weights(after.to_proto())["k"]
    assert constant.dtype == np.int32
    assert constant.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["BFLOAT16", "INT4", "STRING"])
def test_constants_of_types_that_numpy_lacks_survive(dtype: str) -> None:
    tensor = TensorProto(data_type=TensorProto.DataType.Value(dtype), dims=[2])
    if dtype == "STRING":
        tensor.string_data.extend([b"a", b"b"])
    else:
        tensor.raw_data = bytes(4 if dtype == "BFLOAT16" else 1)
    nodes = [
        helper.make_node("Constant", [], ["k"], value=tensor),
        helper.make_node("Identity", ["k"], ["i"]),
        helper.make_node("Identity", ["i"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    outputs = [helper.make_tensor_value_info("y", tensor.data_type, [2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    after = normalized(proto)[0].to_proto()
    onnx.checker.check_model(after, full_check=True)
    assert after.graph.node[0].op_type == "Constant"
    kept = after.graph.node[0].attribute[0].t
    assert (kept.data_type, kept.raw_data, kept.string_data) == (tensor.data_type, tensor.raw_data, tensor.string_data)


def test_shared_weights_stay_one() -> None:
    after = assert_normalizes(
        "(float[N,3] x) => (float[N,3] y) { w = Constant<value = float[3,3] {1,2,3,4,5,6,7,8,9}>()"
        " i = Identity(w) a = MatMul(x, w) y = MatMul(a, i) }", ["MatMul", "MatMul"]
    )  # fmt: skip
    first, second = after.graph.nodes
    assert first.inputs[1] is second.inputs[1]
    assert list(weights(after.to_proto())) == ["w"]


def test_nodes_get_names_and_existing_ones_stay() -> None:
    proto = model(
        "(float[N,3] x) => (float[N,3] y) { [mine] a = Relu(x) b = Abs(a) [mine] c = Neg(b) [Abs_b] d = Exp(c)"
        " [yours] e = Abs(d) [mine_1] y = Neg(e) }"
    )
    after, _ = normalized(proto)
    names = [n.name for n in after.graph.nodes]
    assert names == ["mine", "Abs_b_1", "mine_2", "Abs_b", "yours", "mine_1"]


def test_gemm_attributes_go_into_the_constants() -> None:
    text = (
        "(float[N,3] x) => (float[N,5] y, float[N,5] z) <float[5,3] w, float[1,5] b, float c>"
        " { y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b) z = Gemm<transB=1>(x, w, c) }"
    )
    proto = model(text)
    after, outcome = normalized(proto)
    assert "Gemm attributes folded: 2" in outcome.notes
    assert_same_function(proto, after.to_proto(), 1e-6)
    for gemm in after.graph.nodes:
        assert gemm.attrs.get("alpha", 1.0) == gemm.attrs.get("beta", 1.0) == 1.0
        assert tuple(gemm.inputs[2].shape) == (5,)
    np.testing.assert_array_equal(weights(after.to_proto())["w"], weights(proto)["w"])


@pytest.mark.parametrize(
    "gemm",
    [
        "(float[2,3] x) => (float[2,5] y) <float[3,5] w, float[2,5] b> { y = Gemm<beta=2.0>(x, w, b) }",
        "(float[2,3] x) => (float[2,5] y) <float[3,5] w, float[2,1] b> { y = Gemm<alpha=0.1>(x, w, b) }",
        "(float[2,3] x, float[5] b) => (float[2,5] y) <float[3,5] w> { y = Gemm<alpha=0.5, beta=3.0>(x, w, b) }",
        "(float[2,3] x, float[3,5] w) => (float[2,5] y) <float[5] b> { y = Gemm<alpha=0.5, beta=3.0>(x, w, b) }",
        "(float[2,3] x) => (float[2,5] y) <float[3,5] w> { y = Gemm<alpha=0.5, beta=3.0>(x, w) }",
        "(float[3,3] x) => (float[3,3] y) <float[3,3] w> { y = Gemm<alpha=2.0>(x, w, w) }",
        "(float[3,2] x) => (float[2,5] y) <float[3,5] w, float b> { y = Gemm<transA=1, alpha=3.0>(x, w, b) }",
    ],
)
def test_gemm_of_any_form_keeps_its_function(gemm: str) -> None:
    proto = model(gemm)
    after, _ = normalized(proto)
    assert_same_function(proto, after.to_proto(), 1e-6, feeds(proto))


def test_declared_shapes_of_inputs_and_outputs_stay() -> None:
    proto = model("(float[batch,3] x) => (float[anything,?] y) { h = Relu(x) y = Abs(h) }", check=False)
    after, _ = normalized(proto)
    exported = after.to_proto()
    assert exported.graph.input == proto.graph.input
    assert exported.graph.output == proto.graph.output
    assert after.graph.tensors()["h"].shape == ["batch", 3]


def test_dimensions_of_minus_one_are_not_taken_for_numbers() -> None:
    proto = model("(float[7,3] x) => (int64[2] y) <int64 two={2}> { s = Shape(x) y = Mul(s, two) }", check=False)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    after, _ = normalized(proto)
    assert ops(after) == ["Shape", "Mul"]


def test_the_same_model_is_the_same_bytes() -> None:
    proto = model(CHANGED["constant expression"][0])
    one, other = (normalized(proto)[0].to_proto().SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


@pytest.mark.skipif(not REAL.is_dir(), reason="no real models here")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20_cifar10", {"Conv", "BatchNormalization", "Relu", "Add", "Slice", "Pad", "AveragePool", "Reshape",
                              "Gemm"}),
        ("ultraface", {"Conv", "Relu", "Transpose", "Reshape", "Concat", "Slice", "Mul", "Add", "Div", "Softmax",
                       "Exp", "Sub"}),
        ("mobilenet_v1_025_imagenet", {"Conv", "BatchNormalization", "Clip", "GlobalAveragePool", "Reshape",
                                       "Softmax"}),
    ],
)  # fmt: skip
def test_real_models(name: str, expected: set[str]) -> None:
    proto = onnx.load(REAL / name / "model.onnx")
    after = wrapped(convert_opset(proto, 13, name))
    Normalize().apply(after, Context())
    assert set(ops(after)) == expected
    assert all(
        not node.inputs[1:] or node.inputs[1].values is not None
        for node in after.graph.nodes
        if node.op in ("Slice", "Pad", "Reshape")
    ), "parameters are constant"
    assert_same_function(proto, after.to_proto(), 1e-5, feeds(proto, free=1))
