"""Residual Adds: where a convolution ends in an Add, the sum runs as the end of the convolution."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..operators.linear import LinearLayer, linear_layer
from .model import Model

CONVOLUTIONS = ("Conv", "ConvTranspose")


def residual_input(model: Model, node: gs.Node) -> gs.Tensor | str:
    """The input of an Add that does not come straight from the convolution that the Add ends; the reason if none.

    Straight: nothing else reads what the convolution writes. Of two convolutions the one that runs last takes the
    Add, so that the other one's output is the residual.
    """
    if any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
        return "it adds a constant"
    ends = [t for t in node.inputs if model.sole_consumer(t) is node and _is_convolution(t)]
    if not ends:
        return "neither input comes straight from a convolution"
    if len(ends) == 2:
        order = {id(n): index for index, n in enumerate(model.graph.nodes)}
        ends.sort(key=lambda tensor: order[id(tensor.inputs[0])])
    return next(tensor for tensor in node.inputs if tensor is not ends[-1])


def _is_convolution(tensor: gs.Tensor) -> bool:
    if not tensor.inputs or tensor.inputs[0].op not in CONVOLUTIONS:
        return False
    return isinstance(linear_layer(tensor.inputs[0]), LinearLayer)
