"""Bars, clipped share and noise of statistics, beside the same from the values themselves."""

import numpy as np
import pytest

from onnxq.numeric.distribution import bars, clipped, grid_ends, grid_sqnr
from onnxq.numeric.histogram import Histogram
from onnxq.numeric.metrics import sqnr
from onnxq.numeric.quant import Grid, QuantParams, QuantSpec
from onnxq.numeric.samples import Samples

SPEC = QuantSpec(Grid(8, signed=False), symmetric=False)


@pytest.fixture
def values():
    """Half zeros, as behind a Relu, the rest with a tail."""
    rng = np.random.default_rng(0)
    return np.maximum(rng.standard_normal(40_000) * np.exp(rng.standard_normal(40_000)), 0).astype(np.float32)


def seen(values):
    histogram = Histogram()
    histogram.update(values)
    return histogram.samples()


def grid(lo, hi):
    return QuantParams.from_range(np.asarray(lo), np.asarray(hi), SPEC)


def test_bars_hold_every_value_once(values):
    edges = np.linspace(0, 4, 17)
    found = bars(seen(values), edges)
    expected = np.histogram(np.clip(values, 0, 3.999), edges)[0]
    assert found.sum() == pytest.approx(values.size)
    np.testing.assert_allclose(found, expected, atol=0.004 * values.size)
    exact = bars(Samples.of_weights(values, None), edges)
    np.testing.assert_array_equal(exact, expected)


@pytest.mark.parametrize("hi", [0.5, 3.0])
def test_the_clipped_share_is_that_of_the_values(values, hi):
    params = grid(0.0, hi)
    beyond = (values > grid_ends(params)[1] + float(params.scale) / 2).mean()
    assert clipped(seen(values), params) == pytest.approx(beyond, rel=0.02)
    assert clipped(Samples.of_weights(values, None), params) == pytest.approx(beyond)


def test_nothing_is_clipped_by_a_grid_over_all_values(values):
    assert clipped(seen(values), grid(values.min(), values.max())) == 0
    fine = QuantParams.from_range(np.asarray(0.0), values.max(), QuantSpec(Grid(16, signed=False), symmetric=False))
    assert clipped(seen(values), fine) == 0  # though its steps are narrower than the histogram's bins
    two_sided = seen(values - 1)
    assert clipped(two_sided, grid(-1, values.max() - 1)) == 0
    upper = grid(0, values.max() - 1)
    below = (values - 1 < -float(upper.scale) / 2).mean()
    assert clipped(two_sided, upper) == pytest.approx(below, rel=0.02)


def test_noise_is_that_of_the_values(values):
    params = grid(0.0, 3.0)
    assert grid_sqnr(seen(values), params) == pytest.approx(sqnr(values, params.fake(values)), abs=0.05)


def test_extremes():
    zeros = seen(np.zeros(5, np.float32))
    assert clipped(zeros, grid(0, 1)) == 0
    assert grid_sqnr(zeros, grid(0, 1)) == np.inf
    assert bars(zeros, np.linspace(0, 1, 3)).tolist() == [5, 0]
    assert grid_ends(grid(-1, 1.55)) == pytest.approx((-1, 1.55))
