"""Streaming statistics: exact counts, independent of order and batches, in fixed memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numeric.histogram import BINS, Histogram, compress
from onnxq.numeric.logits import KEPT, Logits
from onnxq.numeric.samples import Samples

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
batches = st.lists(st.lists(floats, max_size=7).map(lambda v: np.array(v, np.float32)), min_size=1, max_size=6)


def collect(parts: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(part)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return a.extremes == b.extremes and bool((a.counts == b.counts).all())


@given(batches, st.randoms(use_true_random=False))
def test_counts_depend_on_neither_order_nor_batches_nor_merging(parts: list[np.ndarray], random) -> None:
    whole = collect([np.concatenate(parts)])
    shuffled = random.sample(parts, len(parts))
    cut = random.randint(0, len(parts))
    if whole.counts.any():
        assert same(collect(parts), whole)
        assert same(collect(shuffled), whole)
        assert same(collect(shuffled[:cut]).merge(collect(shuffled[cut:])), whole)


def test_a_large_tensor_is_counted_whole() -> None:
    values = np.random.default_rng(0).normal(0, 1, 3 * 2**17 + 5).astype(np.float32)
    assert same(collect([values]), collect(np.array_split(values, 1000)))


@given(batches)
def test_every_value_lies_in_its_bin(parts: list[np.ndarray]) -> None:
    values = np.concatenate(parts).astype(np.float64)
    samples = collect(parts).samples()
    if not values.size:
        return
    assert samples.counts.sum() == values.size
    low = samples.values[0] - (samples.widths[0] if samples.widths is not None else 0) / 2
    for value in values:
        if abs(value) >= 2.0**-126:  # subnormals have wider bins
            nearest = np.flatnonzero(low <= value)[-1] if value > 0 else np.flatnonzero(low < value)[-1]
            assert abs(samples.values[0][nearest] - value) <= samples.widths[0][nearest] / 2
            assert samples.widths[0][nearest] <= abs(value) / 128


def test_extremes_are_exact_and_zero_has_a_bin_of_its_own() -> None:
    samples = collect([np.float32([0.0, -0.0, 0.1, -3.7])]).samples()
    assert (samples.lo[0], samples.hi[0]) == (np.float32(-3.7), np.float32(0.1))
    zero = samples.values[0] == 0
    assert samples.counts[0][zero] == 2
    assert samples.widths[0][zero] == 0


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-45, 3e38, -3e38, 1.1754944e-38])
def test_single_values_of_any_magnitude(value: float) -> None:
    samples = collect([np.full(5, value, np.float32)]).samples()
    assert samples.counts.sum() == 5
    assert np.isfinite(samples.values).all()
    assert samples.lo[0] == np.float32(value) == samples.hi[0]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_show_in_the_extremes(bad: float) -> None:
    samples = collect([np.float32([1, bad]), np.float32([2])]).samples()
    assert not (np.isfinite(samples.lo).all() and np.isfinite(samples.hi).all())


def test_memory_does_not_depend_on_what_was_seen() -> None:
    small, large = collect([np.ones(1, np.float32)]), Histogram()
    for exponent in range(-30, 30):
        large.update(np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 2.0**exponent)
    assert small.counts.nbytes == large.counts.nbytes == 8 * BINS


def test_compress_keeps_small_and_per_channel_weights_exact() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2**15)).astype(np.float32)
    per_channel, per_tensor = Samples.of_weights(weight, 0), Samples.of_weights(weight, None)
    assert compress(per_channel) is per_channel
    assert compress(per_tensor).counts.sum() == weight.size
    assert compress(per_tensor).widths is not None


def test_kept_logits_depend_on_neither_order_nor_merging() -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((3 * KEPT, 3)).astype(np.float32)
    order = random.permutation(len(rows))
    first, second = Logits(), Logits()
    first.update(rows)
    for index in order[:700]:
        second.update(rows[index : index + 1])
    other = Logits()
    other.update(rows[order[700:]])
    merged = second.merge(other).samples()
    assert merged.vectors is not None
    assert merged.vectors.shape == (KEPT, 3)
    assert (merged.vectors == first.samples().vectors).all()


def test_logits_of_changing_length_give_no_vectors() -> None:
    logits = Logits()
    logits.update(np.ones((2, 3), np.float32))
    logits.update(np.ones((2, 4), np.float32))
    assert logits.samples().vectors is None
