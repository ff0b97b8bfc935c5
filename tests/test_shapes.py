"""Types and shapes that inference finds without the values of weights, which it would copy."""

import graphs
import onnx
import pytest

from onnxq.graph.shapes import infer_shapes, inferred_types

RESHAPED = """(float[N,64] x) => (float[N,4,c] y) <float[64,64] w, int64[3] shape = {0, 4, 16}, float[64] b> {
    h = MatMul(x, w)  a = Add(h, b)  y = Reshape(a, shape) }"""
NESTED = """(float[2,64] x, bool[1] choose) => (float[2,64] y) <float[64,64] w> {
    y = If(choose) <then_branch = g1 () => (float[2,64] t) { a = MatMul(x, w)  t = Relu(a) },
                    else_branch = g2 () => (float[2,64] e) { e = MatMul(x, w) }> }"""


def stated(proto):
    values = (*proto.graph.value_info, *proto.graph.output)
    return {value.name: value.SerializeToString(deterministic=True) for value in values}


@pytest.mark.parametrize("text", [RESHAPED, NESTED])
def test_types_do_not_depend_on_the_values_of_weights(text):
    proto = graphs.model(text)
    before = proto.SerializeToString(deterministic=True)
    found = inferred_types(proto)
    assert stated(found) == stated(infer_shapes(proto))
    assert proto.SerializeToString(deterministic=True) == before


def test_what_is_inferred_holds_shapes_and_no_weights():
    proto = graphs.model(RESHAPED)
    found = {tensor.name: tensor for tensor in inferred_types(proto).graph.initializer}
    assert list(found["w"].dims) == [64, 64]
    assert found["w"].ByteSize() < 100
    assert list(onnx.numpy_helper.to_array(found["shape"])) == [0, 4, 16]
