"""Statistics of any tensors of a model over the calibration data, in as many passes over it as memory asks for."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from onnx import ModelProto

from ..data import Feed
from ..errors import DataError
from ..execution.memory import return_freed_memory
from ..execution.partial import extract, parts_that_fit
from ..execution.services import Stage
from ..execution.session import Session, Source, parallel_map, without_padding
from ..graph.model import Model
from ..numeric.samples import Statistic, merged
from .context import Context


def collect_tensors(
    model: Model, names: Iterable[str], context: Context, make: Callable[[str], Statistic], label: str = "calibrating"
) -> dict[str, Statistic]:
    """A statistic of each tensor. Raises DataError where there is no data, EngineError where the model fails.

    What a thread computes of a sample is gone when the next one comes, so that there is as much of it at once as there
    are threads. Tensors that do not fit together are measured in the order in which they are computed: the first passes
    then end early in the network.
    """
    first = next(iter(context.feeds), None)
    if first is None:
        raise DataError("no calibration data: activation ranges need at least one sample")
    return_freed_memory()
    proto, services = model.to_proto(), context.services
    statistics: dict[str, Statistic] = {}
    limit = services.max_memory // min(services.threads, services.in_flight)
    places = {name: place for place, node in enumerate(proto.graph.node) for name in node.output}
    ordered = sorted(names, key=lambda name: places.get(name, -1))
    for title, part in parts_that_fit(proto, ordered, first.arrays, limit, label):
        prepare = partial(_collector, extract(proto, part), make, services.in_flight)
        found = services.workers.run(prepare, context.with_progress(title), services.threads)
        statistics.update(merged(found))
    return statistics


def _collector(
    proto: ModelProto, make: Callable[[str], Statistic], in_flight: int, threads: int
) -> Stage[Any, Mapping[str, Statistic]]:
    session = Session(proto)
    return lambda feeds: [collect(session, feeds, make, threads, in_flight)]


def collect(
    model: Source | Session,
    feeds: Iterable[Feed],
    make: Callable[[str], Statistic],
    threads: int = 1,
    in_flight: int = 0,
) -> Mapping[str, Statistic]:
    """A statistic of every output of `model` over all feeds, padding left out, in one pass and in fixed memory.

    make: name -> empty statistic. Each worker thread has its own; they are merged at the end, which is exact, so
    that neither the threads nor the order of the feeds can be seen in the result.
    """
    session = model if isinstance(model, Session) else Session(model)
    idle: queue.SimpleQueue[dict[str, Statistic]] = queue.SimpleQueue()
    workers = [{name: make(name) for name in session.outputs} for _ in range(threads)]
    for statistics in workers:
        idle.put(statistics)

    def observe(feed: Feed) -> None:
        statistics = idle.get()
        try:
            for name, value in session.run(feed.arrays).items():
                statistics[name].update(without_padding(value, feed))
        finally:
            idle.put(statistics)  # after a failure too: other workers may be waiting for it

    for _ in parallel_map(observe, feeds, threads, in_flight):
        pass
    return merged(workers)
