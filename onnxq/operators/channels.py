"""A linear layer's weight seen by output and by input channel, for whatever operator the layer is.

With g groups, weight element (o, j, ...) of a Conv joins output channel o and input channel group(o) Cin/g + j;
element (i, j, ...) of a ConvTranspose joins input channel i and output channel group(i) Cout/g + j. Everything
that scales, shifts or measures channels goes through the functions here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from .linear import LinearLayer, is_op

Vector = NDArray[np.float64]
Array = NDArray[Any]
Function = Callable[..., Array]

AT_ONCE = 2**20
"""Weights that are looked at together, in float64: a large layer is never copied as a whole."""


def input_channels(layer: LinearLayer) -> int:
    """Number of input channels."""
    shape = layer.weight.shape
    if is_op(layer.node, "Conv"):
        return int(shape[1]) * layer.groups
    return int(shape[0 if is_op(layer.node, "ConvTranspose") else _input_axis(layer)])


def by_output(layer: LinearLayer, vector: Vector) -> NDArray[np.float64]:
    """A vector over output channels (Cout,), in a shape that broadcasts against the weight."""
    if is_op(layer.node, "ConvTranspose"):
        return _spread(vector, layer)
    return _along(vector, layer.axis, len(layer.weight.shape))


def by_input(layer: LinearLayer, vector: Vector) -> NDArray[np.float64]:
    """A vector over input channels (Cin,), in a shape that broadcasts against the weight."""
    if is_op(layer.node, "Conv"):
        return _spread(vector, layer)
    return _along(vector, _input_axis(layer), len(layer.weight.shape))


def pairs(layer: LinearLayer, values: Array | None = None) -> Array:
    """The weight, or an array of its shape, as (g, Cout/g, Cin/g, taps): all weights that join an output with an input
    channel of its group. A view, of the array's own type."""
    weight = np.asarray(layer.weight.values if values is None else values)
    if is_op(layer.node, "ConvTranspose"):
        split = weight.reshape(layer.groups, -1, *weight.shape[1:])
        return np.swapaxes(split, 1, 2).reshape(*split.shape[:1], split.shape[2], split.shape[1], -1)
    if is_op(layer.node, "Conv"):
        return weight.reshape(layer.groups, -1, weight.shape[1], int(np.prod(weight.shape[2:], dtype=int)))
    matrix = np.moveaxis(weight, (layer.axis, _input_axis(layer)), (0, 1))
    return matrix.reshape(1, *matrix.shape[:2], -1)


def blocks(layer: LinearLayer, *arrays: Array) -> Iterator[tuple[slice, tuple[NDArray[np.float64], ...]]]:
    """`pairs` of the weight, or of arrays of its shape, in float64, for some of the Cout/g at a time, and for which."""
    by_pairs = [pairs(layer, values) for values in arrays or (layer.weight.values,)]
    groups, outputs, inputs, taps = by_pairs[0].shape
    step = max(AT_ONCE // max(groups * inputs * taps, 1), 1)
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        yield part, tuple(np.asarray(values[:, part], np.float64) for values in by_pairs)


def answer(
    layer: LinearLayer, vector: Vector, *arrays: Array, of: Function = lambda w: w, shares: Vector | float = 1.0
) -> Vector:
    """sum_i vector_i sum_t shares_t V_oit, (Cout,), with V = `of` the weight, or of arrays of its shape, element by
    element. vector: (Cin,). shares: (taps,)."""
    groups, outputs, inputs, _ = pairs(layer).shape
    factors = np.asarray(shares) * vector.reshape(groups, 1, inputs, 1)
    found = np.zeros((groups, outputs))
    for part, values in blocks(layer, *arrays):
        found[:, part] = (of(*values) * factors).sum(axis=(2, 3))
    return found.reshape(-1)


def response(layer: LinearLayer, constant: Vector) -> Vector:
    """W c, (Cout,): what an input that is constant over space, (Cin,), adds to each output where nothing is padded.

    For Conv, Gemm and MatMul with a matrix; other layers answer such an input with one that varies (ValueError).
    """
    if is_op(layer.node, "ConvTranspose") or (is_op(layer.node, "MatMul") and len(layer.weight.shape) > 2):
        raise ValueError(f"{layer.node.op} does not answer a constant with a constant")
    return answer(layer, constant)


def scaled(layer: LinearLayer, outputs: Vector, inputs: Vector) -> Array:
    """The weight times a factor for each output (Cout,) and for each input channel (Cin,), in its own type; what is
    scaled by 0 is 0."""
    weight = np.asarray(layer.weight.values)
    result = np.empty(weight.shape, weight.dtype)
    factors = by_output(layer, outputs), by_input(layer, inputs)
    step = max(AT_ONCE * len(weight) // max(weight.size, 1), 1)
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        down, up = (f[part] if len(f) > 1 else f for f in factors)
        with np.errstate(invalid="ignore"):  # infinity times 0
            block = np.asarray(weight[part], np.float64) * down * up
        result[part] = np.where((down != 0) & (up != 0), block, 0.0)
    return result


def _input_axis(layer: LinearLayer) -> int:
    if is_op(layer.node, "Gemm"):
        return 1 - layer.axis
    return len(layer.weight.shape) - 2 if is_op(layer.node, "MatMul") else 0


def _along(vector: Vector, axis: int, ndim: int) -> NDArray[np.float64]:
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _spread(vector: Vector, layer: LinearLayer) -> NDArray[np.float64]:
    """(g * n,) -> (rows, n, 1, ...): row r of the weight belongs to group r // (rows / g)."""
    rows, ndim = int(layer.weight.shape[0]), len(layer.weight.shape)
    spread = np.repeat(vector.reshape(layer.groups, -1), rows // layer.groups, axis=0)
    return spread.reshape(*spread.shape, *(1,) * (ndim - 2))


def pads(node: gs.Node) -> bool:
    """Whether a Conv reads zeros beyond the border of its input."""
    return node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(node.attrs.get("pads", ()))
