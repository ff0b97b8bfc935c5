"""What a report shows of the inside of a network: taken down while a model is quantized, where a report wants it.

    weights        five numbers a channel, before and after the steps that adjust the float network (figure 5)
    activations    the calibration statistics that a range was set from, as a few bars
    layers         SQNR of what each one computes: float network against quantized network, streamed over some samples

None of it changes the result, and all of it is bounded: 64 bars a tensor, 64 channels a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from ..calibration.context import Context
from ..execution.compare_outputs import run_models
from ..execution.partial import extract, parts_that_fit
from ..graph.model import Model, grid_root
from ..graph.simulate import simulated
from ..numeric.distribution import bars, clipped, grid_ends, grid_sqnr
from ..numeric.metrics import Sqnr, comparable, finite, sqnr
from ..numeric.quant import QuantParams
from ..numeric.samples import Samples
from ..operators.channels import pairs
from ..operators.linear import LinearLayer, linear_layers
from ..report import Box, ChannelRanges, Distribution, Layer

BARS = 64
CHANNELS = 64


@dataclass
class ReportCollector:
    """Handed along while a model is quantized; `layers` and `distributions` read it out."""

    before: dict[str, gs.Constant] = field(default_factory=dict)  # node -> its weight; arrays are never written into
    seen: dict[str, Distribution] = field(default_factory=dict)
    reference: Model | None = None

    def start(self, model: Model) -> None:
        """The float model before it is adjusted."""
        self.before = {
            x.node.name: gs.Constant(x.weight.name, x.weight.values) for x in linear_layers(model.graph.nodes)
        }

    def ranged(self, tensor: str, samples: Samples, params: QuantParams) -> None:
        """A tensor's calibration statistics, and the grid that was chosen for them."""
        if np.isfinite(samples.lo).all() and np.isfinite(samples.hi).all():
            self.seen[tensor] = _distribution(tensor, samples, params)

    def adjusted(self, model: Model) -> None:
        """The float model as it is quantized, before weights are rounded."""
        self.reference = model.clone()

    def distributions(self, planned: Model) -> tuple[Distribution, ...]:
        """Of tensors that have a grid of their own, in the order of their quantizers."""
        return tuple(self.seen[name] for name in planned.quantizers if name in self.seen)

    def layers(self, planned: Model, context: Context) -> tuple[Layer, ...]:
        """Every linear layer; noise is measured on the context's feeds. Raises EngineError.

        Left out are layers behind a selection that never compute as many values in both networks.
        """
        assert self.reference is not None
        planned_layers = {x.node.name: x for x in linear_layers(planned.graph.nodes)}
        float_layers = linear_layers(self.reference.graph.nodes)
        layers = [(x, planned_layers[x.node.name]) for x in float_layers if x.node.name in planned_layers]
        names = {a.output.name: b.output.name for a, b in layers}
        names |= {a.counted.name: b.counted.name for a, b in layers}
        compared = _compare(self.reference.to_proto(), simulated(planned), names, context)
        known = ((a, b) for a, b in layers if compared[a.output.name].elements and compared[a.counted.name].elements)
        return tuple(self._layer(a, b, planned, compared) for a, b in known)

    def _layer(
        self,
        layer: LinearLayer,
        planned: LinearLayer,
        plan: Model,
        compared: Mapping[str, _Compared],
    ) -> Layer:
        """layer: in the float network; planned: the same in the plan, with its weights rounded as they will be."""
        weight, source = plan.weight_quantizer(layer), plan.quantizers.get(layer.input.name)
        params = None if weight is None else weight.params
        seen = self.seen.get(grid_root(plan.quantizers, layer.input.name)) if source is not None else None
        values = np.asarray(layer.weight.values)
        rounded = None if params is None else params.fake(np.asarray(planned.weight.values))
        return Layer(
            node=layer.node.name,
            op=layer.node.op,
            weight=layer.weight.name,
            shape=tuple(int(n) for n in values.shape),
            macs=compared[layer.counted.name].elements * layer.products,
            weight_grid=None if params is None else f"{params.grid}{_granularity(params)}",
            input_grid=None if source is None or source.params is None else str(source.params.grid),
            scale=None if params is None else _spread(np.ravel(params.scale)),
            clipped=None if seen is None else seen.clipped,
            weight_sqnr_db=None if rounded is None else finite(sqnr(values, rounded)),
            sqnr_db=finite(compared[layer.output.name].noise.db),
            ranges=_channel_ranges(replace(layer, weight=self.before.get(layer.node.name, layer.weight)), layer),
        )


