"""One tensor's encoding, the same for all schemas: zero points count on the unsigned grid, q in [0, 2^bits).

u = z + 2^(b-1)     of a signed zero point z
offset = -u
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..numeric.quant import QuantParams, QuantSpec

DERIVED_BITS = 32
"""Bits of biases. Their scale follows from those of input and weight, so that their encodings are not used."""


@dataclass(frozen=True)
class Encoding:
    """How a file says that a tensor is quantized.

    scale: float32, > 0, and zero_point, int64 on the unsigned grid. Both are () for a tensor, (C,) for channels; with
    `block` they are of the tensor's rank, or flat in the order of its axes, or (C, K / block) where `by_channel`.

    bits: None for a tensor that stays in float.  signed: how the grid is stored where the schema says it; the integers
    mean the same either way.  axis: of channels or blocks; None where the schema leaves it to the operator.
    constant: whether the tensor is a weight.
    """

    name: str
    bits: int | None
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    signed: bool = False
    axis: int | None = None
    block: int | None = None
    by_channel: bool = False
    constant: bool = False

    @property
    def symmetric(self) -> bool:
        """Whether zero lies in the middle of the grid."""
        return self.bits is not None and bool(np.all(self.zero_point == 2 ** (self.bits - 1)))

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value on the grid."""
        assert self.bits is not None
        scale = np.asarray(self.scale, np.float64)
        last = 2**self.bits - 1
        return float(np.min(-self.zero_point * scale)), float(np.max((last - self.zero_point) * scale))

    def params(self, shape: tuple[int, ...], axis: int | None, blocks: int | None, spec: QuantSpec) -> QuantParams:
        """The parameters of a tensor, stored as its spec says: signed or not, with or without the lowest integer.

        shape: of the tensor.  axis, blocks: its axes of output channels and of input channels, None where it has none.
        Raises UsageError where the encoding does not fit the tensor.
        """
        assert self.bits is not None
        signed = spec.grid.signed and not (spec.symmetric and spec.one_tailed and not self.zero_point.any())
        grid = replace(spec.grid, bits=self.bits, signed=signed, narrow=spec.grid.narrow and self.symmetric)
        scale: NDArray[Any] = self.scale
        zero_point: NDArray[Any] = self.zero_point
        along = None
        if spec.per_channel and not scale.ndim and axis is not None and shape[axis] == 1:
            scale, zero_point = scale.reshape(1), zero_point.reshape(1)  # in 0.6.1 one channel looks like a tensor
        if self.block is not None:
            along = self._axis(shape, blocks)
            scale, zero_point = (self._in_blocks(a, shape, axis, along) for a in (scale, zero_point))
        elif scale.ndim:
            along = self._axis(shape, axis)
            if shape[along] != scale.size:
                raise UsageError(
                    f"the encoding of {self.name!r} has {scale.size} scales, but the tensor, of shape {shape}, has"
                    f" {shape[along]} channels on axis {along}"
                )
        stored = zero_point - signed * 2 ** (self.bits - 1)
        return QuantParams(grid, scale, np.asarray(stored, grid.dtype), along, self.block)

    def _axis(self, shape: tuple[int, ...], implied: int | None) -> int:
        axis = implied if self.axis is None else self.axis
        if axis is None:
            raise UsageError(
                f"the encoding of {self.name!r} has several scales, but the tensor is no weight of a linear layer,"
                " whose channels would be known; encodings of version 2.0.0 name the axis"
            )
        if not -len(shape) <= axis < len(shape):
            raise UsageError(f"the encoding of {self.name!r}: axis {axis} is none of the tensor's, of shape {shape}")
        return axis % len(shape)

    def _in_blocks(
        self, values: NDArray[Any], shape: tuple[int, ...], channels: int | None, along: int
    ) -> NDArray[Any]:
        """Values, one for each block, in the tensor's rank. A schema gives one scale for all positions of a Conv's
        kernel: it is repeated."""
        assert self.block is not None
        count = -(-shape[along] // self.block)
        full = tuple(count if i == along else n for i, n in enumerate(shape))
        if channels is None or channels == along:
            channels = next((i for i in range(len(shape)) if i != along), along)
        small = tuple(n if i in (along, channels) else 1 for i, n in enumerate(full))
        if values.ndim != len(shape) or self.by_channel:
            if values.size == math.prod(full) and not self.by_channel:
                small = full
            if values.size != math.prod(small):
                raise UsageError(
                    f"the encoding of {self.name!r} has {values.size} scales, but the tensor, of shape {shape}, has"
                    f" {math.prod(small)} blocks of {self.block}"
                )
            if self.by_channel and channels > along:
                values = values.reshape(shape[channels], count).T
            values = values.reshape(small)
        try:
            return np.broadcast_to(values, full)
        except ValueError:
            raise UsageError(
                f"the encoding of {self.name!r} has scales of shape {values.shape}, but the tensor, of shape {shape},"
                f" has blocks of {self.block} of shape {full}"
            ) from None


def encoding_of(name: str, params: QuantParams, constant: bool) -> Encoding:
    """What a file is to say of a tensor with these parameters."""
    shift = params.grid.signed * 2 ** (params.grid.bits - 1)
    return Encoding(
        name,
        params.grid.bits,
        np.asarray(params.scale, np.float32),
        np.asarray(params.zero_point, np.int64) + shift,
        params.grid.signed,
        params.axis,
        params.block,
        constant=constant,
    )
