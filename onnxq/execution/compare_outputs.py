"""Models side by side: what each of them computes of the same samples, float against quantized mostly.

The samples stream through; nothing is kept but what the caller keeps. Several are run at once, and come back in order.
Rows that only fill a fixed batch up are left out of everything that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..data import Feed
from ..numeric.metrics import OutputSqnr
from .services import R
from .session import Session, Source, parallel_map, without_padding

Outputs: TypeAlias = Mapping[str, Any]
"""Output name -> array, or a list of arrays for a sequence; padding removed."""

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


def output_sqnr(pairs: Iterable[tuple[Outputs, Outputs]]) -> float | None:
    """SQNR in dB over all float outputs together, each in units of its own power; None where nothing is comparable.

    pairs: (reference, other) of each sample.
    """
    total = OutputSqnr()
    for reference, outputs in pairs:
        total.update(reference, outputs)
    return total.db
