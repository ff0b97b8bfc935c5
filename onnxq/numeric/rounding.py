"""Which way to round each weight, as minimisation of a quadratic form over a lattice (white paper section 3.4).

    E(W~) = tr(W~ G W~') - 2 tr(W~ B') + const        W~ = s q,  low <= q <= high, q integers           (30, 35)

(see `gram`: G and B over the data; W~ (g, M, K), rows independent of each other). None of the solvers looks at data
again, and all work on E itself:

    nearest         q = round(W / s)
    error_feedback  columns one after another, each rounding error passed on to the columns that are still free, by
                    the Cholesky factor of G^-1 (optimal brain quantization in GPTQ's form; Babai's nearest plane)
    descend         single weights to their best integer while all others stay, sweep after sweep: never worse than
                    where it starts, ends where no single change helps
    enumerate_all   all 2^K ways to round up or down, exact: depthwise 3 x 3 filters have 512

The paper's own, with a rectified sigmoid between floor and ceil, is in `soft_rounding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .gram import Gram

Array = NDArray[np.float64]

_BLOCK = 64
"""Columns whose updates are gathered before they reach all others as one product of matrices."""


@dataclass(frozen=True)
class Lattice:
    """Where weights may lie: s q for integers low <= q <= high, zero point taken off the bounds. All (g, M, K)."""

    scale: Array
    low: Array
    high: Array

    def nearest(self, W: Array) -> Array:
        """q nearest to real rows W (g, M, K), as QuantizeLinear rounds: float32 quotients, halves to even.

        Stacked lattices, of n M rows, all get the same rows.
        """
        W = np.tile(W, (1, self.scale.shape[1] // W.shape[1], 1))
        quotient = np.asarray(np.float32(W) / np.float32(self.scale), np.float64)
        return np.asarray(np.clip(np.rint(quotient), self.low, self.high))

    def scaled(self, factor: Array) -> Lattice:
        """Every row's steps `factor` (g, M) times as large; scales stay float32 numbers."""
        return Lattice(np.asarray(np.float32(self.scale * factor[:, :, None]), np.float64), self.low, self.high)

    @classmethod
    def stacked(cls, lattices: Sequence[Lattice]) -> Lattice:
        """Several of equal shape as one of more rows."""
        return cls(*(np.concatenate([getattr(a, n) for a in lattices], axis=1) for n in ("scale", "low", "high")))

    def columns(self, order: NDArray[np.intp]) -> Lattice:
        """Columns in another order, (g, K)."""
        at = order[:, None, :]
        return Lattice(*(np.take_along_axis(a, at, 2) for a in (self.scale, self.low, self.high)))


