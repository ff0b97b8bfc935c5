"""Weights that exporters write as Constant nodes inside of branches: found, stored as integers, the function kept."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import run
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.helper import make_node

import onnxq
from onnxq.graph.inner_constants import with_inner_constants

RANDOM = np.random.default_rng(0)


def constant(name: str, values: np.ndarray) -> NodeProto:
    return make_node("Constant", [], [name], f"{name}_node", value=numpy_helper.from_array(values))


def weights(name: str, *shape: int) -> NodeProto:
    return constant(name, np.float32(RANDOM.standard_normal(shape) / 6))


def body(nodes: list[NodeProto], output: str) -> GraphProto:
    return helper.make_graph(nodes, output, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def detector() -> ModelProto:
    """As PyTorch scripts a voice detector: a branch for each rate, in it a layer, and branches with an LSTM each whose
    gates are put into ONNX's order by Slice and Concat."""

    def lstm(name: str) -> GraphProto:
        gates = [
            constant("zero", np.int64([0])), constant("one", np.int64([32])), constant("end", np.int64([128])),
            make_node("Slice", ["w_ih", "zero", "one"], [f"{name}_i"]),
            make_node("Slice", ["w_ih", "one", "end"], [f"{name}_rest"]),
            make_node("Concat", [f"{name}_rest", f"{name}_i"], [f"{name}_w"], axis=0),
            make_node("Unsqueeze", [f"{name}_w", "zero"], [f"{name}_w1"]),
            make_node("Unsqueeze", ["w_hh", "zero"], [f"{name}_r1"]),
            make_node("LSTM", ["h1", f"{name}_w1", f"{name}_r1"], [f"{name}_y", f"{name}_out"], name, hidden_size=32),
        ]  # fmt: skip
        return body(gates, f"{name}_out")

    def rate(name: str) -> GraphProto:
        inner = make_node("If", ["loud"], [f"{name}_out"], then_branch=lstm(f"{name}_a"), else_branch=lstm(f"{name}_b"))
        nodes = [
            weights("w", 48, 64), weights("w_ih", 128, 64), weights("w_hh", 128, 32), constant("first", np.int64([0])),
            make_node("MatMul", ["x", "w"], ["h"], f"{name}_layer"), make_node("Unsqueeze", ["h", "first"], ["h1"]),
            inner,
        ]  # fmt: skip
        return body(nodes, f"{name}_out")

    nodes = [make_node("If", ["fast"], ["y"], "rates", then_branch=rate("yes"), else_branch=rate("no"))]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 48]),
        helper.make_tensor_value_info("fast", TensorProto.BOOL, []),
        helper.make_tensor_value_info("loud", TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "N", 32])
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output]), opset_imports=[helper.make_opsetid("", 16)], ir_version=8
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def samples() -> list[dict[str, np.ndarray]]:
    return [
        {"x": np.float32(RANDOM.standard_normal((5, 48))), "fast": np.array(fast), "loud": np.array(loud)}
        for fast in (False, True)
        for loud in (False, True)
    ]


def test_they_become_initializers_and_nothing_moves() -> None:
    proto = detector()
    before = proto.SerializeToString()
    lifted = with_inner_constants(proto)
    assert proto.SerializeToString() == before, "the given model is not changed"
    onnx.checker.check_model(lifted, full_check=True)
    for feed in samples():
        np.testing.assert_array_equal(run(proto, feed)["y"], run(lifted, feed)["y"])
    rates = lifted.graph.node[0].attribute
    assert [[t.name for t in a.g.initializer] for a in rates] == [["w"], ["w"]], "only slices read the others"
    inner = [a.g for rate in rates for node in rate.g.node if node.op_type == "If" for a in node.attribute]
    assert [sorted(list(t.dims) for t in g.initializer) for g in inner] == [[[1, 128, 32], [1, 128, 64]]] * 4


def test_weights_in_nested_branches_are_stored_as_integers() -> None:
    proto = detector()
    result = onnxq.quantize(proto, samples() * 8, threads=1, preset="w8")
    assert result.report.source.bytes == proto.ByteSize()
    assert result.model.ByteSize() < 0.4 * proto.ByteSize()
    for feed in samples():
        expected, got = run(proto, feed)["y"], run(result.model, feed)["y"]
        assert 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(expected - got)) > 30


def test_a_model_without_bodies_stays_the_same_object() -> None:
    text = '<ir_version: 8, opset_import: ["" : 16]> g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }'
    proto = onnx.parser.parse_model(text)
    assert with_inner_constants(proto) is proto


@pytest.mark.parametrize("small", [True, False])
def test_what_is_small_or_an_output_of_the_body_stays_a_node(small: bool) -> None:
    shape = (4, 4) if small else (48, 48)
    branch = {"y1": body([weights("y1", *shape)], "y1"), "y2": body([weights("y2", *shape)], "y2")}
    node = make_node("If", ["c"], ["y"], then_branch=branch["y1"], else_branch=branch["y2"])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    proto = helper.make_model(helper.make_graph([node], "g", [condition], [output]))
    assert with_inner_constants(proto) is proto
