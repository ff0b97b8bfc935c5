"""Quantizers become QuantizeLinear and DequantizeLinear, the form that every integer runtime reads.

    activation x    x -> QuantizeLinear -> DequantizeLinear -> its readers
    weight W        integers -> DequantizeLinear -> its readers
    bias b          int32 at scale s_x s_w, zero point 0 -> DequantizeLinear -> the node that adds it; or, where the
                    target wants it so, int8 with a scale of its own, or float

Weights of 4 bits are stored as int4 or uint4. Activations never are: ONNX Runtime 1.32 moves integers through
MaxPool and others that have no 4-bit kernel. Widths that no type has are stored in the next larger one, activations
behind a Clip to the ends of their grid.

A bias belongs to a layer, not to a tensor: layers with different scales that share one get one each. Names of
graph inputs and outputs stay; everything else takes the tensor's name and a suffix.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from ..graph import edit, large
from ..graph.model import Model, Quantizer
from ..numeric.quant import Grid, QuantParams
from ..operators.linear import LinearLayer, clip_bounds, is_op, linear_layer, preserves_grid
from ..targets import Target
from .base import Context, Outcome

BIAS_GRID = Grid(32, signed=True)


@dataclass(frozen=True)
class LowerToQdq:
    """Write `Model.quantizers`, all of them answered, into the graph, and empty the dict."""

    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        tensors = model.graph.tensors()
        lowering = _Lowering(model, context.target)
        if context.target.quantizes_float_weights:
            lowering.shielded, lowering.blocked = _float_layers_on_grids(model), _blocks_on_grids(model)
        for layer in [linear_layer(node) for node in model.graph.nodes]:
            if isinstance(layer, LinearLayer):
                lowering.bias(layer)
        for quantizer in model.quantizers.values():
            tensor = tensors[quantizer.tensor]
            if isinstance(tensor, gs.Constant):
                lowering.weight(tensor, quantizer)
            else:
                lowering.activation(tensor, quantizer)
        lowering.insert()
        _shield_branches(model)
        pairs = len(model.quantizers)
        model.quantizers.clear()
        edit.drop_dangling(model)
        width = 8 if context.target.bias == "int8" else 32
        return Outcome(pairs + lowering.biases, notes=(f"biases at {width} bits: {lowering.biases}",))


@dataclass
class _Lowering:
    """Collects new nodes by where they belong, and inserts them in one go: before a reader, behind a producer."""

    model: Model
    target: Target
    first: list[gs.Node] = field(default_factory=list)
    before: dict[int, list[gs.Node]] = field(default_factory=dict)
    behind: dict[int, list[gs.Node]] = field(default_factory=dict)
    biases: int = 0
    shielded: frozenset[int] = frozenset()  # nodes that end a float layer, by identity
    blocked: frozenset[int] = frozenset()  # nodes whose weights must not be seen to be integers
    order: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = {id(node): index for index, node in enumerate(self.model.graph.nodes)}

    def activation(self, tensor: gs.Tensor, quantizer: Quantizer) -> None:
        params = _answer(quantizer)
        dtype, shape = tensor.dtype, tensor.shape
        source: gs.Tensor
        target: gs.Tensor
        readers = [n for n in self.model.consumers(tensor) if not quantizer.readers or n.name in quantizer.readers]
        source, target = tensor, self._variable(f"{tensor.name}_dequantized", dtype, shape)
        if self.model.is_output(tensor) and tensor.inputs and self.target.outputs != "float":
            source, target = self._variable(f"{tensor.name}_float", dtype, shape), tensor
            made_by = tensor.inputs[0]
            made_by.outputs[next(i for i, t in enumerate(made_by.outputs) if t is tensor)] = source
        else:
            for reader in readers:
                edit.replace_input(reader, tensor, target)
        integers = self._variable(f"{tensor.name}_quantized", None, None)
        scale = edit.constant(self.model, f"{tensor.name}_scale", np.asarray(params.scale, np.float32))
        zeros = np.asarray(params.zero_point, params.grid.dtype)  # not in 4 bits: see the module's docstring
        zero_point = edit.constant(self.model, f"{tensor.name}_zero_point", zeros)
        producer = source.inputs[0] if source.inputs else None
        nodes = self._in_front(source, tensor.name, params)
        source = nodes[-1].outputs[0] if nodes else source
        nodes += [
            gs.Node("QuantizeLinear", inputs=[source, scale, zero_point], outputs=[integers]),
            gs.Node("DequantizeLinear", inputs=[integers, scale, zero_point], outputs=[target]),
        ]
        if producer is not None:
            self.behind.setdefault(id(producer), []).extend(nodes)
        else:
            self.first.extend(nodes)

    def _in_front(self, source: gs.Tensor, name: str, params: QuantParams) -> list[gs.Node]:
        """Nodes between a tensor and its QuantizeLinear: a Clip where the grid is narrower than the type that stores
        it; a Sum of one where ONNX Runtime would, unasked, quantize the weight of the float layer before it."""
        nodes = []
        if id(_producer_before_clips(source)) in self.shielded:
            nodes.append(
                gs.Node("Sum", inputs=[source], outputs=[self._variable(f"{name}_shielded", np.float32, None)])
            )
            source = nodes[-1].outputs[0]
        if params.grid.bits != 8 * params.grid.dtype.itemsize:
            zero_point = int(params.zero_point)
            ends = (np.float32(params.scale) * np.float32(q - zero_point) for q in (params.grid.qmin, params.grid.qmax))
            bounds = [
                edit.constant(self.model, f"{name}_{e}", np.asarray(v)) for e, v in zip(("lo", "hi"), ends, strict=True)
            ]
            clipped = self._variable(f"{name}_clipped", np.float32, None)
            nodes.append(gs.Node("Clip", inputs=[source, *bounds], outputs=[clipped]))
        return nodes

    def weight(self, tensor: gs.Constant, quantizer: Quantizer) -> None:
        params = _answer(quantizer)
        readers = [n for n in self.model.consumers(tensor) if n.name in quantizer.readers and id(n) in self.order]
        if readers:
            self._constant(tensor, params, np.asarray(params.quantize(tensor.values)), readers)

    def bias(self, layer: LinearLayer) -> None:
        x, weight = (self.model.quantizers.get(t.name) for t in (layer.input, layer.weight))
        if self.target.adds_biases and weight is not None and layer.node.name in weight.readers:
            self._add_behind(layer)
            return
        if self.target.added_bias == "operator" and layer.bias_node is not layer.node:
            self._operand(layer)
            return
        if (
            self.target.bias == "float"
            or layer.bias is None
            or x is None
            or weight is None
            or layer.node.name not in weight.readers
        ):
            return
        if weight.spec.block is not None:
            return  # the accumulator has no one scale a channel: the bias stays in float
        assert layer.bias_node is not None
        self.biases += 1
        if self.target.bias == "int8":
            params = self._bias_params(layer, x, weight)
            self._constant(layer.bias, params, np.asarray(params.quantize(layer.bias.values)), [layer.bias_node])
            return
        scale = np.asarray(_answer(x).scale, np.float64) * np.asarray(_answer(weight).scale, np.float64)
        if scale.size not in (1, layer.channels):
            scale = np.tile(scale, layer.groups)
        scale = np.asarray(np.broadcast_to(scale, (layer.channels,) if weight.axis is not None else ()), np.float32)
        integers = np.rint(np.asarray(layer.bias.values, np.float64) / scale.astype(np.float64))
        integers = np.clip(integers, BIAS_GRID.qmin, BIAS_GRID.qmax).astype(np.int32)
        params = QuantParams(BIAS_GRID, scale, np.zeros(scale.shape, np.int32), None if scale.ndim == 0 else 0)
        self._constant(layer.bias, params, integers, [layer.bias_node])

    def _add_behind(self, layer: LinearLayer) -> None:
        """Let an Add behind a convolution add its bias."""
        if layer.bias is None or layer.node.op not in ("Conv", "ConvTranspose"):
            return
        node, output, rank = layer.node, layer.output, len(layer.weight.shape)
        bare = self._variable(f"{output.name}_unbiased", output.dtype, output.shape)
        values = np.reshape(layer.bias.values, (1, -1, *[1] * (rank - 2)))
        del node.inputs[2]
        node.outputs[0] = bare
        bias = edit.constant(self.model, f"{layer.bias.name}_added", values)
        nodes = self.model.graph.nodes
        place = next(index for index, other in enumerate(nodes) if other is node)
        nodes.insert(place + 1, gs.Node("Add", inputs=[bare, bias], outputs=[output]))

    def _operand(self, layer: LinearLayer) -> None:
        """Put the product and the bias of an Add behind MatMul onto grids, as inputs of an operator of its own."""
        y, product = self._written(layer), layer.node.outputs[0]
        if layer.bias is None or layer.bias_node is None or y is None:
            return
        if product.name not in self.model.quantizers:  # the Add came with bias correction
            self.model.quantizers[product.name] = Quantizer(product.name, y.spec, params=y.params)
        values = np.asarray(layer.bias.values, np.float64)
        params = QuantParams.from_range(values.min(initial=0.0), values.max(initial=0.0), y.spec)
        least = self.target.smallest_range / (params.grid.qmax - params.grid.qmin)
        if self.target.shifts is not None:
            least = float(_answer(self.model.quantizers[product.name]).scale) * 2.0**-self.target.shifts.read
        params = replace(params, scale=np.asarray(np.maximum(params.scale, np.float32(least)), np.float32))
        self._constant(layer.bias, params, np.asarray(params.quantize(layer.bias.values)), [layer.bias_node])
        self.biases += 1

    def _bias_params(self, layer: LinearLayer, x: Quantizer, weight: Quantizer) -> QuantParams:
        """A grid of the bias's own, from its largest value, as near as the shifts of the target let it be."""
        assert layer.bias is not None
        spec = replace(self.target.weight_of(8), per_channel=False)
        values = np.asarray(layer.bias.values, np.float64)
        params = QuantParams.from_range(values.min(initial=0.0), values.max(initial=0.0), spec)
        y = self._written(layer)
        if self.target.shifts is None or y is None:
            return params
        accumulator = np.log2(np.asarray(_answer(x).scale, np.float64) * np.asarray(_answer(weight).scale, np.float64))
        cut = np.log2(np.asarray(_answer(y).scale, np.float64)) - accumulator
        finest = min(0, int(cut) - self.target.shifts.accumulator)
        exponent = np.clip(np.log2(params.scale), accumulator + finest, accumulator + self.target.shifts.bias)
        return replace(params, scale=np.asarray(2.0**exponent, np.float32))

    def _written(self, layer: LinearLayer) -> Quantizer | None:
        """The quantizer of what the layer writes, by itself or through the activation behind it."""
        tensor, behind = layer.output, self.model.sole_consumer(layer.output)
        if tensor.name not in self.model.quantizers and behind is not None and clip_bounds(behind) is not None:
            tensor = behind.outputs[0]
        return self.model.quantizers.get(tensor.name)

    def insert(self) -> None:
        nodes = list(self.first)
        for node in self.model.graph.nodes:
            nodes += self.before.get(id(node), ())
            nodes.append(node)
            nodes += self.behind.get(id(node), ())
        self.model.graph.nodes = nodes
        edit.name_nodes(nodes)

    def _constant(self, old: gs.Constant, params: QuantParams, values: np.ndarray, readers: list[gs.Node]) -> None:
        """Let `readers` read `values`, dequantized, instead of `old`."""
        integers = self._integers(f"{old.name}_quantized", values, params.grid)
        if self.model.is_large:
            large.spill((old, integers))
        target = self._variable(f"{old.name}_dequantized", old.dtype, old.shape)
        inputs = [integers, *self._parameters(old.name, params)]
        attributes = {} if params.axis is None else {"axis": params.axis}
        if params.block is not None:
            attributes["block_size"] = params.block
        node = gs.Node("DequantizeLinear", attrs=attributes, inputs=inputs, outputs=[target])
        nodes = [node]
        if any(id(reader) in self.blocked for reader in readers):
            shielded = self._variable(f"{old.name}_shielded", old.dtype, old.shape)
            nodes.append(gs.Node("Sum", inputs=[target], outputs=[shielded]))
            target = shielded
        for reader in readers:
            edit.replace_input(reader, old, target)
        first = min(readers, key=lambda reader: self.order[id(reader)])
        self.before.setdefault(id(first), []).extend(nodes)

    def _parameters(self, name: str, params: QuantParams) -> tuple[gs.Constant, gs.Constant]:
        return (
            edit.constant(self.model, f"{name}_scale", np.asarray(params.scale, np.float32)),
            self._integers(f"{name}_zero_point", np.asarray(params.zero_point), params.grid),
        )

    def _integers(self, stem: str, values: np.ndarray, grid: Grid) -> gs.Constant:
        """A constant of the grid's stored type; 4-bit integers are packed in pairs, which numpy has no type for."""
        if grid.stored_bits != 4:
            return edit.constant(self.model, stem, values.astype(grid.dtype))
        kind = TensorProto.INT4 if grid.signed else TensorProto.UINT4
        flat = values.astype(np.uint8).reshape(-1) & 0xF
        flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
        packed = flat[0::2] | (flat[1::2] << 4)
        name = self.model.unique_name(stem)
        tensor = TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=packed.tobytes())
        return gs.Constant(name, LazyValues(tensor))

    def _variable(self, stem: str, dtype: Any, shape: Any) -> gs.Variable:
        return gs.Variable(self.model.unique_name(stem), dtype, shape)


