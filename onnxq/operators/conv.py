"""Conv and ConvTranspose: weights that slide over positions.

What reads padding reads zeros, so that sums over P are exact at the borders too. Only the pads at the begin of an axis
have to be known: windows start where those say, and end where the output ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .linear import Attributes, LinearForm, LinearLayer, Shape
from .matrix import Array, LayerMatrix
from .registry import Operator, add

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Convolution(LinearForm):
    """Weights (Cout, Cin/group, kernel), or, transposed, (Cin, Cout/group, kernel)."""

    transposed: bool = False
    grouped: Literal["output", "input"] = "output"
    is_convolution: bool = True

    def axes(self, attributes: Attributes, ndim: int) -> tuple[int, int]:
        return (1, 0) if self.transposed else (0, 1)

    def products(self, attributes: Attributes, weight: Shape) -> int:
        """Cin/g prod(kernel) for each element of y, transposed Cout/g prod(kernel) for each of x."""
        return math.prod(weight[1:])

    def rank(self, layer: LinearLayer) -> int | None:
        return len(layer.weight.shape)

    def varies(self, layer: LinearLayer) -> str | None:
        if self.transposed:
            return "its output positions see different taps of the weight"
        return "it pads with zeros" if pads(layer.node) else None

    def matrix(self, layer: LinearLayer) -> LayerMatrix:
        """Reads the node's attributes; absent ones get ONNX's defaults."""
        attrs, shape = layer.node.attrs, tuple(map(int, layer.weight.shape))
        ndim = len(shape) - 2
        auto_pad = attrs.get("auto_pad", "NOTSET")
        if auto_pad == "NOTSET" and "output_shape" in attrs:
            auto_pad = "SAME_LOWER"  # how ConvTranspose splits pads where only the output's shape is given
        return ConvolutionMatrix(
            shape,
            layer.groups,
            transposed=self.transposed,
            strides=tuple(attrs.get("strides", (1,) * ndim)),
            dilations=tuple(attrs.get("dilations", (1,) * ndim)),
            pads=tuple(attrs.get("pads", (0,) * (2 * ndim))),
            auto_pad=auto_pad,
            output_padding=tuple(attrs.get("output_padding", (0,) * ndim)),
        )

    def coverage(self, layer: LinearLayer) -> Vector:
        """Transposed, an output position sees only some of the taps: 1 / (product of strides). Conv pads with zeros,
        which count where spatial sizes are known."""
        node, kernel = layer.node, layer.weight.shape[2:]
        if self.transposed:
            return np.full(1, 1 / np.prod(node.attrs.get("strides", [1]), dtype=float))
        if not pads(node):
            return np.ones(1)
        shares = np.ones(kernel)
        for axis, taps in enumerate(kernel):
            share = _axis_coverage(node, int(taps), axis, len(kernel))
            if share is not None:
                shares *= share.reshape([-1 if i == axis else 1 for i in range(len(kernel))])
        return shares.reshape(-1)


def pads(node: gs.Node) -> bool:
    """Whether a convolution or a pooling reads zeros beyond the border of its input."""
    return node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(node.attrs.get("pads", ()))


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


@dataclass(frozen=True)
class ConvolutionMatrix(LayerMatrix):
    """Attributes as in ONNX, for each spatial axis."""

    transposed: bool
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    output_padding: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.shape[1] if self.transposed else self.shape[0] // self.groups

    def reads_alike(self, other: LayerMatrix) -> bool:
        same = isinstance(other, ConvolutionMatrix) and self.transposed == other.transposed
        return same and (self.shape, self.groups) == (other.shape, other.groups)

    def weights(self, weight: Array) -> Array:
        if not self.transposed:
            return np.asarray(weight.reshape(self.groups, self.rows, -1))
        cin, cout, *kernel = self.shape
        flipped = np.flip(weight, tuple(range(2, len(self.shape))))
        split = flipped.reshape(self.groups, cin // self.groups, cout, *kernel)
        return np.asarray(split.swapaxes(1, 2).reshape(self.groups, cout, -1))

    def restore(self, matrix: Array) -> Array:
        if not self.transposed:
            return np.asarray(matrix.reshape(self.shape))
        cin, cout, *kernel = self.shape
        split = matrix.reshape(self.groups, cout, cin // self.groups, *kernel).swapaxes(1, 2)
        return np.flip(split.reshape(self.shape), tuple(range(2, len(self.shape))))

    def outputs(self, y: Array) -> Array:
        split = y.reshape(y.shape[0], self.groups, self.rows, -1)
        return np.asarray(split.transpose(1, 2, 0, 3).reshape(self.groups, self.rows, -1))

    def inputs(self, x: Array, positions: tuple[int, ...] = (), chosen: NDArray[np.intp] | None = None) -> Array:
        strides, begins = self.strides, self._begins(x.shape[2:], positions)
        reach = self._reach()
        if self.transposed:
            x, strides = _spread(x, strides), (1,) * len(strides)
            begins = tuple(r - 1 - b for r, b in zip(reach, begins, strict=True))
        x = _padded(x, begins, tuple((n - 1) * s + r for n, s, r in zip(positions, strides, reach, strict=True)))
        spatial = tuple(range(2, x.ndim))
        steps = [slice(None)] * 2 + [slice(None, None, s) for s in (*strides, *self.dilations)]
        windows = sliding_window_view(x, reach, axis=spatial)[tuple(steps)]  # (batch, Cin, positions, kernel)
        if chosen is None:
            columns = np.moveaxis(windows, (0, *spatial), range(-1 - len(spatial), 0))
        else:
            sample, *at = np.unravel_index(chosen, (x.shape[0], *positions))
            index: list[Any] = [sample, slice(None)]
            columns = np.moveaxis(windows[tuple(index + at)], 0, -1)
        return np.asarray(columns.reshape(self.groups, self.columns, -1))

    def _reach(self) -> tuple[int, ...]:
        """How many elements the kernel spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.shape[2:], self.dilations, strict=True))

    def _begins(self, size: tuple[int, ...], positions: tuple[int, ...]) -> tuple[int, ...]:
        """Pads at the begin of each axis."""
        if self.auto_pad == "NOTSET":
            return self.pads[: len(positions)]
        if self.auto_pad == "VALID":
            return (0,) * len(positions)
        begins = []
        for i, reach in enumerate(self._reach()):
            inside, outside = size[i], positions[i]
            if self.transposed:
                total = self.strides[i] * (inside - 1) + self.output_padding[i] + reach - outside
            else:
                total = (outside - 1) * self.strides[i] + reach - inside
            total = max(total, 0)
            begins.append(total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2)
        return tuple(begins)


def _spread(x: Array, strides: tuple[int, ...]) -> Array:
    """Zeros between neighbours, so that they are `strides` apart."""
    sizes = ((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))
    spread = np.zeros((*x.shape[:2], *sizes), x.dtype)
    spread[tuple([slice(None)] * 2 + [slice(None, None, s) for s in strides])] = x
    return spread


def _padded(x: Array, begins: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """Zeros before and behind, or elements cut off, so that `sizes` remain."""
    padded = np.zeros((*x.shape[:2], *sizes), x.dtype)
    source, target = [slice(None)] * 2, [slice(None)] * 2
    for begin, size, inside in zip(begins, sizes, x.shape[2:], strict=True):
        low, high = max(begin, 0), min(begin + inside, size)
        target.append(slice(low, max(high, low)))
        source.append(slice(low - begin, max(high, low) - begin))
    padded[tuple(target)] = x[tuple(source)]
    return padded


add(
    Operator("Conv", "linear", linear=Convolution()),
    Operator("ConvTranspose", "linear", linear=Convolution(transposed=True, grouped="input", counted="input")),
)
