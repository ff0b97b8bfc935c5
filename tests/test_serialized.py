"""Walks over serialized graphs reach what stands in branches, functions, attributes and sparse tensors."""

from __future__ import annotations

import numpy as np
from graphs import model
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxq.graph.serialized import (
    bodies_of,
    captured,
    constants_of,
    drop_unread_initializers,
    graphs_of,
    names_of,
    names_read,
    nodes_of,
    unused_name,
)

IF = """(float[N,3] x, bool c) => (float[N,3] y) <float[3] k, float[3] unread> {
    h = Add(x, k)
    y = If(c) <
        then_branch = t () => (float[N,3] a) { a1 = Add(h, k) a = Mul(a1, k) },
        else_branch = e () => (float[N,3] b) { b = Neg(h) }
    >
}"""


def constant(name: str) -> TensorProto:
    return numpy_helper.from_array(np.zeros(3, np.float32), name)


def branches() -> ModelProto:
    """IF with an initializer in each branch, of which one is read."""
    proto = model(IF)
    then, other = bodies_of(proto.graph.node[1])
    then.node[1].input[1] = "own"
    then.initializer.append(constant("own"))
    other.initializer.append(constant("idle"))
    return proto


def test_bodies_are_walked_behind_their_nodes() -> None:
    graph = branches().graph
    branch = graph.node[1]
    assert [n.op_type for n in nodes_of(graph)] == ["Add", "If", "Add", "Mul", "Neg"]
    assert [g.name for g in graphs_of(graph)][1:] == [g.name for g in bodies_of(branch)] == ["t", "e"]
    assert not list(bodies_of(graph.node[0]))
    assert captured(branch) == {"h", "k", "a1", "own", "a", "b"}


def test_names_and_what_reads_them() -> None:
    graph = branches().graph
    assert names_of(graph) == {"x", "c", "y", "h", "k", "unread", "a", "a1", "own", "b", "idle"}
    assert names_of(graph) - names_read(graph) == {"unread", "idle"}
    drop_unread_initializers(graph)
    assert [t.name for each in graphs_of(graph) for t in each.initializer] == ["k", "own"]


def test_unused_names_are_taken() -> None:
    taken = {"w", "w_1"}
    assert [unused_name("w", taken), unused_name("w", taken), unused_name("v", taken)] == ["w_2", "w_3", "v"]
    assert taken == {"w", "w_1", "w_2", "w_3", "v"}


def test_constants_of_attributes_bodies_functions_and_sparse_ones() -> None:
    def node(name: str) -> NodeProto:
        return helper.make_node("Constant", [], [name], value=constant(f"{name}_value"))

    proto = branches()
    proto.graph.node.append(node("main"))
    next(iter(bodies_of(proto.graph.node[1]))).node.append(node("inner"))
    indices = numpy_helper.from_array(np.zeros(3, np.int64), "indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(constant("values"), indices, [9]))
    body = helper.make_graph([node("deep")], "body", [], [], initializer=[constant("deeper")])
    call = helper.make_node("If", ["c"], ["o"], then_branch=body, else_branch=body)
    proto.functions.append(helper.make_function("own", "F", ["c"], ["o"], [call], proto.opset_import))
    found = [t.name for t in constants_of(proto)]
    assert sorted(found) == sorted(
        ["k", "unread", "own", "idle", "main_value", "inner_value", "values", "indices"] + 2 * ["deep_value", "deeper"]
    )
