"""What each channel of an activation does over the calibration data: mean, standard deviation, extremes.

Sums are exact, so that they depend neither on the order of the samples nor on how partial sums are merged: each
sample is summed by itself in float64, and these sums are added as integers. A float64 is m 2^e with |m| < 2^53; it is
cut into 32-bit digits at fixed places, each of which has an int64 counter of its own (Neal, "Fast exact summation
using small and large superaccumulators", arXiv:1505.05571): 2^30 samples before one overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .quant import FloatArray
from .samples import Samples

Vector = NDArray[np.float64]

_DIGIT = 32
_LOWEST = -1120  # exponent of the first digit: below that of the smallest subnormal, and a multiple of 32
_DIGITS = (1024 - _LOWEST) // _DIGIT + 2
_AT_ONCE = 32

_VALUES = 2**17
"""Values that are summed at once, of whole channels and of two at least, since numpy sums one alone in another order:
their float64 copies are to stay in the cache."""


@dataclass(frozen=True)
class ChannelFacts:
    """What is known of each channel of a tensor, (C,) each: measured, or propagated from BatchNorm's statistics.

    lo, hi: what a channel does not leave, as far as is known. Not-a-number where nothing is known.
    seen: values measured in each channel; infinity where they come from BatchNorm.
    """

    mean: Vector
    std: Vector
    lo: Vector
    hi: Vector
    seen: float = field(default=math.inf, kw_only=True)

    @property
    def power(self) -> Vector:
        """E[x^2]"""
        return self.mean**2 + self.std**2


class ExactSum:
    """A sum of float64 vectors (C,), exact until `over` rounds it."""

    def __init__(self, digits: NDArray[np.int64] | int) -> None:
        """digits: (C, n), as `merge` makes them; or the number of channels of an empty sum."""
        self._digits = np.zeros((digits, _DIGITS), np.int64) if isinstance(digits, int) else digits
        self._waiting: list[Vector] = []

    def add(self, values: Vector) -> None:
        """Add one finite value to each channel."""
        self._waiting.append(values)
        if len(self._waiting) == _AT_ONCE:
            self._add_up()

    def merge(self, other: ExactSum) -> ExactSum:
        self._add_up()
        other._add_up()
        return ExactSum(self._digits + other._digits)

    def over(self, count: int) -> Vector:
        """The sum, rounded once, divided by `count`, (C,)."""
        self._add_up()
        used = np.flatnonzero(self._digits.any(axis=0))
        first, last = (int(used[0]), int(used[-1]) + 3) if used.size else (0, 3)
        digits = np.zeros((len(self._digits), last - first), np.int64)
        digits[:, :-2] = self._digits[:, first : last - 2]
        _carry(digits)
        negative = digits[:, -1] < 0
        digits[negative] *= -1
        _carry(digits)
        # all digits are in [0, 2^32) now; the highest one that is not zero and two below hold 64 bits at least
        top = np.maximum(last - first - 1 - np.argmax(digits[:, ::-1] != 0, axis=1), 2)
        rows = np.arange(len(digits))
        high, middle, low = (digits[rows, top - i].astype(np.float64) for i in range(3))
        filled = np.logical_or.accumulate(digits != 0, axis=1)
        low = 2 * low + ((top > 2) & filled[rows, top - 3])  # what is below decides ties only
        high, middle = high * 2.0 ** (2 * _DIGIT + 1), middle * 2.0 ** (_DIGIT + 1)
        total = high + middle
        lost = middle - (total - high)  # exactly, and exact with `low`: all is rounded once
        found = np.ldexp(total + (lost + low), _LOWEST + _DIGIT * (first + top - 2) - 1) / count
        return np.asarray(np.where(negative, -found, found))

    def _add_up(self) -> None:
        """Cut all that waits into digits at once: numpy's calls take longer than their work on a few channels."""
        if not self._waiting:
            return
        mantissa, exponent = np.frexp(np.stack(self._waiting))
        self._waiting.clear()
        whole = np.int64(mantissa * 2.0**53)
        place, shift = np.divmod(np.int64(exponent) - 53 - _LOWEST, _DIGIT)
        place = np.where(whole == 0, 0, place)
        mask = np.int64(2**_DIGIT - 1)
        sign, whole = np.sign(whole), np.abs(whole)
        low, high = (whole & mask) << shift, (whole >> _DIGIT) << shift
        cell = place + np.arange(place.shape[1]) * _DIGITS
        flat = self._digits.reshape(-1)
        for i, digit in enumerate((low & mask, (low >> _DIGIT) + (high & mask), high >> _DIGIT)):
            np.add.at(flat, cell + i, sign * digit)


