"""Activations that are quantized at run time, from each sample's own range: the preset w8a8-dynamic, without data.

    x~ = s (X - z),   s = (max(x, 0) - min(x, 0)) / 255   for each sample and tensor (ONNX, DynamicQuantizeLinear)

The white paper's ranges are static (section 3.1); dynamic ones need no calibration data and are never clipped, and they
cost a pass over the tensor. They are computed in front of products with a weight matrix, where runtimes have a kernel
for both; everything else stays in float, layers of other kinds with their weights stored as integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..graph.dynamic_writer import no_dynamic_product
from ..graph.model import Model
from ..operators.linear import linear_layers
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class QuantizeDynamically:
    """Let the layers whose weights are to be quantized read activations that are quantized at run time, where there is
    such a product."""

    title: ClassVar[str] = "Dynamic activations"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        changed, skips = 0, []
        for layer in linear_layers(model.graph.nodes):
            name = layer.node.name
            placed = model.placement.nodes.get(name)
            if placed is None or placed.reason is not None or placed.weight is None:
                continue
            why = no_dynamic_product(model, layer)
            if why is None:
                model.placement.nodes[name] = replace(placed, data=(), writes=None, dynamic=True)
                changed += 1
            else:
                skips.append(Skip(name, why))
        return Outcome(changed, tuple(skips))
