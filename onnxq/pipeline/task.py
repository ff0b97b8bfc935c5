"""What figure 8 starts from: a float model, its data, and how to quantize it. Nothing here changes while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnx import ModelProto

from ..calibration.context import Context
from ..calibration.statistics import Statistics
from ..data import CalibrationData
from ..encodings import Encoding
from ..execution.services import Here, Services, Workers, no_progress
from ..execution.session import default_threads
from ..options import Options
from ..targets import find_target
from .keep_if_better import QualityMeasure
from .samples import Division, divide, evaluated, undivided

RANDOM_INPUTS = "random inputs"
"""The source of the feeds where there is no calibration data."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """One float model to quantize.

    proto: the checked float model, which messages call `origin`.
    feeds: calibration data, or random inputs where `source`, its path if it has one, says so.
    input_keys: input name -> key in .npz files, for the report.
    size: bytes of the float model as it was given; None: those of `proto`.
    statistics: of activations, collected before.  encodings: grids that are given.
    evaluation: the user's data to choose and to report with, instead of parts of the feeds.  evaluation_samples: how
    many of it are reported on, at most; None: `thresholds.COUNTED_SAMPLES`.
    workers: who collects statistics.  progress: called with (label, done, total).
    """

    proto: ModelProto
    origin: str
    feeds: CalibrationData
    options: Options
    source: str | None = None
    input_keys: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics | None = None
    encodings: tuple[Encoding, ...] = ()
    workers: Workers | None = None
    progress: Progress | None = None
    evaluation: CalibrationData | None = None
    evaluation_samples: int | None = None
    size: int | None = None

    @cached_property
    def samples(self) -> Division:
        """Which of the feeds are for what."""
        if self.evaluation is not None:
            return evaluated(self.feeds, self.evaluation, self.evaluation_samples)
        return undivided(self.feeds) if self.has_no_data else divide(self.feeds)

    @cached_property
    def context(self) -> Context:
        """What passes may use; the feeds among it serve comparisons even where nothing may be learnt from them."""
        made = make_context(self.options, self.samples.fitting, self.progress, self.statistics, self.workers)
        return replace(made, choosing=self.samples.choosing)

    @cached_property
    def trying(self) -> Context:
        """The context of all trials, on a few feeds, without progress of their own: what one of them measures of a
        network serves the others."""
        services = replace(self.context.services, progress=no_progress)
        return replace(self.context, feeds=self.samples.trial, services=services)

    @cached_property
    def quality(self) -> QualityMeasure:
        """Measures quantized models on the choosing samples, which no range is set on while steps are compared."""
        services, target = self.context.services, self.context.target
        return QualityMeasure(self.proto, self.samples.choosing, services, optimize=target.runs_here)

    @property
    def has_random_inputs(self) -> bool:
        """Whether the feeds are random, so that they show whether a model runs and nothing else."""
        return self.source == RANDOM_INPUTS

    @property
    def has_no_data(self) -> bool:
        """Whether there is no calibration data to measure results on."""
        return self.has_random_inputs or self.options.data_free

    @property
    def learning(self) -> Context:
        """The context of passes that learn from data: without feeds where there is none."""
        return replace(self.context, feeds=()) if self.has_no_data and not self.options.synthetic else self.context


def make_context(
    options: Options,
    feeds: CalibrationData,
    progress: Progress | None,
    statistics: Statistics | None = None,
    workers: Workers | None = None,
) -> Context:
    """What passes may use, as the options say."""
    threads = options.threads or default_threads()
    services = Services(
        threads=threads,
        in_flight=options.batch_size or 2 * threads,
        max_memory=options.max_memory * 2**20,
        workers=workers or Here(),
        progress=progress or no_progress,
    )
    return Context(target=find_target(options.target), feeds=feeds, statistics=statistics, services=services)
