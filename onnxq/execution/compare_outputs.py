"""Models side by side: what each of them computes of the same samples, float against quantized mostly.

The samples stream through; nothing is kept but what the caller keeps, or what several models are compared with: that is
computed once (`Reference`). Several samples are run at once, and come back in order. Rows that only fill a fixed batch
up are left out of everything that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from ..data import Feed
from ..numeric.metrics import OutputSqnr
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


class Reference:
    """A model's float outputs for some feeds, for one model after another to be compared with. They are computed once,
    beside the first of these, and kept with their feeds, in files beyond `services.max_memory`.

    optimize: whether ONNX Runtime's optimisations are on in all of them.
    """

    def __init__(self, model: Source, feeds: Iterable[Feed], services: Services, *, optimize: bool = False) -> None:
        self._model, self._feeds, self._services, self._optimize = model, feeds, services, optimize
        self._cache = SpillCache(services.max_memory)
        self._kept: list[tuple[Feed, Held, Held]] | None = None

    def beside(self, other: Source) -> Iterator[tuple[Outputs, Outputs]]:
        """(reference, other) of each feed, in order. Raises EngineError where one of them does not load or run."""
        session = Session(other, optimize=self._optimize)
        if self._kept is None:
            yield from self._first(session)
            return
        runs = self._run((session,), self._again(self._kept))
        for (_, _, outputs), (_, (found,)) in zip(self._kept, runs, strict=True):
            yield {name: handle.array() for name, handle in outputs.items()}, found

    def _first(self, session: Session) -> Iterator[tuple[Outputs, Outputs]]:
        kept: list[tuple[Feed, Held, Held]] = []
        reference = Session(self._model, optimize=self._optimize)
        for feed, (outputs, found) in self._run((reference, session), self._feeds):
            floats = {n: x for n, x in outputs.items() if isinstance(x, np.ndarray) and x.dtype.kind == "f"}
            fed, held = ({n: self._cache.put(x) for n, x in arrays.items()} for arrays in (feed.arrays, floats))
            kept.append((replace(feed, arrays={}), fed, held))
            yield outputs, found
        self._kept = kept

    def _again(self, kept: Iterable[tuple[Feed, Held, Held]]) -> Iterator[Feed]:
        for feed, arrays, _ in kept:
            yield replace(feed, arrays={name: handle.array() for name, handle in arrays.items()})

    def _run(self, sessions: Sequence[Session], feeds: Iterable[Feed]) -> Iterator[tuple[Feed, list[dict[str, Any]]]]:
        return run_models(sessions, feeds, self._services.threads, self._services.in_flight)


def output_sqnr(pairs: Iterable[tuple[Outputs, Outputs]]) -> float | None:
    """SQNR in dB over all float outputs together, each in units of its own power; None where nothing is comparable.

    pairs: (reference, other) of each sample.
    """
    total = OutputSqnr()
    for reference, outputs in pairs:
        total.update(reference, outputs)
    return total.db
