"""Relu and Clip that the requantization behind them performs anyway (white paper section 2.3.2).

With Q the quantizer of the activation's output y = min(max(x, a), b), and Q increasing,

    Q(y) = Q(x) for all x    <=>    Q(a) = qmin and Q(b) = qmax

(an absent bound counts as met). Then the node goes, and the operator before it writes y's tensor itself. It runs
last before lowering: until then the float function of the model stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import edit
from ..graph.model import Model
from ..operators.elementwise import clip_bounds
from ..targets import Target
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class FuseActivation:
    """Remove the activations that quantization performs."""

    title: ClassVar[str] = "Fuse activations"
    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        if context.target.keeps_activations:
            return Outcome(notes=(f"{context.target.name} fuses activations itself",))
        removed, skips = [], []
        for node in model.graph.nodes:
            bounds = clip_bounds(node)
            quantizer = model.quantizers.get(node.outputs[0].name) if bounds and node.outputs else None
            if bounds is None or quantizer is None or quantizer.params is None:
                continue
            a, b = (np.float32(bound) for bound in bounds)
            grid = quantizer.params.grid
            reached = bool(
                quantizer.params.quantize(np.asarray(a)) == grid.qmin
                and quantizer.params.quantize(np.asarray(b)) == grid.qmax
            )
            kept = _keeps_grid(node, context.target)
            if kept is not None:
                skips.append(Skip(node.name, f"{kept.name} keeps the grid of its input, and would write another"))
            elif not reached:
                skips.append(Skip(node.name, f"its grid {grid} reaches beyond [{a:g}, {b:g}]"))
            elif _detach(model, node):
                removed.append(node)
            else:
                skips.append(Skip(node.name, f"{node.inputs[0].name!r} is needed without the activation too"))
        edit.remove(model, removed)
        return Outcome(len(removed), tuple(skips))


def _keeps_grid(node: gs.Node, target: Target) -> gs.Node | None:
    """The operator before an activation, where it only moves integers: it cannot requantize them."""
    before = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    rule = None if before is None else target.rule_of(before)
    return before if rule is not None and rule.grid == "same" else None


def _detach(model: Model, node: gs.Node) -> bool:
    """Let the operator before it write the activation's output, whose name and quantizer stay."""
    x = node.inputs[0]
    if model.sole_consumer(x) is not node or not x.inputs or x.name in model.quantizers:
        return False
    edit.take_over(node, x.inputs[0], x)
    return True
