"""The one writer of quantizers as QuantizeLinear and DequantizeLinear, for the quantized model and for its simulation.

    activation x    x [-> Sum] [-> Clip] -> QuantizeLinear -> DequantizeLinear -> its readers
    constant c      integers -> DequantizeLinear [-> Sum] -> its readers

Clip: where the grid is narrower than the type that stores it, its ends are not those of the type.
Sum of one: where ONNX Runtime would otherwise rewrite what stands on its two sides (`shielded`).

Constants of 4 bits are stored as int4 or uint4. Activations never are: ONNX Runtime 1.32 moves integers through
MaxPool and others that have no 4-bit kernel. Widths that no type has are stored in the next larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from ..numeric.quant import Grid, QuantParams
from . import edit, large
from .model import Model

EXEMPT = "onnxq.kept_in_float"
"""Metadata of a quantized model: names of nodes, as JSON, that are in float for another reason than the target's rule,
since the user wanted it, or data did not allow it. `onnxq check` does not hold them to the target's requirements."""

UniqueName = Callable[[str], str]
"""stem -> a tensor name that nothing in the model has."""


class QdqWriter:
    """Writes pairs of nodes into a model. They are collected by where they belong, in front of a reader or behind a
    producer, and `insert` puts them into the graph in one go."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._order = {id(node): index for index, node in enumerate(model.graph.nodes)}
        self._first: list[gs.Node] = []
        self._before: dict[int, list[gs.Node]] = {}
        self._behind: dict[int, list[gs.Node]] = {}

    def activation(
        self,
        tensor: gs.Tensor,
        params: QuantParams,
        readers: Sequence[gs.Node],
        *,
        quantized_output: bool = False,
        shielded: bool = False,
    ) -> None:
        """Let `readers` read a tensor quantized.

        quantized_output: the tensor is an output of the model that is to be quantized for everybody who reads it, under
        its own name; what its producer computes gets another one.
        """
        source: gs.Tensor = tensor
        target: gs.Tensor = self._variable(f"{tensor.name}_dequantized", tensor)
        if quantized_output:
            source, target = self._variable(f"{tensor.name}_float", tensor), tensor
            producer = tensor.inputs[0]
            producer.outputs[next(i for i, t in enumerate(producer.outputs) if t is tensor)] = source
        else:
            for reader in readers:
                edit.replace_input(reader, tensor, target)
        place = self._behind.setdefault(id(source.inputs[0]), []) if source.inputs else self._first
        place += activation_nodes(source, target, tensor.name, params, self._model.unique_name, shielded=shielded)

    def constant(
        self,
        tensor: gs.Constant,
        params: QuantParams,
        integers: np.ndarray,
        readers: Sequence[gs.Node],
        *,
        shielded: bool = False,
    ) -> None:
        """Let `readers` read `integers`, dequantized, instead of a constant."""
        name, unique_name = tensor.name, self._model.unique_name
        stored = stored_integers(f"{name}_quantized", integers, params.grid, unique_name)
        if self._model.is_large:
            large.spill((tensor, stored))
        target = self._variable(f"{name}_dequantized", tensor)
        scale = gs.Constant(unique_name(f"{name}_scale"), np.asarray(params.scale, np.float32, order="C"))
        zero_point = stored_integers(f"{name}_zero_point", np.asarray(params.zero_point), params.grid, unique_name)
        attributes = {}
        if params.axis is not None:
            attributes["axis"] = params.axis
        if params.block is not None:
            attributes["block_size"] = params.block
        nodes = [gs.Node("DequantizeLinear", attrs=attributes, inputs=[stored, scale, zero_point], outputs=[target])]
        if shielded:
            nodes.append(gs.Node("Sum", inputs=[target], outputs=[self._variable(f"{name}_shielded", tensor)]))
        for reader in readers:
            edit.replace_input(reader, tensor, nodes[-1].outputs[0])
        self.before(self.first_of(readers), nodes)

    def before(self, reader: gs.Node, nodes: Sequence[gs.Node]) -> None:
        """Put nodes in front of one of the model's."""
        self._before.setdefault(id(reader), []).extend(nodes)

    def behind(self, node: gs.Node, nodes: Sequence[gs.Node]) -> None:
        """Put nodes directly behind one of the model's, in front of what is there already."""
        self._behind.setdefault(id(node), [])[:0] = nodes

    def first_of(self, nodes: Sequence[gs.Node]) -> gs.Node:
        """The one of some of the model's nodes that comes first."""
        return min(nodes, key=lambda node: self._order[id(node)])

    def insert(self) -> None:
        """Put what was written into the graph, under names of its own."""
        nodes = list(self._first)
        for node in self._model.graph.nodes:
            nodes += self._before.get(id(node), ())
            nodes.append(node)
            nodes += self._behind.get(id(node), ())
        self._model.graph.nodes = nodes
        edit.name_nodes(nodes)

    def _variable(self, stem: str, like: gs.Tensor) -> gs.Variable:
        return gs.Variable(self._model.unique_name(stem), like.dtype, like.shape)


def activation_nodes(
    source: gs.Tensor,
    target: gs.Tensor,
    name: str,
    params: QuantParams,
    unique_name: UniqueName,
    *,
    shielded: bool = False,
) -> list[gs.Node]:
    """The nodes that quantize `source` and dequantize it to `target`. name: stem of the names of what lies between."""

    def then(op: str, stem: str, *inputs: gs.Tensor, dtype: Any = np.float32) -> gs.Variable:
        output = gs.Variable(unique_name(f"{name}_{stem}"), dtype)
        nodes.append(gs.Node(op, inputs=list(inputs), outputs=[output]))
        return output

    def constant(stem: str, values: Any) -> gs.Constant:
        return gs.Constant(unique_name(f"{name}_{stem}"), np.asarray(values))

    nodes: list[gs.Node] = []
    scale = constant("scale", np.asarray(params.scale, np.float32))
    zero_point = constant("zero_point", np.asarray(params.zero_point, params.grid.dtype))
    if shielded:
        source = then("Sum", "shielded", source)
    if params.grid.bits != 8 * params.grid.dtype.itemsize:
        lo, hi = params.dequantize(np.asarray([params.grid.qmin, params.grid.qmax], np.int32))
        source = then("Clip", "clipped", source, constant("lo", lo), constant("hi", hi))
    integers = then("QuantizeLinear", "quantized", source, scale, zero_point, dtype=None)
    nodes.append(gs.Node("DequantizeLinear", inputs=[integers, scale, zero_point], outputs=[target]))
    return nodes


def stored_integers(stem: str, values: np.ndarray, grid: Grid, unique_name: UniqueName) -> gs.Constant:
    """A constant of the grid's stored type; 4-bit integers are packed in pairs, which numpy has no type for."""
    name = unique_name(stem)
    if grid.stored_bits != 4:
        return gs.Constant(name, np.asarray(values.astype(grid.dtype), order="C"))
    kind = TensorProto.INT4 if grid.signed else TensorProto.UINT4
    flat = values.astype(np.uint8).reshape(-1) & 0xF
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    packed = flat[0::2] | (flat[1::2] << 4)
    tensor = TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=packed.tobytes())
    return gs.Constant(name, LazyValues(tensor))
