"""What each channel of an activation does over the calibration data: mean, standard deviation, extremes.

Sums are exact, so that they depend neither on the order of the samples nor on how partial sums are merged: each
sample is summed by itself in float64, and these sums are added as integers. A float64 is m 2^e with |m| < 2^53; it is
cut into 32-bit digits at fixed places, each of which has an int64 counter of its own (Neal, "Fast exact summation
using small and large superaccumulators", arXiv:1505.05571): 2^30 samples before one overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .quant import FloatArray
from .samples import Samples

Vector = NDArray[np.float64]

_DIGIT = 32
_LOWEST = -1120  # exponent of the first digit: below that of the smallest subnormal, and a multiple of 32
_DIGITS = (1024 - _LOWEST) // _DIGIT + 2


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
        self.digits = np.zeros((digits, _DIGITS), np.int64) if isinstance(digits, int) else digits

    def add(self, values: Vector) -> None:
        """Add one finite value to each channel."""
        mantissa, exponent = np.frexp(values)
        whole = np.int64(mantissa * 2.0**53)
        place, shift = np.divmod(np.int64(exponent) - 53 - _LOWEST, _DIGIT)
        place = np.where(whole == 0, 0, place)
        rows, mask = np.arange(values.size), np.int64(2**_DIGIT - 1)
        sign, whole = np.sign(whole), np.abs(whole)
        low, high = (whole & mask) << shift, (whole >> _DIGIT) << shift
        self.digits[rows, place] += sign * (low & mask)
        self.digits[rows, place + 1] += sign * ((low >> _DIGIT) + (high & mask))
        self.digits[rows, place + 2] += sign * (high >> _DIGIT)

    def merge(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.digits + other.digits)

    def over(self, count: int) -> Vector:
        """The sum divided by `count`, rounded once, (C,)."""
        totals = (sum(int(d) << (_DIGIT * i) for i, d in enumerate(row) if d) for row in self.digits)
        return np.array([float(Fraction(total, count << -_LOWEST)) for total in totals])


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
            self.lo, self.hi = np.minimum(self.lo, rows.min(axis=1)), np.maximum(self.hi, rows.max(axis=1))
            self.count += rows.shape[1]
            rows = np.ascontiguousarray(rows, np.float64)
            for total, sums in ((self._sum, rows.sum(axis=1)), (self._squares, np.einsum("cn,cn->c", rows, rows))):
                total.add(np.where(np.isfinite(sums), sums, 0.0))

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
