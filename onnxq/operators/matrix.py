"""Every linear layer as one product of matrices, y = W X, whatever its operator.

    X  (g, K, P)   what the weights of an output read, a column for each output position (im2col)
    W  (g, M, K)   the weights                        g groups of M output channels each, Cout = g M
    y  (g, M, P)   the output, without its bias

    operator        K                       P                    where X comes from
    Conv            Cin/g * kernel          batch * positions    windows over the padded input
    ConvTranspose   Cin/g * kernel          batch * positions    windows over the input with s - 1 zeros between its
                                                                 elements; the kernel is flipped
    Gemm            Cin                     batch                rows
    MatMul          Cin                     batch * rows         rows; weights (..., Cin, Cout) make a group each

What reads padding reads zeros, so that sums over P are exact at the borders too. Only the pads at the begin of an axis
have to be known: windows start where those say, and end where the output ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .linear import LinearLayer, is_op

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerMatrix:
    """The maps between a layer's tensors and its matrices. shape: of the weight; the rest as in ONNX.

    transposed: of Gemm, whether the weight is (Cout, Cin).
    """

    op: str
    shape: tuple[int, ...]
    groups: int
    transposed: bool = False
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: LinearLayer) -> LayerMatrix:
        """Reads the node's attributes; absent ones get ONNX's defaults."""
        attrs, shape = layer.node.attrs, tuple(int(n) for n in layer.weight.shape)
        if is_op(layer.node, "MatMul"):
            return cls("MatMul", shape, math.prod(shape[:-2]))
        if is_op(layer.node, "Gemm"):
            return cls("Gemm", shape, 1, transposed=layer.axis == 0)
        ndim = len(shape) - 2
        auto_pad = attrs.get("auto_pad", "NOTSET")
        if auto_pad == "NOTSET" and "output_shape" in attrs:
            auto_pad = "SAME_LOWER"  # how ConvTranspose splits pads that only the output's shape tells
        return cls(
            layer.node.op,
            shape,
            layer.groups,
            strides=tuple(attrs.get("strides", (1,) * ndim)),
            dilations=tuple(attrs.get("dilations", (1,) * ndim)),
            pads=tuple(attrs.get("pads", (0,) * (2 * ndim))),
            auto_pad=auto_pad,
            output_padding=tuple(attrs.get("output_padding", (0,) * ndim)),
        )

    @property
    def rows(self) -> int:
        """M"""
        if self.op == "Conv":
            return self.shape[0] // self.groups
        return self.shape[0 if self.transposed else 1 if self.op == "ConvTranspose" else -1]

    @property
    def columns(self) -> int:
        """K"""
        return math.prod(self.shape) // (self.groups * self.rows)

    def reads_alike(self, other: LayerMatrix) -> bool:
        """Whether a weight tensor is the same matrix W to both."""
        mine, theirs = ((m.op, m.shape, m.groups, m.transposed) for m in (self, other))
        return mine == theirs

    def weights(self, weight: Array) -> Array:
        """A weight tensor, or anything of its shape, as W (g, M, K)."""
        if self.op == "Conv" or self.transposed:
            return np.asarray(weight.reshape(self.groups, self.rows, -1))
        if self.op == "ConvTranspose":
            cin, cout, *kernel = self.shape
            flipped = np.flip(weight, tuple(range(2, len(self.shape))))
            split = flipped.reshape(self.groups, cin // self.groups, cout, *kernel)
            return np.asarray(split.swapaxes(1, 2).reshape(self.groups, cout, -1))
        return np.asarray(weight.reshape(self.groups, *self.shape[-2:]).swapaxes(1, 2))

    def restore(self, matrix: Array) -> Array:
        """W (g, M, K) as a tensor of the weight's shape: the inverse of `weights`."""
        if self.op == "Conv" or self.transposed:
            return np.asarray(matrix.reshape(self.shape))
        if self.op == "ConvTranspose":
            cin, cout, *kernel = self.shape
            split = matrix.reshape(self.groups, cout, cin // self.groups, *kernel).swapaxes(1, 2)
            return np.flip(split.reshape(self.shape), tuple(range(2, len(self.shape))))
        return np.asarray(matrix.swapaxes(1, 2).reshape(self.shape))

    def outputs(self, y: Array) -> Array:
        """An output tensor as (g, M, P), a view where possible."""
        if self.op == "Gemm":
            return np.asarray(y.T[None])
        if self.op == "MatMul":
            return _grouped_rows(y, self.shape[:-2])
        split = y.reshape(y.shape[0], self.groups, self.rows, -1)
        return np.asarray(split.transpose(1, 2, 0, 3).reshape(self.groups, self.rows, -1))

    def inputs(self, x: Array, positions: tuple[int, ...] = (), chosen: NDArray[np.intp] | None = None) -> Array:
        """An input tensor as X (g, K, P), or its columns `chosen`.

        positions: the spatial shape of the output, of Conv and ConvTranspose.
        """
        if self.op in ("Conv", "ConvTranspose"):
            return self._windows(x, positions, chosen)
        columns = x.T[None] if self.op == "Gemm" else _grouped_rows(x, self.shape[:-2])
        return np.asarray(columns if chosen is None else columns[..., chosen])

    def _windows(self, x: Array, positions: tuple[int, ...], chosen: NDArray[np.intp] | None) -> Array:
        strides, begins = self.strides, self._begins(x.shape[2:], positions)
        reach = self._reach()
        if self.op == "ConvTranspose":
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
            if self.op == "ConvTranspose":
                total = self.strides[i] * (inside - 1) + self.output_padding[i] + reach - outside
            else:
                total = (outside - 1) * self.strides[i] + reach - inside
            total = max(total, 0)
            begins.append(total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2)
        return tuple(begins)


def _grouped_rows(x: Array, batch: tuple[int, ...]) -> Array:
    """Rows (..., rows, n) as (g, n, P), where weights (*batch, ., .) meet them with ONNX's broadcasting."""
    x = x if x.ndim > 1 else x[None]
    lead = np.broadcast_shapes(x.shape[:-2], batch)
    x = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    groups = [len(lead) - len(batch) + i for i, n in enumerate(batch) if n > 1]
    others = [i for i in range(len(lead)) if i not in groups]
    ordered = x.transpose(*groups, x.ndim - 1, *others, x.ndim - 2)
    return np.asarray(ordered.reshape(math.prod(batch), x.shape[-1], -1))


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
