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

_ROWS = 1024
"""How many rows are rounded at once when several scales are tried."""

_BLOCK, _INNER = 128, 16
"""Columns whose updates are gathered before they reach all others as one product of matrices, and within those."""


@dataclass(frozen=True)
class Lattice:
    """Where weights may lie: s q for integers low <= q <= high, zero point taken off the bounds. All (g, M, K), or
    (g, M, 1) where columns do not differ."""

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

    def upright(self) -> tuple[Array, Array, Array]:
        """Scale, low and high as (g, K or 1, M): what the solvers visit one after another lies together in memory."""
        return _upright(self.scale), _upright(self.low), _upright(self.high)


def _upright(a: Array) -> Array:
    return np.ascontiguousarray(a.swapaxes(1, 2))


def _clip(q: Array, low: Array, high: Array) -> Array:
    return np.asarray(np.minimum(np.maximum(q, low), high))


class Gptq:
    """G factorised once, for any number of lattices. The form must be positive definite (`Gram.damped`).

    With G^-1 = U' U and the real-valued optimum W* = B G^-1, the errors e of the columns, each over its U_jj, add up to
    W* - W~ = e U. So E(W~) - E(W*) = |e|^2, row by row: what a rounding costs is known without another product by G.
    """

    def __init__(self, form: Gram) -> None:
        self._order = np.argsort(-np.diagonal(form.G, axis1=1, axis2=2), axis=1, kind="stable")
        G = np.take_along_axis(form.G, self._order[:, :, None], 1)
        G = np.take_along_axis(G, self._order[:, None, :], 2)
        backward = np.asarray(np.linalg.cholesky(G[:, ::-1, ::-1]), np.float64)
        U = np.ascontiguousarray(_triangular_inverse(backward)[:, ::-1, ::-1])  # upper, G^-1 = U' U
        B = np.take_along_axis(form.B, self._order[:, None, :], 2)
        self._target, self._factor = B @ U.swapaxes(1, 2) @ U, U

    def round(self, lattice: Lattice) -> Array:
        """q (g, M, K); on stacked lattices, of n M rows, (g, n M, K)."""
        return self.solve(lattice)[0]

    def solve(self, lattice: Lattice) -> tuple[Array, Array]:
        """q as `round` gives it, and |e|^2, (g, M) or (g, n M)."""
        order, U = self._order[:, :, None], self._factor
        free = np.tile(self._target.swapaxes(1, 2), (1, 1, lattice.scale.shape[1] // self._target.shape[1]))
        s, low, high = (np.take_along_axis(a, order, 1) if a.shape[1] > 1 else a for a in lattice.upright())
        s, low, high = (np.broadcast_to(a, free.shape) for a in (s, low, high))
        q, excess = np.empty_like(free), np.zeros((free.shape[0], free.shape[2]))
        for begin in range(0, free.shape[1], _BLOCK):
            end = min(begin + _BLOCK, free.shape[1])
            errors = np.empty((free.shape[0], end - begin, free.shape[2]))
            for first in range(begin, end, _INNER):
                last = min(first + _INNER, end)
                for j in range(first, last):
                    q[:, j] = _clip(np.rint(free[:, j] / s[:, j]), low[:, j], high[:, j])
                    error = (free[:, j] - s[:, j] * q[:, j]) / U[:, j, j, None]
                    free[:, j + 1 : last] -= U[:, j, j + 1 : last, None] * error[:, None]
                    errors[:, j - begin] = error
                free[:, last:end] -= U[:, first:last, last:end].swapaxes(1, 2) @ errors[:, first - begin : last - begin]
            free[:, end:] -= U[:, begin:end, end:].swapaxes(1, 2) @ errors
            excess += np.square(errors).sum(1)
        back = np.argsort(order, axis=1, kind="stable")
        return _upright(np.take_along_axis(q, back, 1)), excess


def _triangular_inverse(L: Array) -> Array:
    """Of lower triangular matrices (g, K, K), half by half: a quarter of the multiplications of `np.linalg.inv`."""
    half = L.shape[1] // 2
    if half < _BLOCK // 4:
        return np.tril(np.linalg.inv(L))
    inverse = np.zeros_like(L)
    inverse[:, :half, :half] = A = _triangular_inverse(L[:, :half, :half])
    inverse[:, half:, half:] = D = _triangular_inverse(L[:, half:, half:])
    inverse[:, half:, :half] = -D @ (L[:, half:, :half] @ A)
    return inverse


def descend(form: Gram, lattice: Lattice, q: Array, sweeps: int = 20) -> Array:
    """Coordinate descent from integers q (g, M, K), for at most so many sweeps over all weights.

    Rows that a sweep leaves as they are (in all groups) are done: rows do not depend on each other.
    """
    q, gradient = q.copy(), (lattice.scale * q) @ form.G - form.B  # half the derivative of E
    bounds = (np.broadcast_to(a, gradient.swapaxes(1, 2).shape) for a in lattice.upright())
    active, state = np.arange(q.shape[1]), [*bounds, _upright(q), _upright(gradient)]
    for _ in range(sweeps):
        changed = np.flatnonzero(_sweep(form.G, *state))
        if not changed.size:
            break
        q[:, active] = state[3].swapaxes(1, 2)
        active, state = active[changed], [a[:, :, changed] for a in state]
    return q


def _sweep(G: Array, s: Array, low: Array, high: Array, q: Array, gradient: Array) -> NDArray[np.bool_]:
    """Each weight once, q and gradient in place, all (g, K, M); which rows changed, (M,)."""
    changed = np.zeros(q.shape[2], bool)
    for begin in range(0, q.shape[1], _BLOCK // 2):
        end = min(begin + _BLOCK // 2, q.shape[1])
        local, steps = gradient[:, begin:end].copy(), np.zeros((q.shape[0], end - begin, q.shape[2]))
        for j in range(begin, end):
            best = np.rint(q[:, j] - local[:, j - begin] / (G[:, j, j, None] * s[:, j]))
            moves = _clip(best, low[:, j], high[:, j]) - q[:, j]
            if moves.any():
                q[:, j] += moves
                steps[:, j - begin] = s[:, j] * moves
                local += G[:, begin:end, j, None] * steps[:, None, j - begin]
        rows = np.flatnonzero(steps.any(axis=(0, 1)))
        if rows.size:
            gradient[:, :, rows] += G[:, :, begin:end] @ steps[:, :, rows]
            changed[rows] = True
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
    cost: Callable[[Lattice], Array], lattice: Lattice, units: NDArray[np.intp], octaves: bool = False
) -> Array:
    """Factors (g, M) on the scales that lead to the least cost.

    cost: of each row once rounded; is given several lattices as one of n M rows, (g, n M).
    units: (g, M); rows with the same number share one factor, and their costs add up.
    Octaves down to 1/64 are tried first, then ever smaller steps around the best, down to 2^(1/32), unless only
    `octaves` are allowed (powers of two).
    """
    count, at_once = int(units.max(initial=0)) + 1, max(_ROWS // units.shape[1], 1)
    best, least = np.ones(count), np.full(count, np.inf)
    exponents = [-np.arange(7.0), *(np.array([-s, s]) for s in (0.5, 0.25, 0.125, 0.0625, 0.03125) if not octaves)]
    for around in exponents:
        trials = best * 2.0 ** around[:, None]
        for part in np.split(trials, range(at_once, len(trials), at_once)):
            costs = cost(Lattice.stacked([lattice.scaled(factor[units]) for factor in part]))
            for factor, each in zip(part, np.split(costs, len(part), axis=1), strict=True):
                total = np.bincount(units.ravel(), each.ravel(), count)
                best, least = np.where(total < least, factor, best), np.minimum(total, least)
    return best[units]
