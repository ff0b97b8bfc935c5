"""Exceptions to what target and preset say, tensor by tensor: mixed precision written down by the user.

Overrides apply in order, later ones over earlier ones. A tensor that keeps another's grid (data movement, pooling,
ties) has none of its own to change. Nodes that an override keeps in float get no quantizers to begin with
(`AddQuantizers`, by the same mechanism as --exclude).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_graphsurgeon as gs

from ..errors import UsageError
from ..graph.model import Model, Quantizer, drop_quantizer
from ..numeric.quant import Grid, QuantSpec
from ..numeric.ranges import check_method
from ..operators.linear import LinearLayer, linear_layer
from ..options import Override
from ..report import Reason
from ..targets import Target
from .base import Context, Outcome


@dataclass(frozen=True)
class ApplyOverrides:
    """Change the specs of planned quantizers."""

    overrides: tuple[Override, ...] = ()
    title: ClassVar[str] = "Apply overrides"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        return Outcome(sum(_apply(model, override, context.target) for override in self.overrides))


def _apply(model: Model, override: Override, target: Target) -> int:
    matched = [name for name in _names(model, override) if name in model.quantizers]
    own = [name for name in matched if model.quantizers[name].grid_of is None]
    if not own:
        hint = "`onnxq inspect -v` lists nodes and weights, a report all quantized tensors"
        if matched:
            hint = f"{matched[0]!r} keeps the grid of {model.quantizers[matched[0]].grid_of!r}: override that one"
        raise UsageError(f"the override of {override.place} matches no quantized tensor with a grid of its own; {hint}")
    for name in own:
        if override.keep_float:
            drop_quantizer(model, name, Reason("override", f"kept in float by the override of {override.place}"))
        else:
            model.quantizers[name] = _changed(model, model.quantizers[name], override, target)
    return len(own)


def _names(model: Model, override: Override) -> list[str]:
    if override.tensor is not None:
        return [name for name in model.quantizers if fnmatchcase(name, override.tensor)]
    assert override.node is not None
    names = []
    for node in model.graph.nodes:
        if fnmatchcase(node.name, override.node) or fnmatchcase(node.op, override.node):
            names += [t.name for t in node.inputs if isinstance(t, gs.Constant)]
            names += [t.name for t in node.outputs]
            names += _behind(model, node)
    return list(dict.fromkeys(names))


def _behind(model: Model, node: gs.Node) -> list[str]:
    """The output of the bias and activation behind a node, where its own output is not on a grid."""
    names = []
    layer = linear_layer(node)
    tensor = layer.output if isinstance(layer, LinearLayer) else node.outputs[0]
    while tensor.name not in model.quantizers and (reader := model.sole_consumer(tensor)) is not None:
        if reader.op not in ("Relu", "Clip", "Add"):
            break
        tensor = reader.outputs[0]
        names.append(tensor.name)
    return names


def _changed(model: Model, quantizer: Quantizer, override: Override, target: Target) -> Quantizer:
    spec = quantizer.spec
    symmetric = spec.symmetric if override.symmetric is None else override.symmetric
    per_channel = spec.per_channel if override.per_channel is None else override.per_channel
    weight = isinstance(model.graph.tensors()[quantizer.tensor], gs.Constant)
    if per_channel and not weight:
        raise UsageError(f"the override of {override.place}: activations have one scale a tensor, not per channel")
    if override.block is not None and not weight:
        raise UsageError(f"the override of {override.place}: only weights can be quantized in blocks")
    if override.method is not None and weight:
        check_method(override.method, "weights", f"the override of {override.place}: method")
    signed = spec.grid.signed if override.symmetric is None or weight else symmetric
    narrow = target.weight_of(override.bits).grid.narrow if weight and override.bits else spec.grid.narrow
    grid = Grid(override.bits or spec.grid.bits, signed, narrow=narrow and symmetric)
    power_of_two = spec.power_of_two if override.power_of_two is None else override.power_of_two
    new = QuantSpec(
        grid,
        symmetric,
        per_channel,
        spec.one_tailed or (symmetric and not weight and f"uint{max(grid.stored_bits, 8)}" in target.activation_types),
        power_of_two,
        override.block or spec.block,
    )
    axis = _axis(model, quantizer, new)
    if axis is None and (new.per_channel or new.block):
        raise UsageError(
            f"the override of {override.place}: {quantizer.tensor!r} is no weight of a linear layer: it has one scale,"
            " not per channel and not in blocks"
        )
    return replace(
        quantizer,
        spec=new,
        axis=axis,
        method=override.method or quantizer.method,
        fixed=override.range or (None if override.method else quantizer.fixed),
    )


def _axis(model: Model, quantizer: Quantizer, spec: QuantSpec) -> int | None:
    """The axis that channels, or blocks, run along, from the first layer that reads the weight."""
    if not (spec.per_channel or spec.block):
        return None
    for node in model.graph.nodes:
        layer = linear_layer(node)
        if isinstance(layer, LinearLayer) and layer.weight.name == quantizer.tensor:
            return layer.reduction_axis if spec.block else layer.axis
    return None if spec.block else quantizer.axis
