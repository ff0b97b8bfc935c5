"""Statistics of any tensors of a model over the calibration data, in as many passes over it as memory asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from onnx import ModelProto

from ..calibration.context import Context
from ..errors import DataError
from ..execution.services import Stage
from ..execution.session import Session, collect
from ..graph.model import Model, extract
from ..graph.shapes import tensor_bytes
from ..numeric.samples import Statistic, merged


def collect_tensors(
    model: Model, names: Iterable[str], context: Context, make: Callable[[str], Statistic], label: str = "calibrating"
) -> dict[str, Statistic]:
    """A statistic of each tensor. Raises DataError where there is no data, EngineError where the model fails."""
    first = next(iter(context.feeds), None)
    if first is None:
        raise DataError("no calibration data: activation ranges need at least one sample")
    proto = model.to_proto()
    sizes = tensor_bytes(proto, names, first.arrays)
    parts = list(chunks(sizes, context.services.max_memory // context.services.in_flight))
    statistics: dict[str, Statistic] = {}
    for index, chunk in enumerate(parts, 1):
        part = label if len(parts) == 1 else f"{label}, part {index} of {len(parts)}"
        prepare = partial(_collector, extract(proto, chunk), make, context.services.in_flight)
        statistics.update(
            merged(context.services.workers.run(prepare, context.with_progress(part), context.services.threads))
        )
    return statistics


def _collector(
    proto: ModelProto, make: Callable[[str], Statistic], in_flight: int, threads: int
) -> Stage[Any, Mapping[str, Statistic]]:
    session = Session(proto)
    return lambda feeds: [collect(session, feeds, make, threads, in_flight)]


def chunks(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, in groups whose sizes add up to at most `limit` (or a single larger one)."""
    chunk: list[str] = []
    total = 0
    for name, size in sizes.items():
        if chunk and total + size > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += size
    if chunk:
        yield chunk
