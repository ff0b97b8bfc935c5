"""The writer of quantized tables, whose rows are looked up as integers and dequantized behind that.

    T[i]        Gather(q, i) -> Cast -> Mul(Gather(s, i))                        s: one scale a row
    4 bits      Gather(pairs, i) -> BitShift, Concat -> Cast -> Sub(8) -> Mul    two columns in a byte
    one scale   Gather(q, i) -> DequantizeLinear
    compilers   DequantizeLinear(q, s) -> Gather                                 by targets that move it themselves

DequantizeLinear in front of the Gather would have ONNX Runtime 1.32 dequantize the whole table for each run (32 rows of
30522 x 384 in 8 bits: 6.0 ms, and 0.013 ms behind it), and no standard operator looks up 4-bit integers. A layer that
reads the same integers as its weight gets them through Transpose where it is tied so, and DequantizeLinear; runtimes
evaluate what stands in front of that when they load the model.

That is so whatever `Grid.packed` says: layers read unpacked bytes, for which there are integer kernels.
Column d of the first half of a row is in the lower half of byte d, column D/2 + d in the upper half, as u = q + 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ..numeric.quant import QuantParams
from ..operators.tables import index_depth
from . import edit, large
from .model import Model
from .qdq_writer import stored_integers

_HALF = 8


class TableWriter:
    """Writes one table, for nodes that look up its rows along `axis` and for layers that read it as a weight.

    rows: whether rows are dequantized behind the look-up; else the whole table in front of it.
    """

    def __init__(self, model: Model, table: gs.Constant, params: QuantParams, axis: int, *, rows: bool) -> None:
        self._model, self._table, self._params, self._axis, self._rows = model, table, params, axis, rows
        integers = np.asarray(params.quantize(table.values))
        columns = integers.shape[-1]
        self._packs = rows and params.grid.bits <= 4 and columns % 2 == 0 and axis < integers.ndim - 1
        self._shift = _HALF if self._packs and params.grid.signed else 0
        if self._packs:
            unsigned = np.asarray(integers + self._shift, np.uint8)
            packed = np.asarray(unsigned[..., : columns // 2] | (unsigned[..., columns // 2 :] << 4))
            self._stored = self._constant("quantized", packed)
        elif rows:
            self._stored = self._constant("quantized", integers)
        else:
            self._stored = stored_integers(f"{table.name}_quantized", integers, params.grid, model.unique_name)
        if model.is_large:
            large.spill((table, self._stored))

    def look_up(self, node: gs.Node) -> tuple[list[gs.Node], list[gs.Node]]:
        """Let `node` look up integers; the nodes that belong in front of it, and behind it."""
        if not self._rows:
            return self.weight(self._table, self._params, [node]), []
        output = node.outputs[0]
        node.inputs[0] = self._stored
        node.outputs[0] = self._variable("rows", self._stored.dtype)
        nodes: list[gs.Node] = []
        rows = self._unpacked(node.outputs[0], nodes, output)
        if self._params.axis is None:
            nodes.append(self._dequantize(rows, self._params, output))
            return [], nodes
        scale = self._variable("row_scales", np.float32)
        inputs = [self._scales(node), node.inputs[1]]
        nodes.append(gs.Node(node.op, f"{node.name}_scales", dict(node.attrs), inputs, [scale]))
        values = self._then("Cast", nodes, rows, attrs={"to": int(TensorProto.FLOAT)}, shape=output.shape)
        if self._shift:
            values = self._then("Sub", nodes, values, self._constant("half", np.float32(self._shift)))
        nodes.append(gs.Node("Mul", inputs=[values, scale], outputs=[output]))
        return [], nodes

    def weight(self, tensor: gs.Constant, params: QuantParams, readers: Sequence[gs.Node]) -> list[gs.Node]:
        """Let nodes read the whole table, dequantized, instead of `tensor`, transposed where that is another constant;
        the nodes that belong in front of them. params: those of `tensor`."""
        nodes: list[gs.Node] = []
        integers = self._unpacked(self._stored, nodes, self._table)
        if tensor is not self._table:
            integers = self._then("Transpose", nodes, integers, attrs={"perm": [1, 0]}, shape=tensor.shape)
        output = self._variable("dequantized", np.float32, tensor.shape)
        nodes.append(self._dequantize(integers, params, output))
        for reader in readers:
            edit.replace_input(reader, tensor, output)
        return nodes

    def _dequantize(self, integers: gs.Tensor, params: QuantParams, output: gs.Tensor) -> gs.Node:
        scale = self._constant("scale", np.asarray(params.scale, np.float32))
        shifted = np.asarray(params.zero_point) + self._shift
        name = f"{self._table.name}_zero_point"
        if self._packs:
            zero_point = self._constant("zero_point", np.asarray(shifted, np.uint8))
        elif self._rows:
            zero_point = self._constant("zero_point", np.asarray(shifted, params.grid.dtype))
        else:
            zero_point = stored_integers(name, np.asarray(shifted), params.grid, self._model.unique_name)
        attributes = {} if params.axis is None else {"axis": params.axis}
        return gs.Node("DequantizeLinear", attrs=attributes, inputs=[integers, scale, zero_point], outputs=[output])

    def _scales(self, node: gs.Node) -> gs.Constant:
        """One scale for each row, of the table's rank, so that what is looked up of them broadcasts."""
        shape = [n if i == self._axis else 1 for i, n in enumerate(self._table.shape)]
        scales = np.reshape(np.asarray(self._params.scale, np.float32), shape)
        depth = index_depth(node)
        return self._constant("row_scale", np.broadcast_to(scales, (*self._table.shape[:depth], *shape[depth:])))

    def _unpacked(self, pairs: gs.Tensor, nodes: list[gs.Node], like: gs.Tensor) -> gs.Tensor:
        if not self._packs:
            return pairs
        four = self._constant("four", np.uint8(4))
        right, left = {"direction": "RIGHT"}, {"direction": "LEFT"}
        upper = self._then("BitShift", nodes, pairs, four, attrs=right)
        lower = self._then("BitShift", nodes, self._then("BitShift", nodes, pairs, four, attrs=left), four, attrs=right)
        return self._then("Concat", nodes, lower, upper, attrs={"axis": -1}, shape=like.shape)

    def _then(
        self, op: str, nodes: list[gs.Node], *inputs: gs.Tensor, attrs: dict[str, Any] | None = None, shape: Any = None
    ) -> gs.Variable:
        dtype = np.float32 if op in ("Cast", "Sub") else inputs[0].dtype
        output = self._variable(op.lower(), dtype, shape)
        nodes.append(gs.Node(op, attrs=attrs or {}, inputs=list(inputs), outputs=[output]))
        return output

    def _constant(self, stem: str, values: Any) -> gs.Constant:
        name = self._model.unique_name(f"{self._table.name}_{stem}")
        return gs.Constant(name, np.asarray(values, order="C"))

    def _variable(self, stem: str, dtype: Any, shape: Any = None) -> gs.Variable:
        return gs.Variable(self._model.unique_name(f"{self._table.name}_{stem}"), dtype, shape)
