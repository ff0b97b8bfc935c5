"""Activation ranges from BatchNorm's moments, and what cannot be ranged without data."""

from __future__ import annotations

import numpy as np
from graphs import model
from test_scaling_groups import shaped

from onnxq.graph.batchnorm_statistics import propagate_batchnorm_statistics
from onnxq.graph.model import Model, Moments, Quantizer
from onnxq.numeric.quant import Grid, QuantSpec
from onnxq.passes.base import Context
from onnxq.passes.set_data_free_ranges import SetDataFreeRanges

SPEC = QuantSpec(Grid(8, signed=False), symmetric=False)
TEXT = (
    "(float[N,3,6,6] x) => (float[N,2] y) <float[4,3,1,1] u, float[5,4,1,1] v, float lo = {0.0}, float hi = {6.0},"
    " float[5,2] w> { a = Conv(x, u) b = Clip(a, lo, hi) c = Conv(b, v) p = MaxPool<kernel_shape=[2,2]>(c)"
    " d = GlobalAveragePool(p) e = Flatten(d) y = Gemm(e, w) }"
)


def planned(*tensors: str) -> Model:
    result = shaped(model(TEXT))
    result.moments["a"] = Moments(np.array([1.0, -1, 0, 2]), np.array([1.0, 0.5, 2, 1]))
    result.quantizers = {name: Quantizer(name, SPEC) for name in tensors}
    return result


def span(model: Model, name: str) -> tuple[float, float]:
    params = model.quantizers[name].params
    assert params is not None
    ends = np.array([params.grid.qmin, params.grid.qmax])
    lo, hi = (ends - np.float64(params.zero_point)) * np.float64(params.scale)
    return float(lo), float(hi)


def test_ranges_from_moments() -> None:
    result = planned("a", "b", "c", "p")
    outcome = SetDataFreeRanges(alpha=2).apply(result, Context())
    assert outcome.skips == ()
    np.testing.assert_allclose(span(result, "a"), (0, 4), atol=0.05)  # Clip tells nothing apart below 0
    np.testing.assert_allclose(span(result, "b"), (0, 4), atol=0.05)
    facts = propagate_batchnorm_statistics(result, 2)["c"]
    np.testing.assert_allclose(span(result, "c"), (facts.lo.min(), facts.hi.max()), atol=0.2)
    np.testing.assert_allclose(span(result, "p"), span(result, "c"))


def test_a_linear_layer_passes_moments_on() -> None:
    result = planned()
    known = propagate_batchnorm_statistics(result)
    z = np.random.default_rng(0).normal(result.moments["a"].mean, result.moments["a"].std, (200_000, 4))
    c = np.clip(z, 0, 6) @ np.float64(result.graph.tensors()["v"].values)[:, :, 0, 0].T
    np.testing.assert_allclose(known["c"].mean, c.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(known["c"].std, c.std(axis=0), atol=0.05)


def test_what_cannot_be_ranged_stays_in_float_and_is_named() -> None:
    result = planned("x", "a", "y")
    result.moments.clear()
    outcome = SetDataFreeRanges(inputs=(("x", -1.0, 1.0),)).apply(result, Context())
    assert list(result.quantizers) == ["x"]
    np.testing.assert_allclose(span(result, "x"), (-1, 1), atol=0.02)
    assert {s.where for s in outcome.skips} == {"a", "y"}
    assert all("give calibration data" in s.reason for s in outcome.skips)
    outcome = SetDataFreeRanges().apply(planned("x"), Context())
    assert "no range is known of this input" in outcome.skips[0].reason
