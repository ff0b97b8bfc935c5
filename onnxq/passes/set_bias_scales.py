"""Biases become integers at the scale of the accumulator, s_b = s_x s_w, per output channel (section 2.1).

    b_int = round(b / (s_x s_w))

A channel with tiny weights and an ordinary bias would overflow: there the weight scale is raised to the lowest that
`rounding.bias_scale` allows, which costs precision only in weights that are negligible beside the bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..graph.model import Model
from ..operators.linear import LinearLayer, linear_layer
from ..rounding.bias_scale import input_scale, lowest_scales, raised_scale
from .base import Context, Outcome


@dataclass(frozen=True)
class SetBiasScales:
    """Raise weight scales where a 32-bit bias would overflow."""

    title: ClassVar[str] = "Set bias scales"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        if context.target.bias != "int32":
            return Outcome()
        raised = [note for node in model.graph.nodes if (note := _fit(model, linear_layer(node)))]
        return Outcome(len(raised), notes=tuple(raised))


def _fit(model: Model, layer: LinearLayer | str) -> str | None:
    if isinstance(layer, str) or layer.bias is None:
        return None
    s_x, weight = input_scale(model, layer), model.weight_quantizer(layer)
    if s_x is None or weight is None or weight.params is None:
        return None
    scale = raised_scale(weight, layer.groups, lowest_scales(layer.bias.values, s_x))
    if np.array_equal(scale, weight.params.scale):
        return None
    model.quantizers[weight.tensor] = weight.with_params(replace(weight.params, scale=scale))
    count = int(np.sum(scale != weight.params.scale))
    return f"{layer.node.name}: weight scale raised in {count} channels so that the bias fits 32 bits"
