"""Coordinate descent: one weight after another to its best integer while all others stay, sweep after sweep.

    E(W~) = tr(W~ G W~') - 2 tr(W~ B') + const        W~ = s q,  low <= q <= high, q integers               (30, 35)

With the gradient D = W~ G - B (half the derivative of E), the best integer of weight j of a row is

    q_j <- clip(round(q_j - D_j / (G_jj s_j)), low_j, high_j)

and its move by s_j dq changes the row's gradient by s_j dq G_j. E never rises, and the end is a point where no single
change helps. It starts from GPTQ's integers. Rows of few weights start from the best of all 2^K ways to round up or
down, too (depthwise 3 x 3 filters have 512 of them), and keep what ends lower. With fewer columns of data than weights
in a row (`dual`) it stays at GPTQ's integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .gptq import Gptq
from .grid import WeightGrid, by_column, clip
from .objective import Gram, Objective

Array = NDArray[np.float64]

_SWEEPS = {"fast": 3, "default": 20, "high": 100}
"""Sweeps at most, by effort."""


@dataclass(frozen=True)
class CoordinateDescent:
    """sweeps: over all weights, at most. enumerable: the most weights a row may have for all its roundings to be tried.
    block: columns whose moves are gathered before they reach the gradient of all others as one product of matrices;
    inner: the same within a block. Neither changes more than the last bits of the gradient.
    start: the method whose integers are improved, and by whose errors scales are chosen."""

    sweeps: int = 20
    enumerable: int = 10
    block: int = 128
    inner: int = 16
    start: Gptq = field(default_factory=Gptq)

    title: ClassVar[str] = "Coordinate descent"
    tries_dampings: ClassVar[bool] = True
    reads_columns: ClassVar[bool] = False

    @classmethod
    def of_effort(cls, effort: str, seed: int) -> CoordinateDescent:
        """Sweeps by effort."""
        return cls(sweeps=_SWEEPS[effort])

    def round(self, objective: Objective, grid: WeightGrid) -> Array:
        """q (g, M, K)."""
        q, gram = self.start.round(objective, grid), objective.form
        if not isinstance(gram, Gram):
            return q
        q = self.descend(gram, grid, q)
        if objective.W.shape[2] > self.enumerable:
            return q
        other = self.descend(gram, grid, best_of_all(gram, grid, objective.W))
        lower = gram.error(grid.scale * other) < gram.error(grid.scale * q)
        return np.where(lower[:, :, None], other, q)

    def scale_cost(self, objective: Objective, grid: WeightGrid) -> Array:
        """What GPTQ costs: descent from each scale would take a multiple of the time."""
        return self.start.scale_cost(objective, grid)

    def descend(self, gram: Gram, grid: WeightGrid, q: Array) -> Array:
        """Better integers than q (g, M, K).

        Rows that a sweep leaves as they are (in all groups) are done: rows do not depend on each other.
        """
        q, gradient = q.copy(), (grid.scale * q) @ gram.G - gram.B
        bounds = (np.broadcast_to(a, gradient.swapaxes(1, 2).shape) for a in grid.by_column())
        active, state = np.arange(q.shape[1]), [*bounds, by_column(q), by_column(gradient)]
        for _ in range(self.sweeps):
            changed = np.flatnonzero(self._sweep(gram.G, *state))
            if not changed.size:
                break
            q[:, active] = state[3].swapaxes(1, 2)
            active, state = active[changed], [a[:, :, changed] for a in state]
        return q

    def _sweep(self, G: Array, s: Array, low: Array, high: Array, q: Array, gradient: Array) -> NDArray[np.bool_]:
        """Each weight once, q and gradient in place, all (g, K, M); which rows changed, (M,)."""
        changed = np.zeros(q.shape[2], bool)
        for begin in range(0, q.shape[1], self.block):
            block = slice(begin, min(begin + self.block, q.shape[1]))
            parts = (a[:, block] for a in (s, low, high, q))
            steps = self._block(G[:, block, block], gradient[:, block].copy(), *parts)
            rows = np.flatnonzero(steps.any(axis=(0, 1)))
            if 2 * rows.size > changed.size:  # rows that stay add zeros: cheaper than to pick the others
                gradient += G[:, :, block] @ steps
            elif rows.size:
                gradient[:, :, rows] += G[:, :, block] @ steps[:, :, rows]
            changed[rows] = True
        return changed

    def _block(self, G: Array, gradient: Array, s: Array, low: Array, high: Array, q: Array) -> Array:
        """The moves s dq of one block's weights, all (g, b, M), G (g, b, b); q is changed in place, and of the gradient
        what is read later."""
        steps, size = np.zeros(gradient.shape), gradient.shape[1]
        for first in range(0, size, self.inner):
            last = min(first + self.inner, size)
            for j in range(first, last):
                best = np.rint(q[:, j] - gradient[:, j] / (G[:, j, j, None] * s[:, j]))
                moves = clip(best, low[:, j], high[:, j]) - q[:, j]
                if moves.any():
                    q[:, j] += moves
                    steps[:, j] = s[:, j] * moves
                    gradient[:, j + 1 : last] += G[:, j + 1 : last, j, None] * steps[:, None, j]
            if last < size:
                gradient[:, last:] += G[:, last:, first:last] @ steps[:, first:last]
        return steps


def best_of_all(gram: Gram, grid: WeightGrid, W: Array) -> Array:
    """The best of all 2^K roundings of real rows W (g, M, K) up or down; q (g, M, K). For small K."""
    K = W.shape[2]
    up = np.asarray((np.arange(2**K)[:, None] >> np.arange(K)) & 1, np.float64)  # (2^K, K)
    q, base = np.empty_like(W), np.floor(W / grid.scale)
    for g in range(W.shape[0]):
        low, high = grid.low[g][:, None, :], grid.high[g][:, None, :]
        ways = np.clip(base[g][:, None, :] + up, low, high)  # (M, 2^K, K)
        rows = ways * grid.scale[g][:, None, :]
        error = ((rows @ gram.G[g] - 2 * gram.B[g][:, None, :]) * rows).sum(2)
        q[g] = np.take_along_axis(ways, error.argmin(1)[:, None, None], 1)[:, 0]
    return q
