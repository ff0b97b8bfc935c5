"""The symmetric scale of least squared error, for many channels or blocks of weights at once.

With x the n weights of a channel, m = max |x|, the levels -L .. H of the grid, and a share r of the range,

    s = r m / H        q = clip(round(x / s), -L, H)        E(r) = sum (x - s q)^2

E has a local minimum wherever a weight crosses a step, so that shares are tried one by one. The largest weight alone,
once it is clipped, costs at least (m - s L)^2, or (m - s H)^2 where L < H: with E* the least error that was found, no
share can be better below

    r_least = H / max(L, H) (1 - sqrt(E*) / m)

Between this and 1 lie `SHARES` shares, evenly spaced in their logarithm, each channel having its own; then `NEAR` more
around the best of them, between its neighbours. What then is best is fitted: with q as it is, the best scale is

    s = sum x q / sum q^2

which leaves no more error, and changes q, so that it is done `REFITS` times. Short channels, whose largest weight is
never far from all others, get half as many of each on grids of 4 bits and more: in blocks of 32 of MiniLM-L3, normal
and t-distributed weights that loses 0.004 dB at 4 bits and 0.001 at 8, and takes 23 ns a weight, not 40; the 135 shares
of `range_search` take 600.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .quant import SMALLEST_SCALE, QuantSpec

Vector = NDArray[np.float32]

SHARES = 12
NEAR = 6
REFITS = 2
LEAST_SHARE = 1 / 64
"""No channel is clipped further."""

SHORT = 128
"""Weights of a channel or block, at most, that NumPy is quicker with one beside the other."""

CACHED = 2**16
"""Weights that are searched together: they and what is computed from them stay in a processor's cache."""


def serves(spec: QuantSpec) -> bool:
    """Whether the grid has one free parameter, and one that any positive number can be."""
    return spec.symmetric and not spec.one_tailed and not spec.power_of_two


def best_shares(rows: NDArray[np.floating], spec: QuantSpec) -> NDArray[np.float64]:
    """(C, n) weights -> (C,) shares of each channel's range, at most 1, whose error is least."""
    count, length = rows.shape
    if rows.size == 0:
        return np.ones(count)
    step = max(CACHED // length, 1)
    parts = (rows[first : first + step] for first in range(0, count, step))
    return np.concatenate([_Channels(np.asarray(part, np.float32), spec).search() for part in parts])


class _Channels:
    """Some channels, in units of the scale that spans all of each: t = x / s(1). Short ones lie along the slow axis,
    since NumPy is slow on short rows."""

    def __init__(self, rows: Vector, spec: QuantSpec) -> None:
        short = rows.shape[1] <= SHORT
        self.along, self.products = (0, "nc,nc->c") if short else (1, "cn,cn->c")
        zero_point = 0 if spec.grid.signed else 2 ** (spec.grid.bits - 1)
        self.low, self.high = np.float32(spec.grid.qmin - zero_point), np.float32(spec.grid.qmax - zero_point)
        self.quick = short and self.high - self.low >= 15
        x = np.ascontiguousarray(rows.T) if short else rows
        largest = np.maximum(x.max(axis=self.along), -x.min(axis=self.along))
        whole = np.maximum(largest / self.high, np.float32(SMALLEST_SCALE))
        self.t = x / np.expand_dims(whole, self.along)
        self.ratio, self.q = np.empty_like(self.t), np.empty_like(self.t)
        self.best = np.ones_like(whole)
        self.error = self._error(self.best)

    def search(self) -> NDArray[np.float64]:
        """(C,) shares."""
        shares, near_ones, refits = (n // 2 if self.quick else n for n in (SHARES, NEAR, REFITS))
        step = self._least_share() ** np.float32(1 / shares)
        self._try([step**k for k in range(1, shares)])
        around, near = self.best, step ** np.float32(1 / (near_ones // 2 + 1))
        self._try([np.minimum(around * near**k, 1) for k in range(-(near_ones // 2), near_ones // 2 + 1) if k != 0])
        for _ in range(refits):
            self._try([self._refitted()])
        return np.asarray(self.best, np.float64)

    def _try(self, shares: list[Vector]) -> None:
        for share in shares:
            error = self._error(share)
            better = error < self.error
            self.best, self.error = np.where(better, share, self.best), np.where(better, error, self.error)

    def _least_share(self) -> Vector:
        """(C,) r_least."""
        ratio = self.high / max(self.high, -self.low)
        return np.asarray(np.maximum(ratio * (1 - np.sqrt(self.error) / self.high), LEAST_SHARE), np.float32)

    def _round(self, share: Vector) -> None:
        """Puts x / s(r) into `ratio`, and q into `q`."""
        np.multiply(self.t, np.expand_dims(1 / share, self.along), out=self.ratio)
        np.rint(self.ratio, out=self.q)
        np.clip(self.q, self.low, self.high, out=self.q)

    def _error(self, share: Vector) -> Vector:
        """(C,) E(r)."""
        self._round(share)
        np.subtract(self.q, self.ratio, out=self.q)
        return np.asarray(np.einsum(self.products, self.q, self.q) * share**2)

    def _refitted(self) -> Vector:
        """(C,) shares that fit the integers of the best ones."""
        self._round(self.best)
        over = np.einsum(self.products, self.t, self.q)
        under = np.einsum(self.products, self.q, self.q)
        fitted = np.divide(over, under, out=np.zeros_like(over), where=under > 0)
        return np.asarray(np.where(fitted > 0, np.minimum(fitted, 1), self.best))
