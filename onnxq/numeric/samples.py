"""What range methods read: weighted values, of a weight tensor or of an activation's statistics alike.

A `Statistic` collects an activation batch by batch in fixed memory and ends in `Samples`. Merging is associative
and commutative, and exact: the result depends on the values seen, not on their order or batching.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .quant import FloatArray

S = TypeVar("S", bound="Statistic")


@dataclass(frozen=True)
class Samples:
    """Weighted values per channel: `values` and `counts` (C, n); `lo` and `hi` (C,), the exact extremes.

    widths: (C, n), where values are the middles of bins; None where they are exact.
    seen: of how many calibration samples, or rows of sequences, the values are; None: all there are, as of a weight.
    vectors: (m, K), vectors of logits for cross-entropy ranges; None elsewhere.
    """

    values: NDArray[np.floating]
    counts: NDArray[np.float64]
    lo: NDArray[np.float64]
    hi: NDArray[np.float64]
    widths: NDArray[np.float64] | None = None
    vectors: NDArray[np.floating] | None = None
    seen: int | None = None

    @classmethod
    def of_weights(cls, weight: FloatArray, axis: int | None, block: int | None = None) -> Samples:
        """Every weight counts once. `axis`: the channel axis, or None for the whole tensor as one channel.

        block: each run of so many weights along `axis` is a channel, in the order of the scales, the last one of a
        line filled up with zeros.
        """
        if block is not None and axis is not None:
            rows = _blocks(weight, axis, block)
        else:
            rows = weight.reshape(1, -1) if axis is None else _rows(weight, axis)
        rows = np.ascontiguousarray(rows)  # in the order in which searches read it
        once = np.broadcast_to(np.float64(1), rows.shape)
        lo, hi = rows.min(axis=1, initial=0.0), rows.max(axis=1, initial=0.0)
        return cls(rows, once, np.asarray(lo, np.float64), np.asarray(hi, np.float64))

    @property
    def are_weights(self) -> bool:
        """Whether every value is exact and counts once, as `of_weights` has them."""
        counts = self.counts
        return self.widths is None and counts.size > 0 and not any(counts.strides) and counts.flat[0] == 1

    def clipped(self, a: float, b: float) -> Samples:
        """What they are where nothing tells values beyond [a, b] from its ends."""
        if (self.lo >= a).all() and (self.hi <= b).all():
            return self
        inside = (self.values >= a) & (self.values <= b)
        widths = None if self.widths is None else np.where(inside, self.widths, 0.0)
        values, (lo, hi) = np.clip(self.values, a, b), (np.clip(end, a, b) for end in (self.lo, self.hi))
        return replace(self, values=values, widths=widths, lo=lo, hi=hi)

    def channel(self, index: int) -> Samples:
        """One channel alone."""
        return self.channels(slice(index, index + 1))

    def channels(self, part: slice) -> Samples:
        """Some channels alone."""
        widths = None if self.widths is None else self.widths[part]
        values, counts = self.values[part], self.counts[part]
        return Samples(values, counts, self.lo[part], self.hi[part], widths, self.vectors, self.seen)


def _rows(x: FloatArray, axis: int) -> FloatArray:
    """`x` of any shape -> (C, n) with the channel axis first."""
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def _blocks(x: FloatArray, axis: int, block: int) -> FloatArray:
    """`x` of any shape -> (number of blocks, block), blocks in C order of an array with one entry a block."""
    padding = [(0, -x.shape[axis] % block if i == axis else 0) for i in range(x.ndim)]
    lines = np.moveaxis(np.pad(x, padding) if x.shape[axis] % block else x, axis, -1)
    blocks = lines.reshape(*lines.shape[:-1], -1, block)
    return np.moveaxis(blocks, -2, axis).reshape(-1, block)


class Statistic(Protocol):
    """Collects one tensor; memory does not grow with the number of updates."""

    def update(self, x: FloatArray) -> None:
        """Count one batch of values, any shape."""

    def merge(self: S, other: S) -> S:
        """The statistic of both collections together."""

    def samples(self) -> Samples:
        """All values so far, for a range method."""


def merged(parts: Iterable[Mapping[str, S]]) -> Mapping[str, S]:
    """By tensor, the statistics of all parts together, of which there is one at least; all have the same tensors."""
    return reduce(lambda a, b: {name: statistic.merge(b[name]) for name, statistic in a.items()}, parts)


@dataclass
class Together:
    """Several statistics of one tensor, from one pass over the data; samples are those of the first."""

    parts: tuple[Statistic, ...]

    def update(self, x: FloatArray) -> None:
        for part in self.parts:
            part.update(x)

    def merge(self, other: Together) -> Together:
        return Together(tuple(mine.merge(theirs) for mine, theirs in zip(self.parts, other.parts, strict=True)))

    def samples(self) -> Samples:
        return self.parts[0].samples()


@dataclass
class MinMax:
    """The extremes of a tensor: 16 bytes, whatever is seen. Not-a-number, once seen, stays."""

    lo: float = np.inf
    hi: float = -np.inf

    def update(self, x: FloatArray) -> None:
        if x.size:
            self.lo, self.hi = float(np.minimum(self.lo, x.min())), float(np.maximum(self.hi, x.max()))

    def merge(self, other: MinMax) -> MinMax:
        return MinMax(float(np.minimum(self.lo, other.lo)), float(np.maximum(self.hi, other.hi)))

    def samples(self) -> Samples:
        """The two extremes, once each; zeros if nothing was ever seen (an empty tensor)."""
        lo, hi = (0.0, 0.0) if self.lo > self.hi else (self.lo, self.hi)
        return Samples(np.array([[lo, hi]]), np.ones((1, 2)), np.array([lo]), np.array([hi]))
