"""What a check finds, before it is known which requirement of which target asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..targets import Target
from .qdq_reader import QdqGraph


@dataclass(frozen=True)
class Finding:
    """A place that breaks a requirement: node and tensor (empty for the model as a whole), and what stood there."""

    node: str
    tensor: str
    expected: str
    got: str


Check = Callable[[QdqGraph, Target], Iterator[Finding]]
