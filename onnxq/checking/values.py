"""Checks on the parameters of quantized tensors: types, zero points, granularity, scales, biases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from ..operators.linear import lacks_bias_input
from ..operators.node import is_op
from ..operators.registry import linear_form, operands
from ..targets import Target
from ..targets.target import uneven_blocks
from .qdq_reader import Constant, QdqGraph, label
from .tensor_grid import TensorGrid
from .violation import Violation

_TOLERANCE = 1e-5


def opset(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    highest = target.max_opset or graph.opset
    if not target.min_opset <= graph.opset <= highest:
        bounds = f"{target.min_opset} to {target.max_opset}" if target.max_opset else f"at least {target.min_opset}"
        yield Violation("", "", f"operator set {bounds}", f"operator set {graph.opset}")


def activation_types(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for pair in graph.pairs:
        if pair.grid.type not in target.activation_types:
            yield Violation(
                label(pair.quantize), pair.tensor.name, " or ".join(target.activation_types), pair.grid.type
            )
    known = dict.fromkeys((*target.activation_types, *target.weight_types))
    for constant in graph.constants:
        if constant.role == "operand" and constant.grid.type not in known:
            yield _at(constant, " or ".join(known), constant.grid.type)


def weight_types(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for weight in _weights(graph):
        if weight.grid.type not in target.weight_types:
            yield _at(weight, " or ".join(target.weight_types), weight.grid.type)


def activation_zero_point(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, tensor, grid in _activations(graph):
        if found := _zero_point(grid, target.activation_zero_points):
            yield Violation(node, tensor, "zero point 0", found)


def weight_zero_point(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for weight in _weights(graph):
        if found := _zero_point(weight.grid, target.weight_zero_points):
            yield _at(weight, "zero point 0", found)


def weight_range(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    limit = target.weight_limit or 0
    for weight in _weights(graph):
        integers, grid = weight.integers, weight.grid
        zero_point = grid.zero_point if grid.zero_point.any() else np.zeros((), np.int64)
        if zero_point.ndim == 1 and grid.axis is not None:
            shape = [-1 if i == grid.axis % integers.ndim else 1 for i in range(integers.ndim)]
            zero_point = zero_point.reshape(shape)
        if grid.block and grid.axis is not None:
            within = np.arange(integers.shape[grid.axis]) // grid.block
            zero_point = zero_point.take(within, grid.axis) if zero_point.ndim else zero_point
        largest = int(np.abs(integers - zero_point).max(initial=0)) if zero_point.ndim in (0, integers.ndim) else 0
        if largest > limit:
            yield _at(weight, f"integers at most {limit} from the zero point", f"{largest}")


def activation_granularity(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, tensor, grid in _activations(graph):
        if grid.scale.size > 1:
            yield Violation(node, tensor, "one scale for the tensor", f"{grid.scale.size} scales")
    for found in () if target.dynamic_activations else graph.nodes:
        if is_op(found, "DynamicQuantizeLinear"):
            yield Violation(label(found), found.inputs[0].name, "a scale that is set", "one that is found at run time")


def weight_granularity(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for weight in _weights(graph):
        grid = weight.grid
        rule, form = target.rule_of(weight.node), linear_form(weight.node.op, weight.node.domain)
        if grid.axis is None or grid.scale.size == 1 or rule is None or form is None:
            continue
        rank = len(weight.tensor.shape)
        axis, inner = form.axes(weight.node.attrs, rank)
        if grid.block:
            length = int(weight.tensor.shape[inner])
            why = target.refuses_blocks(grid.type) or uneven_blocks(form, length, grid.block)
            if why is not None:
                yield _at(weight, f"no blocks: {why}", f"blocks of {grid.block}")
            elif grid.axis % rank != inner:
                yield _at(weight, f"blocks along axis {inner}, the input channels", f"along axis {grid.axis}")
            continue
        if not (target.weight.per_channel and rule.takes_channels(tuple(weight.tensor.shape))):
            yield _at(weight, f"one scale for the weight of {weight.node.op}", f"{grid.scale.size} scales")
        elif grid.axis % rank != axis:
            yield _at(weight, f"scales along axis {axis}, the output channels", f"along axis {grid.axis}")


def power_of_two(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, tensor, grid in _everything(graph):
        if np.any(np.frexp(grid.scale)[0] != 0.5):
            worst = grid.scale.reshape(-1)[np.argmax(np.frexp(grid.scale.reshape(-1))[0] != 0.5)]
            yield Violation(node, tensor, "scales that are powers of two", f"{worst:g}")


def smallest_range(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    grids = [*_activations(graph), *((label(w.node), w.tensor.name, w.grid) for w in _weights(graph))]
    for node, tensor, grid in grids:
        lowest, highest = grid.limits
        span = float(grid.scale.min()) * (highest - lowest)
        if span < target.smallest_range * (1 - _TOLERANCE):
            yield Violation(node, tensor, f"a range of at least {target.smallest_range:g}", f"{span:g}")


def bias(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node in graph.nodes:
        index, layer = _bias_input(graph, node)
        if layer is None or not node.inputs[index].name or target.rule_of(layer) is None:
            continue  # a layer without a rule computes in float, whatever its weight is stored in
        x, weight = (graph.read(layer, 0), graph.constant(layer, operands(layer)[1]))
        if x is None or x.scale.size > 1 or weight is None or weight.grid.block:
            continue
        found = graph.constant(node, index)
        got = "float" if found is None else str(found.grid)
        tensor = graph.root(node.inputs[index])
        if not isinstance(tensor, gs.Constant):
            continue
        if expected := _wrong_bias(target, x, weight.grid, found):
            yield Violation(label(node), tensor.name, expected, got)


def _wrong_bias(target: Target, x: TensorGrid, weight: TensorGrid, found: Constant | None) -> str | None:
    """What was expected of a bias that is not as the target wants it."""
    if target.bias == "float":
        return None if found is None else "float"
    if target.bias == "int8":
        good = found is not None and found.grid.type in target.weight_types and not found.grid.zero_point.any()
        return None if good else f"{target.weight_types[0]} with a scale of its own, zero point 0"
    expected = np.asarray(x.scale, np.float64).reshape(()) * weight.scale
    if found is not None and found.grid.type == "int32" and not found.grid.zero_point.any():
        scale = found.grid.scale
        if scale.size > 1 and expected.size > 1 and scale.size != expected.size:
            expected = np.resize(expected, scale.size)  # a grouped ConvTranspose: the same scales in every group
        if np.allclose(scale, expected, rtol=_TOLERANCE, atol=0):
            return None
    if expected.size > 1:
        return "int32, zero point 0, scales s_x s_w"
    return f"int32, zero point 0, scale s_x s_w = {expected.item():g}"


def _bias_input(graph: QdqGraph, node: gs.Node) -> tuple[int, gs.Node | None]:
    """Where a node reads a bias, and the linear operator whose bias it is."""
    form = linear_form(node.op, node.domain)
    if form is not None and form.bias is not None and len(node.inputs) > form.bias:
        return form.bias, node
    if node.op == "Add":
        for index in (0, 1):
            other = node.inputs[1 - index]
            constant = graph.constant(node, index)
            if other.inputs and lacks_bias_input(other.inputs[0]) and constant is not None:
                return (index, other.inputs[0]) if constant.role == "bias" else (0, None)
    return 0, None


def _zero_point(grid: TensorGrid, spec: str) -> str | None:
    required = spec == "zero" or (spec == "signed zero" and not grid.type.startswith("u"))
    if required and grid.zero_point.any():
        return f"{grid.type} with zero point {grid.zero_point[grid.zero_point != 0].reshape(-1)[0]}"
    return None


def _weights(graph: QdqGraph) -> Iterator[Constant]:
    return (constant for constant in graph.constants if constant.role == "weight")


def _activations(graph: QdqGraph) -> Iterator[tuple[str, str, TensorGrid]]:
    """Node, tensor and grid of activations, and of constants that stand in their place."""
    for pair in graph.pairs:
        yield label(pair.quantize), pair.tensor.name, pair.grid
    for constant in graph.constants:
        if constant.role == "operand":
            yield label(constant.node), constant.tensor.name, constant.grid


def _everything(graph: QdqGraph) -> Iterator[tuple[str, str, TensorGrid]]:
    for pair in graph.pairs:
        yield label(pair.quantize), pair.tensor.name, pair.grid
    for constant in graph.constants:
        yield label(constant.node), constant.tensor.name, constant.grid


def _at(constant: Constant, expected: str, got: str) -> Violation:
    return Violation(label(constant.node), constant.tensor.name, expected, got)
