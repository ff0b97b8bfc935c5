"""What a pass is: a frozen dataclass with a title, its options as fields, and `apply(model, context) -> Outcome`."""

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

    rounded: the weights whose rounding it optimised.  warnings: what the user must not miss, such as an option that
    did nothing.
    """

    changed: int = 0
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    rounded: tuple[RoundedLayer, ...] = ()
    warnings: tuple[str, ...] = ()


class Pass(Protocol):
    """title: what reports call it.
    preserves: whether a pass that edits the graph keeps its float function, which the pipeline then measures;
    None for a pass that only plans quantizers and leaves the graph alone."""

    @property
    def title(self) -> str: ...

    preserves: ClassVar[bool | None]

    def apply(self, model: Model, context: Context) -> Outcome:
        """Change `model` in place. Raises OnnxqError subclasses only."""
