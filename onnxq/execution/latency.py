"""How long two models take side by side, and which of their nodes take it.

t_i, u_i    seconds of one run of the first and of the second model in round i, on the same sample; in a round each
            runs some times back to back, so that it takes a millisecond at least, and they begin by turns
u_i / t_i   whatever else the machine does in a round meets both: the ratio is the median, its spread the quartiles
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..graph.scratch import scratch_folder
from ..report import Timing
from ..thresholds import FEWEST_ROUNDS, MOST_ROUNDS
from .session import CPU, FOLDED_WEIGHTS, Arrays, Session, Source, session_provider

_ROUND = 1e-3
"""Seconds that a model runs for in a round, at least: far above what reading the clock costs."""

_PROFILED = 10
"""Runs whose median is a node's time."""


@dataclass(frozen=True)
class NodeTime:
    """A node of the graph that ONNX Runtime runs, with the median seconds that it takes."""

    name: str
    op: str
    seconds: float


def compare_times(
    models: tuple[Source, Source], feeds: Sequence[Arrays], threads: int, seconds: float, *, folded: bool = False
) -> Timing:
    """The second beside the first, both in default sessions, by turns for so many seconds, but for `FEWEST_ROUNDS` at
    least. folded: the second with its weights dequantized when it is loaded. Raises EngineError."""
    first_model, second_model = models
    sessions = [
        Session(first_model, optimize=True, threads=threads, lean=False),
        Session(second_model, optimize=True, threads=threads, lean=False, folded_weights=folded),
    ]
    is_ours = threads == 1 and session_provider() == CPU and time.get_clock_info("thread_time").resolution < 1e-6
    clock = time.thread_time if is_ours else time.perf_counter
    repeats = []
    for session in sessions:
        session.run(feeds[0])  # the first run allocates
        repeats.append(max(1, round(_ROUND / max(_seconds(session, feeds[0], 1, clock), 1e-6))))
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    for number, feed in zip(range(MOST_ROUNDS), itertools.cycle(feeds)):
        if number >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        taken = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            taken[which] = _seconds(sessions[which], feed, repeats[which], clock)
        rounds.append(taken)
    table = np.asarray(rounds)
    low, ratio, high = np.quantile(table[:, 1] / table[:, 0], (0.25, 0.5, 0.75))
    first, second = np.median(table, axis=0)
    return Timing(
        threads, 1e3 * float(second), 1e3 * float(first), float(ratio), float(low), float(high), len(rounds),
        "processor" if is_ours else "wall", f"{FOLDED_WEIGHTS} = 1" if folded else "",
    )  # fmt: skip


def _seconds(session: Session, feed: Arrays, runs: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(runs):
        session.run(feed)
    return (clock() - start) / runs


def node_times(model: Source, feed: Arrays) -> list[NodeTime]:
    """What each node of the graph that ONNX Runtime runs takes, with one thread, in the graph's order; the profiler
    adds a microsecond or two to each. Raises EngineError."""
    with scratch_folder() as folder:
        session = Session(model, optimize=True, lean=False, profile=Path(folder) / "profile")
        for _ in range(_PROFILED):
            session.run(feed)
        taken: dict[tuple[str, str], list[float]] = {}
        for name, op, seconds in session.end_profile():
            taken.setdefault((name, op), []).append(seconds)
    return [NodeTime(name, op, statistics.median(found)) for (name, op), found in taken.items()]
