"""A weight's grid as its layer's matrix W (g, M, K) sees it (white paper section 2.2).

    W~ = s q        low <= q <= high, q integers        low = qmin - z, high = qmax - z

s, low and high are (g, M, K), or (g, M, 1) where columns do not differ: per tensor and per channel all columns of a row
have one scale, in blocks they have several. All of them are float64 arrays of float32 numbers and integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..numeric.quant import QuantParams
from ..operators.matrix import LayerMatrix

Array = NDArray[np.float64]
Ids = NDArray[np.intp]


@dataclass(frozen=True)
class WeightGrid:
    """Scale and bounds of every entry of W."""

    scale: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, matrix: LayerMatrix, params: QuantParams) -> WeightGrid:
        """The grid of a weight tensor, in the layout of its matrix."""
        scale, zero_point = params.broadcast(matrix.shape)
        bounds = (scale, params.grid.qmin - zero_point, params.grid.qmax - zero_point)
        entries = (matrix.weights(np.broadcast_to(np.asarray(a, np.float64), matrix.shape)) for a in bounds)
        return cls(*(a[:, :, :1] if (a == a[:, :, :1]).all() else a for a in entries))

    @classmethod
    def stacked(cls, grids: Sequence[WeightGrid]) -> WeightGrid:
        """n grids of one shape as one of n M rows, so that a rounding method serves all of them at once."""
        return cls(*(np.concatenate([getattr(a, n) for a in grids], axis=1) for n in ("scale", "low", "high")))

    def scaled(self, factor: Array) -> WeightGrid:
        """Every row's steps `factor` (g, M) times as large; scales stay float32 numbers."""
        return WeightGrid(np.asarray(np.float32(self.scale * factor[:, :, None]), np.float64), self.low, self.high)

    def nearest(self, W: Array) -> Array:
        """q nearest to real rows W (g, M, K), as QuantizeLinear rounds: float32 quotients, halves to even.

        Stacked grids, of n M rows, all get the same rows.
        """
        W = np.tile(W, (1, self.scale.shape[1] // W.shape[1], 1))
        quotient = np.asarray(np.float32(W) / np.float32(self.scale), np.float64)
        return np.asarray(np.clip(np.rint(quotient), self.low, self.high))

    def between(self, W: Array) -> WeightGrid:
        """The same grid with AdaRound's two candidates alone: floor and ceil of W / scale; real rows W (g, M, K)."""
        quotient = np.asarray(np.float32(W) / np.float32(self.scale), np.float64)
        ends = (np.clip(end(quotient), self.low, self.high) for end in (np.floor, np.ceil))
        return WeightGrid(np.broadcast_to(self.scale, W.shape), *ends)

    def by_column(self) -> tuple[Array, Array, Array]:
        """Scale, low and high as (g, K or 1, M): what methods that visit columns one after another read together."""
        return by_column(self.scale), by_column(self.low), by_column(self.high)


def by_column(rows: Array) -> Array:
    """(g, M, K) as (g, K, M), a column's entries next to each other in memory; its own inverse."""
    return np.ascontiguousarray(rows.swapaxes(1, 2))


def clip(q: Array, low: Array, high: Array) -> Array:
    """`np.clip` of small arrays, in less time."""
    return np.asarray(np.minimum(np.maximum(q, low), high))


def scale_ids(matrix: LayerMatrix, params: QuantParams) -> Ids:
    """(g, M): rows with the same number share their scales. With blocks, a row has several, which change together."""
    if params.axis is None:
        ids = np.zeros(matrix.shape, np.intp)
    elif params.block is not None:
        rows = matrix.rows
        return np.arange(matrix.groups * rows).reshape(matrix.groups, rows)
    else:
        vector = [-1 if i == params.axis else 1 for i in range(len(matrix.shape))]
        ids = np.broadcast_to(np.arange(matrix.shape[params.axis]).reshape(vector), matrix.shape)
    return np.asarray(matrix.weights(ids)[:, :, 0])


def rescaled(matrix: LayerMatrix, params: QuantParams, factor: Array) -> QuantParams:
    """Scales times `factor` (g, M), which is the same for rows that share a scale; rounded as `WeightGrid.scaled`."""
    columns = int(np.prod(matrix.shape)) // factor.size
    entries = matrix.restore(np.broadcast_to(factor[:, :, None], (*factor.shape, columns)))
    if params.axis is None:
        picked = entries.reshape(-1)[0]
    elif params.block is not None:
        picked = entries.take(range(0, entries.shape[params.axis], params.block), params.axis)
    else:
        picked = np.moveaxis(entries, params.axis, 0).reshape(entries.shape[params.axis], -1)[:, 0]
    return replace(params, scale=np.asarray(np.asarray(params.scale, np.float64) * picked, np.float32))
