"""A linear layer's weight seen by output and by input channel, whatever operator the layer is.

With g groups, weight element (o, j, ...) of a Conv joins output channel o and input channel group(o) Cin/g + j;
element (i, j, ...) of a ConvTranspose joins input channel i and output channel group(i) Cout/g + j. Everything
that scales, shifts or measures channels goes through the functions here.

Means go through a layer with them too (white paper equations 25 to 27). With mu (Cin,) the mean of the input, the same
at all positions, and V any array of the weight's shape (W, or an error of W),

    E[V x]_o = sum_i mu_i sum_t q_t V_oit

q_t: at which share of the output positions tap t reads an input, see `LinearForm.coverage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear import LinearLayer

Vector = NDArray[np.float64]
Array = NDArray[Any]
Function = Callable[..., Array]

AT_ONCE = 2**20
"""Weights that are looked at together, in float64: a large layer is never copied as a whole."""


def by_output(layer: LinearLayer, vector: Vector) -> NDArray[np.float64]:
    """A vector over output channels (Cout,), in a shape that broadcasts against the weight."""
    return _broadcast(layer, vector, layer.axis, layer.form.grouped == "output")


def by_input(layer: LinearLayer, vector: Vector) -> NDArray[np.float64]:
    """A vector over input channels (Cin,), in a shape that broadcasts against the weight."""
    return _broadcast(layer, vector, layer.reduction_axis, layer.form.grouped == "input")


def pairs(layer: LinearLayer, values: Array | None = None) -> Array:
    """The weight, or an array of its shape, as (g, Cout/g, Cin/g, taps): all weights that join an output with an input
    channel of its group. A view, of the array's own type."""
    weight = np.asarray(layer.weight.values if values is None else values)
    matrix = np.moveaxis(weight, (layer.axis, layer.reduction_axis), (0, 1))
    outputs, inputs, groups = *matrix.shape[:2], layer.groups
    taps = int(np.prod(matrix.shape[2:], dtype=int))
    if layer.form.grouped == "output":
        return matrix.reshape(groups, outputs // groups, inputs, taps)
    return np.swapaxes(matrix.reshape(outputs, groups, inputs // groups, taps), 0, 1)


def blocks(layer: LinearLayer, *arrays: Array) -> Iterator[tuple[slice, tuple[NDArray[np.float64], ...]]]:
    """`pairs` of the weight, or of arrays of its shape, in float64, for some of the Cout/g at a time, and for which."""
    by_pairs = [pairs(layer, values) for values in arrays or (layer.weight.values,)]
    groups, outputs, inputs, taps = by_pairs[0].shape
    step = max(AT_ONCE // max(groups * inputs * taps, 1), 1)
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        yield part, tuple(np.asarray(values[:, part], np.float64) for values in by_pairs)


def sum_over_inputs(
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


def propagate_mean(layer: LinearLayer, mean: Vector, *arrays: Array, of: Function = lambda w: w) -> Vector:
    """E[V x], (Cout,). mean: (Cin,). V: the weight, or `of` it, or of arrays of its shape, element by element."""
    if not mean.any():
        return np.zeros(layer.channels)
    return sum_over_inputs(layer, mean, *arrays, of=of, shares=layer.form.coverage(layer))


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


def _broadcast(layer: LinearLayer, vector: Vector, axis: int, over_groups: bool) -> NDArray[np.float64]:
    """over_groups: whether the axis holds the channels of all groups, or those of one, row by row of axis 0."""
    ndim, groups = len(layer.weight.shape), layer.groups
    if over_groups or groups == 1:
        return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])
    rows = int(layer.weight.shape[0])  # row r belongs to group r // (rows / g)
    spread = np.repeat(vector.reshape(groups, -1), rows // groups, axis=0)
    return spread.reshape(*spread.shape, *(1,) * (ndim - 2))
