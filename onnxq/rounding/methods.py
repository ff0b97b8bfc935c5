"""The rounding methods: (objective, grid) -> integers, under the names that `--rounding` takes.

To add one, write a class with the members of `RoundingMethod` in a file of its own, and enter it in `ROUNDINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from .adaround import AdaRound
from .coordinate_descent import CoordinateDescent
from .gptq import Gptq
from .grid import WeightGrid
from .objective import Objective

Array = NDArray[np.float64]


class RoundingMethod(Protocol):
    """A frozen dataclass, whose fields are the method's constants and schedules.

    title: what reports call it.  tries_dampings: whether its integers may lie far from the float weights where the data
    says little, so that several strengths of the term that keeps them near are tried (`choice`).  reads_columns:
    whether it reads `Objective.columns`, which take memory.
    """

    title: ClassVar[str]
    tries_dampings: ClassVar[bool]
    reads_columns: ClassVar[bool]

    @classmethod
    def of_effort(cls, effort: str, seed: int) -> RoundingMethod:
        """With the time for quality that `--effort` names: fast, default or high. seed: for all that is drawn."""

    def round(self, objective: Objective, grid: WeightGrid) -> Array:
        """Integers q (g, M, K) within the grid's bounds; the weights become s q."""

    def scale_cost(self, objective: Objective, grid: WeightGrid) -> Array:
        """What rounding on this grid costs each row, while scales are searched; on stacked grids, of n M rows."""


@dataclass(frozen=True)
class Nearest:
    """q = clip(round(W / s), low, high), whatever the data says; scale and bias still follow it."""

    title: ClassVar[str] = "Rounding to nearest"
    tries_dampings: ClassVar[bool] = False
    reads_columns: ClassVar[bool] = False

    @classmethod
    def of_effort(cls, effort: str, seed: int) -> Nearest:
        """The same at every effort."""
        return cls()

    def round(self, objective: Objective, grid: WeightGrid) -> Array:
        """q (g, M, K)."""
        return grid.nearest(objective.W)

    def scale_cost(self, objective: Objective, grid: WeightGrid) -> Array:
        """The quadratic form of each row."""
        return objective.row_errors(grid, grid.nearest(objective.W))


ROUNDINGS: Mapping[str, type[RoundingMethod]] = {
    "nearest": Nearest,
    "gptq": Gptq,
    "coordinate-descent": CoordinateDescent,
    "adaround": AdaRound,
}