class ErrorFeedback:
    """G factorised once, for any number of lattices. The form must be positive definite (`Gram.damped`)."""

    def __init__(self, form: Gram) -> None:
        self._order = np.argsort(-np.diagonal(form.G, axis1=1, axis2=2), axis=1, kind="stable")
        G = np.take_along_axis(form.G, self._order[:, :, None], 1)
        G = np.take_along_axis(G, self._order[:, None, :], 2)
        inverse = np.linalg.inv(G)
        B = np.take_along_axis(form.B, self._order[:, None, :], 2)
        self._target = B @ inverse  # the real-valued optimum
        self._factor = np.linalg.cholesky((inverse + inverse.swapaxes(1, 2)) / 2).swapaxes(1, 2)  # upper

    def round(self, lattice: Lattice) -> Array:
        """q (g, M, K); on stacked lattices, of n M rows, (g, n M, K)."""
        lattice, U = lattice.columns(self._order), self._factor
        free = np.tile(self._target, (1, lattice.scale.shape[1] // self._target.shape[1], 1))
        q = np.empty_like(free)
        for begin in range(0, free.shape[2], _BLOCK):
            end = min(begin + _BLOCK, free.shape[2])
            errors = np.empty((*free.shape[:2], end - begin))
            for j in range(begin, end):
                s = lattice.scale[:, :, j]
                best = np.minimum(np.maximum(np.rint(free[:, :, j] / s), lattice.low[:, :, j]), lattice.high[:, :, j])
                error = (free[:, :, j] - s * best) / U[:, None, j, j]
                q[:, :, j] = best
                free[:, :, j + 1 : end] -= error[:, :, None] * U[:, None, j, j + 1 : end]
                errors[:, :, j - begin] = error
            free[:, :, end:] -= errors @ U[:, begin:end, end:]
        back = np.argsort(self._order, axis=1, kind="stable")
        return np.take_along_axis(q, back[:, None, :], 2)


def descend(form: Gram, lattice: Lattice, q: Array, sweeps: int = 20) -> Array:
    """Coordinate descent from integers q (g, M, K), for at most so many sweeps over all weights."""
    q, gradient = q.copy(), (lattice.scale * q) @ form.G - form.B  # half the derivative of E
    for _ in range(sweeps):
        if not _sweep(form.G, lattice, q, gradient):
            break
    return q


def _sweep(G: Array, lattice: Lattice, q: Array, gradient: Array) -> bool:
    """Each weight once, q and gradient in place; whether anything changed."""
    changed = False
    for begin in range(0, q.shape[2], _BLOCK):
        end = min(begin + _BLOCK, q.shape[2])
        local, steps = gradient[:, :, begin:end].copy(), np.zeros((*q.shape[:2], end - begin))
        for j in range(begin, end):
            s, old = lattice.scale[:, :, j], q[:, :, j]
            best = np.rint(old - local[:, :, j - begin] / (G[:, None, j, j] * s))
            step = s * (np.clip(best, lattice.low[:, :, j], lattice.high[:, :, j]) - old)
            if step.any():
                q[:, :, j] += np.rint(step / s)
                steps[:, :, j - begin] = step
                local += step[:, :, None] * G[:, None, j, begin:end]
        if steps.any():
            gradient += steps @ G[:, begin:end, :]
            changed = True
    return changed


ENUMERABLE = 10
"""The most weights a row may have for all its roundings to be tried."""


def enumerate_all(form: Gram, lattice: Lattice, W: Array) -> Array:
    """The best of all 2^K roundings of real rows W (g, M, K) up or down, K <= ENUMERABLE; q (g, M, K)."""
    K = W.shape[2]
    up = np.asarray((np.arange(2**K)[:, None] >> np.arange(K)) & 1, np.float64)  # (2^K, K)
    q, base = np.empty_like(W), np.floor(W / lattice.scale)
    for g in range(W.shape[0]):
        low, high = lattice.low[g][:, None, :], lattice.high[g][:, None, :]
        ways = np.clip(base[g][:, None, :] + up, low, high)  # (M, 2^K, K)
        rows = ways * lattice.scale[g][:, None, :]
        error = ((rows @ form.G[g] - 2 * form.B[g][:, None, :]) * rows).sum(2)
        q[g] = np.take_along_axis(ways, error.argmin(1)[:, None, None], 1)[:, 0]
    return q


def fit_scale(
    form: Gram,
    lattice: Lattice,
    units: NDArray[np.intp],
    rounded: Callable[[Lattice], Array],
    weights: Array | float = 1.0,
    octaves: bool = False,
) -> Array:
    """Factors (g, M) on the scales that lead to the least error once `rounded`.

    units: (g, M); rows with the same number share one factor, and their errors count by `weights` (g, M).
    rounded: is given several lattices as one of n M rows.
    Octaves down to 1/64 are tried first, then ever smaller steps around the best, down to 2^(1/32), unless only
    `octaves` are allowed (powers of two).
    """
    count = int(units.max(initial=0)) + 1
    best, least = np.ones(count), np.full(count, np.inf)
    exponents = [-np.arange(7.0), *(np.array([-s, s]) for s in (0.5, 0.25, 0.125, 0.0625, 0.03125) if not octaves)]
    for around in exponents:
        trials = best * 2.0 ** around[:, None]
        grids = [lattice.scaled(factor[units]) for factor in trials]
        q = np.split(rounded(Lattice.stacked(grids)), len(grids), axis=1)
        for factor, grid, integers in zip(trials, grids, q, strict=True):
            errors = weights * form.error(grid.scale * integers)
            total = np.bincount(units.ravel(), errors.ravel(), count)
            best, least = np.where(total < least, factor, best), np.minimum(total, least)
    return best[units]
