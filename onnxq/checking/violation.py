"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..targets import Target
from .qdq_reader import QdqGraph


@dataclass(frozen=True)
class Violation:
    """A place in a model that breaks a requirement: what was expected there and what was found instead.

    node, tensor: empty where the model as a whole breaks it. requirement, source: which requirement of the target that
    is, and where the tool-chain states it; `check` adds both to what a single check finds.
    """

    node: str
    tensor: str
    expected: str
    got: str
    requirement: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.requirement}: {self.place} ({self.source})"

    @property
    def place(self) -> str:
        """Where it is, what was expected there and what was found."""
        node = f"{self.node}: " if self.node else ""
        tensor = f"{self.tensor!r}: " if self.tensor else ""
        return f"{node}{tensor}expected {self.expected}, got {self.got}"


Check = Callable[[QdqGraph, Target], Iterator[Violation]]