def _float_layers_on_grids(model: Model) -> frozenset[int]:
    """The nodes, by identity, that end layers whose weights stay in float while their input is on a grid."""
    ends = set()
    for layer in map(linear_layer, model.graph.nodes):
        if isinstance(layer, LinearLayer) and layer.input.name in model.quantizers:
            weight = model.quantizers.get(layer.weight.name)
            if weight is None or layer.node.name not in weight.readers:
                ends.add(id(layer.bias_node or layer.node))
    return frozenset(ends)


def _blocks_on_grids(model: Model) -> frozenset[int]:
    """The nodes, by identity, whose 8-bit weights come in blocks while their input is on a grid: ONNX Runtime would
    take integer kernels, which know no blocks."""
    nodes = set()
    for layer in map(linear_layer, model.graph.nodes):
        if isinstance(layer, LinearLayer) and layer.input.name in model.quantizers:
            weight = model.quantizers.get(layer.weight.name)
            if weight is not None and weight.spec.block is not None and weight.spec.grid.stored_bits == 8:
                nodes.add(id(layer.node))
    return frozenset(nodes)


def _shield_branches(model: Model) -> None:
    """A Sum of one in front of what branches and loops read from outside, where it is on a grid: ONNX Runtime 1.32
    moves DequantizeLinear along data movement, and aborts the process where that ends in a subgraph."""
    outside = {id(node) for node in model.graph.nodes}
    for node in list(model.graph.nodes):
        for tensor in list(node.outputs) if _hands_on_grid(node) else ():
            inside = [reader for reader in model.consumers(tensor) if id(reader) not in outside]
            if not inside:
                continue
            shielded = gs.Variable(model.unique_name(f"{tensor.name}_shielded"), tensor.dtype, tensor.shape)
            place = next(index for index, other in enumerate(model.graph.nodes) if other is node)
            model.graph.nodes.insert(place + 1, gs.Node("Sum", inputs=[tensor], outputs=[shielded]))
            for reader in inside:
                edit.replace_input(reader, tensor, shielded)
    edit.name_nodes(model.graph.nodes)


def _hands_on_grid(node: gs.Node) -> bool:
    """Whether a node is a DequantizeLinear, or moves what one writes."""
    while not is_op(node, "DequantizeLinear"):
        if not preserves_grid(node) or not node.inputs[0].inputs:
            return False
        node = node.inputs[0].inputs[0]
    return True


def _producer_before_clips(tensor: gs.Tensor) -> gs.Node | None:
    while tensor.inputs and clip_bounds(tensor.inputs[0]) is not None:
        tensor = tensor.inputs[0].inputs[0]
    return tensor.inputs[0] if tensor.inputs else None


def _answer(quantizer: Quantizer) -> QuantParams:
    if quantizer.params is None:
        raise ValueError(f"quantizer of {quantizer.tensor!r} has no range yet")
    return quantizer.params
