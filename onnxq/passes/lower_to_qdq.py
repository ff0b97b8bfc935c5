"""Quantizers become QuantizeLinear and DequantizeLinear, the form that every integer runtime reads.

    activation x    x -> QuantizeLinear -> DequantizeLinear -> its readers
    weight W        integers -> DequantizeLinear -> its readers
    bias b          int32 at scale s_x s_w, zero point 0 -> DequantizeLinear -> the node that adds it; or, where the
                    target wants it so, int8 with a scale of its own, or float

`graph.qdq_writer` writes the nodes. This pass says what is written: which tensors, with which parameters, read by whom,
and where ONNX Runtime has to be kept from rewriting the graph.

A bias belongs to a layer, not to a tensor: layers with different scales that share one get one each. Names of
graph inputs and outputs stay; everything else takes the tensor's name and a suffix.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import edit
from ..graph.dynamic_writer import DynamicWriter, is_dynamic
from ..graph.model import Model, Quantizer
from ..graph.qdq_writer import EXEMPT, QdqWriter
from ..graph.table_writer import TableWriter
from ..numeric.quant import Grid, QuantParams
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layers
from ..operators.node import is_op
from ..operators.registry import preserves_grid
from ..operators.tables import row_axis, table_of
from ..targets import Target
from ..targets.choice import data_inputs
from .base import Context, Outcome

BIAS_GRID = Grid(32, signed=True)


@dataclass(frozen=True)
class LowerToQdq:
    """Write `Model.quantizers`, all of which have parameters, into the graph, and empty the dict."""

    title: ClassVar[str] = "Lower to QDQ"
    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        tensors = model.graph.tensors()
        lowering = _Lowering(model, context.target)
        for layer in linear_layers(model.graph.nodes):
            lowering.bias(layer)
        for quantizer in model.quantizers.values():
            tensor = tensors[quantizer.tensor]
            if isinstance(tensor, gs.Constant) and quantizer.tensor not in lowering.tables:
                lowering.weight(tensor, quantizer)
            elif isinstance(tensor, gs.Constant):
                continue
            else:
                lowering.activation(tensor, quantizer)
        lowering.write_tables()
        lowering.writer.insert()
        dynamic = DynamicWriter(model).write()
        _shield_readers(model, context.target)
        pairs = len(model.quantizers)
        model.quantizers.clear()
        _note_exempt(model)
        edit.drop_dangling(model)
        width = 8 if context.target.bias == "int8" else 32
        notes = [f"biases at {width} bits: {lowering.biases}"]
        if dynamic:
            notes.append(f"layers whose activations are quantized at run time: {dynamic}")
        return Outcome(pairs + lowering.biases, notes=tuple(notes))


def _note_exempt(model: Model) -> None:
    """Write down which nodes are in float for another reason than the target's rule, for `onnxq check`: the user wanted
    it, a tensor has no range, or a constant is the weight of another node, of which the integers say nothing."""
    reasons = ((name, placed.reason) for name, placed in model.placement.nodes.items() if placed.reason is not None)
    names = sorted(
        name
        for name, reason in reasons
        if reason.is_the_users or reason.kind == "constant" or reason.cause in model.placement.tensors
    )
    if names:
        model.header.metadata_props.add(key=EXEMPT, value=json.dumps(names))


class _Lowering:
    """What is written of activations, weights and biases. biases: how many became integers."""

    def __init__(self, model: Model, target: Target) -> None:
        self.model, self.target, self.biases = model, target, 0
        self.writer = QdqWriter(model)
        self.nodes = {id(node) for node in model.graph.nodes}
        self.float_layers, self.blocks = set[int](), set[int]()
        if target.quantizes_float_weights:
            self.float_layers, self.blocks = _nodes_to_shield(model)
            self.float_layers |= _operators_to_shield(model, target)
        self.tables = _stored_once(model)

    def write_tables(self) -> None:
        """Behind all others: what stands behind a look-up goes in front of the quantizer of its result."""
        constants = {tensor.name: tensor for tensor in self.model.initializers()}
        for names in dict.fromkeys(self.tables.values()):
            self._table(constants[names[0]], [constants[name] for name in names])
        for weight, table in self.model.tied.items():
            both = constants.get(weight), constants.get(table)
            if both[0] is not None and both[1] is not None and not {weight, table} & set(self.model.quantizers):
                self._transpose(both[0], both[1])

    def _table(self, table: gs.Constant, tied: list[gs.Constant]) -> None:
        """A table, and the weights that are the same numbers, itself perhaps among them."""
        readers_of = self.model.consumers
        look_ups = [node for node in readers_of(table) if table_of(node) is table]
        rows = self.target.tables == "rows"
        params = _params(self.model.quantizers[table.name])
        written = TableWriter(self.model, table, params, row_axis(look_ups[0]), rows=rows)
        for tensor in tied:
            quantizer = self.model.quantizers[tensor.name]
            readers = [
                n for n in self.model.consumers(tensor) if n.name in quantizer.readers and table_of(n) is not table
            ]
            if readers:
                nodes = written.weight(tensor, _params(quantizer), readers)
                self.writer.before(self.writer.first_of(readers), nodes)
        for node in look_ups:
            before, behind = written.look_up(node)
            self.writer.before(node, before)
            self.writer.behind(node, behind)

    def _transpose(self, weight: gs.Constant, table: gs.Constant) -> None:
        """Two constants in float that are one: a file holds but the table."""
        readers = [node for node in self.model.consumers(weight) if id(node) in self.nodes]
        if not readers or not np.array_equal(np.asarray(table.values).T, np.asarray(weight.values)):
            return
        transposed = gs.Variable(self.model.unique_name(f"{table.name}_transposed"), weight.dtype, weight.shape)
        node = gs.Node("Transpose", attrs={"perm": [1, 0]}, inputs=[table], outputs=[transposed])
        self.writer.before(self.writer.first_of(readers), [node])
        for reader in readers:
            edit.replace_input(reader, weight, transposed)

    def activation(self, tensor: gs.Tensor, quantizer: Quantizer) -> None:
        self.writer.activation(
            tensor,
            _params(quantizer),
            [n for n in self.model.consumers(tensor) if not quantizer.readers or n.name in quantizer.readers],
            quantized_output=self.model.is_output(tensor) and bool(tensor.inputs) and self.target.outputs != "float",
            shielded=id(_producer_before_clips(tensor)) in self.float_layers,
        )

    def weight(self, tensor: gs.Constant, quantizer: Quantizer) -> None:
        params = _params(quantizer)
        named = [n for n in self.model.consumers(tensor) if n.name in quantizer.readers and id(n) in self.nodes]
        readers = [n for n in named if not is_dynamic(self.model, n)]
        if readers:
            self._constant(tensor, params, np.asarray(params.quantize(tensor.values)), readers)

    def _constant(self, tensor: gs.Constant, params: QuantParams, integers: np.ndarray, readers: list[gs.Node]) -> None:
        shielded = any(id(reader) in self.blocks for reader in readers)
        self.writer.constant(tensor, params, integers, readers, shielded=shielded)

    def bias(self, layer: LinearLayer) -> None:
        x, weight = self.model.quantizers.get(layer.input.name), self.model.weight_quantizer(layer)
        if self.target.adds_biases and weight is not None:
            self._add_behind(layer)
            return
        if self.target.added_bias == "operator" and layer.bias_node is not layer.node:
            self._operand(layer)
            return
        if self.target.bias == "float" or layer.bias is None or x is None or weight is None:
            return
        if weight.spec.block is not None:
            return  # the accumulator has no one scale a channel: the bias stays in float
        assert layer.bias_node is not None
        self.biases += 1
        if self.target.bias == "int8":
            params = self._bias_params(layer, x, weight)
            self._constant(layer.bias, params, np.asarray(params.quantize(layer.bias.values)), [layer.bias_node])
            return
        scale = np.asarray(_params(x).scale, np.float64) * np.asarray(_params(weight).scale, np.float64)
        if scale.size not in (1, layer.channels):
            scale = np.tile(scale, layer.groups)
        scale = np.asarray(np.broadcast_to(scale, (layer.channels,) if weight.axis is not None else ()), np.float32)
        integers = np.rint(np.asarray(layer.bias.values, np.float64) / scale.astype(np.float64))
        integers = np.clip(integers, BIAS_GRID.qmin, BIAS_GRID.qmax).astype(np.int32)
        params = QuantParams(BIAS_GRID, scale, np.zeros(scale.shape, np.int32), None if scale.ndim == 0 else 0)
        self._constant(layer.bias, params, integers, [layer.bias_node])

    def _add_behind(self, layer: LinearLayer) -> None:
        """Let an Add behind a convolution add its bias."""
        if layer.bias is None or not layer.form.is_convolution:
            return
        node, output, rank = layer.node, layer.output, len(layer.weight.shape)
        bare = gs.Variable(self.model.unique_name(f"{output.name}_unbiased"), output.dtype, output.shape)
        values = np.reshape(layer.bias.values, (1, -1, *[1] * (rank - 2)))
        del node.inputs[2]
        node.outputs[0] = bare
        bias = edit.constant(self.model, f"{layer.bias.name}_added", values)
        nodes = self.model.graph.nodes
        place = next(index for index, other in enumerate(nodes) if other is node)
        nodes.insert(place + 1, gs.Node("Add", inputs=[bare, bias], outputs=[output]))

    def _operand(self, layer: LinearLayer) -> None:
        """Quantize the product and the bias of an Add behind MatMul, as inputs of an operator of its own."""
        y, product = self._written(layer), layer.node.outputs[0]
        if layer.bias is None or layer.bias_node is None or y is None:
            return
        if product.name not in self.model.quantizers:  # the Add came with bias correction
            self.model.quantizers[product.name] = Quantizer(product.name, y.spec, params=y.params)
        values = np.asarray(layer.bias.values, np.float64)
        params = QuantParams.from_range(values.min(initial=0.0), values.max(initial=0.0), y.spec)
        least, most = self.target.smallest_range / (params.grid.qmax - params.grid.qmin), np.inf
        if self.target.shifts is not None:  # a bias far beyond the grid of the sum is clipped there anyway
            shifts, other = self.target.shifts, float(_params(self.model.quantizers[product.name]).scale)
            least = other * 2.0**-shifts.read
            most = min(other * 2.0**shifts.read, float(_params(y).scale) * 2.0 ** -shifts.add[0])
        params = replace(params, scale=np.asarray(np.clip(params.scale, least, most), np.float32))
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
        accumulator = np.log2(np.asarray(_params(x).scale, np.float64) * np.asarray(_params(weight).scale, np.float64))
        cut = np.log2(np.asarray(_params(y).scale, np.float64)) - accumulator
        finest = min(0, int(cut) - self.target.shifts.accumulator)
        exponent = np.clip(np.log2(params.scale), accumulator + finest, accumulator + self.target.shifts.bias)
        return replace(params, scale=np.asarray(2.0**exponent, np.float32))

    def _written(self, layer: LinearLayer) -> Quantizer | None:
        """The quantizer of what the layer writes, by itself or through the activation behind it."""
        tensor, behind = layer.output, self.model.sole_consumer(layer.output)
        if tensor.name not in self.model.quantizers and behind is not None and clip_bounds(behind) is not None:
            tensor = behind.outputs[0]
        return self.model.quantizers.get(tensor.name)


def _stored_once(model: Model) -> dict[str, tuple[str, ...]]:
    """By name of a quantized table, and of the weights that are the same integers: all of these, the table first."""
    found: dict[str, tuple[str, ...]] = {}
    constants = {constant.name: constant for constant in model.initializers()}
    tables = {t.name: t for node in model.graph.nodes if (t := table_of(node)) is not None}
    for name, table in tables.items():
        if name not in model.quantizers:
            continue
        params = _params(model.quantizers[name])
        members = [name]
        for weight in (w for w, source in model.tied.items() if source == name and w in model.quantizers):
            other = _params(model.quantizers[weight])
            integers = params.quantize(table.values).T
            if np.array_equal(other.scale, params.scale) and np.array_equal(
                other.quantize(np.asarray(constants[weight].values)), integers
            ):
                members.append(weight)
        found |= dict.fromkeys(members, tuple(members))
    return found


def _nodes_to_shield(model: Model) -> tuple[set[int], set[int]]:
    """Nodes, by identity, of layers whose input is quantized: those that end layers with float weights, which ONNX
    Runtime would quantize between a DequantizeLinear and a QuantizeLinear; and those that read 8-bit weights in blocks,
    for which it would take integer kernels, which compute without blocks."""
    float_layers, blocks = set(), set()
    for layer in linear_layers(model.graph.nodes):
        x = model.quantizers.get(layer.input.name)
        if x is not None:
            weight = model.weight_quantizer(layer)
            if weight is None:
                float_layers.add(id(layer.bias_node or layer.node))
            elif weight.spec.block is not None and max(weight.spec.grid.stored_bits, x.spec.grid.bits) == 8:
                blocks.add(id(layer.node))
    return float_layers, blocks


def _operators_to_shield(model: Model, target: Target) -> set[int]:
    """Operators, by identity, that were left in float and write a quantized tensor: ONNX Runtime would run elementwise
    ones between quantized tensors in integers all the same, and move the QuantizeLinear behind a MaxPool to its front,
    where MaxPool takes over 100 times as long."""
    found = set()
    for node in model.graph.nodes:
        placed, rule = model.placement.nodes.get(node.name), target.rule_of(node)
        is_pool = is_op(node, "MaxPool")
        if is_pool and node.inputs[0].name not in model.quantizers:
            found.add(id(node))
        if placed is None or placed.reason is None or rule is None or not (is_pool or rule.kind == "elementwise"):
            continue
        chosen = placed.reason.is_the_users or placed.reason.kind == "slow"
        if chosen and all(t.name in model.quantizers for t in data_inputs(node, rule)):
            found.add(id(node))
    return found


def _shield_readers(model: Model, target: Target) -> None:
    """A Sum of one behind DequantizeLinear, in front of readers that it must not be moved past.

    ONNX Runtime 1.32 moves it along data movement, which aborts the process where that ends in what branches and loops
    read from outside, and computes a MaxPool in integers that was left in float since its integer kernel is slow.
    """
    outside = {id(node) for node in model.graph.nodes}
    for node in list(model.graph.nodes):
        for tensor in list(node.outputs) if _is_dequantized(node) else ():
            readers = [r for r in model.consumers(tensor) if id(r) not in outside or _is_slow_pool(r, model, target)]
            if not readers:
                continue
            shielded = gs.Variable(model.unique_name(f"{tensor.name}_shielded"), tensor.dtype, tensor.shape)
            place = next(index for index, other in enumerate(model.graph.nodes) if other is node)
            model.graph.nodes.insert(place + 1, gs.Node("Sum", inputs=[tensor], outputs=[shielded]))
            for reader in readers:
                edit.replace_input(reader, tensor, shielded)
    edit.name_nodes(model.graph.nodes)


def _is_slow_pool(node: gs.Node, model: Model, target: Target) -> bool:
    placed = model.placement.nodes.get(node.name)
    is_slow = placed is not None and placed.reason is not None and placed.reason.kind == "slow"
    return is_slow and is_op(node, "MaxPool") and target.quantizes_float_weights


def _is_dequantized(node: gs.Node) -> bool:
    """Whether a node is a DequantizeLinear, or only moves what one writes."""
    while not is_op(node, "DequantizeLinear"):
        if not preserves_grid(node) or not node.inputs[0].inputs:
            return False
        node = node.inputs[0].inputs[0]
    return True


def _producer_before_clips(tensor: gs.Tensor) -> gs.Node | None:
    while tensor.inputs and clip_bounds(tensor.inputs[0]) is not None:
        tensor = tensor.inputs[0].inputs[0]
    return tensor.inputs[0] if tensor.inputs else None


def _params(quantizer: Quantizer) -> QuantParams:
    if quantizer.params is None:
        raise ValueError(f"quantizer of {quantizer.tensor!r} has no range yet")
    return quantizer.params
