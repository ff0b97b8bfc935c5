"""Scales and zero points of activations from calibration data (white paper section 3.1).

ONNX Runtime computes the tensors, statistics stream: memory does not depend on the amount of data. Where a sample's
activations would not fit `Context.max_memory`, the tensors are collected in several passes over the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import DataError
from ..graph.model import Model, Quantizer, extract
from ..graph.shapes import tensor_bytes
from ..numeric.quant import QuantParams
from ..numeric.ranges import METHODS
from ..numeric.samples import MinMax, Samples, Statistic
from ..runtime import collect
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class SetActivationRanges:
    """Answer every quantizer of an activation. method: a key of `numeric.ranges.METHODS`.

    A tensor that takes infinite values or not-a-number (masks of attention) has no range: it stays in float.
    """

    method: str = "minmax"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        tensors = model.graph.tensors()
        activations = {n: q for n, q in model.quantizers.items() if isinstance(tensors[n], gs.Variable)}
        roots = {n: q for n, q in activations.items() if q.grid_of is None}
        measured = dict.fromkeys(n for q in roots.values() if q.fixed is None for n in (q.tensor, *q.widened_by))
        statistics = _collect(model, [n for n in measured if n in activations], context)
        skips = []
        for name, quantizer in roots.items():
            params = self._params(quantizer, statistics)
            if params is None:
                skips.append(Skip(name, "takes infinite values or not-a-number on the calibration data"))
                del model.quantizers[name]
            else:
                model.quantizers[name] = quantizer.answered(params)
        for name, quantizer in activations.items():
            if quantizer.grid_of is not None:
                root = model.quantizers.get(_root(activations, name))
                if root is None or root.params is None:
                    del model.quantizers[name]
                else:
                    model.quantizers[name] = quantizer.answered(root.params)
        return Outcome(len(activations), tuple(skips), (f"tensors measured: {len(statistics)}",))

    def _params(self, quantizer: Quantizer, statistics: Mapping[str, Statistic]) -> QuantParams | None:
        """None where the tensor has no finite range."""
        if quantizer.fixed is not None:
            lo, hi = quantizer.fixed
            return QuantParams.from_range(np.float64(lo), np.float64(hi), quantizer.spec)
        statistic = statistics[quantizer.tensor]
        for other in quantizer.widened_by:
            statistic = statistic.merge(statistics[other]) if other in statistics else statistic
        samples: Samples = statistic.samples()
        if not (np.isfinite(samples.lo).all() and np.isfinite(samples.hi).all()):
            return None
        low, high = METHODS[self.method](samples, quantizer.spec)
        return QuantParams.from_range(low[0], high[0], quantizer.spec)


def _root(quantizers: Mapping[str, Quantizer], name: str) -> str:
    while (source := quantizers[name].grid_of) is not None:
        name = source
    return name


def _collect(model: Model, names: list[str], context: Context) -> dict[str, Statistic]:
    first = next(iter(context.feeds), None)
    if first is None:
        raise DataError("no calibration data: activation ranges need at least one sample")
    proto = model.to_proto()
    sizes = tensor_bytes(proto, names, first.arrays)
    chunks = list(_chunks(sizes, context.max_memory // context.in_flight))
    statistics: dict[str, Statistic] = {}
    for index, chunk in enumerate(chunks, 1):
        label = "calibrating" if len(chunks) == 1 else f"calibrating, part {index} of {len(chunks)}"
        statistics |= collect(
            extract(proto, chunk), context.arrays(label), lambda name: MinMax(), context.threads, context.in_flight
        )
    return statistics


def _chunks(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
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
