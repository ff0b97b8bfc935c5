"""Statistics: merging is exact, associative and blind to order and batching."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.numeric.quant import Grid, QuantSpec
from onnxq.numeric.ranges import set_range
from onnxq.numeric.samples import MinMax, Samples

values32 = st.floats(width=32, allow_nan=False)
batches = st.lists(arrays(np.float32, st.integers(0, 4), elements=values32), max_size=5)


def _seen(*arrays_: np.ndarray) -> MinMax:
    statistic = MinMax()
    for array in arrays_:
        statistic.update(array)
    return statistic


@given(batches, batches, batches)
def test_merging_is_associative_and_commutative(a: list, b: list, c: list) -> None:
    x, y, z = _seen(*a), _seen(*b), _seen(*c)
    assert x.merge(y).merge(z) == x.merge(y.merge(z))
    assert x.merge(y) == y.merge(x)
    assert x.merge(MinMax()) == x


@given(batches, st.randoms())
def test_order_and_batching_do_not_matter(drawn: list[np.ndarray], random: object) -> None:
    together = np.concatenate([np.zeros(0, np.float32), *drawn])
    shuffled = list(together)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert _seen(*drawn) == _seen(together) == _seen(*(np.asarray(v) for v in shuffled))


def test_extremes_become_samples() -> None:
    samples = _seen(np.float32([[1, -3]]), np.float32([2])).samples()
    assert (samples.lo.tolist(), samples.hi.tolist()) == ([-3], [2])
    assert samples.values.tolist() == [[-3, 2]]


def test_a_tensor_that_is_always_empty_has_range_zero() -> None:
    samples = _seen(np.zeros((0, 3), np.float32)).samples()
    assert (samples.lo.tolist(), samples.hi.tolist()) == ([0], [0])


@pytest.mark.parametrize("parts", [([np.nan], [1.0]), ([1.0], [np.nan]), ([1.0, np.nan], []), ([np.nan], [])])
def test_not_a_number_once_seen_stays(parts: tuple[list[float], list[float]]) -> None:
    a, b = (_seen(np.float32(part)) for part in parts)
    for merged in (a.merge(b), b.merge(a), _seen(*(np.float32(part) for part in parts))):
        assert np.isnan(merged.samples().lo).all()
        assert np.isnan(merged.samples().hi).all()


def test_infinity_stays() -> None:
    samples = _seen(np.float32([np.inf, 1])).samples()
    assert (samples.lo.tolist(), samples.hi.tolist()) == ([1], [np.inf])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_weights_by_channel(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    samples = Samples.of_weights(weight, axis)
    others = tuple(i for i in range(3) if i != axis % 3)
    np.testing.assert_array_equal(samples.lo, np.minimum(weight.min(others), 0))
    np.testing.assert_array_equal(samples.hi, np.maximum(weight.max(others), 0))
    assert samples.values.shape == (weight.shape[axis], weight.size // weight.shape[axis])
    assert samples.counts.sum() == weight.size
    np.testing.assert_array_equal(samples.values[2], np.take(weight, 2, axis).ravel())


def test_weights_of_the_whole_tensor_and_empty_ones() -> None:
    weight = np.float32([[1, 2], [3, 4]])
    samples = Samples.of_weights(weight, None)
    assert (samples.lo.tolist(), samples.hi.tolist(), samples.values.shape) == ([0], [4], (1, 4))
    empty = Samples.of_weights(np.zeros((2, 0), np.float32), 0)
    assert empty.lo.tolist() == empty.hi.tolist() == [0, 0]


def test_minmax_is_the_whole_range() -> None:
    samples = Samples.of_weights(np.float32([[-2, 1], [3, 4]]), 0)
    spec = QuantSpec(Grid(8, signed=True), symmetric=True, per_channel=True)
    lo, hi = set_range("minmax", samples, spec)
    assert (lo.tolist(), hi.tolist()) == ([-2, 0], [1, 4])
