"""Scales that a target asks for beyond what ranges say, on networks whose ranges are extreme."""

import numpy as np
import pytest
from families import FAMILIES, image
from onnx import numpy_helper
from quantized import PLAIN, samples

import onnxq
from onnxq import TARGETS
from onnxq.checking import check

SUMS = "r = Relu(a) d = Conv(r, v, c) s = Add(d, r) m = Mul(s, d) y = Conv(m, u)"
START = "a = Conv<pads=[1,1,1,1]>(x, w, b) "


def scales(proto):
    return {
        t.name.removesuffix("_scale"): numpy_helper.to_array(t).item()
        for t in proto.graph.initializer
        if t.name.endswith("_scale") and not t.dims
    }


def vitis(**weights):
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 4, 3, 3), "v": (6, 6, 1, 1), "c": (6,), "b": (6,)}
    values = {name: factor * rng.standard_normal(shapes[name]) for name, factor in weights.items()}
    proto = image(START + SUMS, ", float[6,6,1,1] u", **values)
    return onnxq.quantize(proto, samples(proto), target="vitis-ai", **PLAIN).model


@pytest.mark.parametrize(
    "weights",
    [{"v": 1e-6}, {"v": 1e-6, "c": 1e-6}, {"w": 1e4}, {"w": 1e-6, "b": 1e-6}, {"b": 1e4}, {"c": 1e5}, {"b": 1e-8}],
)
def test_shifts_hold_on_extreme_networks(weights):
    assert not check(vitis(**weights), TARGETS["vitis-ai"]).violations


def test_a_weight_that_is_too_fine_is_coarsened_and_nothing_else():
    found = scales(vitis(v=1e-6))
    positions = {name: -np.log2(found[name]) for name in ("v", "r", "d")}
    assert positions["v"] + positions["r"] - positions["d"] == 16


def test_inputs_of_add_come_within_reach():
    found = scales(vitis(v=1e-6, c=1e-6))
    assert abs(np.log2(found["d"]) - np.log2(found["r"])) == 7


def test_a_grid_spans_at_least_what_the_backend_accepts():
    proto = FAMILIES["Conv-Relu"]
    feeds = [{"x": np.zeros((1, 4, 8, 8), np.float32)} for _ in range(2)]
    model = onnxq.quantize(image(START + "r = Relu(a) y = Conv(r, v)", b=-1.0), feeds, target="qnn", **PLAIN).model
    assert not check(model, TARGETS["qnn"]).violations
    tiny = [{"x": 1e-9 * f["x"]} for f in samples(proto)]
    assert scales(onnxq.quantize(proto, tiny, target="qnn", **PLAIN).model)["x"] >= np.float32(1e-4) / 255


def test_sigmoid_and_tanh_of_16_bits_have_the_encodings_of_the_backend():
    for family, name, scale in (("Sigmoid and Mul", "s", 2.0**-16), ("Tanh and Sub", "s", 2.0**-15)):
        proto = FAMILIES[family]
        model = onnxq.quantize(proto, samples(proto), target="qnn", preset="w8a16", **PLAIN).model
        assert scales(model)[name] == scale
