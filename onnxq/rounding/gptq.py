"""GPTQ (Frantar et al., arXiv:2210.17323): columns one after another, each rounding error spread over those behind it.

    E(W~) = tr(W~ H W~') - 2 tr(W~ B') + const        W~ = s q,  low <= q <= high, q integers               (30, 35)

H is the damped Gram matrix `Objective.gram.G`; GPTQ's percdamp is the damping that `choice` tries several of. With the
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
        return self.quantize(objective, grid)[1]

    def quantize(self, objective: Objective, grid: WeightGrid) -> tuple[Array, Array]:
        """q as `round` gives it, and |e|^2 of each row. Inside, columns come first: arrays are (g, K, M)."""
        order, Hinv = objective.inverse.order[:, :, None], objective.inverse.U
        optimum = objective.inverse.optimum
        W = np.tile(optimum.swapaxes(1, 2), (1, 1, grid.scale.shape[1] // optimum.shape[1]))
        s, low, high = (np.take_along_axis(a, order, 1) if a.shape[1] > 1 else a for a in grid.by_column())
        s, low, high = (np.broadcast_to(a, W.shape) for a in (s, low, high))
        Q, losses = np.empty_like(W), np.zeros((W.shape[0], W.shape[2]))
        for i1 in range(0, W.shape[1], self.blocksize):
            i2 = min(i1 + self.blocksize, W.shape[1])
            Err = np.empty((W.shape[0], i2 - i1, W.shape[2]))
            for first in range(i1, i2, self.inner):
                last = min(first + self.inner, i2)
                for j in range(first, last):
                    Q[:, j] = clip(np.rint(W[:, j] / s[:, j]), low[:, j], high[:, j])
                    err = (W[:, j] - s[:, j] * Q[:, j]) / Hinv[:, j, j, None]
                    W[:, j + 1 : last] -= Hinv[:, j, j + 1 : last, None] * err[:, None]
                    Err[:, j - i1] = err
                W[:, last:i2] -= Hinv[:, first:last, last:i2].swapaxes(1, 2) @ Err[:, first - i1 : last - i1]
            W[:, i2:] -= Hinv[:, i1:i2, i2:].swapaxes(1, 2) @ Err
            losses += np.square(Err).sum(1)
        back = np.argsort(order, axis=1, kind="stable")
        return by_column(np.take_along_axis(Q, back, 1)), losses
