"""What a pass is: a frozen dataclass whose fields are its options, and `apply(model, context) -> Outcome`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from ..calibration.statistics import Statistics
from ..data import Feed
from ..execution.distributed import Here, Workers
from ..graph.model import Model
from ..numeric.channel_statistics import ChannelFacts
from ..numeric.quant import QuantParams
from ..numeric.ranges import Range
from ..numeric.samples import Samples
from ..report import RoundedLayer
from ..targets import ORT, Target


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


def _no_progress(label: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What passes may use beside the model.

    feeds: calibration feeds, iterable again and again; each pass over it reads the data anew.
    statistics: of activations, where they were collected before.
    threads, in_flight: how many feeds run at once, and how many are held in memory for that.
    max_memory: bytes of activations that may be held at once.
    workers: who collects statistics over the feeds.
    progress: called with (label, done, total) during long work; done and total in any unit of work; label: what is
        done and, behind a colon, a detail of it.
    ranged: called with (tensor, statistics, the grid chosen for them), where somebody wants to show them.
    weight_ranges: those found before, by wish and a hash of the values, which alone decide them: steps are tried on
        copies that share most weights.
    measured: what `observe.channel_facts` has seen, by graph, tensor and axis; `replace` makes a context without it.
    """

    target: Target = ORT
    feeds: Iterable[Feed] = ()
    statistics: Statistics | None = None
    threads: int = 1
    in_flight: int = 2
    max_memory: int = 512 * 2**20
    workers: Workers = field(default_factory=Here, repr=False)
    progress: Callable[[str, int, int], None] = field(default=_no_progress)
    ranged: Callable[[str, Samples, QuantParams], None] | None = None
    weight_ranges: dict[tuple[str, bytes], Range] = field(default_factory=dict, repr=False)
    measured: dict[str, dict[tuple[str, int], ChannelFacts]] = field(init=False, default_factory=dict, repr=False)

    def arrays(self, label: str = "") -> Iterable[tuple[Mapping[str, np.ndarray], int | None]]:
        """(arrays, rows) of every feed, with progress reported under `label`."""
        total = len(self.feeds) if isinstance(self.feeds, Sized) else 0
        for done, feed in enumerate(self.feeds, 1):
            yield feed.arrays, feed.rows
            if label:
                self.progress(label, done, total)


class Pass(Protocol):
    """preserves: whether a pass that edits the graph keeps its float function, which the pipeline then measures;
    None for a pass that only plans quantizers and leaves the graph alone."""

    preserves: ClassVar[bool | None]

    def apply(self, model: Model, context: Context) -> Outcome:
        """Change `model` in place. Raises OnnxqError subclasses only."""
