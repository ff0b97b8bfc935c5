"""Weights by output and input channel: the same for every linear operator, and however few are looked at at a time."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import feeds, model, run
from test_scaling_groups import shaped

from onnxq.graph import channels
from onnxq.graph.ops import LinearLayer, linear_layer

LAYERS = {
    "Conv": "(float[1,4,5,5] x) => (float[1,6,?,?] y) <float[6,4,3,3] w> { y = Conv(x, w) }",
    "groups": "(float[1,4,5,5] x) => (float[1,6,?,?] y) <float[6,2,3,3] w> { y = Conv<group=2>(x, w) }",
    "depthwise": "(float[1,4,5,5] x) => (float[1,4,?,?] y) <float[4,1,3,3] w> { y = Conv<group=4>(x, w) }",
    "ConvTranspose": "(float[1,4,5,5] x) => (float[1,6,?,?] y) <float[4,3,2,3] w> { y = ConvTranspose<group=2>(x, w) }",
    "Gemm": "(float[2,4] x) => (float[2,6] y) <float[4,6] w> { y = Gemm(x, w) }",
    "Gemm, transposed": "(float[2,4] x) => (float[2,6] y) <float[6,4] w> { y = Gemm<transB=1>(x, w) }",
    "MatMul": "(float[2,4] x) => (float[2,6] y) <float[4,6] w> { y = MatMul(x, w) }",
    "MatMul, stacked": "(float[3,2,4] x) => (float[3,2,6] y) <float[3,4,6] w> { y = MatMul(x, w) }",
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> LinearLayer:
    found = linear_layer(shaped(model(LAYERS[request.param])).graph.nodes[0])
    assert isinstance(found, LinearLayer)
    return found


@pytest.fixture(params=[1, 20, 2**20], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "AT_ONCE", request.param)


def test_blocks_are_the_whole_weight(layer: LinearLayer) -> None:
    found = [(part, *values) for part, values in channels.blocks(layer)]
    whole = channels.pairs(layer)
    assert {values.dtype for _, values in found} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(np.concatenate([values for _, values in found], axis=1), whole)
    for part, values in found:
        np.testing.assert_array_equal(values, whole[:, part])


def test_an_answer_is_the_sum_over_inputs_and_taps(layer: LinearLayer) -> None:
    whole = np.asarray(channels.pairs(layer), np.float64)
    rng = np.random.default_rng(0)
    vector, shares = rng.standard_normal(channels.input_channels(layer)), rng.uniform(0, 1, whole.shape[3])
    by_group = vector.reshape(whole.shape[0], -1)
    expected = np.einsum("goit,gi,t->go", np.abs(whole), by_group, shares).reshape(-1)
    np.testing.assert_allclose(channels.answer(layer, vector, of=np.abs, shares=shares), expected)
    other = np.asarray(layer.weight.values) + 1
    ones = np.einsum("goit,gi->go", np.ones_like(whole), by_group).reshape(-1)
    found = channels.answer(layer, vector, other, np.asarray(layer.weight.values), of=np.subtract)
    np.testing.assert_allclose(found, ones, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_scaled_weights_scale_outputs_and_inputs(text: str) -> None:
    proto = model(text)
    planned = shaped(proto)
    layer = linear_layer(planned.graph.nodes[0])
    assert isinstance(layer, LinearLayer)
    rng = np.random.default_rng(0)
    down, up = rng.uniform(0.5, 2, layer.channels), rng.uniform(0.5, 2, channels.input_channels(layer))
    down[1] = up[2] = 0.0
    feed = feeds(proto, seed=1)
    axis = layer.output_axis % feed["x"].ndim
    expected = run(proto, {"x": np.float32(feed["x"] * channels._along(up, axis, feed["x"].ndim))})["y"]
    new = channels.scaled(layer, down, up)
    assert new.dtype == np.float32
    channels.set_weight(planned, layer, new)
    found = run(planned.to_proto(), feed)["y"]
    np.testing.assert_allclose(found, expected * channels._along(down, axis, expected.ndim), rtol=1e-4, atol=1e-5)


def test_what_is_scaled_by_zero_is_zero_whatever_it_was() -> None:
    planned = shaped(model(LAYERS["Gemm"]))
    layer = linear_layer(planned.graph.nodes[0])
    assert isinstance(layer, LinearLayer)
    layer.weight.values[0, :] = np.inf
    layer.weight.values[:, 0] = np.nan
    found = channels.scaled(layer, np.float64(np.arange(6) > 0), np.float64(np.arange(4) > 0))
    assert not found[0].any()
    assert not found[:, 0].any()
