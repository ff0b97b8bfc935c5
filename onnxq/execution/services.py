"""How work is run, as opposed to what is computed: none of this changes a result, but that `max_memory` bounds the
statistics that weights are rounded by.

    prepare   threads -> stage, once in each process: it loads the model, say
    stage     items -> results, such that items may be cut anywhere: results of the parts are as good as of the whole

Workers take a `prepare` and items, and give the results of the stage in the order of the items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Stage: TypeAlias = Callable[[Iterable[T]], Iterable[R]]

PART_ITEMS = 8
"""Items that are sent to a worker at once, at most."""

Progress = Callable[[str, int, int], None]
"""Called with (label, done, total) during long work; done and total in any unit of work; label: what is being done and,
behind a colon, a detail of it."""


def duration(seconds: float) -> str:
    """As people say it: 90 s, 3 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def no_progress(label: str, done: int, total: int) -> None:
    """Shows nothing."""


class Workers(Protocol):
    """The processes that do the work."""

    def run(
        self, prepare: Callable[[int], Stage[T, R]], items: Iterable[T], threads: int, most: int = PART_ITEMS
    ) -> Iterator[R]:
        """The stage's results, in order. threads: of this process, where it does the work itself."""


class Here:
    """This process does all of it, in one part."""

    def run(
        self, prepare: Callable[[int], Stage[T, R]], items: Iterable[T], threads: int, most: int = PART_ITEMS
    ) -> Iterator[R]:
        return iter(prepare(threads)(items))


@contextmanager
def open_workers(scheduler: str | None) -> Iterator[Workers]:
    """This process without a scheduler; with one, what `distributed.open_cluster` makes of it, and its errors."""
    if scheduler is None:
        yield Here()
        return
    from .distributed import open_cluster  # Dask is optional, and slow to import

    with open_cluster(scheduler) as workers:
        yield workers


@dataclass(frozen=True)
class Services:
    """threads, in_flight: how many feeds run at once, and how many are held in memory for that.
    max_memory: bytes of activations that may be held at once, and of one layer's statistics.
    workers: the processes that collect statistics over the feeds.
    progress: is called during long work.
    """

    threads: int = 1
    in_flight: int = 2
    max_memory: int = 512 * 2**20
    workers: Workers = field(default_factory=Here, repr=False)
    progress: Progress = no_progress
