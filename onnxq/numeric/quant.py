"""Uniform affine quantization (white paper section 2.2).

    quantize    q  = clip(round(x / s) + z, qmin, qmax)                                      (4)
    dequantize  x^ = s (q - z)                                                               (5, 6)
    real range  [s (qmin - z), s (qmax - z)]

s: scale, float32, > 0.  z: zero point, an integer of the grid; z = 0 for symmetric signed grids.
Both are scalars, or vectors along `axis` for per-channel quantization.

Bit-exact with ONNX QuantizeLinear and DequantizeLinear as ONNX Runtime runs them: division by the float32
scale, rounding half to even, then the zero point, then clipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
FloatArray = NDArray[np.floating]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Below it float32 scales turn subnormal, and kernels that flush those to zero would divide by it."""


@dataclass(frozen=True)
class Grid:
    """The integers a quantized value may land on: `bits` wide; `narrow` leaves out the lowest, so that qmin = -qmax."""

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise ValueError(f"a grid has 2 to 16 or 32 bits, got {self.bits}")

    @property
    def qmin(self) -> int:
        lowest = -(2 ** (self.bits - 1)) if self.signed else 0
        return lowest + int(self.narrow)

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The smallest numpy integer type that holds the grid; narrower grids are simulated inside it."""
        width = next(w for w in (8, 16, 32) if self.bits <= w)
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")

    def __str__(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}{' narrow' if self.narrow else ''}"


@dataclass(frozen=True)
class QuantSpec:
    """The wish, before any data is seen.

    symmetric: zero point at the middle of the grid (0 where it is signed), range [-a, a].
    per_channel: one scale for each slice along the quantizer's axis instead of one for the tensor.
    """

    grid: Grid
    symmetric: bool
    per_channel: bool = False

    def __str__(self) -> str:
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.grid} {symmetry} {'per channel' if self.per_channel else 'per tensor'}"


@dataclass(frozen=True)
class QuantParams:
    """The answer: `scale` float32 and `zero_point` of the grid's type, both of shape () or (C,).

    axis: the dimension of the tensor that the vectors run along; None for one scale per tensor.
    """

    grid: Grid
    scale: FloatArray
    zero_point: Array
    axis: int | None = None

    def quantize(self, x: FloatArray) -> Array:
        """`x` of any shape -> integers of the grid's type, same shape. Not-a-number is refused (ValueError)."""
        if np.isnan(x).any():
            raise ValueError("cannot quantize not-a-number")
        scale, zero_point = self._broadcast(x.ndim)
        with np.errstate(over="ignore"):  # a huge value over a tiny scale: clipped below like any other
            q = np.rint(x.astype(np.float32) / scale) + zero_point
        return np.clip(q, self.grid.qmin, self.grid.qmax).astype(self.grid.dtype)

    def dequantize(self, q: Array) -> NDArray[np.float32]:
        """Integers of any shape -> float32, same shape."""
        scale, zero_point = self._broadcast(q.ndim)
        return np.asarray((q.astype(np.float32) - zero_point) * scale, np.float32)

    def fake(self, x: FloatArray) -> NDArray[np.float32]:
        """`x` rounded to the grid, float32: what the integer network sees of it."""
        return self.dequantize(self.quantize(x))

    def _broadcast(self, ndim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scale, zero_point = np.float32(self.scale), np.float32(self.zero_point)
        if self.axis is None:
            return np.asarray(scale), np.asarray(zero_point)
        shape = [1] * ndim
        shape[self.axis] = -1
        return np.reshape(scale, shape), np.reshape(zero_point, shape)

    @classmethod
    def from_range(
        cls, lo: FloatArray, hi: FloatArray, spec: QuantSpec, axis: int | None = None
    ) -> QuantParams:
        """Scale and zero point of the grid that spans [lo, hi] (scalars or (C,)), widened to contain zero.

        Zero is always represented exactly: zero padding and Relu depend on it. An empty range gets a scale
        from the widest of the other channels, or 1 where all are empty.
        """
        lo, hi = np.minimum(np.float64(lo), 0.0), np.maximum(np.float64(hi), 0.0)
        grid = spec.grid
        if spec.symmetric:
            middle = 0 if grid.signed else 2 ** (grid.bits - 1)
            scale = np.maximum(hi, -lo) / (grid.qmax - middle)
        else:
            # Halved first: hi - lo of two float32 extremes still fits, but not after the division is moved out.
            scale = hi / (grid.qmax - grid.qmin) - lo / (grid.qmax - grid.qmin)
        scale = np.where(scale > 0, scale, np.max(scale, initial=0.0) or 1.0)
        scale = np.asarray(np.clip(scale, SMALLEST_SCALE, np.finfo(np.float32).max), np.float32)
        if spec.symmetric:
            zero_point = np.full(scale.shape, middle)
        else:
            zero_point = np.clip(grid.qmin - np.rint(lo / np.float64(scale)), grid.qmin, grid.qmax)
        return cls(grid, scale, np.asarray(zero_point, grid.dtype), axis)
