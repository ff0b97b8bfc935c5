"""Uniform affine quantization (white paper section 2.2).

    quantize    q  = clip(round(x / s) + z, qmin, qmax)                                      (4)
    dequantize  x^ = s (q - z)                                                               (5, 6)
    real range  [s (qmin - z), s (qmax - z)]

s: scale, float32, > 0.  z: zero point, an integer of the grid; z = 0 for symmetric signed grids (7, 8) and for
symmetric unsigned ones of one-tailed tensors (8b). Scales may be restricted to powers of two (section 2.2.2).
Both are scalars; or vectors along `axis` for per-channel quantization; or of the tensor's own rank, with one entry
for each `block` elements along `axis`.

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


WIDE_OPSET = 21
"""The operator set that brings 4 and 16 bits, and blocks."""


@dataclass(frozen=True)
class Grid:
    """The integers a quantized value may land on: `bits` wide; `narrow` leaves out the lowest, so that qmin = -qmax.
    packed: whether up to 4 bits are stored as such, two integers in a byte, and not in 8 bits."""

    bits: int
    signed: bool
    narrow: bool = False
    packed: bool = True

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise ValueError(f"a grid has 2 to 16 or 32 bits, got {self.bits}")

    @property
    def qmin(self) -> int:
        return (-(1 << (self.bits - 1)) if self.signed else 0) + self.narrow

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The smallest numpy integer type that holds the grid; narrower grids are simulated inside it."""
        width = next(w for w in (8, 16, 32) if self.bits <= w)
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")

    @property
    def stored_bits(self) -> int:
        """Width of the ONNX type that stores the grid: 4, 8, 16 or 32; `dtype` holds 4-bit integers in 8 bits."""
        return next(w for w in (4, 8, 16, 32) if self.bits <= w and (w > 4 or self.packed))

    @property
    def min_opset(self) -> int:
        """The operator set whose QuantizeLinear has the ONNX type that stores the grid."""
        return WIDE_OPSET if self.stored_bits in (4, 16) else 10

    def __str__(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}{' narrow' if self.narrow else ''}"


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor is to be quantized, before its range is known.

    symmetric: zero point at the middle of the grid (0 where it is signed), range [-a, a].
    per_channel: one scale for each slice along the quantizer's axis instead of one for the tensor.
    one_tailed: a symmetric signed grid turns unsigned, zero point 0, where the tensor has no negative values (8b).
    power_of_two: scales are powers of two.
    block: one scale for each so many elements along the quantizer's axis (weights only).
    """

    grid: Grid
    symmetric: bool
    per_channel: bool = False
    one_tailed: bool = False
    power_of_two: bool = False
    block: int | None = None

    @property
    def min_opset(self) -> int:
        """The operator set whose QuantizeLinear has the grid, and blocks where there are some."""
        return WIDE_OPSET if self.block is not None else self.grid.min_opset

    def __str__(self) -> str:
        granularity = "per channel" if self.per_channel else "per tensor"
        words = [
            str(self.grid),
            "symmetric" if self.symmetric else "asymmetric",
            f"blocks of {self.block}" if self.block else granularity,
        ]
        return " ".join(words + ["power of two"] * self.power_of_two)


@dataclass(frozen=True)
class QuantParams:
    """How a tensor is quantized: `scale` float32 and `zero_point` of the grid's type, both (), (C,) or, in blocks,
    (..., K/b, ...).

    axis: the dimension of the tensor that the vectors or blocks run along; None for one scale per tensor.
    """

    grid: Grid
    scale: FloatArray
    zero_point: Array
    axis: int | None = None
    block: int | None = None

    def quantize(self, x: FloatArray) -> Array:
        """`x` of any shape -> integers of the grid's type, same shape. Not-a-number is refused (ValueError)."""
        if x.size and np.isnan(np.max(x)):
            raise ValueError("cannot quantize not-a-number")
        shape, values = x.shape, np.asarray(self._in_blocks(np.asarray(x, np.float32)), np.float32)
        scale, zero_point = self._beside_blocks(shape)
        with np.errstate(over="ignore"):  # a huge value over a tiny scale: clipped below like any other
            q = np.asarray(values / scale)  # from here on in place: weights may be large
        np.rint(q, out=q)
        q += zero_point
        if self.grid.bits == 32:
            q = np.asarray(q, np.float64)  # float32 has no 2**31 - 1, and the integer type no 2**31
        np.clip(q, self.grid.qmin, self.grid.qmax, out=q)
        return q.astype(self.grid.dtype).reshape(shape)

    def dequantize(self, q: Array) -> NDArray[np.float32]:
        """Integers of any shape -> float32, same shape."""
        scale, zero_point = self._beside_blocks(q.shape)
        x = np.asarray(self._in_blocks(q).astype(np.float32))
        x -= zero_point
        x *= scale
        return x.reshape(q.shape)

    def fake(self, x: FloatArray) -> NDArray[np.float32]:
        """`x` rounded to the grid, float32: what the integer network sees of it."""
        return self.dequantize(self.quantize(x))

    def _has_even_blocks(self, shape: tuple[int, ...]) -> bool:
        return self.axis is not None and self.block is not None and shape[self.axis] % self.block == 0

    def _in_blocks(self, x: Array) -> Array:
        """`x` with the axis of blocks in two, (..., K/b, b, ...), if it has even blocks."""
        if not self._has_even_blocks(x.shape):
            return x
        assert self.axis is not None
        assert self.block is not None
        axis = self.axis % x.ndim
        return x.reshape(*x.shape[:axis], -1, self.block, *x.shape[axis + 1 :])

    def _beside_blocks(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and zero point beside `_in_blocks` of a tensor of this shape."""
        if not self._has_even_blocks(shape):
            return self.broadcast(shape)
        assert self.axis is not None
        behind = self.axis % len(shape) + 1
        scale, zero_point = np.asarray(self.scale, np.float32), np.asarray(self.zero_point, np.float32)
        return np.expand_dims(scale, behind), np.expand_dims(zero_point, behind)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and zero point in shapes that broadcast against a tensor of this shape."""
        scale, zero_point = np.asarray(self.scale, np.float32), np.asarray(self.zero_point, np.float32)
        if self.axis is None:
            return scale, zero_point
        if self.block is not None:
            within = np.arange(shape[self.axis]) // self.block
            return scale.take(within, self.axis), zero_point.take(within, self.axis)
        vector = [-1 if axis == self.axis % len(shape) else 1 for axis in range(len(shape))]
        return scale.reshape(vector), zero_point.reshape(vector)

    @classmethod
    def from_range(cls, lo: FloatArray, hi: FloatArray, spec: QuantSpec, axis: int | None = None) -> QuantParams:
        """Scale and zero point of the grid that spans [lo, hi] (both of the scale's shape), widened to contain zero.

        Zero is always represented exactly: zero padding and Relu depend on it. An empty range gets a scale
        from the widest of the other channels, or 1 where all are empty. Powers of two are rounded up.
        """
        lo, hi = np.minimum(np.asarray(lo, np.float64), 0.0), np.maximum(np.asarray(hi, np.float64), 0.0)
        grid = spec.grid
        unsigned = spec.one_tailed and spec.symmetric and not lo.any()
        if unsigned:
            grid = Grid(grid.bits, signed=False)
        if spec.symmetric:
            middle = 0 if grid.signed or unsigned else 2 ** (grid.bits - 1)
            scale = np.maximum(hi, -lo) / (grid.qmax - middle)
        else:
            scale = (hi - lo) / (grid.qmax - grid.qmin)
        scale = np.where(scale > 0, scale, np.max(scale, initial=0.0) or 1.0)
        scale = np.asarray(np.clip(scale, SMALLEST_SCALE, np.finfo(np.float32).max), np.float32)
        if spec.power_of_two:
            mantissa, exponent = np.frexp(scale)  # scale = mantissa 2^exponent, 0.5 <= mantissa < 1
            scale = np.ldexp(np.float32(1), np.minimum(exponent - (mantissa == 0.5), 127))
        if spec.symmetric:
            zero_point = np.full(scale.shape, middle)
        else:
            zero_point = np.clip(grid.qmin - np.rint(lo / np.asarray(scale, np.float64)), grid.qmin, grid.qmax)
        return cls(grid, scale, np.asarray(zero_point, grid.dtype), axis, spec.block)
