"""Weight ranges that leave the least error in what the network computes (white paper equation 16, weighed).

The squared error of a weight counts as much as the outputs depend on it: by the power of the input that it
multiplies, and by the sensitivity g_o of the output that it adds to (`graph.output_sensitivity`):

    argmin over [lo, hi]   sum_oi  E[x_i^2] g_o (W_oi - Q(W_oi))^2

A few large weights that the outputs hardly depend on, or that multiply next to nothing, are clipped instead of making
the steps of all others coarse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..calibration.channel_facts import channel_facts
from ..graph.model import Model
from ..graph.output_sensitivity import measured_tensors, output_sensitivities
from ..graph.scaling_groups import find_groups
from ..numeric import ranges
from ..numeric.equalization import LayerSensitivity
from ..numeric.quant import QuantParams
from ..numeric.samples import Samples
from ..operators import channels
from ..operators.linear import LinearLayer
from .base import Context, Outcome, Skip

BINS = 2**14


def weighed_tensors(model: Model) -> dict[str, int]:
    """The tensors whose channels are measured for it, with their channel axes."""
    return measured_tensors(find_groups(model))


@dataclass(frozen=True)
class RefineWeightRanges:
    """Set the scales of linear layers' weights anew; it runs behind `SetWeightRanges`."""

    title: ClassVar[str] = "Refine weight ranges"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        groups = find_groups(model)
        facts = channel_facts(model, measured_tensors(groups), context, "measuring channels")
        sensitivities, _ = output_sensitivities(groups, facts)
        changed, skips = 0, []
        for scaled, sensitivity in zip(groups.layers, sensitivities, strict=True):
            layer = scaled.layer
            quantizer = model.weight_quantizer(layer)
            if quantizer is None or quantizer.given:
                continue
            if model.is_shared(layer) or quantizer.spec.block is not None:
                skips.append(Skip(layer.node.name, "its weight is shared, or quantized in blocks"))
                continue
            samples = _weighed(layer, sensitivity, quantizer.axis)
            lo, hi = ranges.mse(samples, quantizer.spec)
            if quantizer.axis is None:
                lo, hi = lo[0], hi[0]
            params = QuantParams.from_range(lo, hi, quantizer.spec, quantizer.axis)
            model.quantizers[layer.weight.name] = quantizer.with_params(params)
            changed += 1
        return Outcome(changed, tuple(skips))


def _weighed(layer: LinearLayer, known: LayerSensitivity, axis: int | None) -> Samples:
    """The weights, counted by what an error in them costs."""
    weight = np.asarray(layer.weight.values, np.float64)
    cost = channels.by_output(layer, known.sensitivity) * channels.by_input(layer, known.power)
    samples = Samples.of_weights(weight, axis)
    counts = np.asarray(Samples.of_weights(np.broadcast_to(cost, weight.shape), axis).values, np.float64)
    samples = replace(samples, counts=counts)
    return _binned(samples) if axis is None and weight.size > 4 * BINS else samples


def _binned(samples: Samples) -> Samples:
    """One channel of very many weights as a histogram of equal bins."""
    lo, hi = float(samples.lo[0]), float(samples.hi[0])
    counts, edges = np.histogram(samples.values[0], BINS, (lo, max(hi, lo + 1e-30)), weights=samples.counts[0])
    middles: NDArray[np.float64] = (edges[1:] + edges[:-1]) / 2
    filled = counts > 0
    widths = np.diff(edges)[filled]
    return replace(
        samples, values=middles[filled][None], counts=np.asarray(counts, np.float64)[filled][None], widths=widths[None]
    )
