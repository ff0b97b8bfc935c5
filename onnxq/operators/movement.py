"""Data movement as numpy does it: where the elements of the first input go, for arrays with a batch of 1.

Each function takes a node and an array in place of its first input, and gives those of its outputs. Raises ValueError
where parameters are computed at run time, or where the batch, axis 0, does not stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray


def _constants(node: gs.Node) -> list[list[int]]:
    """Values of the inputs behind the first one. Raises ValueError where they are computed."""
    constants = [t for t in node.inputs[1:] if isinstance(t, gs.Constant)]
    if len(constants) < len(node.inputs) - 1:
        raise ValueError("its parameters are computed")
    return [[int(v) for v in np.ravel(t.values)] for t in constants]


def _reshaped(node: gs.Node, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    (target,) = _constants(node)
    shape = node.inputs[0].shape
    if target[0] not in (0, -1, 1) or (target[0] == 1 and (shape is None or shape[0] != 1)):
        raise ValueError("the batch is reshaped")
    dims = [x.shape[i] if d == 0 and i < x.ndim else d for i, d in enumerate(target)]
    if target[0] == -1:
        dims[0] = 1
    return [x.reshape(dims)]


def _sliced(node: gs.Node, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    starts, ends, *rest = _constants(node)
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    if 0 in [axis % x.ndim for axis in axes] or min(steps) < 1:
        raise ValueError("the batch is sliced")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
    return [x]


def _split(node: gs.Node, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    axis, parts = node.attrs.get("axis", 0) % x.ndim, len(node.outputs)
    sizes = _constants(node)[0] if len(node.inputs) > 1 else [-(-x.shape[axis] // parts)] * parts
    if axis == 0:
        raise ValueError("the batch is split")
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _gathered(node: gs.Node, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    axis, indices = node.attrs.get("axis", 0) % x.ndim, node.inputs[1]
    if axis == 0 or not isinstance(indices, gs.Constant):
        raise ValueError("what it gathers is not constant")
    return [np.take(x, indices.values, axis)]


def _axes_of(node: gs.Node) -> tuple[int, ...]:
    axes = node.attrs.get("axes") or (_constants(node)[0] if len(node.inputs) > 1 else ())
    if not axes:
        raise ValueError("its axes are not given")
    return tuple(axes)


MOVES: Mapping[str, Callable[[gs.Node, NDArray[np.int64]], list[NDArray[np.int64]]]] = {
    "Reshape": _reshaped,
    "Flatten": lambda node, x: [x.reshape(int(np.prod(x.shape[: node.attrs.get("axis", 1)], dtype=int)), -1)],
    "Squeeze": lambda node, x: [np.squeeze(x, _axes_of(node))],
    "Unsqueeze": lambda node, x: [np.expand_dims(x, _axes_of(node))],
    "Slice": _sliced,
    "Split": _split,
    "Gather": _gathered,
}
