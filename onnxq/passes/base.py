"""What a pass is: a frozen dataclass whose fields are its options, and `apply(model, context) -> Outcome`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from ..calibration.context import Context
from ..graph.model import Model
from ..report import RoundedLayer

__all__ = ["Context", "Outcome", "Pass", "Skip"]


@dataclass(frozen=True)
class Skip:
    """Something that a pass declined to do: where (a node or tensor) and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a pass did: how many places it changed, what it declined, and facts worth reporting.

    rounded: the weights whose rounding it optimised.
    """

    changed: int = 0
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    rounded: tuple[RoundedLayer, ...] = ()


class Pass(Protocol):
    """preserves: whether a pass that edits the graph keeps its float function, which the pipeline then measures;
    None for a pass that only plans quantizers and leaves the graph alone."""

    preserves: ClassVar[bool | None]

    def apply(self, model: Model, context: Context) -> Outcome:
        """Change `model` in place. Raises OnnxqError subclasses only."""
