"""Biases become integers at the scale of the accumulator, s_b = s_x s_w, per output channel (section 2.1).

    b_int = round(b / (s_x s_w))

A channel with tiny weights and an ordinary bias would overflow: where |b_int| would pass 2^30, a quarter of the
int32 range that leaves the accumulator its room, the weight scale is raised to

    s_w >= |b| / (2^30 s_x)

which costs precision only in weights that are negligible beside the bias. Nor may s_x s_w itself be too small for a
normal float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..graph.model import Model, Quantizer
from ..graph.ops import LinearLayer, linear_layer
from ..numeric.quant import SMALLEST_SCALE, FloatArray
from .base import Context, Outcome

LARGEST_BIAS = 2.0**30


@dataclass(frozen=True)
class SetBiasScales:
    """Raise weight scales where a 32-bit bias would overflow."""

    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        raised = [note for node in model.graph.nodes if (note := _fit(model, linear_layer(node)))]
        return Outcome(len(raised), notes=tuple(raised))


def _fit(model: Model, layer: LinearLayer | str) -> str | None:
    if isinstance(layer, str) or layer.bias is None:
        return None
    x, weight = model.quantizers.get(layer.input.name), model.quantizers.get(layer.weight.name)
    if x is None or weight is None or x.params is None or weight.params is None:
        return None
    if layer.node.name not in weight.readers or weight.spec.block is not None:
        return None
    lowest = np.maximum(np.abs(np.asarray(layer.bias.values, np.float64)) / LARGEST_BIAS, 2 * SMALLEST_SCALE)
    lowest = lowest / np.asarray(x.params.scale, np.float64)
    scale = _raised(weight, layer, lowest)
    if np.array_equal(scale, weight.params.scale):
        return None
    model.quantizers[weight.tensor] = weight.answered(replace(weight.params, scale=scale))
    count = int(np.sum(scale != weight.params.scale))
    return f"{layer.node.name}: weight scale raised in {count} channels so that the bias fits 32 bits"


def _raised(weight: Quantizer, layer: LinearLayer, lowest: FloatArray) -> FloatArray:
    assert weight.params is not None
    scale = np.asarray(weight.params.scale, np.float64)
    if weight.axis is None:
        lowest = lowest.max(initial=0.0)
    elif scale.size != lowest.size:  # grouped ConvTranspose: one scale serves a channel of every group
        lowest = lowest.reshape(layer.groups, -1).max(axis=0)
    raised = np.maximum(scale, lowest)
    if weight.spec.power_of_two:
        raised = 2.0 ** np.ceil(np.log2(raised))
    return np.asarray(raised, np.float32)
