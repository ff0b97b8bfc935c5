"""Grids that an encodings file gives, instead of ranges from data: the file decides scales, zero points and widths.

A tensor that the file names is put onto the file's grid, whether or not the target would have quantized it. The rest
goes as in QNN's converter: it gets ranges like any other tensor where there is something to learn them from
(`complete`), and stays in float otherwise. Data movement keeps grids, so that what follows a named tensor stays on
its grid. Entries of 32 bits are biases, whose scale follows from the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from ..encodings import Encoding
from ..encodings.record import DERIVED_BITS
from ..errors import UsageError
from ..graph.model import Model, Quantizer, drop_quantizer
from ..numeric.quant import QuantSpec
from ..operators.linear import LinearLayer, linear_layer
from ..operators.node import is_float
from ..report import Reason
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class ApplyEncodings:
    """Set the params of planned quantizers, and plan those that are missing.

    activation, weight: how the target stores integers.  complete: whether tensors that the file does not name keep
    their planned quantizers, to be ranged later.
    """

    encodings: tuple[Encoding, ...]
    activation: QuantSpec
    weight: QuantSpec
    complete: bool
    title: ClassVar[str] = "Apply encodings"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        tensors = model.graph.tensors()
        skips, biases, given = [], 0, 0
        for encoding in self.encodings:
            tensor = tensors.get(encoding.name)
            if encoding.bits == DERIVED_BITS:
                biases += 1
            elif tensor is None:
                skips.append(Skip(encoding.name, "the encodings name it, the prepared model has no such tensor"))
            elif not is_float(tensor):
                skips.append(Skip(encoding.name, "the encodings name it, but it is no float32 tensor"))
            elif encoding.bits is None:
                drop_quantizer(model, encoding.name, Reason("encodings", "the encodings leave it in float"))
                given += 1
            else:
                self._answer(model, tensor, encoding)
                given += 1
        if not given:
            raise UsageError(
                f"none of the {len(self.encodings)} encodings, of {self.encodings[0].name!r} for one, is of a tensor of"
                f" {model.origin}: encodings belong to the float model that they were exported with"
            )
        _detach(model)
        if not self.complete:
            skips += _leave_unnamed(model)
        return Outcome(given, tuple(skips), _notes(model, given, biases))

    def _answer(self, model: Model, tensor: gs.Tensor, encoding: Encoding) -> None:
        layer = next((x for node in model.consumers(tensor) if _reads(x := linear_layer(node), tensor)), None)
        constant = isinstance(tensor, gs.Constant)
        planned = model.quantizers.get(tensor.name)
        if planned is None:
            readers = tuple(node.name for node in model.consumers(tensor)) if constant else ()
            planned = Quantizer(tensor.name, self.weight if layer is not None else self.activation, readers=readers)
        if not constant and encoding.scale.ndim:
            raise UsageError(
                f"the encoding of {tensor.name!r} has {encoding.scale.size} scales, but activations have one a tensor"
            )
        axis, blocks = (layer.axis, layer.reduction_axis) if isinstance(layer, LinearLayer) else (None, None)
        shape = tensor.shape if isinstance(tensor, gs.Constant) else ()
        params = encoding.params(shape, axis, blocks, planned.spec)
        channels = params.axis is not None and params.block is None
        spec = replace(
            planned.spec,
            grid=params.grid,
            symmetric=encoding.symmetric,
            per_channel=channels,
            block=params.block,
        )
        model.quantizers[tensor.name] = replace(planned, spec=spec, axis=params.axis, params=params, given=True)


def _reads(layer: LinearLayer | str, tensor: gs.Tensor) -> bool:
    return isinstance(layer, LinearLayer) and layer.weight is tensor


def _detach(model: Model) -> None:
    """A named tensor that was to keep another's grid has its own where the file says otherwise."""
    for name, quantizer in model.quantizers.items():
        if not quantizer.given or quantizer.grid_of is None:
            continue
        source = model.quantizers[quantizer.grid_of]
        if not (source.given and _same(source, quantizer)):
            model.quantizers[name] = replace(quantizer, grid_of=None)


def _same(one: Quantizer, other: Quantizer) -> bool:
    a, b = one.params, other.params
    if a is None or b is None:
        return False
    return bool(a.grid == b.grid and a.scale == b.scale and a.zero_point == b.zero_point)


def _leave_unnamed(model: Model) -> list[Skip]:
    """Drop the quantizers that the file says nothing of; those that keep the grid of a named tensor stay."""
    skips = []
    for name, quantizer in list(model.quantizers.items()):
        if name in model.quantizers and quantizer.grid_of is None and not quantizer.given:
            reason = Reason("range", "the encodings do not name it, and there is no data to range it")
            drop_quantizer(model, name, reason)
            skips.append(Skip(name, reason.text))
    return skips


def _notes(model: Model, given: int, biases: int) -> tuple[str, ...]:
    rest = sum(q.grid_of is None and not q.given for q in model.quantizers.values())
    notes = [f"tensors named by the encodings: {given}; ranged besides: {rest}"]
    if biases:
        notes.append(f"{biases} encodings of 32-bit biases: their scales follow from those of inputs and weights")
    return tuple(notes)
