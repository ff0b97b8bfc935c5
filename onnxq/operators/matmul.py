"""Gemm, MatMul and operators of users that compute y = W x + b at every position: products with a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from .linear import Attributes, LinearForm, LinearLayer, Shape
from .matrix import Array, LayerMatrix
from .node import rank
from .registry import Operator, add

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class MatrixProduct(LinearForm):
    """Weights (Cin, Cout), or as the axes say: `axis` of output, `reduction_axis` of input channels."""

    axis: int = 1
    reduction_axis: int = 0

    def axes(self, attributes: Attributes, ndim: int) -> tuple[int, int]:
        return self.axis % ndim, self.reduction_axis % ndim

    def products(self, attributes: Attributes, weight: Shape) -> int:
        """K"""
        return weight[self.axes(attributes, len(weight))[1]]

    def matrix(self, layer: LinearLayer) -> LayerMatrix:
        shape = tuple(map(int, layer.weight.shape))
        return ProductMatrix(shape, math.prod(shape[:-2]), layer.axis, layer.reduction_axis, self.output_axis)

    def refuses(self, node: gs.Node, weight: gs.Constant, bias: gs.Constant | None) -> str | None:
        if len(weight.shape) != 2:
            return f"weight {weight.name!r} is no matrix"
        if rank(node.inputs[0]) == 1:
            return f"the input {node.inputs[0].name!r} is a vector, without a batch"
        return self._bias_refused(node, weight, bias)

    def _bias_refused(self, node: gs.Node, weight: gs.Constant, bias: gs.Constant | None) -> str | None:
        axis, _ = self.axes(node.attrs, len(weight.shape))
        if bias is not None and tuple(bias.shape) != (weight.shape[axis],):
            return f"bias {bias.name!r} of shape {tuple(bias.shape)} is not one value a channel"
        return None


@dataclass(frozen=True)
class _Gemm(MatrixProduct):
    def axes(self, attributes: Attributes, ndim: int) -> tuple[int, int]:
        return (0, 1) if attributes.get("transB", 0) else (1, 0)

    def rank(self, layer: LinearLayer) -> int | None:
        return 2

    def refuses(self, node: gs.Node, weight: gs.Constant, bias: gs.Constant | None) -> str | None:
        if node.attrs.get("transA", 0):
            return "the input is transposed (transA)"
        if node.attrs.get("alpha", 1.0) != 1.0 or (bias is not None and node.attrs.get("beta", 1.0) != 1.0):
            return "alpha or beta is not 1"
        return self._bias_refused(node, weight, bias)


@dataclass(frozen=True)
class _MatMul(MatrixProduct):
    """Weights (..., Cin, Cout): a stack of matrices, each of which meets some of the input."""

    def axes(self, attributes: Attributes, ndim: int) -> tuple[int, int]:
        return ndim - 1, max(ndim - 2, 0)

    def refuses(self, node: gs.Node, weight: gs.Constant, bias: gs.Constant | None) -> str | None:
        if len(weight.shape) < 2:
            return f"weight {weight.name!r} is a vector"
        if rank(node.inputs[0]) == 1:
            return f"the input {node.inputs[0].name!r} is a vector, without a batch"
        return None

    def coverage(self, layer: LinearLayer) -> Vector:
        """An output position sees one matrix of the stack."""
        return np.full(1, 1 / math.prod(layer.weight.shape[:-2]))

    def varies(self, layer: LinearLayer) -> str | None:
        return "its weight is a stack of matrices" if len(layer.weight.shape) > 2 else None


@dataclass(frozen=True)
class ProductMatrix(LayerMatrix):
    """axis, reduction_axis: of the weight.  output_axis: where the channels lie in x and y."""

    axis: int
    reduction_axis: int
    output_axis: int

    @property
    def rows(self) -> int:
        return self.shape[self.axis]

    def reads_alike(self, other: LayerMatrix) -> bool:
        same = isinstance(other, ProductMatrix) and (self.shape, self.axis) == (other.shape, other.axis)
        return same and self.groups == other.groups

    def weights(self, weight: Array) -> Array:
        moved = np.moveaxis(weight, (self.axis, self.reduction_axis), (-2, -1))
        return np.asarray(moved.reshape(self.groups, *moved.shape[-2:]))

    def restore(self, matrix: Array) -> Array:
        stacked = matrix.reshape(*self.shape[:-2], *matrix.shape[1:])
        return np.moveaxis(stacked, (-2, -1), (self.axis, self.reduction_axis))

    def outputs(self, y: Array) -> Array:
        return _grouped_rows(np.moveaxis(y, self.output_axis, -1), self.shape[:-2])

    def inputs(self, x: Array, positions: tuple[int, ...] = (), chosen: NDArray[np.intp] | None = None) -> Array:
        columns = _grouped_rows(x if x.ndim < 2 else np.moveaxis(x, self.output_axis, -1), self.shape[:-2])
        return np.asarray(columns if chosen is None else columns[..., chosen])


def _grouped_rows(x: Array, batch: tuple[int, ...]) -> Array:
    """Rows (..., rows, n) as (g, n, P), where weights (*batch, ., .) meet them with ONNX's broadcasting."""
    x = x if x.ndim > 1 else x[None]
    lead = np.broadcast_shapes(x.shape[:-2], batch)
    x = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    groups = [len(lead) - len(batch) + i for i, n in enumerate(batch) if n > 1]
    others = [i for i in range(len(lead)) if i not in groups]
    ordered = x.transpose(*groups, x.ndim - 1, *others, x.ndim - 2)
    return np.asarray(ordered.reshape(math.prod(batch), x.shape[-1], -1))


add(
    Operator("Gemm", "linear", linear=_Gemm()),
    Operator(
        "MatMul",
        "linear",
        linear=_MatMul(bias=None, output_axis=-1, axis=-1, reduction_axis=-2, computed_weight=True),
        scaling="product",
    ),
)
