"""What a linear layer answers to an input of which only the mean of each channel is known.

With mu (Cin,) the mean of the input, constant over space, and V any array of the weight's shape (W, or an error of W),

    E[V x]_o = sum_i mu_i sum_t q_t V_oit                                                    (25 to 27)

q_t: at which share of the output positions tap t reads an input and not the zeros that Conv pads with; for
ConvTranspose, where an output position sees only some of the taps, 1 / (product of strides). It is 1 for Gemm and
MatMul, and where spatial sizes are not known.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from . import channels
from .channels import Array, Function
from .linear import LinearLayer, is_op

Vector = NDArray[np.float64]


def propagate_mean(layer: LinearLayer, mean: Vector, *arrays: Array, of: Function = lambda w: w) -> Vector:
    """E[V x], (Cout,). mean: (Cin,). V: the weight, or `of` it, or of arrays of its shape, element by element."""
    if not mean.any():
        return np.zeros(layer.channels)
    return channels.answer(layer, mean, *arrays, of=of, shares=coverage(layer))


def coverage(layer: LinearLayer) -> Vector:
    """q, (taps,); or (1,), where it is the same for all."""
    node, kernel = layer.node, layer.weight.shape[2:]
    if is_op(node, "ConvTranspose"):
        return np.full(1, 1 / np.prod(node.attrs.get("strides", [1]), dtype=float))
    if not is_op(node, "Conv") or not channels.pads(node):
        return np.ones(1)
    shares = np.ones(kernel)
    for axis, taps in enumerate(kernel):
        share = _axis_coverage(node, int(taps), axis, len(kernel))
        if share is not None:
            shares *= share.reshape([-1 if i == axis else 1 for i in range(len(kernel))])
    return shares.reshape(-1)


def _axis_coverage(node: gs.Node, taps: int, axis: int, axes: int) -> Vector | None:
    """Share of the output positions along one spatial axis where each tap reads an input; None where sizes are open."""
    length, positions = (None if t.shape is None else t.shape[axis + 2] for t in (node.inputs[0], node.outputs[0]))
    if not isinstance(length, int) or not isinstance(positions, int):
        return None
    stride, dilation = (node.attrs.get(name, [1] * axes)[axis] for name in ("strides", "dilations"))
    padded = max((positions - 1) * stride + (taps - 1) * dilation + 1 - length, 0)
    same = node.attrs.get("auto_pad", "NOTSET")
    begin = node.attrs.get("pads", [0] * 2 * axes)[axis]
    if same != "NOTSET":
        begin = padded // 2 if same == "SAME_UPPER" else padded - padded // 2
    reads = np.arange(positions)[:, None] * stride - begin + np.arange(taps) * dilation
    return np.asarray(((reads >= 0) & (reads < length)).mean(axis=0))
