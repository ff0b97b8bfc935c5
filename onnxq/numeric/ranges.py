"""Range-setting methods (white paper section 3.1): `f(samples, spec) -> (lo, hi)`, both of shape (C,).

A method sees weighted values and the wished grid, nothing of how they were collected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .quant import QuantSpec
from .samples import Samples

Range = tuple[NDArray[np.float64], NDArray[np.float64]]
RangeMethod = Callable[[Samples, QuantSpec], Range]


def minmax(samples: Samples, spec: QuantSpec) -> Range:
    """The whole range of what was seen: no clipping error, coarsest steps (equations 14, 15)."""
    return samples.lo, samples.hi


METHODS: Mapping[str, RangeMethod] = {"minmax": minmax}
