"""Finding parts of a model by what surrounds them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..operators.linear import is_op
from ..thresholds import SMALLEST_CLASSIFIER
from .model import Model


def class_logits(model: Model) -> set[str]:
    """Names of tensors that hold the logits of a whole sample: they reach a model output through a Softmax or as
    vectors of many values, on the way only being reshaped."""
    names: set[str] = set()
    for output in model.graph.outputs:
        tensor = _before_movement(output)
        node = tensor.inputs[0] if tensor.inputs else None
        if node is not None and is_op(node, "Softmax", "LogSoftmax"):
            names |= _movement_chain(node.inputs[0])
        elif output.shape is not None and len(output.shape) == 2 and _at_least(output.shape[1], SMALLEST_CLASSIFIER):
            names |= _movement_chain(output)
    return names


def _at_least(dim: int | str | None, lowest: int) -> bool:
    return isinstance(dim, int) and dim >= lowest


def _before_movement(tensor: gs.Tensor) -> gs.Tensor:
    while tensor.inputs and is_op(tensor.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _movement_chain(tensor: gs.Tensor) -> set[str]:
    """The tensor and what it was before being reshaped."""
    names = {tensor.name}
    while tensor.inputs and is_op(tensor.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
        tensor = tensor.inputs[0].inputs[0]
        names.add(tensor.name)
    return names
