"""What can be said of a node or a tensor of a graph whatever the operator is."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

ONNX_DOMAINS = (None, "", "ai.onnx")


def is_op(node: gs.Node, *ops: str) -> bool:
    """Whether the node is one of these operators of the standard ONNX domain."""
    return node.op in ops and node.domain in ONNX_DOMAINS


def in_subgraph(node: gs.Node) -> bool:
    """Whether the node lies in a branch or in the body of a loop, as `Model.from_proto` marks those that do."""
    return getattr(node, "in_subgraph", False)


def constant_input(node: gs.Node, index: int) -> np.ndarray | None:
    """Value of an input if it is a constant; None where it is missing or computed."""
    tensor = node.inputs[index] if len(node.inputs) > index else None
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def rank(tensor: gs.Tensor) -> int | None:
    """Number of dimensions, None where unknown."""
    return None if tensor.shape is None else len(tensor.shape)


def is_float(tensor: gs.Tensor) -> bool:
    """Whether the tensor is known to hold float32, the only type that is quantized."""
    return tensor.dtype is not None and tensor.dtype == np.float32


def channel_vector(constant: gs.Constant, channels: int, axis: int, ndim: int | None) -> np.ndarray | None:
    """A constant that broadcasts along one axis of a tensor, as float64 (C,); None where it is anything else.

    axis: the channel axis of that tensor, 1 or -1.  ndim: its rank, None where unknown (at least 1).
    """
    values = np.asarray(constant.values, np.float64)
    if values.ndim > (1 if ndim is None else ndim):
        return None
    if values.size == 1:
        return np.full(channels, values.reshape(()))
    if axis != -1 and ndim is None:
        return None
    shape = [1] * (ndim or 1)
    shape[axis] = channels
    padded = (1,) * (len(shape) - values.ndim) + values.shape
    return values.reshape(-1) if padded == tuple(shape) else None