@dataclass
class _Compared:
    """A tensor in both networks. elements: of one sample."""

    noise: Sqnr = field(default_factory=Sqnr)
    elements: int = 0


def _rows(layer: LinearLayer) -> NDArray[np.float64]:
    """Weights by output channel, (Cout, n)."""
    by_group = np.asarray(pairs(layer), np.float64)
    return by_group.reshape(by_group.shape[0] * by_group.shape[1], -1)


def _channel_ranges(before: LinearLayer, after: LinearLayer) -> ChannelRanges:
    """Of many channels those are shown that are evenly spread in the order of their ranges, from the least on."""
    rows = _rows(before)
    order = np.argsort(np.ptp(rows, axis=1), kind="stable")
    shown = np.sort(order[np.rint(np.linspace(0, order.size - 1, min(order.size, CHANNELS))).astype(int)])
    same = np.array_equal(before.weight.values, after.weight.values)
    boxes = () if same else _boxes(_rows(after)[shown])
    return ChannelRanges(order.size, tuple(int(c) for c in shown), _boxes(rows[shown]), boxes)


def _boxes(rows: NDArray[np.float64]) -> tuple[Box, ...]:
    ends = np.quantile(rows, (0, 0.25, 0.5, 0.75, 1), axis=1).T
    return tuple((_short(a), _short(b), _short(c), _short(d), _short(e)) for a, b, c, d, e in ends)


def _distribution(tensor: str, samples: Samples, params: QuantParams) -> Distribution:
    """The bars reach beyond the grid by at most its own width: one extreme value must not hide all others."""
    lo, hi = grid_ends(params)
    lowest, highest = float(samples.lo[0]), float(samples.hi[0])
    first, last = max(min(lowest, lo), lo - (hi - lo)), min(max(highest, hi), hi + (hi - lo))
    counts = bars(samples, np.linspace(first, last, BARS + 1))
    return Distribution(
        tensor=tensor,
        grid=str(params.grid),
        lowest=_short(lowest),
        highest=_short(highest),
        lo=_short(lo),
        hi=_short(hi),
        clipped=_short(clipped(samples, params)),
        sqnr_db=finite(grid_sqnr(samples, params)),
        first=_short(first),
        last=_short(last),
        counts=tuple(int(n) for n in counts),
    )


def _compare(
    reference: ModelProto, quantized: ModelProto, names: Mapping[str, str], context: Context
) -> dict[str, _Compared]:
    """Tensors of `reference` beside those of `quantized`, over all feeds. names: in the first -> in the second.

    As many tensors at once as the context's memory holds of both models, for all feeds in flight.
    """
    found = {name: _Compared() for name in names}
    services, first = context.services, next(iter(context.feeds)).arrays
    limit = services.max_memory // (2 * services.in_flight)
    for label, part in parts_that_fit(reference, names, first, limit, "comparing layers"):
        models = extract(reference, part), extract(quantized, [names[name] for name in part])
        feeds = context.with_progress(label)
        for feed, (x, y) in run_models(models, feeds, services.threads, services.in_flight):
            for name in (n for n in part if comparable(x[n], y[names[n]])):
                found[name].elements = x[name].size // min(feed.batch, feed.rows or feed.batch)
                found[name].noise.update(x[name], y[names[name]])
    return found


def _granularity(params: QuantParams) -> str:
    if params.block is not None:
        return f", blocks of {params.block}"
    return " per channel" if params.axis is not None else " per tensor"


def _spread(scales: NDArray[np.floating]) -> tuple[float, float, float]:
    return _short(scales.min()), _short(np.median(scales)), _short(scales.max())


def _short(value: float | np.floating) -> float:
    """Six digits: what a chart or a table can show."""
    return float(f"{value:.6g}")
