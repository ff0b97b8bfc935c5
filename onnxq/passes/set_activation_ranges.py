"""Scales and zero points of activations (white paper section 3.1).

ONNX Runtime computes the tensors on calibration data and statistics stream, so that memory does not depend on the
amount of data; or they were collected before (`Context.statistics`); or BatchNorm's moments tell the range (18, 19).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..calibration.collect import collect_tensors
from ..calibration.statistics import graph_hash
from ..data import CalibrationData
from ..errors import DataError, UsageError
from ..graph.model import Model, Quantizer, drop_quantizer, grid_root
from ..graph.patterns import class_logits, feeds_softmax, needed_range
from ..numeric.channel_statistics import ChannelStatistics
from ..numeric.histogram import Histogram
from ..numeric.logits import Logits
from ..numeric.quant import QuantParams
from ..numeric.ranges import MASKED, Moments, parse_method, set_range, unmasked_range
from ..numeric.samples import MinMax, Statistic, Together
from ..operators.elementwise import clip_bounds
from ..report import Reason
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class SetActivationRanges:
    """Give every quantizer of an activation its scale and zero point.

    method, logits_method: names as `numeric.ranges.RANGE_METHODS` has them; the second one is for logits that a Softmax
    of the model reads.
    Scores of attention are ranged without their masks, which are cut off where Softmax makes nearly nothing of them.
    What activation functions do not tell apart is cut off where nothing else reads a tensor (`operators.saturation`).
    A tensor that takes infinite values or not-a-number (masks of attention) has no range: it stays in float.
    channels: which tensors' channels (name -> axis) are measured in the same pass over the data, for each of the steps
    that follow.
    """

    method: str = "mse"
    logits_method: str = "cross-entropy"
    channels: Sequence[Callable[[Model], Mapping[str, int]]] = field(default=(), repr=False)
    title: ClassVar[str] = "Set activation ranges"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        tensors = model.graph.tensors()
        activations = {n: q for n, q in model.quantizers.items() if isinstance(tensors[n], gs.Variable)}
        roots = {n: q for n, q in activations.items() if q.grid_of is None and not q.given}
        logits = class_logits(model)
        methods = self._methods(model, roots, logits)
        measured = {
            tensor: methods[name]
            for name, q in roots.items()
            if q.fixed is None and not _needs_moments(methods[name])
            for tensor in _members(q)
        }
        statistics, seen = self._statistics(model, measured, context), _seen(context)
        skips = []
        for name, quantizer in roots.items():
            params = self._params(model, quantizer, methods[name], statistics, seen, context)
            if params is None:
                reason = Reason("range", "takes infinite values or not-a-number on the calibration data")
                drop_quantizer(model, name, reason)
                skips.append(Skip(name, reason.text))
            else:
                model.quantizers[name] = quantizer.with_params(params)
        _follow(model, activations)
        skips += [
            Skip(n, "no BatchNorm moments are known for it: its range comes from data")
            for n, q in roots.items()
            if n in measured and methods[n] != (chosen := self._method(q, n in logits)) and _needs_moments(chosen)
        ]
        ranged = [f"logits {name!r}, which Softmax reads: {methods[name]}" for name in roots if name in logits]
        return Outcome(len(activations), tuple(skips), (f"tensors measured: {len(statistics)}", *ranged))

    def _method(self, quantizer: Quantizer, logits: bool) -> str:
        """The method that options name; a grid that several tensors share is not that of the logits alone."""
        return quantizer.method or (self.logits_method if logits and not quantizer.widened_by else self.method)

    def _methods(self, model: Model, roots: Mapping[str, Quantizer], logits: Collection[str]) -> dict[str, str]:
        """How each range is set; `bn` where moments are missing gives way to mse."""
        methods = {name: self._method(quantizer, name in logits) for name, quantizer in roots.items()}
        for name, method in methods.items():
            if _needs_moments(method) and any(_moments(model, tensor) is None for tensor in _members(roots[name])):
                methods[name] = "mse"
        return methods

    def _statistics(self, model: Model, methods: Mapping[str, str], context: Context) -> Mapping[str, Statistic]:
        if not methods:
            return {}
        if context.statistics is None:
            tensors = model.graph.tensors()
            shown = methods if context.ranged is not None else {n for n in methods if feeds_softmax(tensors[n])}
            return self._measured(model, context, lambda name: _statistic_for(methods[name], name in shown), methods)
        if context.statistics.graph != graph_hash(model.to_proto()):
            raise DataError(
                "the statistics were collected on another model, or prepared with other options;"
                f" run `onnxq calibrate` on {model.origin} with the options of this run"
            )
        missing = [name for name in methods if name not in context.statistics.tensors]
        if missing:
            raise DataError(f"the statistics hold nothing on tensor {missing[0]!r}; run `onnxq calibrate` again")
        return {name: context.statistics.tensors[name] for name in methods}

    def _measured(
        self, model: Model, context: Context, make: Callable[[str], Statistic], names: Collection[str]
    ) -> Mapping[str, Statistic]:
        """One pass over the data: a statistic of each tensor, and facts of channels, which the context keeps."""
        places = dict.fromkeys(place for needed in self.channels for place in needed(model).items())
        known = context.channel_facts.setdefault(model.fingerprint(), {}) if places else {}
        axes: dict[str, list[int]] = {}
        for name, axis in places:
            if (name, axis) not in known:
                axes.setdefault(name, []).append(axis)

        def every(name: str) -> Together:
            first = (make(name),) if name in names else ()
            return Together((*first, *(ChannelStatistics(axis) for axis in axes.get(name, ()))))

        found = collect_tensors(model, [*dict.fromkeys((*names, *axes))], context, every)
        parts = {name: each.parts for name, each in found.items() if isinstance(each, Together)}
        for name, each in parts.items():
            for part in each:
                if isinstance(part, ChannelStatistics):
                    known[name, part.axis] = part.facts()
        return {name: parts[name][0] for name in names}

    def _params(
        self,
        model: Model,
        quantizer: Quantizer,
        method: str,
        statistics: Mapping[str, Statistic],
        seen: int,
        context: Context,
    ) -> QuantParams | None:
        """None where the tensor has no finite range. seen: samples that the statistics are of."""
        if quantizer.fixed is not None:
            lo, hi = quantizer.fixed
            return QuantParams.from_range(np.asarray(lo), np.asarray(hi), quantizer.spec)
        needed = needed_range(model, quantizer)
        if _needs_moments(method):
            moments = [known for tensor in _members(quantizer) if (known := _moments(model, tensor)) is not None]
            low, high = (np.clip(end[0], *needed) for end in set_range(method, moments, quantizer.spec))
            return QuantParams.from_range(low, high, quantizer.spec)
        statistic = _merged([statistics[tensor] for tensor in _members(quantizer)])
        samples = replace(statistic.samples(), seen=seen)
        if not (np.isfinite(samples.lo).all() and np.isfinite(samples.hi).all()):
            return None
        if samples.lo[0] < MASKED and feeds_softmax(model.graph.tensors()[quantizer.tensor]):
            return QuantParams.from_range(*unmasked_range(samples), quantizer.spec)
        if parse_method(method)[0].needs == "logits" and samples.vectors is None:
            if quantizer.method is not None:
                raise UsageError(f"{method} needs vectors of logits, which {quantizer.tensor!r} does not hold")
            method = "mse"
        low, high = set_range(method, samples.clipped(*needed), quantizer.spec)
        params = QuantParams.from_range(low[0], high[0], quantizer.spec)
        if context.ranged is not None:
            context.ranged(quantizer.tensor, samples, params)
        return params


def _statistic_for(method: str, shown: bool) -> Statistic:
    """The least that the method needs; with `shown` all that there is to see."""
    needs = parse_method(method)[0].needs
    if needs == "extremes" and not shown:
        return MinMax()
    return Logits() if needs == "logits" else Histogram()


def _merged(statistics: Sequence[Statistic]) -> Statistic:
    """One statistic of several tensors; vectors of logits only where all of them hold such."""
    if len({type(statistic) for statistic in statistics}) > 1:
        statistics = [s.histogram if isinstance(s, Logits) else s for s in statistics]
    return reduce(lambda a, b: a.merge(b), statistics)


def _seen(context: Context) -> int:
    """How many samples, of sequences rows, statistics are of."""
    if context.statistics is not None:
        return len(context.statistics.samples)
    feeds = context.feeds
    return feeds.rows() if isinstance(feeds, CalibrationData) else sum(feed.rows or 1 for feed in feeds)


def _needs_moments(method: str) -> bool:
    return parse_method(method)[0].needs == "moments"


def _members(quantizer: Quantizer) -> tuple[str, ...]:
    """All tensors whose values its range must hold."""
    return (quantizer.tensor, *quantizer.widened_by)


def _moments(model: Model, name: str) -> Moments | None:
    """BatchNorm's statistics of a tensor, with the bounds of the activation behind it; None where there are none."""
    tensor = model.graph.tensors()[name]
    bounds = (-np.inf, np.inf)
    if tensor.inputs and (clip := clip_bounds(tensor.inputs[0])) is not None:
        bounds, name = clip, tensor.inputs[0].inputs[0].name
    moments = model.moments.get(name)
    return None if moments is None else Moments(moments.mean, moments.std, bounds)


def _follow(model: Model, activations: Mapping[str, Quantizer]) -> None:
    """Give quantizers that keep another tensor's grid the params of that one."""
    planned = {**model.quantizers, **activations}
    for name, quantizer in activations.items():
        if quantizer.grid_of is None:
            continue
        root = model.quantizers.get(grid_root(planned, name))
        if root is None or root.params is None:
            model.quantizers.pop(name, None)
        else:
            model.quantizers[name] = quantizer.with_params(root.params)
