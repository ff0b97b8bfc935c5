import numpy as np
import pytest
from graphs import model, run, weights
from quantized import planned, quantized, samples, with_ranges

from onnxq.execution.session import Session
from onnxq.passes.base import Context
from onnxq.passes.set_bias_scales import SetBiasScales
from onnxq.rounding.bias_scale import LARGEST_BIAS

LAYERS = {
    "Gemm": "y = Gemm(x, w, b)",
    "MatMul": "a = MatMul(x, w) y = Add(a, b)",
    "MatMul, bias first": "a = MatMul(x, w) y = Add(b, a)",
}


def layer(body="y = Gemm(x, w, b)", **values):
    return model(f"(float[1,3] x) => (float[1,2] y) <float[3,2] w, float[2] b> {{ {body} }}", **values)


def bias_of(proto, name="b"):
    """(integers, scale) of a lowered bias."""
    found = weights(proto)
    return found[f"{name}_quantized"], found[f"{name}_scale"]


@pytest.mark.parametrize("body", LAYERS.values(), ids=LAYERS)
def test_biases_are_integers_at_the_product_of_both_scales(body):
    proto = layer(body)
    found = weights(quantized(proto))
    integers, scale = found["b_quantized"], found["b_scale"]
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(scale, np.float32(np.float64(found["x_scale"]) * np.float64(found["w_scale"])))
    np.testing.assert_array_equal(integers, np.rint(np.float64(weights(proto)["b"]) / np.float64(scale)))
    np.testing.assert_array_equal(found["b_zero_point"], np.zeros(2, np.int32))


def test_a_bias_shared_by_layers_with_different_scales_is_duplicated():
    proto = model(
        "(float[1,3] x) => (float[1,3] y) <float[3,3] w, float[3,3] v, float[3] b>"
        " { a = Gemm(x, w, b) y = Gemm(a, v, b) }"
    )
    written = quantized(proto)
    found = weights(written)
    scales = {tuple(found["b_scale"]), tuple(found["b_scale_1"])}
    expected = {tuple(np.float32(np.float64(found[f"{x}_scale"]) * found[f"{w}_scale"])) for x, w in ("xw", "av")}
    assert scales == expected
    assert "b" not in found


def test_a_layer_in_float_keeps_the_bias_and_the_weight_that_it_shares():
    proto = model(
        "(float[1,3] x) => (float[1,3] y) <float[3,3] w, float[3] b>"
        " { a = Gemm(x, w, b) d = Gemm(x, w, b) y = Sub(a, d) }"
    )
    written = quantized(proto, exclude=("Gemm_d",))
    assert next(n for n in written.graph.node if n.name == "Gemm_d").input[1:] == ["w", "b"]
    assert next(n for n in written.graph.node if n.name == "Gemm_a").input[1:] == ["w_dequantized", "b_dequantized"]


@pytest.mark.parametrize("weight", [1e-12, 0.0])
@pytest.mark.parametrize("body", LAYERS.values(), ids=LAYERS)
def test_where_a_bias_would_overflow_the_weight_scale_is_raised(body, weight):
    values = np.float32([[1, weight]] * 3)
    proto = layer(body, w=values, b=np.float32([0.5, 3e9]))
    model_, _ = planned(proto)
    assert SetBiasScales().apply(model_, Context()).changed == 0  # no ranges yet
    written = quantized(proto)
    integers, _ = bias_of(written)
    assert abs(int(integers[1])) <= LARGEST_BIAS * 1.001
    feed = samples(proto)[0]
    expected, plain, optimised = run(proto, feed), run(written, feed), Session(written, optimize=True).run(feed)
    for got in (plain, optimised):
        np.testing.assert_allclose(got["y"][0, 1], expected["y"][0, 1], rtol=1e-6)
        np.testing.assert_allclose(got["y"][0, 0], expected["y"][0, 0], atol=0.05)


def test_only_the_channels_that_need_it_are_raised_and_the_step_says_so():
    proto = layer(w=np.float32([[1, 1e-12]] * 3), b=np.float32([0.5, 100]))
    untouched = with_ranges(layer(w=np.float32([[1, 1e-12]] * 3), b=np.float32([0.5, 0])))
    model_ = with_ranges(proto)
    before, after = (m.quantizers["w"].params.scale for m in (untouched, model_))
    assert (before[0] == after[0], before[1] < after[1]) == (True, True)
    np.testing.assert_allclose(after[1] * model_.quantizers["x"].params.scale, 100 / LARGEST_BIAS, rtol=1e-6)


def test_a_layer_in_float_raises_nothing_for_those_it_shares_its_weight_with():
    proto = model(
        "(float[1,3] x) => (float[1,3] y) <float[3,3] w, float[3] b, float[3] c>"
        " { a = Gemm(x, w, b) d = Gemm(x, w, c) y = Sub(a, d) }",
        w=1e-12,
        b=0,
        c=100,
    )
    assert with_ranges(proto, exclude=("Gemm_d",)).quantizers["w"].params.scale.max() < 1e-13


def test_the_scale_of_a_bias_is_never_too_small_for_float32():
    proto = layer(w=1e-30, b=0)
    feeds = [{"x": np.full((1, 3), 1e-20, np.float32)}]
    written = quantized(proto, feeds)
    assert bias_of(written)[1].min() >= np.finfo(np.float32).tiny
    assert run(written, feeds[0])["y"].tolist() == [[0, 0]]
