"""Whether weights of up to 4 bits are stored in 4 bits, two in a byte, or in int8.

The integers and their scales are the same; what differs is the size of the file, and which kernels there are: a target
without a kernel for 4-bit weights (`Target.stores_int4`) computes in float what int8 lets it compute in integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from ..graph.model import Model, Quantizer
from ..operators.registry import linear_form
from ..operators.tables import table_of
from ..targets import Target
from .base import Context, Outcome


@dataclass(frozen=True)
class ChooseStorage:
    """Mark the grids of weights that are stored in 8 bits. store_4bit: `auto`, `int4` or `int8`."""

    store_4bit: str = "auto"
    title: ClassVar[str] = "Choose how 4-bit weights are stored"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        wide = []
        for constant in model.initializers():
            quantizer = model.quantizers.get(constant.name)
            if quantizer is None or quantizer.spec.grid.bits > 4:
                continue
            beside = _beside_integers(model, constant, quantizer, context.target)
            packed = context.target.packs_int4(self.store_4bit, beside)
            model.quantizers[constant.name] = _stored(quantizer, packed)
            wide += [] if packed else [constant.name]
        return Outcome(len(wide), notes=tuple(f"{name}: stored in 8 bits" for name in wide))


def _beside_integers(model: Model, constant: gs.Constant, quantizer: Quantizer, target: Target) -> bool:
    """Whether a layer that reads the weight computes with integers. A table stands beside nothing, nor does a matrix
    beside 16 bits that the target takes for floats (`Target.rounds_activations`); other constants stand beside them."""
    readers = [n for n in model.consumers(constant) if n.name in quantizer.readers and table_of(n) is not constant]
    for node in readers:
        form = linear_form(node.op, node.domain)
        data = model.quantizers.get(node.inputs[0].name)
        is_weight = form is not None and node.inputs[form.weight] is constant
        if not is_weight or form is None:
            return True
        if data is None or (data.readers and node.name not in data.readers):
            continue
        if data.spec.grid.bits <= 8 or form.is_convolution or not target.rounds_activations:
            return True
    return False


def _stored(quantizer: Quantizer, packed: bool) -> Quantizer:
    spec = replace(quantizer.spec, grid=replace(quantizer.spec.grid, packed=packed))
    params = quantizer.params
    return replace(quantizer, spec=spec, params=params and replace(params, grid=replace(params.grid, packed=packed)))
