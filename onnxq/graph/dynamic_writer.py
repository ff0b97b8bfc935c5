"""The writer of layers whose activations are quantized at run time, from each sample's own range:

    x  (..., K)  float       X, s_x, z_x = DynamicQuantizeLinear(x)             uint8, one range for the whole tensor
    Q  (K, N)    integers    y = (X - z_x)(Q - z_w) * (s_x s_w)  [+ b]          s_w: one number, or (N,)

    DynamicQuantizeLinear, MatMulInteger, Cast, Mul(Cast, Mul(s_x, s_w)), Add

These are operators of ONNX, in the form that ONNX Runtime fuses into one kernel: DynamicQuantizeMatMul, or
MatMulIntegerToFloat behind one DynamicQuantizeLinear where several layers read x (`dynamic_quantize_matmul_fusion.cc`
and `matmul_integer_to_float.cc` of its optimiser). MatMulInteger exists from operator set 10, DynamicQuantizeLinear 11.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import NodeProto, TensorProto, helper

from ..numeric.quant import QuantParams
from ..operators.linear import LinearLayer, linear_layers
from ..operators.node import is_op
from . import edit, large
from .model import Model
from .qdq_writer import UniqueName


def no_dynamic_product(model: Model, layer: LinearLayer) -> str | None:
    """Why a layer with a planned weight cannot multiply with activations that are quantized at run time, or None."""
    weight = model.weight_quantizer(layer)
    if not is_op(layer.node, "MatMul", "Gemm"):
        return f"there is no such product of integers for {layer.node.op}"
    if len(layer.weight.shape) != 2:
        return f"its weight {layer.weight.name!r} is a stack of matrices"
    if weight is None:
        return f"its weight {layer.weight.name!r} is in float"
    if weight.spec.block is not None or weight.spec.grid.bits > 8:
        return f"its weight {layer.weight.name!r} has blocks, or more than 8 bits"
    if weight.axis not in (None, layer.axis):
        return f"the scales of its weight {layer.weight.name!r} are not of output channels"
    if model.reads_table(layer):
        return f"its weight {layer.weight.name!r} is a table that is stored once for all that read it"
    return None


def is_dynamic(model: Model, node: gs.Node) -> bool:
    """Whether a layer's activations are quantized at run time, as its node was placed."""
    placed = model.placement.nodes.get(node.name)
    return placed is not None and placed.dynamic


class DynamicWriter:
    """Writes the layers of a model whose activations are quantized at run time; all others stay."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._quantized: dict[int, tuple[gs.Tensor, gs.Tensor, gs.Tensor]] = {}

    def write(self) -> int:
        """Returns how many layers there are."""
        layers = {
            id(each.node): each for each in linear_layers(self._model.graph.nodes) if is_dynamic(self._model, each.node)
        }
        nodes: list[gs.Node] = []
        for node in list(self._model.graph.nodes):
            nodes += [node] if id(node) not in layers else self._product(layers[id(node)])
        self._model.graph.nodes = nodes
        edit.name_nodes(nodes)
        return len(layers)

    def _product(self, layer: LinearLayer) -> list[gs.Node]:
        quantizer = self._model.weight_quantizer(layer)
        assert quantizer is not None
        assert quantizer.params is not None
        node, nodes, name = layer.node, list[gs.Node](), layer.node.name
        x, x_scale, x_zero = self._activation(layer.input, nodes)
        inputs = [x, self._weight(layer, quantizer.params), x_zero]
        zeros = np.ravel(quantizer.params.zero_point)
        if zeros.any():
            stem = f"{layer.weight.name}_zero_point"
            inputs.append(self._integers(stem, zeros if zeros.size > 1 else zeros.reshape(()), quantizer.params))
        output = node.outputs[0]
        bias = node.inputs[2] if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name else None
        node.inputs.clear()
        node.outputs.clear()
        sums = self._then(nodes, "MatMulInteger", f"{name}_sums", inputs, np.int32, name=name)
        scale = np.asarray(quantizer.params.scale, np.float32).reshape(-1 if quantizer.params.axis is not None else ())
        w_scale = gs.Constant(self._model.unique_name(f"{layer.weight.name}_scale"), scale)
        real = self._then(nodes, "Cast", f"{name}_real", [sums], np.float32, attrs={"to": TensorProto.FLOAT})
        scales = self._then(nodes, "Mul", f"{name}_scales", [x_scale, w_scale], np.float32)
        if bias is None:
            nodes.append(gs.Node("Mul", inputs=[real, scales], outputs=[output]))
        else:
            product = self._then(nodes, "Mul", f"{name}_product", [real, scales], np.float32)
            nodes.append(gs.Node("Add", inputs=[product, bias], outputs=[output]))
        return nodes

    def _activation(self, x: gs.Tensor, nodes: list[gs.Node]) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """Integers, scale and zero point of x, which are computed once for all layers that read it."""
        if id(x) not in self._quantized:
            unique_name = self._model.unique_name
            outputs = (
                gs.Variable(unique_name(f"{x.name}_quantized"), np.uint8, x.shape),
                gs.Variable(unique_name(f"{x.name}_scale"), np.float32, ()),
                gs.Variable(unique_name(f"{x.name}_zero_point"), np.uint8, ()),
            )
            nodes.append(gs.Node("DynamicQuantizeLinear", inputs=[x], outputs=list(outputs)))
            self._quantized[id(x)] = outputs
        return self._quantized[id(x)]

    def _weight(self, layer: LinearLayer, params: QuantParams) -> gs.Constant:
        integers = np.asarray(params.quantize(layer.weight.values))
        stem = f"{layer.weight.name}_quantized"
        stored = self._integers(stem, integers.T if layer.reduction_axis == 1 else integers, params)
        if self._model.is_large:
            large.spill((stored,))
        return stored

    def _integers(self, stem: str, values: np.ndarray, params: QuantParams) -> gs.Constant:
        """MatMulInteger reads bytes, whatever number of bits they use."""
        return gs.Constant(
            self._model.unique_name(stem), np.asarray(values, np.int8 if params.grid.signed else np.uint8, order="C")
        )

    def _then(
        self,
        nodes: list[gs.Node],
        op: str,
        stem: str,
        inputs: list[gs.Tensor],
        dtype: type[np.generic],
        name: str = "",
        attrs: dict[str, int] | None = None,
    ) -> gs.Variable:
        output = gs.Variable(self._model.unique_name(stem), dtype)
        nodes.append(gs.Node(op, name, attrs or {}, inputs, [output]))
        return output


def dynamic_pair(name: str, target: str, unique_name: UniqueName) -> list[NodeProto]:
    """Nodes that round a tensor to a grid of its own range and dequantize it to `target`: what the layers above read,
    in float arithmetic."""
    integers, scale, zero = (unique_name(f"{name}_{stem}") for stem in ("integers", "scale", "zero_point"))
    return [
        helper.make_node("DynamicQuantizeLinear", [name], [integers, scale, zero]),
        helper.make_node("DequantizeLinear", [integers, scale, zero], [target]),
    ]


def readers_at_run_time(model: Model) -> dict[str, tuple[str, ...]]:
    """Tensor -> names of the layers that read it on a grid of each sample's own."""
    found: dict[str, tuple[str, ...]] = {}
    for layer in linear_layers(model.graph.nodes):
        if is_dynamic(model, layer.node):
            found[layer.input.name] = (*found.get(layer.input.name, ()), layer.node.name)
    return found
