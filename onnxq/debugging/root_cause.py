"""Figure 9, the last question: what is wrong with one quantizer, seen from the values that it quantizes.

weights      r_k = max |W_k| over output channel k. On one scale for all channels, channel k has about
             2^bits r_k / max r of the grid's integers.                        max r >= 8 median r: uneven channels
bias         an integer at s_x s_w, at most 2^30 (`rounding.bias_scale`). Where it is larger, s_w grows until it fits,
             and the weights pay.                                              s_w grew at all: bias beyond 32 bits
activation   half of its values that are not zero are within m. On a grid of width R they have about
             2^bits 2m / R integers.                                           fewer than 4: extreme range
either       clipping makes most of its error, which is more than 0.1 % of its power: clipped values
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from ..evaluation.sensitivity import Unit
from ..execution.layerwise import planned_layers
from ..execution.partial import tensor_values
from ..numeric.distribution import grid_ends
from ..numeric.metrics import sqnr
from ..numeric.quant import QuantParams
from ..operators.linear import LinearLayer
from ..rounding.bias_scale import input_scale, lowest_scales
from ..thresholds import COARSE_DB, FEW_INTEGERS, ROOT_CAUSE_SAMPLES, UNEVEN_CHANNELS
from .candidate import Candidate

CauseKind = Literal["uneven channels", "bias beyond 32 bits", "extreme range", "clipped values", "coarse grid"]


@dataclass(frozen=True)
class Cause:
    """A reason why a quantizer costs much. text: with the figures that show it."""

    kind: CauseKind
    text: str


def find_causes(candidate: Candidate, unit: Unit) -> tuple[Cause, ...]:
    """What is wrong with a unit that is one grid; at least one cause."""
    params = candidate.planned.quantizers[unit.name].params
    assert params is not None
    if unit.kind == "weights":
        layers = [layer for layer in planned_layers(candidate.base) if layer.weight.name == unit.name]
        found = [_bias(candidate, unit.name), *(_channels(layer, params) for layer in layers[:1])]
        weight = candidate.base.graph.tensors()[unit.name]
        assert isinstance(weight, gs.Constant)
        values = np.asarray(weight.values, np.float64)
    else:
        values = activation(candidate, unit.name)
        found = [_range(values, params)]
    found.append(_clipping(values, params))
    noise = sqnr(values, params.fake(values.astype(np.float32)))
    coarse = Cause("coarse grid", f"{params.grid.bits} bits are few here: its own SQNR is {noise:.1f} dB")
    return tuple(each for each in found if each is not None) or (coarse,)


def activation(candidate: Candidate, name: str) -> NDArray[np.float64]:
    """Values of a tensor of the float network on a few samples, all in a row."""
    feeds = candidate.evaluator.feeds[:ROOT_CAUSE_SAMPLES]
    found = tensor_values(candidate.base.to_proto(), [name], feeds)
    return np.concatenate([np.ravel(values[name]) for values in found]).astype(np.float64)


def _channels(layer: LinearLayer, params: QuantParams) -> Cause | None:
    weight = np.asarray(layer.weight.values, np.float64)
    reach = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != layer.axis))
    median = float(np.median(reach[reach > 0])) if reach.any() else 0.0
    even = not median or reach.max(initial=0.0) < UNEVEN_CHANNELS * median
    if params.axis is not None or params.block is not None or even:
        return None
    first, times = int(reach.argmax()), float(reach.max() / median)
    return Cause(
        "uneven channels",
        f"channel {first} reaches {reach.max():.4g}, the median channel {median:.4g}: {times:.0f} times less, and has"
        f" about {2**params.grid.bits / times:.1f} of the {2**params.grid.bits} integers of their common grid",
    )


def _bias(candidate: Candidate, name: str) -> Cause | None:
    layers = {layer.node.name: layer for layer in planned_layers(candidate.planned) if layer.weight.name == name}
    before, after = (model.quantizers[name].params for model in (candidate.planned, candidate.fitted))
    assert before is not None
    assert after is not None
    grown = float(np.max(np.asarray(after.scale, np.float64) / np.asarray(before.scale, np.float64)))
    if grown <= 1.0:
        return None
    specs = {}
    for node, layer in layers.items():
        s_x = input_scale(candidate.planned, layer)
        if s_x is not None and layer.bias is not None:
            specs[node] = (lowest_scales(layer.bias.values, s_x), np.asarray(layer.bias.values, np.float64))
    node = max(specs, key=lambda each: float(specs[each][0].max()))
    channel = int(specs[node][0].argmax())
    return Cause(
        "bias beyond 32 bits",
        f"the bias of {node}, {specs[node][1][channel]:.4g} in channel {channel}, does not fit 32 bits beside its"
        f" products: the weight's scale had to grow {grown:.4g} times",
    )


def _range(values: NDArray[np.float64], params: QuantParams) -> Cause | None:
    magnitudes = np.abs(values[values != 0])
    if not magnitudes.size:
        return None
    middle, width = float(np.median(magnitudes)), float(np.ptp(np.append(values, 0.0)))
    integers = 2**params.grid.bits * 2 * middle / width
    if integers >= FEW_INTEGERS:
        return None
    return Cause(
        "extreme range",
        f"values reach {magnitudes.max():.4g}, and half of them are within {middle:.3g}: on a grid for all, about"
        f" {integers:.1f} of its {2**params.grid.bits} integers would be theirs",
    )


def _clipping(values: NDArray[np.float64], params: QuantParams) -> Cause | None:
    if params.axis is not None or params.block is not None:
        return None
    error = np.square(values - np.asarray(params.fake(values.astype(np.float32)), np.float64))
    lo, hi = grid_ends(params)
    share = float(error[(values < lo) | (values > hi)].sum() / max(error.sum(), np.finfo(np.float64).tiny))
    if share <= 0.5 or error.sum() < 10 ** (-COARSE_DB / 10) * np.square(values).sum():
        return None
    return Cause(
        "clipped values",
        f"its grid goes from {lo:.4g} to {hi:.4g}, and values from {values.min():.4g} to {values.max():.4g}: clipping"
        f" makes {share:.0%} of its error",
    )
