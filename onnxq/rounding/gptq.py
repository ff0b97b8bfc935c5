"""GPTQ (Frantar et al., arXiv:2210.17323): columns one after another, each rounding error spread over those behind it.

    E(W~) = tr(W~ H W~') - 2 tr(W~ B') + const        W~ = s q,  low <= q <= high, q integers               (30, 35)

H is the damped Gram matrix `Objective.form.G`; GPTQ's percdamp is the damping that `choice` tries several of. With the
upper Cholesky factor Hinv of H^-1 = Hinv' Hinv, and W the real-valued optimum B H^-1, column j is

    rounded             q_j = clip(round(w_j / s_j), low_j, high_j)
    its error           e_j = (w_j - s_j q_j) / Hinv_jj
    spread              w_k -= e_j Hinv_jk   for all k > j: the best that the columns still free can do

which is optimal brain quantization with one order of columns for all rows, or Babai's nearest plane. The errors add up
to W - W~ = e Hinv, so that E(W~) - E(W) = |e|^2, row by row: what a rounding costs needs no other product by H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .grid import WeightGrid, by_column, clip
from .objective import Objective

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gptq:
    """blocksize: columns whose errors are gathered before they reach all columns behind them, as one product of
    matrices; inner: the same within a block. Neither changes more than the last bits of the result."""

    blocksize: int = 128
    inner: int = 16

    title: ClassVar[str] = "GPTQ"
    tries_dampings: ClassVar[bool] = True
    reads_columns: ClassVar[bool] = False

    @classmethod
    def of_effort(cls, effort: str, seed: int) -> Gptq:
        """The same at every effort."""
        return cls()

    def round(self, objective: Objective, grid: WeightGrid) -> Array:
        """q (g, M, K); on stacked grids, of n M rows, (g, n M, K)."""
        return self.quantize(objective, grid)[0]

    def scale_cost(self, objective: Objective, grid: WeightGrid) -> Array:
        """What each row's rounding costs, (g, M) or (g, n M)."""
        return self._solve(objective, grid)[1]

    def quantize(self, objective: Objective, grid: WeightGrid) -> tuple[Array, Array]:
        """q as `round` gives it, and |e|^2 of each row."""
        Q, losses = self._solve(objective, grid)
        back = np.argsort(objective.factor.order, axis=1, kind="stable")
        return by_column(np.take_along_axis(Q, back[:, :, None], 1)), losses

    def _solve(self, objective: Objective, grid: WeightGrid) -> tuple[Array, Array]:
        """The same with q in the order in which columns are rounded, (g, K, M) as all arrays inside."""
        factor, rows = objective.factor, grid.scale.shape[1]
        order, rest = factor.order[:, :, None], factor.start(rows // objective.W.shape[1])
        shape = (order.shape[0], order.shape[1], rows)
        s, low, high = (np.take_along_axis(a, order, 1) if a.shape[1] > 1 else a for a in grid.by_column())
        s, low, high = (np.broadcast_to(a, shape) for a in (s, low, high))
        Q, losses = np.empty(shape), np.zeros((shape[0], rows))
        for i1 in range(0, shape[1], self.blocksize):
            i2 = min(i1 + self.blocksize, shape[1])
            Hinv, W = rest.block(i1, i2)
            Err = np.empty(W.shape)
            for first in range(0, i2 - i1, self.inner):
                last = min(first + self.inner, i2 - i1)
                for j in range(first, last):
                    k = i1 + j
                    Q[:, k] = clip(np.rint(W[:, j] / s[:, k]), low[:, k], high[:, k])
                    err = (W[:, j] - s[:, k] * Q[:, k]) / Hinv[:, j, j, None]
                    W[:, j + 1 : last] -= Hinv[:, j, j + 1 : last, None] * err[:, None]
                    Err[:, j] = err
                W[:, last:] -= Hinv[:, first:last, last:].swapaxes(1, 2) @ Err[:, first:last]
            rest.spread(i1, i2, Err, s[:, i1:i2] * Q[:, i1:i2])
            losses += np.square(Err).sum(1)
        return Q, losses
