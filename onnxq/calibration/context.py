"""What a pass may use beside the model: calibration data, the target, and how work is run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field

import numpy as np

from ..data import Feed
from ..execution.services import Services
from ..numeric.channel_statistics import ChannelFacts
from ..numeric.quant import QuantParams
from ..numeric.range_search import Range
from ..numeric.samples import Samples
from ..targets import ORT, Target
from .statistics import Statistics


@dataclass(frozen=True)
class Context:
    """What passes may use beside the model.

    feeds: calibration feeds, iterable again and again; each pass over it reads the data anew.
    choosing: feeds to decide on, where these are others; each pass over them reads the data anew.
    statistics: of activations, where they were collected before.
    services: how work is run.
    ranged: called with (tensor, statistics, the parameters chosen for them), where a report shows them.
    weight_ranges: found before, by spec and the identity of the array, which nobody writes into: steps are tried on
        copies that share most weights. Each with the array, which may be gone.
    channel_facts: measured before on these feeds, by graph, tensor and axis; `replace` makes a context without them.
    """

    target: Target = ORT
    feeds: Iterable[Feed] = ()
    choosing: Iterable[Feed] = ()
    statistics: Statistics | None = None
    services: Services = field(default_factory=Services)
    ranged: Callable[[str, Samples, QuantParams], None] | None = None
    weight_ranges: dict[tuple[str, int], tuple[weakref.ref[np.ndarray], Range]] = field(
        default_factory=dict, repr=False
    )
    channel_facts: dict[bytes, dict[tuple[str, int], ChannelFacts]] = field(
        init=False, default_factory=dict, repr=False
    )

    def with_progress(self, label: str) -> Iterator[Feed]:
        """The feeds, with progress reported under `label`."""
        total = len(self.feeds) if isinstance(self.feeds, Sized) else 0
        for done, feed in enumerate(self.feeds, 1):
            yield feed
            self.services.progress(label, done, total)
