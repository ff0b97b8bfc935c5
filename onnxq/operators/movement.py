"""Data movement: operators whose outputs hold values of their first input, or zeros, so that one grid serves both.

This is the one list of them. A target reads it (`targets.target.movement`) and names what its tool-chain computes in
float none the less.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from .node import constant_input
from .registry import Operator, add


def _resizes_to_nearest(node: gs.Node) -> bool:
    mode = node.attrs.get("mode", "nearest")
    return bool(mode == "nearest" and node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize")


def _pads_with_zeros(node: gs.Node) -> bool:
    """Or with values of its input."""
    if node.attrs.get("mode", "constant") != "constant":
        return True
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    value = constant_input(node, 2)
    return value is not None and not value.any()


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


def _flattened(node: gs.Node, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [x.reshape(int(np.prod(x.shape[: node.attrs.get("axis", 1)], dtype=int)), -1)]


def _squeezed(node: gs.Node, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.squeeze(x, _axes_of(node))]


def _unsqueezed(node: gs.Node, x: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.expand_dims(x, _axes_of(node))]


add(
    Operator("MaxPool", "movement", scaling="spatial", statistics="largest", depends_on_values=True),
    Operator("Reshape", "movement", scaling="moved", statistics="same", move=_reshaped),
    Operator("Flatten", "movement", scaling="moved", statistics="same", move=_flattened),
    Operator("Squeeze", "movement", scaling="moved", statistics="same", move=_squeezed),
    Operator("Unsqueeze", "movement", scaling="moved", statistics="same", move=_unsqueezed),
    Operator("Transpose", "movement", scaling="transpose", statistics="same"),
    Operator("Slice", "movement", scaling="moved", move=_sliced),
    Operator("Gather", "movement", scaling="moved", move=_gathered),
    Operator("GatherND", "movement"),
    Operator("Split", "movement", scaling="moved", move=_split),
    Operator("Expand", "movement"),
    Operator("Tile", "movement"),
    Operator("Identity", "movement", scaling="same", statistics="same"),
    Operator("DepthToSpace", "movement"),
    Operator("SpaceToDepth", "movement"),
    Operator("GlobalMaxPool", "movement", scaling="spatial", statistics="largest", depends_on_values=True),
    Operator("ReduceMax", "movement", scaling="reduce", statistics="largest", depends_on_values=True),
    Operator("ReduceMin", "movement", scaling="reduce", depends_on_values=True),
    Operator("Pad", "movement", scaling="pad", keeps_grid=_pads_with_zeros),
    Operator("Resize", "movement", scaling="resize", keeps_grid=_resizes_to_nearest),
)
