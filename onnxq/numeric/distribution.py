"""What a range leaves of a tensor: statistics as a few bars, the share that is clipped, the noise that the grid adds.

    bars       mass of the samples in bins of equal width, for people to look at
    clipped    share of values beyond the outer steps of the grid:  x < s (qmin - z) - s/2  or  x > s (qmax - z) + s/2
    SQNR       10 log10(sum n x^2 / sum n (x - Q(x))^2)

Samples that stand for bins of a histogram count as uniform inside them, cut at the exact extremes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .quant import QuantParams
from .quantization_error import squared_error
from .samples import Samples

Vector = NDArray[np.float64]


def grid_ends(params: QuantParams) -> tuple[float, float]:
    """The smallest and largest value that a per-tensor grid holds."""
    scale, zero_point = float(np.ravel(params.scale)[0]), float(np.ravel(params.zero_point)[0])
    return scale * (params.grid.qmin - zero_point), scale * (params.grid.qmax - zero_point)


def bars(samples: Samples, edges: Vector) -> Vector:
    """Counts between ascending `edges` (n + 1,) -> (n,), whole; the outer two hold everything beyond."""
    below = _below(samples, edges)
    below[0], below[-1] = 0.0, samples.counts.sum()
    return np.diff(np.rint(below))


def clipped(samples: Samples, params: QuantParams) -> float:
    """Share of values that a per-tensor grid clips."""
    lo, hi = grid_ends(params)
    half = float(np.ravel(params.scale)[0]) / 2
    total = float(samples.counts.sum())
    low, high = _below(samples, np.array([lo - half, hi + half]))
    return max(0.0, (low + total - high) / total) if total else 0.0


def grid_sqnr(samples: Samples, params: QuantParams) -> float:
    """SQNR of a tensor on its grid, in dB; infinite where nothing is lost."""
    noise = float(squared_error(samples, params)[0])
    signal = float((samples.counts * samples.values**2).sum())
    if noise == 0:
        return np.inf
    return 10 * float(np.log10(signal / noise)) if signal > 0 else -np.inf


def _below(samples: Samples, edges: Vector) -> Vector:
    """How many values lie below each edge, (n,)."""
    values, counts = samples.values[0], samples.counts[0]
    half = np.zeros_like(values) if samples.widths is None else samples.widths[0] / 2
    left = np.clip(values - half, samples.lo[0], samples.hi[0])
    width = np.clip(values + half, samples.lo[0], samples.hi[0]) - left
    point = width <= 0
    found = []
    for edge in edges:
        share = np.divide(edge - left, width, out=np.zeros_like(left), where=~point)
        found.append((np.where(point, left < edge, np.clip(share, 0, 1)) * counts).sum())
    return np.array(found)
