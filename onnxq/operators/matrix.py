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
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear import LinearLayer

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerMatrix(ABC):
    """The maps between a layer's tensors and its matrices. shape: of the weight.  groups: g."""

    shape: tuple[int, ...]
    groups: int

    @staticmethod
    def of(layer: LinearLayer) -> LayerMatrix:
        """The maps of a layer, as its operator has them."""
        return layer.form.matrix(layer)

    @property
    @abstractmethod
    def rows(self) -> int:
        """M"""

    @property
    def columns(self) -> int:
        """K"""
        return math.prod(self.shape) // (self.groups * self.rows)

    @abstractmethod
    def reads_alike(self, other: LayerMatrix) -> bool:
        """Whether a weight tensor is the same matrix W to both."""

    @abstractmethod
    def weights(self, weight: Array) -> Array:
        """A weight tensor, or anything of its shape, as W (g, M, K)."""

    @abstractmethod
    def restore(self, matrix: Array) -> Array:
        """W (g, M, K) as a tensor of the weight's shape: the inverse of `weights`."""

    @abstractmethod
    def outputs(self, y: Array) -> Array:
        """An output tensor as (g, M, P), a view where possible."""

    @abstractmethod
    def inputs(self, x: Array, positions: tuple[int, ...] = (), chosen: NDArray[np.intp] | None = None) -> Array:
        """An input tensor as X (g, K, P), or its columns `chosen`.

        positions: the spatial shape of the output, of convolutions.
        """