def _carry(digits: NDArray[np.int64]) -> None:
    """Bring all digits but the last into [0, 2^32)."""
    for i in range(digits.shape[1] - 1):
        digits[:, i + 1] += digits[:, i] >> _DIGIT
        digits[:, i] &= 2**_DIGIT - 1


def _summary(rows: NDArray[np.generic]) -> tuple[Vector, Vector, Vector, Vector]:
    """Of rows (C, n): least, largest, sum, sum of squares."""
    exact = np.ascontiguousarray(rows, np.float64)
    return rows.min(axis=1), rows.max(axis=1), exact.sum(axis=1), np.einsum("cn,cn->c", exact, exact)


@dataclass
class ChannelStatistics:
    """Statistics of one tensor along `axis`, not its first one; that counts samples.

    lo, hi: extremes (C,). count: values seen in each channel.
    """

    axis: int
    count: int = 0
    lo: Vector = field(default_factory=lambda: np.zeros(0))
    hi: Vector = field(default_factory=lambda: np.zeros(0))
    _sum: ExactSum = field(default_factory=lambda: ExactSum(0), repr=False)
    _squares: ExactSum = field(default_factory=lambda: ExactSum(0), repr=False)

    def update(self, x: FloatArray) -> None:
        """Count a batch, samples along axis 0. Infinity and not-a-number show in the extremes only."""
        if not x.size:
            return
        if not -x.ndim <= self.axis < x.ndim:
            raise ModelError(
                f"a tensor of shape {x.shape} was expected to have channels along axis {self.axis}: the shapes that the"
                " model declares are not those that it computes; repair them, or remove them"
            )
        if not self.count:
            channels = x.shape[self.axis]
            self.lo, self.hi = np.full(channels, np.inf), np.full(channels, -np.inf)
            self._sum, self._squares = ExactSum(channels), ExactSum(channels)
        for sample in x:
            rows = np.moveaxis(sample, self.axis - 1 if self.axis > 0 else self.axis, 0).reshape(self.lo.size, -1)
            parts = np.array_split(rows, min(max(rows.size // _VALUES, 1), max(len(rows) // 2, 1)))
            lo, hi, sums, squares = (np.concatenate(found) for found in zip(*map(_summary, parts), strict=True))
            self.lo, self.hi = np.minimum(self.lo, lo), np.maximum(self.hi, hi)
            self.count += rows.shape[1]
            for total, found in ((self._sum, sums), (self._squares, squares)):
                total.add(np.where(np.isfinite(found), found, 0.0))

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        if not self.count or not other.count:
            return self if self.count else other
        lo, hi = np.minimum(self.lo, other.lo), np.maximum(self.hi, other.hi)
        sums = self._sum.merge(other._sum), self._squares.merge(other._squares)
        return ChannelStatistics(self.axis, self.count + other.count, lo, hi, *sums)

    def samples(self) -> Samples:
        """The two extremes of each channel."""
        return Samples(np.stack([self.lo, self.hi], 1), np.ones((self.lo.size, 2)), self.lo, self.hi)

    def facts(self) -> ChannelFacts:
        """What was seen; std is exactly 0 for a channel that never changes."""
        count = max(self.count, 1)
        mean = self._sum.over(count)
        std = np.sqrt(np.maximum(self._squares.over(count) - mean**2, 0.0))
        return ChannelFacts(mean, np.where(self.lo == self.hi, 0.0, std), self.lo, self.hi, seen=self.count)
