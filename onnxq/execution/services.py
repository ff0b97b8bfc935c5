"""How work is run, apart from what is computed: none of this changes a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .distributed import Here, Workers

Progress = Callable[[str, int, int], None]
"""Called with (label, done, total) during long work; done and total in any unit of work; label: what is being done and,
behind a colon, a detail of it."""


def no_progress(label: str, done: int, total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Services:
    """threads, in_flight: how many feeds run at once, and how many are held in memory for that.
    max_memory: bytes of activations that may be held at once.
    workers: which processes collect statistics over the feeds.
    progress: is told how far long work is.
    """

    threads: int = 1
    in_flight: int = 2
    max_memory: int = 512 * 2**20
    workers: Workers = field(default_factory=Here, repr=False)
    progress: Progress = no_progress
