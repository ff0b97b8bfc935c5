"""What a target requires of scales once ranges are known, beyond what the grid itself says.

    smallest range      s (qmax - qmin) >= r: a grid of constant zeros still has a scale that the backend accepts
    fixed encodings     Sigmoid and Tanh of 16 bits have the scales that the backend insists on
    shifts              of scales 2^-p, so that an accelerator that rescales by shifts reaches from input to output:

        linear layers   lo <= p_w + p_x - p_y <= hi         Add     max p_x - min p_x <= read, lo <= min p_x - p_y <= hi
                                                            Mul     lo <= sum p_x - p_y <= hi

Positions are only ever lowered, one at a time until all bounds hold: a coarser grid never clips. Where the accumulator
is coarser than the output, the output gives up steps that it could not have filled; where a weight, or an input of Add,
is too fine, it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.model import Model, Quantizer, grid_root
from ..numeric.quant import QuantParams
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layer
from ..operators.node import is_op
from ..targets import FixedEncoding, Shifts, Target
from .base import Context, Outcome

_ROUNDS = 64


@dataclass(frozen=True)
class FitScales:
    """Adjust the scales of quantizers to the target."""

    title: ClassVar[str] = "Fit scales to the target"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        target, before = context.target, {name: q.params for name, q in model.quantizers.items()}
        _widen(model, target.smallest_range)
        _fix(model, target)
        if target.shifts is not None:
            for _ in range(_ROUNDS):
                lowered = sum(_lower(model, *step) for step in _steps(model, target.shifts))
                if not lowered:
                    break
        changed = [name for name, q in model.quantizers.items() if q.params is not before[name]]
        return Outcome(len(changed), notes=tuple(f"{name}: scale fitted to {target.name}" for name in changed))


def _widen(model: Model, smallest: float) -> None:
    for name, quantizer in model.quantizers.items():
        if quantizer.params is not None and smallest > 0:
            grid = quantizer.params.grid
            least = np.float32(smallest / (grid.qmax - grid.qmin))
            if np.min(quantizer.params.scale) < least:
                scale = np.maximum(np.asarray(quantizer.params.scale, np.float32), np.nextafter(least, np.float32(1)))
                model.quantizers[name] = quantizer.with_params(replace(quantizer.params, scale=np.asarray(scale)))


def _fix(model: Model, target: Target) -> None:
    for node in model.graph.nodes:
        rule = target.rule_of(node)
        quantizer = model.quantizers.get(node.outputs[0].name) if rule is not None and rule.encodings else None
        if rule is None or quantizer is None or quantizer.params is None or quantizer.grid_of is not None:
            continue
        kind = quantizer.params.grid.dtype.name
        for encoding in (e for e in rule.encodings if e.type == kind and quantizer.params.grid.bits == 16):
            _share(model, quantizer.tensor, _encoded(quantizer.params, encoding))


def _encoded(params: QuantParams, encoding: FixedEncoding) -> QuantParams:
    zero_point = np.asarray(encoding.zero_point, params.grid.dtype)
    return replace(params, scale=np.asarray(encoding.scale, np.float32), zero_point=zero_point)


def _share(model: Model, root: str, params: QuantParams) -> None:
    """Give new params to a quantizer and all that keep its grid."""
    members = [name for name in model.quantizers if grid_root(model.quantizers, name) == root]
    for name in members:
        if not _same(model.quantizers[name].params, params):
            model.quantizers[name] = model.quantizers[name].with_params(params)


def _same(one: QuantParams | None, other: QuantParams) -> bool:
    return (
        one is not None and np.array_equal(one.scale, other.scale) and np.array_equal(one.zero_point, other.zero_point)
    )


def _lower(model: Model, tensor: str, position: int) -> bool:
    """Coarsen the grid of `tensor` to a position, for all that share it."""
    root = grid_root(model.quantizers, tensor)
    params = model.quantizers[root].params
    assert params is not None
    if position >= _position(model.quantizers[root]):
        return False
    _share(model, root, replace(params, scale=np.asarray(2.0**-position, np.float32)))
    return True


def _position(quantizer: Quantizer) -> int:
    assert quantizer.params is not None
    return int(-np.rint(np.log2(np.min(quantizer.params.scale))))


def _steps(model: Model, shifts: Shifts) -> Iterator[tuple[str, int]]:
    """Tensors whose position is too high, and the one that it should be lowered to."""
    for node in model.graph.nodes:
        output = _written(model, node)
        layer = linear_layer(node)
        if isinstance(layer, LinearLayer):
            yield from _linear_steps(model, layer, _written(model, layer.bias_node or node), shifts)
        elif is_op(node, "Add", "Sub", "Mul"):
            inputs = {t.name: _position(q) for t in node.inputs if (q := _ranged(model, t.name)) is not None}
            if len(inputs) == len({t.name for t in node.inputs}):
                yield from _elementwise_steps(model, node, inputs, output, shifts)


def _linear_steps(model: Model, layer: LinearLayer, output: str | None, shifts: Shifts) -> Iterator[tuple[str, int]]:
    x, weight = _ranged(model, layer.input.name), _ranged(model, layer.weight.name)
    if x is None or weight is None or output is None:
        return
    cut = _position(weight) + _position(x) - _position(model.quantizers[output])
    if cut < shifts.cut[0]:
        yield output, _position(model.quantizers[output]) + cut - shifts.cut[0]
    elif cut > shifts.cut[1]:
        yield layer.weight.name, _position(weight) - (cut - shifts.cut[1])


def _elementwise_steps(
    model: Model, node: gs.Node, inputs: dict[str, int], output: str | None, shifts: Shifts
) -> Iterator[tuple[str, int]]:
    least = min(inputs.values())
    if node.op in ("Add", "Sub"):
        yield from ((name, least + shifts.read) for name in inputs)
    if output is None or node.op == "Sub":
        return
    result = _position(model.quantizers[output])
    if node.op == "Add":
        yield output, least - shifts.add[0]
        if least - result > shifts.add[1]:
            yield from ((name, result + shifts.add[1]) for name in inputs)
    else:
        total = sum(inputs[t.name] for t in node.inputs)
        yield output, total - shifts.mul[0]
        if total - result > shifts.mul[1]:
            finest = max(inputs, key=lambda name: inputs[name])
            yield finest, inputs[finest] - (total - result - shifts.mul[1])


def _written(model: Model, node: gs.Node) -> str | None:
    """The quantized tensor that a node writes, itself or through the activation that it ends in."""
    tensor = node.outputs[0]
    if _ranged(model, tensor.name) is None:
        behind = model.sole_consumer(tensor)
        if behind is None or clip_bounds(behind) is None:
            return None
        tensor = behind.outputs[0]
    return tensor.name if _ranged(model, tensor.name) is not None else None


def _ranged(model: Model, name: str) -> Quantizer | None:
    quantizer = model.quantizers.get(name)
    return quantizer if quantizer is not None and quantizer.params is not None else None
