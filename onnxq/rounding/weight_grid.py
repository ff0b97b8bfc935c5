"""A weight's grid as its layer's matrix W (g, M, K) sees it: where each entry may lie, and which rows share a scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..numeric.quant import QuantParams
from ..operators.matrix import LayerMatrix
from .gptq import Array, Lattice


def lattice(matrix: LayerMatrix, params: QuantParams) -> Lattice:
    """Scale and bounds of every entry of W, or of its rows where columns do not differ."""
    scale, zero_point = params.broadcast(matrix.shape)
    bounds = (scale, params.grid.qmin - zero_point, params.grid.qmax - zero_point)
    entries = (matrix.weights(np.broadcast_to(np.asarray(a, np.float64), matrix.shape)) for a in bounds)
    return Lattice(*(a[:, :, :1] if (a == a[:, :, :1]).all() else a for a in entries))


def scale_units(matrix: LayerMatrix, params: QuantParams) -> NDArray[np.intp]:
    """(g, M): rows with the same number share their scales. With blocks, a row has several, which change together."""
    if params.axis is None:
        unit = np.zeros(matrix.shape, np.intp)
    elif params.block is not None:
        rows = matrix.rows
        return np.arange(matrix.groups * rows).reshape(matrix.groups, rows)
    else:
        vector = [-1 if i == params.axis else 1 for i in range(len(matrix.shape))]
        unit = np.broadcast_to(np.arange(matrix.shape[params.axis]).reshape(vector), matrix.shape)
    return np.asarray(matrix.weights(unit)[:, :, 0])


def rescaled(matrix: LayerMatrix, params: QuantParams, factor: Array) -> QuantParams:
    """Scales times `factor` (g, M), which is the same for rows that share a scale; rounded as `Lattice.scaled` does."""
    columns = int(np.prod(matrix.shape)) // factor.size
    entries = matrix.restore(np.broadcast_to(factor[:, :, None], (*factor.shape, columns)))
    if params.axis is None:
        picked = entries.reshape(-1)[0]
    elif params.block is not None:
        picked = entries.take(range(0, entries.shape[params.axis], params.block), params.axis)
    else:
        picked = np.moveaxis(entries, params.axis, 0).reshape(entries.shape[params.axis], -1)[:, 0]
    return replace(params, scale=np.asarray(np.asarray(params.scale, np.float64) * picked, np.float32))
