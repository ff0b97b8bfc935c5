"""Cross-layer equalization: the function stays, ranges become equal, Clip is respected, what is left out is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from graphs import assert_close, feeds, model, run, wrapped
from hypothesis import given, settings
from test_scaling_groups import networks, shaped

from onnxq.data import Feed
from onnxq.execution.services import Services
from onnxq.graph.model import Moments
from onnxq.graph.scaling_groups import find_groups
from onnxq.numeric.equalization import Activation, LayerSensitivity, Ranges, in_memory, least_noise
from onnxq.options import Options
from onnxq.passes.base import Context
from onnxq.passes.equalize_layers import LARGEST, EqualizeLayers
from onnxq.passes.fold_batchnorm import FoldBatchNorm
from onnxq.passes.normalize import Normalize
from onnxq.pipeline.open_inputs import open_model
from onnxq.pipeline.prepare import load

MODELS = Path(__file__).parent.parent / "models"
REAL = Path(__file__).parents[2] / "shared" / "realmodels"
FILES = sorted([*MODELS.glob("*/model.onnx"), *REAL.glob("*/model.onnx")])

PAIR = (
    "(float[N,3,5,5] x) => (float[N,5,5,5] y) <float[4,3,1,1] w, float[4] b, float[5,4,1,1] v{more}>"
    " {{ a = Conv(x, w, b) r = {activation} y = Conv(r, v) }}"
)


def data(proto: onnx.ModelProto, count: int = 4) -> Context:
    return Context(feeds=[Feed(feeds(proto, seed=10 + i, free=1), None, str(i)) for i in range(count)])


def pair(activation: str = "Relu(a)", more: str = "", **values: np.ndarray) -> onnx.ModelProto:
    return model(PAIR.format(activation=activation, more=more), **values)


def test_both_sides_of_a_channel_get_the_same_range() -> None:
    proto = pair()
    equal = wrapped(proto)
    outcome = EqualizeLayers().apply(equal, Context())
    tensors = equal.graph.tensors()
    rows = np.abs(tensors["w"].values).max(axis=(1, 2, 3))
    columns = np.abs(tensors["v"].values).max(axis=(0, 2, 3))
    np.testing.assert_allclose(rows, columns, rtol=2e-3)
    before = np.abs(wrapped(proto).graph.tensors()["w"].values).max(axis=(1, 2, 3))
    assert outcome.changed == 4
    assert before.max() / before.min() != pytest.approx(rows.max() / rows.min())
    assert_close(run(equal.to_proto(), feeds(proto))["y"], run(proto)["y"], 1e-5)


def test_layers_that_are_left_out_say_why() -> None:
    outcome = EqualizeLayers().apply(wrapped(pair("Sigmoid(a)")), Context())
    assert outcome.changed == 0
    assert any("4 of 4 channels kept" in s.reason and "Sigmoid" in s.reason for s in outcome.skips)
    assert any("it is an output of the model" in s.reason for s in outcome.skips)


def test_dead_channels_stay_finite() -> None:
    w = np.ones((4, 3, 1, 1))
    w[0], w[1] = 0, 1e-30
    v = np.ones((5, 4, 1, 1))
    v[:, 3] = 0
    equal = wrapped(pair(w=w, v=v))
    EqualizeLayers().apply(equal, Context())
    for name in ("w", "v"):
        assert np.isfinite(equal.graph.tensors()[name].values).all()
    assert not equal.graph.tensors()["w"].values[0].any()


def test_moments_are_rescaled() -> None:
    proto = pair()
    equal = wrapped(proto)
    equal.moments["a"] = Moments(np.arange(4.0), np.ones(4))
    before = equal.graph.tensors()["w"].values
    EqualizeLayers().apply(equal, Context())
    scale = (before / equal.graph.tensors()["w"].values)[:, 0, 0, 0]
    np.testing.assert_allclose(equal.moments["a"].mean, np.arange(4.0) / scale, rtol=1e-5)
    np.testing.assert_allclose(equal.moments["a"].std, 1 / scale, rtol=1e-5)


@pytest.mark.parametrize("method", ["range", "noise"])
def test_clip_keeps_what_reaches_its_bound(method: Literal["range", "noise"]) -> None:
    w = np.zeros((4, 3, 1, 1))
    w[:, 0, 0, 0] = [0.05, 0.1, 100, 0.2]
    proto = pair("Clip(a, lo, hi)", ", float lo = {0.0}, float hi = {6.0}", w=w, b=np.zeros(4))
    equal, context = wrapped(proto), data(proto)
    outcome = EqualizeLayers(method).apply(equal, context)
    after = equal.graph.tensors()["w"].values[:, 0, 0, 0]
    assert after[2] == 100
    assert (after[[0, 1, 3]] != np.float32(w[[0, 1, 3], 0, 0, 0])).all()
    assert any("1 of 4 channels kept: it reaches a bound of Clip" in s.reason for s in outcome.skips)
    for feed in context.feeds:
        assert_close(run(equal.to_proto(), feed.arrays)["y"], run(proto, feed.arrays)["y"], 1e-5)


def test_without_data_or_moments_clip_keeps_all() -> None:
    proto = pair("Clip(a, lo, hi)", ", float lo = {0.0}, float hi = {6.0}")
    assert EqualizeLayers().apply(wrapped(proto), Context()).changed == 0
    known = wrapped(proto)
    known.moments["a"] = Moments(np.array([0.0, 1.0, 5.0, 9.0]), np.array([1.0, 1.0, 1.0, 0.1]))
    EqualizeLayers().apply(known, Context())
    ratio = wrapped(proto).graph.tensors()["w"].values[:, 0, 0, 0] / known.graph.tensors()["w"].values[:, 0, 0, 0]
    assert (ratio[:2] != 1).all()
    assert (ratio[2:] == 1).all()


@given(networks())
@settings(max_examples=30, deadline=None)
def test_random_networks_keep_their_function(network: tuple[str, int]) -> None:
    text, seed = network
    proto = model(text, seed=seed)
    for method, context in (("range", Context()), ("noise", data(proto))):
        equal = shaped(proto)
        EqualizeLayers(method).apply(equal, context)  # type: ignore[arg-type]
        assert_close(run(equal.to_proto(), feeds(proto))["y"], run(proto)["y"], 1e-4)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
@pytest.mark.parametrize("method", ["range", "noise"])
def test_real_networks_keep_their_function(path: Path, method: Literal["range", "noise"]) -> None:
    proto, origin, _ = open_model(path)
    equal = load(proto, origin, Options())
    context = replace(data(proto, 2), services=Services(threads=2))

    Normalize().apply(equal, context)
    FoldBatchNorm().apply(equal, context)
    EqualizeLayers(method).apply(equal, context)
    for feed in context.feeds:
        expected, got = run(proto, feed.arrays), run(equal.to_proto(), feed.arrays)
        if not all(np.isfinite(value).all() for value in expected.values()):
            pytest.skip("the float network itself computes no numbers from random inputs of these shapes")
        for name, value in expected.items():
            assert_close(got[name], value, 1e-4, name)


def test_groups_are_what_they_were_after_scaling() -> None:
    equal = wrapped(pair())
    before = find_groups(equal)
    EqualizeLayers().apply(equal, Context())
    assert find_groups(equal).reasons == before.reasons


def test_a_layer_without_outputs_has_no_ranges() -> None:
    empty = Ranges(in_memory(np.zeros((1, 0, 3))), np.zeros(0, int), np.arange(3))
    assert empty.largest(np.zeros(3), 2).shape == (0,)
    np.testing.assert_array_equal(empty.largest(np.zeros(3), 1), np.zeros(3))


def test_powers_that_are_kept_as_float32_lead_to_the_same_scales() -> None:
    """Also where channels differ by far more than what float32 holds of the twelfth power."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(-13, 13, 6))
    first = np.abs(rng.standard_normal((1, 6, 5))) * sizes.reshape(1, 6, 1)
    second = np.abs(rng.standard_normal((1, 4, 6))) / sizes
    ids, outer = np.arange(6), np.arange(6, 10)
    layers = [
        (Ranges(in_memory(first), ids, None), LayerSensitivity(np.ones(5), sizes**-2, 1)),
        (Ranges(in_memory(second), outer, ids), LayerSensitivity(sizes**2, np.ones(4), 1)),
    ]
    bounds = np.where(np.arange(10) < 6, -LARGEST, 0.0), np.where(np.arange(10) < 6, LARGEST, 0.0)
    expected = least_noise(layers, [], *bounds, (127.0, 255.0))
    kept: list[np.dtype[Any]] = []

    def keep(values: np.ndarray) -> Callable[[], np.ndarray]:
        narrow = np.asarray(values, np.float32)
        return lambda: kept.append(narrow.dtype) or narrow

    found = least_noise(iter(layers), [], *bounds, (127.0, 255.0), keep=keep)
    assert np.abs(expected).max() > 3.7, "as far as so many steps go"
    assert set(kept) == {np.dtype(np.float32)}
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("groups", [1, 6], ids=["dense", "depthwise"])
def test_with_a_scale_for_each_row_weights_set_another_price_on_scales(groups: int) -> None:
    """The noise that the formula at the head of the module predicts is least, with maxima that are not smoothed."""
    rng = np.random.default_rng(1)
    first = np.abs(rng.standard_normal((1, 6, 5)))
    second = np.abs(rng.standard_normal((groups, 6 // groups, 6 // groups))) * np.exp(rng.uniform(-3, 3, 6)).reshape(
        groups, -1, 1
    )
    largest, power, counts = np.exp(rng.uniform(-2, 2, 6)), np.exp(rng.uniform(-4, 4, 6)), np.exp(rng.uniform(-2, 2, 6))
    ids, outer, steps = np.arange(6), np.arange(6, 12), (7.0, 15.0)
    layers = [
        (Ranges(in_memory(first), ids, None), LayerSensitivity(np.ones(5), counts, 1)),
        (Ranges(in_memory(second), outer, ids), LayerSensitivity(power, np.ones(6), 1)),
    ]
    free = np.arange(12) < 6
    bounds = np.where(free, -LARGEST, 0.0), np.where(free, LARGEST, 0.0)
    tensor = Activation(ids, largest, counts)

    def noise(u: np.ndarray) -> float:
        s = np.exp(u[:6])
        rows = np.square((second * s.reshape(groups, 1, -1)).max(axis=2)).sum(axis=1)
        weights = (rows * (power / s**2).reshape(groups, -1).sum(axis=1)).sum() / steps[0] ** 2
        return float(weights + np.square((largest / s).max()) * (counts * s**2).sum() / steps[1] ** 2)

    by_row, by_tensor = (least_noise(layers, [tensor], *bounds, steps, per_row=each) for each in (True, False))
    assert noise(by_row) < noise(by_tensor)
    near = [noise(by_row + 0.3 * free * rng.standard_normal(12)) for _ in range(50)]
    assert noise(by_row) <= 1.03 * min(near), "maxima are smoothed"
    if groups == 6:
        even = largest / np.exp(by_row[:6])
        assert even.max() / even.min() < 0.2 * largest.max() / largest.min(), "no weight keeps channels apart"
