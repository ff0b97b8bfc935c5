"""Distances of tensors, and what scaled and shifted channels do to them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numeric.distance import Distance


def distance(x: np.ndarray, y: np.ndarray, axis: int | None = 1, parts: int = 1) -> Distance:
    total = Distance()
    for a, b in zip(np.split(x, parts), np.split(y, parts), strict=True):
        part = Distance(axis)
        part.update(a, b)
        total.merge(part)
    return total


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, 5, 6, 7))


@pytest.fixture
def noise() -> np.ndarray:
    return 0.01 * np.random.default_rng(1).standard_normal((8, 5, 6, 7))


def per_channel(*values: float) -> np.ndarray:
    return np.array(values)[:, None, None]


def test_figures_of_parts_together(x, noise):
    y = x + noise
    found = distance(x, y, parts=4)
    assert found.sqnr.db == pytest.approx(10 * np.log10(np.square(x).sum() / np.square(noise).sum()))
    assert found.cosine == pytest.approx((x * y).sum() / np.sqrt(np.square(x).sum() * np.square(y).sum()))
    assert found.max_error == np.abs(x - y).max()
    assert not found.is_scaled
    assert found.shifted_db() is None


def test_identical_empty_and_broken_tensors(x):
    assert (distance(x, x).cosine, distance(x, x).max_error, distance(x, x).sqnr.db) == (pytest.approx(1), 0, np.inf)
    assert (distance(0 * x, 0 * x).cosine, distance(x, 0 * x).cosine, Distance().cosine) == (1, 0, 1)
    broken = x.copy()
    broken[0, 0, 0, 0] = np.nan
    found = distance(x, broken)
    assert (found.sqnr.db, found.max_error) == (-np.inf, np.inf)
    assert not found.is_scaled


def test_scaled_channels_are_seen_through(x, noise):
    factors = per_channel(0.5, 2, 1, 4, 0.1)
    found = distance(x, factors * (x + noise) + per_channel(1, 0, 0, 2, 0))
    assert found.sqnr.db < 0
    assert found.is_scaled
    assert found.scaled_db() == pytest.approx(distance(x, x + noise).sqnr.db, abs=0.1)


def test_one_factor_for_all_channels_is_an_error(x, noise):
    assert distance(x, 2 * (x + noise)).scaled_db() is None


def test_slight_factors_count_only_where_they_are_asked_for(x, noise):
    found = distance(x, per_channel(1, 1.03, 0.97, 1.02, 0.98) * x + noise)
    assert not found.is_scaled
    assert found.scaled_db() == pytest.approx(distance(x, x + noise).sqnr.db, abs=0.1)


def test_noise_alone_is_no_scale(x):
    noisy = x + per_channel(0.3, 0.1, 1, 2, 0.01) * np.random.default_rng(2).standard_normal(x.shape)
    assert not distance(x, noisy).is_scaled


def test_constants_that_were_moved_do_not_count(x, noise):
    constant = np.where(np.arange(5)[:, None, None] == 2, 5.0, x)
    moved = np.where(np.arange(5)[:, None, None] == 2, 0.0, x + noise)
    found = distance(constant, moved)
    assert found.sqnr.db < 3
    assert found.shifted_db() > 40
    assert distance(x, x + per_channel(0, 0, 5, 0, 0)).shifted_db() is None  # that channel varies


def test_few_values_say_nothing(x):
    assert distance(x[:1, :, :3, :5], per_channel(0.5, 2, 1, 4, 0.1) * x[:1, :, :3, :5]).scaled_db() is None


def test_shapes_that_differ_between_samples_are_one_channel(x):
    total = distance(x, 2 * x)
    other = Distance(1)
    other.update(x[:, :3], 2 * x[:, :3])
    total.merge(other)
    assert total.sums is not None
    assert total.sums.shape == (6, 1)
    assert total.cosine == pytest.approx(1)
