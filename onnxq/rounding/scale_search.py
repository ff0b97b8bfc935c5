"""The scale of each channel whose rounding costs least: a factor on the planned one, searched where costs are measured.

Factors are octaves down to 1/64 first; then ever smaller steps around the best, from 2^(1/2) down to 2^(1/32). Where
scales must be powers of two, the octaves alone. The cost has many local minima, so that the search is a coarse one and
no descent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .grid import Ids, WeightGrid

Array = NDArray[np.float64]

_OCTAVES = -np.arange(7.0)
_STEPS = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Exponents of two."""

_ROWS = 1024
"""How many rows are rounded at once when several scales are tried."""


def search_scale(cost: Callable[[WeightGrid], Array], grid: WeightGrid, ids: Ids, power_of_two: bool = False) -> Array:
    """Factors (g, M) on the scales that lead to the least cost.

    cost: of each row once rounded; is given several grids as one of n M rows, (g, n M).
    ids: (g, M); rows with the same number share one factor, and their costs add up.
    """
    count, at_once = int(ids.max(initial=0)) + 1, max(_ROWS // ids.shape[1], 1)
    best, least = np.ones(count), np.full(count, np.inf)
    exponents = [_OCTAVES]
    if not power_of_two:
        exponents += [np.array([-step, step]) for step in _STEPS]
    for around in exponents:
        trials = best * 2.0 ** around[:, None]
        for part in np.split(trials, range(at_once, len(trials), at_once)):
            costs = cost(WeightGrid.stacked([grid.scaled(factor[ids]) for factor in part]))
            for factor, each in zip(part, np.split(costs, len(part), axis=1), strict=True):
                total = np.bincount(ids.ravel(), each.ravel(), count)
                best, least = np.where(total < least, factor, best), np.minimum(total, least)
    return best[ids]
