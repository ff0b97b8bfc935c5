"""Weights by output and input channel: scaling them scales what the layer computes, whatever the operator; and however
few weights are looked at at a time."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import feeds, model, ops, run, weights, wrapped
from onnx import ModelProto

from onnxq.graph import edit
from onnxq.graph.model import Model
from onnxq.operators import channels
from onnxq.operators.conv import pads
from onnxq.operators.linear import LinearLayer, linear_layer
from onnxq.operators.registry import names

LAYERS = {
    "Conv": ("(float[2,3,4,4] x) => (float[2,5,?,?] y) <float[5,3,2,2] w> { y = Conv(x, w) }", 3, 5),
    "Conv grouped": ("(float[2,6,4,4] x) => (float[2,4,?,?] y) <float[4,3,2,2] w> { y = Conv<group=2>(x, w) }", 6, 4),
    "Conv depthwise": ("(float[2,3,4,4] x) => (float[2,6,?,?] y) <float[6,1,2,2] w> { y = Conv<group=3>(x, w) }", 3, 6),
    "Conv 1d": ("(float[2,3,4] x) => (float[2,5,?] y) <float[5,3,2] w> { y = Conv(x, w) }", 3, 5),
    "ConvTranspose": ("(float[2,3,4,4] x) => (float[2,5,?,?] y) <float[3,5,2,2] w> { y = ConvTranspose(x, w) }", 3, 5),
    "ConvTranspose grouped": ("(float[2,6,4,4] x) => (float[2,4,?,?] y) <float[6,2,2,2] w>"
                              " { y = ConvTranspose<group=2>(x, w) }", 6, 4),
    "Gemm": ("(float[2,3] x) => (float[2,5] y) <float[3,5] w> { y = Gemm(x, w) }", 3, 5),
    "Gemm transposed": ("(float[2,3] x) => (float[2,5] y) <float[5,3] w> { y = Gemm<transB=1>(x, w) }", 3, 5),
    "MatMul": ("(float[2,3] x) => (float[2,5] y) <float[3,5] w> { y = MatMul(x, w) }", 3, 5),
    "MatMul stacked": ("(float[4,2,3] x) => (float[4,2,5] y) <float[4,3,5] w> { y = MatMul(x, w) }", 3, 5),
}  # fmt: skip


def opened(name: str) -> tuple[ModelProto, Model, LinearLayer]:
    proto = model(LAYERS[name][0])
    wrapper = wrapped(proto)
    return proto, wrapper, heart_of(wrapper)


def heart_of(wrapper: Model) -> LinearLayer:
    found = linear_layer(next(n for n in wrapper.graph.nodes if n.op in names("linear")))
    assert isinstance(found, LinearLayer)
    return found


def across(layer: LinearLayer, vector: np.ndarray, ndim: int) -> np.ndarray:
    """(C,) along the channels of the layer's input or output of rank `ndim`."""
    return vector.reshape([-1 if i == layer.output_axis % ndim else 1 for i in range(ndim)])


