"""Statistics of an activation in fixed memory, exact under merging, for every range-setting method.

A float32 has 1 sign bit, 8 exponent bits and 23 mantissa bits; its upper half, 16 bits, is the number of its bin.
Every octave [2^e, 2^(e+1)) of either sign is so cut into 128 equal bins, over all magnitudes that float32 has:

    width of a bin / magnitude  <=  2^-7        bin 0 holds zero and what is below 2^-133

The range never has to be extended and no value moves between bins, so that counts are the same whatever the order
and the batches, and a bin is found by reading memory. Methods take density as uniform inside a bin, which serves
grids finer than the bins too. Memory: 65536 counters of 8 bytes, 512 KiB a tensor, plus the exact extremes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quant import FloatArray
from .samples import MinMax, Samples

BINS = 2**16
_UPPER_HALF = 1 if sys.byteorder == "little" else 0

_AT_ONCE = 2**17
"""Values that are counted at once: numpy makes 64-bit numbers of their bins first, which are to stay in the cache."""


@dataclass
class Histogram:
    """counts: int64 (65536,), by the upper half of the values' float32 bits."""

    extremes: MinMax = field(default_factory=MinMax)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def update(self, x: FloatArray) -> None:
        """Count float values of any shape."""
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        if flat.size:
            self.extremes.update(flat)
            bins = flat.view(np.uint16)[_UPPER_HALF::2]
            for first in range(0, bins.size, _AT_ONCE):
                counts = np.bincount(bins[first : first + _AT_ONCE])
                self.counts[: counts.size] += counts

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes travel only the bins that are filled."""
        filled = np.flatnonzero(self.counts)
        return _with_counts, (self.extremes, filled.astype(np.uint16), self.counts[filled])

    def merge(self, other: Histogram) -> Histogram:
        return Histogram(self.extremes.merge(other.extremes), self.counts + other.counts)

    def samples(self) -> Samples:
        """Non-empty bins as values (their middles) with counts and widths, (1, n), ascending; zero has width 0.

        Only the extremes where these are not finite.
        """
        extremes = self.extremes.samples()
        if not (self.counts.any() and np.isfinite(extremes.lo).all() and np.isfinite(extremes.hi).all()):
            return extremes
        half = BINS // 2
        positive, negative = self.counts[:half], self.counts[half:]
        zeros = positive[0] + negative[0]
        counts = np.concatenate([negative[:0:-1], [zeros], positive[1:]])
        edges = _edges()
        middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        values = np.concatenate([-middle[:0:-1], [0.0], middle[1:]])
        widths = np.concatenate([width[:0:-1], [0.0], width[1:]])
        filled = counts > 0
        weights = counts[filled].astype(np.float64)
        return Samples(values[filled][None], weights[None], extremes.lo, extremes.hi, widths[filled][None])


def _with_counts(extremes: MinMax, filled: NDArray[np.uint16], counts: NDArray[np.int64]) -> Histogram:
    histogram = Histogram(extremes)
    histogram.counts[filled] = counts
    return histogram


def _edges() -> NDArray[np.float64]:
    """Lower edges of the bins from zero up to infinity, which closes the last one at twice the highest edge."""
    keys = np.arange(BINS // 2 + 1, dtype=np.uint32) << 16
    with np.errstate(invalid="ignore"):  # the bit patterns behind infinity are no numbers
        edges = keys.view(np.float32).astype(np.float64)
    edges[~np.isfinite(edges)] = 2.0**128
    return edges


def compress(weights: Samples, largest: int = BINS) -> Samples:
    """Samples of many weights in one channel as a histogram; others as they are."""
    if weights.values.shape[0] != 1 or weights.values.size <= largest:
        return weights
    histogram = Histogram()
    histogram.update(weights.values)
    return histogram.samples()
