"""The squared error that a grid leaves of weighted values, per channel (the objective of white paper equation 16).

With counts n_i of values x_i, and Q the quantizer,   E = sum_i n_i (x_i - Q(x_i))^2.

Where a value x_i stands for a bin of width w, its squared error is the mean over the bin. With t = x / s and k the
nearest integer of the grid, the primitive of (t - k)^2 that is continuous at the steps is

    G(t) = k / 12 + (t - k)^3 / 3        k = clip(round(t), qmin - z, qmax - z)

so that the mean over [a, b] is s^2 (G(b/s) - G(a/s)) / (b/s - a/s): exact for uniform density inside a bin, on grids
coarser and finer than the bins alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .quant import QuantParams
from .samples import Samples

Vector = NDArray[np.float64]
Objective = Callable[[QuantParams], Vector]
"""From the grids of all channels to what each of them costs, (C,)."""


def squared_error(samples: Samples, params: QuantParams) -> Vector:
    """Total squared quantization error per channel, (C,), float64."""
    return squared_error_of(samples)(params)


def squared_error_of(samples: Samples, clipping: float = 1.0) -> Objective:
    """The same as a function of the grid, for a search that calls it many times. clipping: how often errors of values
    beyond the grid count, in histograms."""
    return _of_bins(samples, clipping) if samples.widths is not None else _of_values(samples)


def _of_values(samples: Samples) -> Objective:
    """For weights, by the million: nothing is computed twice, and always in the same memory. In float32, in which
    weights come: memory is what takes the time, and errors of steps need no more digits."""
    values, counts = np.asarray(samples.values, np.float32), samples.counts
    t, distance = np.empty_like(values), np.empty_like(values)

    def error(params: QuantParams) -> Vector:
        scale, lowest, highest = _steps(params)
        if lowest.size and (lowest == lowest[0]).all():  # numpy clips to numbers five times as fast as to arrays
            lowest, highest = lowest[0, 0], highest[0, 0]
        np.multiply(values, np.float32(1 / scale), out=t)
        np.rint(t, out=distance)
        np.clip(distance, lowest, highest, out=distance)
        np.subtract(distance, t, out=distance)
        weighed = distance if samples.are_weights else np.multiply(distance, counts, out=t)
        return np.asarray(np.einsum("ij,ij->i", distance, weighed) * scale[:, 0] ** 2)

    return error


def _of_bins(samples: Samples, clipping: float) -> Objective:
    """For histograms: the mean over each bin. One channel takes several grids at once, with a cost for each."""
    assert samples.widths is not None
    values, counts, widths = samples.values, samples.counts, samples.widths

    def error(params: QuantParams) -> Vector:
        scale, lowest, highest = _steps(params)
        t, half = values / scale, widths / (2 * scale)
        rise = _primitive(t + half, lowest, highest) - _primitive(t - half, lowest, highest)
        mean = np.divide(rise, 2 * half, out=np.zeros_like(rise), where=half > 0)
        if clipping != 1:
            mean *= np.where((t < lowest - 0.5) | (t > highest + 0.5), clipping, 1.0)
        cost = np.einsum("ij,j->i", mean, counts[0]) if len(counts) == 1 else np.einsum("ij,ij->i", mean, counts)
        return np.asarray(cost * scale[:, 0] ** 2)

    return error


def _steps(params: QuantParams) -> tuple[Vector, Vector, Vector]:
    """Scale, and the lowest and highest number of steps from zero, (C, 1)."""
    scale = np.asarray(params.scale, np.float64).reshape(-1, 1)
    zero_point = np.asarray(params.zero_point, np.float64).reshape(-1, 1)
    return scale, params.grid.qmin - zero_point, params.grid.qmax - zero_point


def _primitive(t: Vector, lowest: Vector, highest: Vector) -> Vector:
    k = np.clip(np.rint(t), lowest, highest)
    distance = t - k
    return np.asarray(k / 12 + distance * distance * distance / 3)  # numpy's third power takes ten times as long
