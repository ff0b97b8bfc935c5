"""Layers as matrices, and their error as a quadratic form, against ONNX Runtime and float64 arithmetic."""

import graphs
import numpy as np
import pytest

from onnxq.operators.linear import LinearLayer, linear_layer
from onnxq.operators.matrix import LayerMatrix
from onnxq.rounding.objective import Gram

LAYERS = {
    "conv": "(float[N,3,7,8] x) => (float[N,5,?,?] y) <float[5,3,3,2] w> { y = Conv(x, w) }",
    "conv1d": "(float[N,3,9] x) => (float[N,5,?] y) <float[5,3,3] w> { y = Conv<pads=[2,1], strides=[2]>(x, w) }",
    "conv3d": "(float[N,2,4,5,6] x) => (float[N,3,?,?,?] y) <float[3,2,2,3,2] w> "
    "{ y = Conv<pads=[1,0,1,0,2,1]>(x, w) }",
    "strided, dilated, padded": "(float[N,3,9,8] x) => (float[N,5,?,?] y) <float[5,3,3,2] w> "
    "{ y = Conv<strides=[2,3], dilations=[2,1], pads=[1,0,2,1]>(x, w) }",
    "grouped": "(float[N,6,7,7] x) => (float[N,4,?,?] y) <float[4,3,2,3] w> { y = Conv<group=2>(x, w) }",
    "depthwise": "(float[N,5,7,7] x) => (float[N,5,?,?] y) <float[5,1,3,3] w> "
    "{ y = Conv<group=5, pads=[1,1,1,1]>(x, w) }",
    "same upper": "(float[N,3,7,8] x) => (float[N,5,?,?] y) <float[5,3,3,4] w> "
    '{ y = Conv<auto_pad="SAME_UPPER", strides=[2,1]>(x, w) }',
    "same lower": "(float[N,3,7,8] x) => (float[N,5,?,?] y) <float[5,3,3,4] w> "
    '{ y = Conv<auto_pad="SAME_LOWER", strides=[2,1]>(x, w) }',
    "valid": "(float[N,3,7,8] x) => (float[N,5,?,?] y) <float[5,3,3,4] w> "
    '{ y = Conv<auto_pad="VALID", strides=[2,1]>(x, w) }',
    "transposed": "(float[N,3,4,5] x) => (float[N,5,?,?] y) <float[3,5,3,2] w> "
    "{ y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], output_padding=[1,0]>(x, w) }",
    "transposed, grouped, dilated": "(float[N,6,4,5] x) => (float[N,8,?,?] y) <float[6,4,3,2] w> "
    "{ y = ConvTranspose<group=2, dilations=[2,1], strides=[1,2]>(x, w) }",
    "transposed, same upper": "(float[N,3,4,5] x) => (float[N,5,?,?] y) <float[3,5,3,4] w> "
    '{ y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,3]>(x, w) }',
    "transposed, same lower": "(float[N,3,4,5] x) => (float[N,5,?,?] y) <float[3,5,4,4] w> "
    '{ y = ConvTranspose<auto_pad="SAME_LOWER", strides=[1,3]>(x, w) }',
    "transposed, output shape": "(float[N,3,4,5] x) => (float[N,5,?,?] y) <float[3,5,3,4] w> "
    "{ y = ConvTranspose<output_shape=[8,14], strides=[2,3]>(x, w) }",
    "gemm": "(float[N,7] x) => (float[N,5] y) <float[7,5] w> { y = Gemm(x, w) }",
    "gemm, transposed": "(float[N,7] x) => (float[N,5] y) <float[5,7] w> { y = Gemm<transB=1>(x, w) }",
    "matmul": "(float[N,7] x) => (float[N,5] y) <float[7,5] w> { y = MatMul(x, w) }",
    "matmul of rank 4": "(float[N,3,4,7] x) => (float[N,3,4,5] y) <float[7,5] w> { y = MatMul(x, w) }",
    "matmul in a batch": "(float[N,3,4,7] x) => (float[N,3,4,5] y) <float[3,7,5] w> { y = MatMul(x, w) }",
    "matmul, broadcast": "(float[2,1,4,7] x) => (float[2,3,4,5] y) <float[1,3,7,5] w> { y = MatMul(x, w) }",
}


def layer_of(name):
    proto = graphs.model(LAYERS[name])
    x = graphs.feeds(proto)["x"]
    layer = linear_layer(graphs.wrapped(proto).graph.nodes[0])
    assert isinstance(layer, LinearLayer)
    return layer, x, graphs.run(proto, {"x": x})["y"]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_a_product_of_matrices(name):
    layer, x, y = layer_of(name)
    matrix, weight = LayerMatrix.of(layer), np.float64(layer.weight.values)
    columns, rows = matrix.inputs(np.float64(x), y.shape[2:]), matrix.outputs(y)
    W = matrix.weights(weight)
    assert W.shape == (matrix.groups, matrix.rows, matrix.columns)
    np.testing.assert_allclose(W @ columns, rows, atol=2e-6 * np.abs(y).max() * matrix.columns)
    np.testing.assert_array_equal(matrix.restore(W), weight)
    chosen = np.arange(rows.shape[2])[::3]
    np.testing.assert_array_equal(matrix.inputs(x, y.shape[2:], chosen), np.float32(columns)[..., chosen])


def test_weights_are_read_alike_only_by_layers_of_one_form():
    forms = {name: LayerMatrix.of(layer_of(name)[0]) for name in LAYERS}
    assert forms["same upper"].reads_alike(forms["valid"])
    assert not forms["gemm"].reads_alike(forms["gemm, transposed"])


@pytest.fixture
def data(rng):
    return rng.standard_normal((2, 5, 40)) + 1, rng.standard_normal((2, 3, 40)) - 2, rng.standard_normal((2, 3, 5))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_the_form_is_the_squared_error(data, rng):
    x, y, W = data
    bias = rng.standard_normal((2, 3))
    expected = np.square(W @ x + bias[:, :, None] - y).sum(2)
    np.testing.assert_allclose(Gram.of(x, y).error(W, bias), expected)
    np.testing.assert_allclose(Gram.of(x, y).error(W), np.square(W @ x - y).sum(2))


def test_forms_add_up(data):
    x, y, W = data
    parts = Gram.of(x[..., :7], y[..., :7]) + Gram.of(x[..., 7:], y[..., 7:])
    np.testing.assert_allclose(parts.error(W), Gram.of(x, y).error(W))
    np.testing.assert_allclose(parts.bias(W), Gram.of(x, y).bias(W))


def test_the_bias_is_optimal_and_leaves_the_centred_form(data):
    x, y, W = data
    form = Gram.of(x, y)
    best = form.error(W, form.bias(W))
    np.testing.assert_allclose(best, form.centred().error(W))
    for shift in (-0.01, 0.01):
        assert (form.error(W, form.bias(W) + shift) > best).all()


def test_damping_draws_to_the_float_weights(data, rng):
    x, y, W = data
    form, other = Gram.of(x, y), W + rng.standard_normal(W.shape)
    mean = np.trace(form.G, axis1=1, axis2=2)[:, None] / 5
    expected = form.error(other) + 0.3 * mean * np.square(other - W).sum(2)
    np.testing.assert_allclose(form.damped(W, 0.3).error(other), expected)
