"""Types and shapes that inference finds without the values of weights, which it would copy."""

import graphs
import numpy as np
import onnx
import pytest

from onnxq.graph.shapes import infer_shapes, inferred_types, order_of_axes

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


@pytest.mark.parametrize(
    ("source", "target", "order"),
    [
        ([2, 5, 1, 1], [2, 1, 1, 5], (0, 2, 3, 1)),
        ([2, 1, 1, 5], [2, 5, 1, 1], (0, 3, 1, 2)),
        ([2, 5, 3], [2, 5, 3], (0, 1, 2)),
        (["N", 5, 1, 1], [None, 1, 1, 5], (0, 2, 3, 1)),
        ([1, 1, "N"], ["N", 1, 1], (2, 0, 1)),
        (["N", 5, 1], ["M", 1, 5], (0, 2, 1)),  # as many elements: both are one number
    ],
)
def test_a_reshape_that_moves_axes_of_length_one_is_an_order_of_axes(source, target, order):
    assert order_of_axes(source, target) == order
    if all(isinstance(size, int) for size in source):
        x = np.arange(np.prod(source)).reshape(source)
        np.testing.assert_array_equal(x.reshape(target), x.transpose(order))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ([2, 3, 1], [3, 2, 1]),
        ([2, 6], [3, 4]),
        ([2, 3], [2, 3, 1]),
        (["N", "M", 1], ["N", 1, "M"]),  # their product alone is known to be the same
        (["N", 6, 1], ["N", 3, 2]),
        ([0, 1, 5], [0, 5, 1]),  # nothing at all may take any shape
        (None, [2]),
        ([2], None),
    ],
)
def test_what_does_more_or_is_not_known_is_none(source, target):
    assert order_of_axes(source, target) is None
