"""The grid that a QuantizeLinear or DequantizeLinear has, whatever tool wrote it.

Both operators are read in the standard domain and in com.microsoft, which had the 4- and 16-bit types first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper

from ..operators.node import ONNX_DOMAINS

DOMAINS = (*ONNX_DOMAINS, "com.microsoft")


@dataclass(frozen=True)
class TensorGrid:
    """Parameters of one QuantizeLinear or DequantizeLinear. axis: None where the scale is one number."""

    type: str
    scale: NDArray[np.float64]
    zero_point: NDArray[np.int64]
    axis: int | None
    block: int

    @property
    def bits(self) -> int:
        """Width of the integer type."""
        return int(self.type.lstrip("uint"))

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and highest integer of the type."""
        if self.type.startswith("u"):
            return 0, (1 << self.bits) - 1
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    def same_grid(self, other: TensorGrid) -> bool:
        """Whether integers of one mean the same in the other."""
        return (
            self.type == other.type
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def along_axis(self, values: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
        """Scales or zero points in a shape that broadcasts against a tensor of this rank."""
        if self.axis is None or values.ndim != 1:
            return values.reshape(()) if values.size == 1 else values
        return values.reshape([-1 if i == self.axis % rank else 1 for i in range(rank)])

    def __str__(self) -> str:
        if self.scale.size > 1:
            return f"{self.type} with {self.scale.size} scales along axis {self.axis}"
        return f"{self.type} with scale {self.scale.item():g} and zero point {self.zero_point.reshape(-1)[0]}"


def is_quantize(node: gs.Node) -> bool:
    return node.op == "QuantizeLinear" and node.domain in DOMAINS


def is_dequantize(node: gs.Node) -> bool:
    return node.op == "DequantizeLinear" and node.domain in DOMAINS


def is_qdq(node: gs.Node) -> bool:
    return is_quantize(node) or is_dequantize(node)


def grid_of(node: gs.Node) -> TensorGrid | None:
    """The grid of a QuantizeLinear or DequantizeLinear; None where scale or zero point are computed."""
    scale, zero_point = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if not isinstance(scale, gs.Constant) or not (zero_point is None or isinstance(zero_point, gs.Constant)):
        return None
    scales = np.asarray(scale.values, np.float64)
    zeros = np.zeros(scales.shape, np.int64) if zero_point is None else np.asarray(zero_point.values).astype(np.int64)
    axis = None if scales.size == 1 and not node.attrs.get("block_size") else int(node.attrs.get("axis", 1))
    return TensorGrid(_type(node, zero_point), scales, zeros, axis, int(node.attrs.get("block_size", 0)))


def _type(node: gs.Node, zero_point: gs.Tensor | None) -> str:
    """The integer type: that of the zero point, of the stored integers, or of the attribute; uint8 by default."""
    for tensor in (zero_point, node.inputs[0] if is_dequantize(node) else None):
        if tensor is not None and tensor.dtype is not None:
            dtype = tensor.dtype
            if isinstance(dtype, int):  # a type that numpy does not have, as onnx numbers it
                dtype = helper.tensor_dtype_to_np_dtype(dtype)
            return str(np.dtype(dtype).name)
    stated = node.attrs.get("output_dtype", 0)
    if stated:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(stated)).name)
    before = node.inputs[0].inputs[0] if is_dequantize(node) and node.inputs[0].inputs else None
    return _type(before, before.inputs[2] if len(before.inputs) > 2 else None) if before is not None else "uint8"