@pytest.mark.parametrize("name", LAYERS)
def test_scaling_output_channels(name: str) -> None:
    proto, wrapper, layer = opened(name)
    assert layer.channels == LAYERS[name][2]
    scale = np.arange(1.0, 1 + layer.channels)
    edit.set_weight(wrapper, layer, np.float64(layer.weight.values) * channels.by_output(layer, scale))
    before, after = run(proto)["y"], run(wrapper.to_proto(), feeds(proto))["y"]
    np.testing.assert_allclose(after, before * across(layer, scale, before.ndim), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_scaling_input_channels(name: str) -> None:
    proto, wrapper, layer = opened(name)
    assert layer.input_channels == LAYERS[name][1]
    scale = np.arange(1.0, 1 + layer.input_channels)
    edit.set_weight(wrapper, layer, np.float64(layer.weight.values) * channels.by_input(layer, scale))
    x = feeds(proto)["x"]
    expected = run(proto, {"x": np.float32(x * across(layer, scale, x.ndim))})["y"]
    np.testing.assert_allclose(run(wrapper.to_proto(), {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_response_to_a_constant(name: str) -> None:
    proto, _, layer = opened(name)
    constant = np.arange(1.0, 1 + layer.input_channels)
    if name.startswith("ConvTranspose") or name == "MatMul stacked":
        assert layer.varies in (
            "its output positions see different taps of the weight",
            "its weight is a stack of matrices",
        )
        return
    assert layer.varies is None
    x = feeds(proto)["x"]
    output = run(proto, {"x": np.float32(np.broadcast_to(across(layer, constant, x.ndim), x.shape))})["y"]
    expected = np.broadcast_to(across(layer, channels.propagate_mean(layer, constant), output.ndim), output.shape)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_where_there_is_none_and_then_another(name: str) -> None:
    proto, wrapper, layer = opened(name)
    for bias in (np.arange(1.0, 1 + layer.channels), -np.ones(layer.channels)):
        edit.set_bias(wrapper, layer, bias)
        layer = heart_of(wrapper)
        np.testing.assert_array_equal(layer.bias.values, np.float32(bias))
        assert layer.output.name == "y"
        before, after = run(proto)["y"], run(wrapper.to_proto(), feeds(proto))["y"]
        np.testing.assert_allclose(after, before + across(layer, bias, before.ndim), rtol=1e-5, atol=1e-5)


def test_an_empty_bias_is_filled() -> None:
    proto = model(LAYERS["Conv"][0])
    proto.graph.node[0].input.append("")
    wrapper = wrapped(proto)
    edit.set_bias(wrapper, heart_of(wrapper), np.ones(5))
    assert len(wrapper.graph.nodes[0].inputs) == 3


def test_the_bias_of_a_product_stands_right_behind_it() -> None:
    text = LAYERS["MatMul"][0].replace("[2,5] y", "[2,5] z").replace("}", "r = Relu(y) z = Neg(r) }")
    wrapper = wrapped(model(text))
    edit.set_bias(wrapper, heart_of(wrapper), np.ones(5))
    assert ops(wrapper) == ["MatMul", "Add", "Relu", "Neg"]
    assert ops(wrapper.to_proto()) == ops(wrapper)


def test_a_weight_that_is_read_alone_keeps_its_name_and_clones_keep_theirs() -> None:
    _, wrapper, layer = opened("Conv")
    clone = wrapper.clone()
    old = layer.weight.values
    edit.set_weight(wrapper, layer, np.zeros(old.shape))
    assert list(weights(wrapper.to_proto())) == ["w"]
    np.testing.assert_array_equal(weights(clone.to_proto())["w"], old)
    assert old.any(), "the array itself is never written into"


@pytest.mark.parametrize(
    "text",
    [
        "(float[2,3] x) => (float[2,5] y) <float[3,5] w> { a = MatMul(x, w) b = MatMul(x, w) y = Sub(a, b) }",
        "(float[2,3] x) => (float[2,5] y, float[3,5] w) <float[3,5] w> { y = MatMul(x, w) }",
    ],
)
def test_a_shared_weight_changes_for_one_layer_only(text: str) -> None:
    proto = model(text)
    wrapper = wrapped(proto)
    layer = heart_of(wrapper)
    edit.set_weight(wrapper, layer, np.zeros((3, 5)))
    after = weights(wrapper.to_proto())
    np.testing.assert_array_equal(after["w"], weights(proto)["w"])
    assert not after["w_1"].any()
    assert layer.node.inputs[1].name == "w_1"


@pytest.mark.parametrize(
    ("attributes", "padded"),
    [("", False), ("<pads=[0,0,0,0]>", False), ("<pads=[0,1,0,0]>", True), ('<auto_pad="VALID">', False),
     ('<auto_pad="SAME_UPPER">', True), ('<auto_pad="NOTSET", pads=[1,0,0,0]>', True)],
)  # fmt: skip
def test_pads(attributes: str, padded: bool) -> None:
    wrapper = wrapped(model(LAYERS["Conv"][0].replace("Conv(", f"Conv{attributes}(")))
    assert pads(wrapper.graph.nodes[0]) == padded


@pytest.fixture(params=[1, 20, 2**20])
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "AT_ONCE", request.param)


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize("name", LAYERS)
def test_blocks_are_the_whole_weight(name: str) -> None:
    _, _, layer = opened(name)
    found = [(part, *values) for part, values in channels.blocks(layer)]
    whole = channels.pairs(layer)
    assert {values.dtype for _, values in found} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(np.concatenate([values for _, values in found], axis=1), whole)
    for part, values in found:
        np.testing.assert_array_equal(values, whole[:, part])


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize("name", LAYERS)
def test_an_answer_is_the_sum_over_inputs_and_taps(name: str) -> None:
    _, _, layer = opened(name)
    whole = np.asarray(channels.pairs(layer), np.float64)
    rng = np.random.default_rng(0)
    vector, shares = rng.standard_normal(layer.input_channels), rng.uniform(0, 1, whole.shape[3])
    by_group = vector.reshape(whole.shape[0], -1)
    expected = np.einsum("goit,gi,t->go", np.abs(whole), by_group, shares).reshape(-1)
    np.testing.assert_allclose(channels.sum_over_inputs(layer, vector, of=np.abs, shares=shares), expected)
    other = np.asarray(layer.weight.values) + 1
    ones = np.einsum("goit,gi->go", np.ones_like(whole), by_group).reshape(-1)
    found = channels.sum_over_inputs(layer, vector, other, np.asarray(layer.weight.values), of=np.subtract)
    np.testing.assert_allclose(found, ones, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize("name", LAYERS)
def test_scaled_weights_scale_outputs_and_inputs(name: str) -> None:
    proto, wrapper, layer = opened(name)
    rng = np.random.default_rng(0)
    down, up = rng.uniform(0.5, 2, layer.channels), rng.uniform(0.5, 2, layer.input_channels)
    down[1] = up[2] = 0.0
    x = feeds(proto)["x"]
    expected = run(proto, {"x": np.float32(x * across(layer, up, x.ndim))})["y"]
    new = channels.scaled(layer, down, up)
    assert new.dtype == np.float32
    edit.set_weight(wrapper, layer, new)
    found = run(wrapper.to_proto(), {"x": x})["y"]
    np.testing.assert_allclose(found, expected * across(layer, down, expected.ndim), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_at_once")
def test_what_is_scaled_by_zero_is_zero_whatever_it_was() -> None:
    _, _, layer = opened("Gemm")
    layer.weight.values[0, :] = np.inf
    layer.weight.values[:, 0] = np.nan
    found = channels.scaled(layer, np.float64(np.arange(5) > 0), np.float64(np.arange(3) > 0))
    assert not found[0].any()
    assert not found[:, 0].any()
