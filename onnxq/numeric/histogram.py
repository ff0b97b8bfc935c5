"""Statistics of an activation in fixed memory, exact under merging, for every range-setting method.

Bins follow the binary exponent: each octave [2^e, 2^(e+1)) is cut into 1024 equal bins, for either sign, and the 20
octaves below the largest magnitude are kept; what is smaller counts as zero. A bin's number is read off the bits of
a float32, so that it never depends on what was seen before: the range grows by sliding the window of octaves,
no value moves between bins, and the counts are the same whatever the order and the batches.

    width of a bin / magnitude  <=  2^-8         2^-20 max|x|  is the smallest magnitude told from zero

Memory: 2 * 20 * 256 + 1 counters of 8 bytes, 80 KiB a tensor, plus the exact extremes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .quant import FloatArray
from .samples import MinMax, Samples

OCTAVES = 20
BINS = 256
_SIDE = OCTAVES * BINS
_SHIFT = 15  # mantissa bits of float32 below those that number the 256 bins of an octave
_EMPTY = -(2**31)


@dataclass
class Histogram:
    """counts: int64 (2 * 20 * 256 + 1,): negative side, zero, positive side, from most negative to most positive.

    top: number, in octaves of the float32 exponent, of the highest octave kept.
    """

    extremes: MinMax = field(default_factory=MinMax)
    top: int = _EMPTY
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * _SIDE + 1, np.int64))

    def update(self, x: FloatArray) -> None:
        """Take in float values of any shape. Values that are not finite are left to the extremes to tell."""
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        if not flat.size:
            return
        self.extremes.update(flat)
        if not (np.isfinite(self.extremes.lo) and np.isfinite(self.extremes.hi)):
            return
        self._slide(_octave(max(-self.extremes.lo, self.extremes.hi)))
        bits = flat.view(np.int32)
        index = (bits & 0x7FFFFFFF) >> _SHIFT
        index -= (self.top - OCTAVES + 1) * BINS - 1
        np.maximum(index, 0, out=index)
        np.negative(index, where=bits < 0, out=index)
        index += _SIDE
        self.counts += np.bincount(index, minlength=self.counts.size)

    def merge(self, other: Histogram) -> Histogram:
        merged = Histogram(self.extremes.merge(other.extremes), self.top, self.counts.copy())
        merged._slide(other.top)
        aligned = Histogram(other.extremes, other.top, other.counts.copy())
        aligned._slide(merged.top)
        merged.counts += aligned.counts
        return merged

    def _slide(self, top: int) -> None:
        """Move the window up to octave `top`; what falls out below counts as zero from now on."""
        if self.top == _EMPTY or top <= self.top:
            self.top = max(self.top, top)
            return
        kept = max(_SIDE - (top - self.top) * BINS, 0)
        lost = _SIDE - kept
        counts = np.zeros_like(self.counts)
        counts[lost:_SIDE] = self.counts[:kept]
        counts[_SIDE] = self.counts[kept : 2 * _SIDE + 1 - kept].sum()
        counts[_SIDE + 1 : _SIDE + 1 + kept] = self.counts[2 * _SIDE + 1 - kept :]
        self.counts, self.top = counts, top

    def samples(self) -> Samples:
        """Non-empty bins as values (their middles) with counts and widths, (1, n); the zero bin has width 0."""
        extremes = self.extremes.samples()
        index = np.flatnonzero(self.counts)
        if not index.size or not (np.isfinite(extremes.lo).all() and np.isfinite(extremes.hi).all()):
            return extremes
        lower, upper = (_edge(np.abs(index - _SIDE) + step, self.top) for step in (0, 1))
        zero = index == _SIDE
        middle = np.where(zero, 0.0, np.sign(index - _SIDE) * (lower + upper) / 2)
        width = np.where(zero, 0.0, upper - lower)
        counts = np.float64(self.counts[index])
        return Samples(middle[None], counts[None], extremes.lo, extremes.hi, width[None])


def _octave(magnitude: float) -> int:
    """The biased float32 exponent of a finite magnitude >= 0, and at least such that subnormals count as zero."""
    return max(int(np.float32(magnitude).view(np.int32) >> 23), OCTAVES)


def _edge(number: NDArray[np.int64], top: int) -> NDArray[np.float64]:
    """Lower edge of bin `number` (1 is the lowest) on the positive side of a window whose highest octave is `top`."""
    key = number - 1 + (top - OCTAVES + 1) * BINS
    edge = (np.maximum(key, 0).astype(np.int64) << _SHIFT).astype(np.int32).view(np.float32)
    return edge.astype(np.float64)


def compress(weights: Samples, largest: int = 2**16) -> Samples:
    """Samples of many weights in one channel as a histogram; others as they are."""
    if weights.values.shape[0] != 1 or weights.values.size <= largest:
        return weights
    histogram = Histogram()
    histogram.update(weights.values)
    return histogram.samples()
