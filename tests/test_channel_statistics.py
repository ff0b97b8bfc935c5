"""Channel statistics: exact, whatever the order and the batches; moments of clipped normal variables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numeric import clipped_normal
from onnxq.numeric.channel_statistics import ChannelStatistics, ExactSum


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300), max_size=50))
def test_sums_are_exact(values: list[float]) -> None:
    total, half = ExactSum(1), ExactSum(1)
    for i, value in enumerate(values):
        (half if i % 3 else total).add(np.array([value]))
    assert total.merge(half).over(1)[0] == math.fsum(values)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_statistics_do_not_depend_on_batches_or_order(axis: int) -> None:
    x = np.random.default_rng(0).normal(3, 2, (12, 5, 7)).astype(np.float32)
    whole, part, other = (ChannelStatistics(axis) for _ in range(3))
    whole.update(x)
    part.update(x[7:])
    for sample in x[:7]:
        other.update(sample[None])
    one, two = whole.facts(), part.merge(other).facts()
    for field in ("mean", "std", "lo", "hi"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    others = tuple(i for i in range(3) if i != axis % 3)
    np.testing.assert_allclose(one.mean, x.mean(others, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(one.std, x.std(others, dtype=np.float64), rtol=1e-9)
    np.testing.assert_array_equal(one.hi, x.max(others))


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_channels_that_are_summed_in_parts_are_those_of_the_whole(channels: int) -> None:
    x = np.random.default_rng(0).normal(3, 2, (2, channels, 2**16 + 5)).astype(np.float32)
    statistics = ChannelStatistics(1)
    statistics.update(x)
    facts, exact = statistics.facts(), x.astype(np.float64)
    sums = [[math.fsum(row.sum() for row in exact[:, c])] for c in range(channels)]
    np.testing.assert_array_equal(facts.mean, np.ravel(sums) / (2 * x.shape[2]))
    np.testing.assert_allclose(facts.std, exact.std((0, 2)), rtol=1e-9)
    np.testing.assert_array_equal([facts.lo, facts.hi], [x.min((0, 2)), x.max((0, 2))])


def test_merging_with_nothing() -> None:
    some = ChannelStatistics(1)
    some.update(np.ones((2, 3, 4), np.float32))
    for merged in (some.merge(ChannelStatistics(1)), ChannelStatistics(1).merge(some)):
        np.testing.assert_array_equal(merged.facts().mean, np.ones(3))
        np.testing.assert_array_equal(merged.facts().std, np.zeros(3))


@pytest.mark.parametrize(("lo", "hi"), [(0, np.inf), (0, 6), (-1, 1), (-np.inf, np.inf), (-np.inf, 2)])
def test_moments_of_clipped_normal_variables(lo: float, hi: float) -> None:
    mean, std = np.array([-9.0, -1.0, 0.0, 2.0, 5.9, 40.0, 3.0]), np.array([1.0, 2.0, 1.0, 3.0, 0.1, 2.0, 0.0])
    z = np.random.default_rng(0).normal(mean, std, (400_000, mean.size))
    y = np.clip(z, lo, hi)
    first, second = clipped_normal.moments(mean, std, lo, hi)
    np.testing.assert_allclose(first, y.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(second, y.std(axis=0), atol=0.02)
    share = ((z > lo) & (z < hi)).mean(axis=0)
    np.testing.assert_allclose(clipped_normal.passing(mean, std, lo, hi)[:-1], share[:-1], atol=0.01)


def test_what_is_not_known_stays_not_known() -> None:
    first, second = clipped_normal.moments(np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), 0.0, 6.0)
    assert np.isnan([first[0], second[0]]).all()
    assert np.isfinite([first[1], second[1]]).all()
