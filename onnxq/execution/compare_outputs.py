"""Models side by side: what each of them computes of the same samples, float against quantized mostly.

The samples stream through; nothing is kept but what the caller keeps, or what several models are compared with: that is
computed once (`Reference`). Several samples are run at once, and come back in order. Rows that only fill a fixed batch
up are left out of everything that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ..data import Feed
from ..graph.comparable import Comparable
from ..numeric.metrics import Front, OutputSqnr, losses
from .services import R, Services
from .session import Session, Source, parallel_map, without_padding
from .spill import CachedArray, SpillCache

Outputs: TypeAlias = Mapping[str, Any]
"""Output name -> array, or a list of arrays for a sequence; padding removed."""

Held: TypeAlias = Mapping[str, CachedArray]

Score: TypeAlias = Callable[[Iterable[tuple[Feed, Outputs]]], float]
"""What a model's outputs for some samples, always the same ones in the same order, are worth; higher is better."""


def outputs_of(found: Mapping[str, Any], feed: Feed) -> dict[str, Any]:
    """What a model computed of `feed`, without padding."""
    return {name: without_padding(value, feed) for name, value in found.items()}


def map_models(
    function: Callable[[Feed, list[dict[str, Any]]], R],
    models: Sequence[Source | Session],
    feeds: Iterable[Feed],
    threads: int,
    in_flight: int = 0,
) -> Iterator[R]:
    """`function(feed, outputs)` for each feed, in order, called in worker threads; outputs: one mapping a model.

    At most `in_flight` feeds (2 * threads) are held at once. Raises EngineError where a model does not load or run.
    """
    sessions = [model if isinstance(model, Session) else Session(model) for model in models]

    def run(feed: Feed) -> R:
        return function(feed, [outputs_of(session.run(feed.arrays), feed) for session in sessions])

    return parallel_map(run, feeds, threads, in_flight)


def run_models(
    models: Sequence[Source | Session], feeds: Iterable[Feed], threads: int, in_flight: int = 0
) -> Iterator[tuple[Feed, list[dict[str, Any]]]]:
    """Each feed with the outputs of every model, as `map_models`."""
    return map_models(lambda feed, outputs: (feed, outputs), models, feeds, threads, in_flight)


def reference_outputs(model: Source | Session, feeds: Iterable[Feed], threads: int) -> list[dict[str, Any]]:
    """A model's outputs for each feed, for others to be compared with. All are held in memory."""
    return [outputs for _, (outputs,) in run_models((model,), feeds, threads)]


@dataclass(frozen=True)
class KeptSample:
    """A feed, its arrays left out, that models run on one after another. number: its place among all.

    kept: of the models so far, what was kept of their outputs for this feed, all of floats."""

    number: int
    feed: Feed
    arrays: Held
    kept: list[Held]

    def outputs(self, model: int) -> dict[str, np.ndarray]:
        """What was kept of a model, the first being 0."""
        return {name: handle.array() for name, handle in self.kept[model].items()}


class KeptOutputs:
    """Feeds for several models, one after another, so that one session is in memory at a time. The feeds are read once;
    they and what is kept of outputs lie in files beyond `services.max_memory`."""

    def __init__(self, first: Session, feeds: Iterable[Feed], services: Services) -> None:
        """first: a model whose outputs are kept."""
        self._services, self._cache = services, SpillCache(services.max_memory)
        self.all: list[KeptSample] = []
        self.extend(first, feeds)

    def extend(self, first: Session, feeds: Iterable[Feed]) -> None:
        """Further feeds, of which the first model's outputs are kept."""
        for feed, outputs in self._run(first, feeds):
            arrays = {name: self._cache.put(array) for name, array in feed.arrays.items()}
            self.all.append(KeptSample(len(self.all), replace(feed, arrays={}), arrays, [self._held(outputs)]))

    def beside(
        self, session: Session, count: int | None = None, *, keep: bool = False
    ) -> Iterator[tuple[KeptSample, Outputs]]:
        """Each feed, or the first `count`, in order, with what a model computes of it. keep: for models behind it.
        Raises EngineError where the model fails."""
        some = self.all[:count]
        feeds = (replace(s.feed, arrays={name: held.array() for name, held in s.arrays.items()}) for s in some)
        for sample, (_, outputs) in zip(some, self._run(session, feeds), strict=True):
            yield sample, outputs
            if keep:
                sample.kept.append(self._held(outputs))

    def _held(self, outputs: Outputs) -> Held:
        arrays = ((name, y) for name, y in outputs.items() if isinstance(y, np.ndarray))
        return {name: self._cache.put(y) for name, y in arrays if y.dtype.kind == "f"}

    def _run(self, session: Session, feeds: Iterable[Feed]) -> Iterator[tuple[Feed, Outputs]]:
        runs = run_models((session,), feeds, self._services.threads, self._services.in_flight)
        return ((feed, outputs) for feed, (outputs,) in runs)


class Reference:
    """A model's float outputs for some feeds, for one model after another to be compared with. They are computed once,
    and kept with their feeds (`KeptOutputs`).

    optimize: whether ONNX Runtime's optimisations are on in all of them.
    """

    def __init__(self, model: Source, feeds: Iterable[Feed], services: Services, *, optimize: bool = False) -> None:
        self._model, self._feeds, self._services, self._optimize = model, feeds, services, optimize
        self._samples: KeptOutputs | None = None

    def beside(self, other: Source) -> Iterator[tuple[Outputs, Outputs]]:
        """(reference, other) of each feed, in order. Raises EngineError where one of them does not load or run."""
        if self._samples is None:
            reference = Session(self._model, optimize=self._optimize)
            self._samples = KeptOutputs(reference, self._feeds, self._services)
            del reference
        for sample, outputs in self._samples.beside(Session(other, optimize=self._optimize)):
            yield sample.outputs(0), outputs


def output_sqnr(pairs: Iterable[tuple[Outputs, Outputs]], compared: Sequence[Comparable] = ()) -> float | None:
    """SQNR in dB over all float outputs together, each in units of its own power; None where nothing is comparable.

    pairs: (reference, other) of each sample. compared: what the outputs are, where some lie in front of others.
    """
    total = OutputSqnr(fronts_of(compared))
    for reference, outputs in pairs:
        total.update(reference, outputs)
    return total.db


def output_losses(
    pairs: Iterable[tuple[Outputs, Outputs]], compared: Sequence[Comparable] = ()
) -> list[dict[str, float]]:
    """What is lost of each sample's outputs (`numeric.metrics.losses`); arguments as above."""
    return [losses(reference, outputs, fronts_of(compared)) for reference, outputs in pairs]


def fronts_of(compared: Sequence[Comparable]) -> dict[str, Front]:
    """Those that lie in front of saturating operators, by label."""
    return {each.label: each.front for each in compared if each.front is not None}
