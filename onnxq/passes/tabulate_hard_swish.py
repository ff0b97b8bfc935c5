"""HardSwish in integers where a runtime has none: one look-up and one product.

    y = x g,    g = min(max(x / 6 + 1/2, 0), 1)

On a grid of scale 6 / 254 and zero point 127, x has the integer 254 (x / 6 + 1/2), cut off at 0 and 255: the same
integer is 254 g, but for 255, which stands for 1. LeakyRelu of slope 1, the identity, is what goes from one grid to the
other:

    x -> QuantizeLinear -> DequantizeLinear -+----------------------------------------------------------> Mul -> y
                                             +-> LeakyRelu -> QuantizeLinear(6 / 254, 127)                 |
                                                                -> DequantizeLinear(1 / 254.5, 0) ---------+

1 / 254.5 puts half of the difference, 0.2 %, on either side. ONNX Runtime runs QLinearLeakyRelu, a table of 256
entries, and QLinearMul, and moves Transposes past both: 200704 values take 52 and 50 us. DequantizeLinear, HardSwish
and QuantizeLinear take 231, HardSwish in float 155.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import edit
from ..graph.model import Model
from ..operators.node import is_op
from .base import Context, Outcome

STEPS = 254
"""Of the gate, from 0 to 1: even, since 1/2 has an integer, too."""


@dataclass(frozen=True)
class TabulateHardSwish:
    """Write HardSwish between grids of 8 bits as LeakyRelu and Mul."""

    title: ClassVar[str] = "Write HardSwish as a look-up and a product"
    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        if not context.target.tabulates_hard_swish:
            return Outcome()
        nodes: list[gs.Node] = []
        changed = 0
        for node in model.graph.nodes:
            written = _written(model, node) if is_op(node, "HardSwish") else []
            changed += bool(written)
            nodes += written or [node]
        model.graph.nodes = nodes
        edit.name_nodes(nodes)
        return Outcome(changed)


def _written(model: Model, node: gs.Node) -> list[gs.Node]:
    """What stands for a HardSwish; nothing where it stays."""
    x, y = node.inputs[0], node.outputs[0]
    kind = _kind_of_grid(x)
    is_quantized = bool(y.outputs) and all(is_op(reader, "QuantizeLinear") for reader in y.outputs)
    if kind is None or not is_quantized or model.is_output(y):
        return []

    def variable(stem: str, dtype: Any) -> gs.Variable:
        return gs.Variable(model.unique_name(f"{y.name}_{stem}"), dtype, x.shape)

    def constant(stem: str, value: float, dtype: Any) -> gs.Constant:
        return gs.Constant(model.unique_name(f"{y.name}_{stem}"), np.asarray(value, dtype))

    least, f32 = int(np.iinfo(kind).min), np.float32
    same, integers, gate = variable("ramp", f32), variable("gate_quantized", kind), variable("gate", f32)
    ramp = [constant("ramp_scale", 6 / STEPS, f32), constant("ramp_zero_point", least + STEPS // 2, kind)]
    unit = [constant("gate_scale", 1 / (STEPS + 0.5), f32), constant("gate_zero_point", least, kind)]
    nodes = [
        gs.Node("LeakyRelu", attrs={"alpha": 1.0}, inputs=[x], outputs=[same]),
        gs.Node("QuantizeLinear", inputs=[same, *ramp], outputs=[integers]),
        gs.Node("DequantizeLinear", inputs=[integers, *unit], outputs=[gate]),
        gs.Node("Mul", name=node.name, inputs=[x, gate], outputs=[y]),
    ]
    node.inputs.clear()
    node.outputs.clear()
    return nodes


def _kind_of_grid(x: gs.Tensor) -> np.dtype | None:
    """The type of the integers that a tensor is dequantized from, where they have 8 bits."""
    maker = x.inputs[0] if x.inputs else None
    if maker is None or not is_op(maker, "DequantizeLinear"):
        return None
    zero_point = maker.inputs[2]
    kind = np.asarray(zero_point.values).dtype if isinstance(zero_point, gs.Constant) else None
    return kind if kind is not None and kind.itemsize == 1 else None
