"""Operators that compute new values: element by element, or as means and sums over positions."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from .node import constant_input, is_op
from .registry import Operator, add


def clip_bounds(node: gs.Node) -> tuple[float, float] | None:
    """The interval that Relu or Clip maps onto; None for other nodes and for bounds known only at run time."""
    if is_op(node, "Relu"):
        return 0.0, np.inf
    if not is_op(node, "Clip"):
        return None
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = constant_input(node, index)
        if value is None and len(node.inputs) > index and node.inputs[index].name:
            return None
        bounds.append(default if value is None else float(value.reshape(())))
    return None if np.isnan(bounds).any() else (bounds[0], bounds[1])


def is_infinite_at_zero(node: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether a node computes infinity where `tensor`, one of its inputs, is zero, as every grid may make it."""
    if is_op(node, "Log", "Reciprocal"):
        return True
    if is_op(node, "Div"):
        return node.inputs[1] is tensor
    if not is_op(node, "Pow"):
        return False
    exponent = constant_input(node, 1)
    return node.inputs[0] is tensor and exponent is not None and bool((exponent < 0).any())


add(
    Operator("Relu", "elementwise", scaling="same", statistics="clip"),
    Operator("Clip", "elementwise", scaling="clip", statistics="clip"),
    Operator("LeakyRelu", "elementwise", scaling="same"),
    Operator("PRelu", "elementwise", scaling="same"),
    Operator("Abs", "elementwise", scaling="same"),
    Operator("Neg", "elementwise", scaling="same"),
    Operator("Dropout", "elementwise", scaling="same", statistics="same"),
    Operator("Add", "elementwise", scaling="join", statistics="add"),
    Operator("Sub", "elementwise", scaling="join"),
    Operator("Sum", "elementwise", scaling="join", statistics="add"),
    Operator("Max", "elementwise", scaling="join"),
    Operator("Min", "elementwise", scaling="join"),
    Operator("Mul", "elementwise", scaling="multiply"),
    Operator("Div", "elementwise", scaling="multiply"),
    Operator("Concat", "elementwise", scaling="concat", statistics="concat"),
    Operator("AveragePool", "pooling", scaling="spatial", statistics="average"),
    Operator("GlobalAveragePool", "pooling", scaling="spatial", statistics="average"),
    Operator("LpPool", "pooling", scaling="spatial"),
    Operator("ReduceMean", "pooling", scaling="reduce", statistics="average"),
    Operator("ReduceSum", "pooling", scaling="reduce"),
)
