"""The one reader of QDQ models, whatever tool wrote them: which tensors are quantized how, and who reads them.

    activation    x -> QuantizeLinear -> DequantizeLinear (one, or one for each reader) -> readers      a Pair
    constant      integers -> DequantizeLinear -> readers, or float -> QuantizeLinear -> DequantizeLinear

    at run time   x -> DynamicQuantizeLinear -> MatMulInteger: integers without a grid that could be checked

Models of integer operators are read likewise once `integer_operators` has made them readable. A float model is one
without pairs. Graphs inside control flow are not looked into.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from ..graph.dynamic_lstm import DYNAMIC_LSTM
from ..graph.model import Model
from ..graph.patterns import find_composites
from ..graph.qdq_writer import EXEMPT
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, lacks_bias_input, linear_layer
from ..operators.node import ONNX_DOMAINS, is_float, is_op
from ..operators.registry import linear_form, preserves_grid
from ..report import Reason
from ..targets import OpRule, Target
from ..targets.choice import choose
from .float_view import float_view
from .integer_operators import SUFFIX, WEIGHT_GRID
from .tensor_grid import TensorGrid, grid_of, is_dequantize, is_qdq, is_quantize

SUFFIXES = (
    "_DequantizeLinear_Output", "_QuantizeLinear_Output", "_QuantizeLinear_Input", "_DequantizeLinear",
    "_QuantizeLinear", "_dequantized", "_quantized", "_clipped", "_integers", "_dq", "_q", "_DQ", "_Q",
)  # fmt: skip
"""What tools append to the name of the tensor that they quantize."""

Arithmetic: TypeAlias = Literal["integers", "weights only", "float"]
"""What a node computes with: integers, floats of which the weights are stored as integers, or floats."""


@dataclass(frozen=True)
class Pair:
    """A quantized activation. quantize: its QuantizeLinear. readers: of the dequantized values, each once."""

    tensor: gs.Tensor
    grid: TensorGrid
    quantize: gs.Node
    readers: tuple[gs.Node, ...]
    is_output: bool


@dataclass(frozen=True)
class Constant:
    """A quantized constant, as one input of a node reads it. role: `weight` and `bias` of linear operators, what
    is only `stored` as integers (a table, a recurrent weight), or else."""

    node: gs.Node
    index: int
    tensor: gs.Constant
    grid: TensorGrid
    role: str

    @property
    def integers(self) -> NDArray[np.int64]:
        """Its integers, those of a float constant as QuantizeLinear makes them."""
        values = np.asarray(self.tensor.values)
        if values.dtype.kind != "f":
            return values.astype(np.int64)
        scale = self.grid.along_axis(self.grid.scale, values.ndim)
        zero_point = self.grid.along_axis(np.asarray(self.grid.zero_point, np.float64), values.ndim)
        return np.asarray(np.clip(np.rint(values / scale) + zero_point, *self.grid.limits), np.int64)


class QdqGraph:
    """A model with its quantized tensors. nodes: without QuantizeLinear, DequantizeLinear, and what passes them on.

    proto: what the model was read from; only `chosen` needs it.
    """

    def __init__(self, model: Model, proto: ModelProto | None = None) -> None:
        self.model, self.opset, self._proto = model, model.graph.opset, proto
        self.nodes = [n for n in model.graph.nodes if not (is_qdq(n) or _passes_on(n))]
        self.is_quantized = any(
            is_qdq(n) or is_op(n, "MatMulInteger") or n.op == DYNAMIC_LSTM for n in model.graph.nodes
        )

    @cached_property
    def tensors(self) -> dict[str, gs.Tensor]:
        """All tensors of the graph by name."""
        return self.model.graph.tensors()

    @cached_property
    def outputs(self) -> set[str]:
        """Names of the model's outputs."""
        return {tensor.name for tensor in self.model.graph.outputs}

    @cached_property
    def fixed(self) -> set[str]:
        """Names of the tensors that depend on no input of the model."""
        found = {name for name, tensor in self.tensors.items() if isinstance(tensor, gs.Constant)}
        for node in self.model.graph.nodes:
            captures = any(isinstance(value, gs.Graph) for value in node.attrs.values())
            if not captures and all(not tensor.name or tensor.name in found for tensor in node.inputs):
                found.update(tensor.name for tensor in node.outputs)
        return found

    @cached_property
    def pairs(self) -> list[Pair]:
        """All quantized activations, in graph order."""
        found = (self._pair(node) for node in self.model.graph.nodes if is_quantize(node))
        return [pair for pair in found if pair is not None]

    @cached_property
    def composites(self) -> set[int]:
        """Nodes, by identity, that are but a part of one operator and stay in float with it."""
        return {id(node) for whole in find_composites(self.model) for node in whole.nodes}

    @cached_property
    def constants(self) -> list[Constant]:
        """All quantized constants, for each node that reads them."""
        return [c for node in self.nodes for i in range(len(node.inputs)) if (c := self.constant(node, i)) is not None]

    def read(self, node: gs.Node, index: int) -> TensorGrid | None:
        """The grid of an input; None where it is read in float."""
        if index >= len(node.inputs):
            return None
        maker = producer(_before_passing(node.inputs[index]))
        return grid_of(maker) if maker is not None and is_dequantize(maker) else None

    def constant(self, node: gs.Node, index: int) -> Constant | None:
        """An input that is a quantized constant."""
        grid = self.read(node, index)
        source = self.root(node.inputs[index]) if grid is not None else None
        if grid is None or not isinstance(source, gs.Constant):
            return None
        return Constant(node, index, source, grid, _role(node, index, grid))

    def root(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor whose values arrive at `tensor`: itself, or what its pair quantizes."""
        maker = producer(_before_passing(tensor))
        if maker is None or not is_dequantize(maker):
            return tensor
        before = producer(maker.inputs[0])
        return before.inputs[0] if before is not None and is_quantize(before) else maker.inputs[0]

    def as_read(self, tensor: gs.Tensor) -> gs.Tensor:
        """A tensor as its readers see it: behind QuantizeLinear and DequantizeLinear where these follow."""
        for reader in self.model.consumers(tensor):
            if is_qdq(reader) or (reader.op == "Clip" and self._only_quantized(reader)):
                return self.as_read(reader.outputs[0])
        return tensor

    def activations(self, node: gs.Node) -> Iterator[tuple[int, gs.Tensor]]:
        """Index and tensor of the inputs that are computed, those of the first node as well as what pairs quantize."""
        for index, tensor in enumerate(node.inputs):
            if tensor.name and not isinstance(self.root(tensor), gs.Constant):
                yield index, tensor

    def written(self, node: gs.Node) -> Pair | None:
        """The pair on a node's first output, or behind the Relu or Clip that alone reads it."""
        tensor = node.outputs[0]
        pair = self.pair_of(tensor)
        if pair is None and len(tensor.outputs) == 1 and clip_bounds(tensor.outputs[0]) is not None:
            pair = self.pair_of(tensor.outputs[0].outputs[0])
        return pair

    def pair_of(self, tensor: gs.Tensor) -> Pair | None:
        """The first pair that quantizes this very tensor."""
        return self._pair_of.get(id(tensor))

    def arithmetic(self, node: gs.Node) -> Arithmetic:
        """What a node computes with, as the graph says it: whether a runtime has a kernel for that is not known here.

        Integers: all its float operands are dequantized (a bias may stay in float), and its output is quantized; that
        of a linear node may stay in float, as its sum is not yet rounded to a grid.
        Weights only: a linear node reads integers as its weight, and computes with floats.
        """
        form = linear_form(node.op, node.domain)
        operands = [i for i in range(len(node.inputs)) if form is None or i != form.bias]
        if _has_parameters(node):
            operands = [0]
        quantized = [self.read(node, i) is not None for i in operands if _may_be_float(node.inputs[i])]
        if quantized and all(quantized) and (form is not None or self.written(node) is not None):
            return "integers"
        weight = None if form is None else self.constant(node, form.weight)
        return "float" if weight is None else "weights only"

    def chosen(self, target: Target) -> list[tuple[gs.Node, OpRule]]:
        """The nodes that the target would run in integers, by the rule that places quantizers (`targets.choice`), given
        what the model's author left in float: layers with float weights; and, where a target does not want operators in
        integers everywhere, those of which all inputs are read in float."""
        assert self._proto is not None
        model, nodes = float_view(self._proto)
        of_view = {id(inner): node for inner, node in zip(nodes, self.model.graph.nodes, strict=True)}

        def keeps(inner: gs.Node) -> Reason | None:
            node, layer = of_view[id(inner)], linear_layer(inner)
            if isinstance(layer, LinearLayer):
                kept = self.constant(node, layer.form.weight) is None
            else:
                reads = [self.read(node, index) for index, _ in self.activations(node)]
                kept = target.joins != "everywhere" and bool(reads) and not any(reads)
            return Reason("excluded", "the model has it in float") if kept or node.name in self.exempt else None

        return [(of_view[id(each.node)], each.rule) for each in choose(model, target, keeps).chosen]

    @cached_property
    def exempt(self) -> frozenset[str]:
        """Names of nodes that the model says are in float on purpose, see `graph.qdq_writer.EXEMPT`."""
        entries = () if self._proto is None else self._proto.metadata_props
        return frozenset(name for entry in entries if entry.key == EXEMPT for name in json.loads(entry.value))

    def ends_model(self, node: gs.Node) -> bool:
        """Whether a node computes an output of the model, itself or through one bias and one activation behind it."""
        tensor = node.outputs[0]
        while not self.model.is_output(tensor) and len(tensor.outputs) == 1:
            reader = tensor.outputs[0]
            if clip_bounds(reader) is None and not self.adds_bias(reader):
                return False
            tensor = reader.outputs[0]
        return self.model.is_output(tensor)

    def adds_bias(self, node: gs.Node) -> bool:
        """Whether an Add does nothing but add the bias of a MatMul."""
        products = [t for t in node.inputs if t.inputs and lacks_bias_input(t.inputs[0]) and len(t.outputs) == 1]
        others = [t for t in node.inputs if isinstance(self.root(t), gs.Constant)]
        return node.op == "Add" and len(products) == 1 and len(others) == 1

    def stored_weight(self, node: gs.Node) -> gs.Tensor | None:
        """The tensor that holds a linear node's weight as real numbers; None where it is not constant."""
        form = linear_form(node.op, node.domain)
        index = WEIGHT_GRID[node.op][0] if node.op in WEIGHT_GRID else 1 if form is None else form.weight
        if len(node.inputs) <= index:
            return None
        name = node.inputs[index].name
        if node.op in WEIGHT_GRID:
            name += SUFFIX
        return self.tensors[name] if name in self.fixed else None

    def named(self, known: Collection[str]) -> dict[str, gs.Tensor]:
        """By name of a tensor, without what a tool appended to it: what holds it as its readers see it.

        known: names of the float model's tensors, which are names of no more than themselves.
        """
        found: dict[str, gs.Tensor] = {}
        for node in self.model.graph.nodes:
            if is_dequantize(node) and node.inputs[0].name not in self.fixed:
                for name in _names(node, known):
                    found.setdefault(name, node.outputs[0])
        for name, tensor in self.tensors.items():
            if name in known and not isinstance(tensor, gs.Constant):
                found.setdefault(name, tensor)
        return found

    @cached_property
    def _pair_of(self) -> dict[int, Pair]:
        return {id(pair.tensor): pair for pair in reversed(self.pairs)}

    def _only_quantized(self, node: gs.Node) -> bool:
        readers = self.model.consumers(node.outputs[0])
        return bool(readers) and all(is_quantize(reader) for reader in readers)

    def _pair(self, node: gs.Node) -> Pair | None:
        grid = grid_of(node)
        if grid is None or isinstance(node.inputs[0], gs.Constant):
            return None
        behind = [reader.outputs[0] for reader in node.outputs[0].outputs if is_dequantize(reader)]
        readers = {id(n): n for tensor in behind for n in tensor.outputs}
        is_output = any(self.model.is_output(tensor) for tensor in behind)
        return Pair(node.inputs[0], grid, node, tuple(readers.values()), is_output)


def label(node: gs.Node) -> str:
    """What messages call a node."""
    return node.name or f"{node.op} of {node.outputs[0].name if node.outputs else 'nothing'}"


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor; None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def walk_back(tensor: gs.Tensor, through: Callable[[gs.Node], bool]) -> Iterator[gs.Tensor]:
    """A tensor, and the first inputs of the nodes `through` that computed it, back to another node."""
    yield tensor
    while (node := producer(tensor)) is not None and through(node) and node.inputs:
        tensor = node.inputs[0]
        yield tensor


def readers_behind(tensor: gs.Tensor, through: Callable[[gs.Node], bool]) -> list[gs.Node]:
    """Nodes that read a tensor, seen through the nodes `through`."""
    found: list[gs.Node] = []
    for node in {id(n): n for n in tensor.outputs}.values():
        if through(node) and node.outputs:
            found += readers_behind(node.outputs[0], through)
        else:
            found.append(node)
    return found


def without_suffix(name: str, known: Collection[str]) -> str | None:
    """The float model's tensor (or node) that a name was derived from, if any."""
    while name not in known:
        suffix = next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), None)
        if suffix is None:
            return None
        name = name.removesuffix(suffix)
    return name


def _names(node: gs.Node, known: Collection[str]) -> list[str]:
    """What a DequantizeLinear's output may be called: itself, what was quantized, and these without suffixes."""
    tensors = walk_back(node.inputs[0], lambda n: n.op in ("QuantizeLinear", "Clip", "Cast", "Identity"))
    back = [node.outputs[0].name, *(tensor.name for tensor in tensors)]
    found = [name for name in back if name in known]
    stripped = (without_suffix(name, known) for name in back)
    return (found or [name for name in stripped if name is not None])[:1]


def _passes_on(node: gs.Node) -> bool:
    """Whether a node hands on its one input: Identity, and the Sum that keeps ONNX Runtime from rewriting."""
    return node.op in ("Identity", "Sum") and node.domain in ONNX_DOMAINS and len(node.inputs) == 1


def _before_passing(tensor: gs.Tensor) -> gs.Tensor:
    *_, source = walk_back(tensor, _passes_on)
    return source


def _may_be_float(tensor: gs.Tensor) -> bool:
    return bool(tensor.name) and (tensor.dtype is None or is_float(tensor))


def _has_parameters(node: gs.Node) -> bool:
    """Whether what a node reads behind its first input are parameters: lengths, bounds, the value that pads."""
    return preserves_grid(node) or is_op(node, "Clip", "Resize", "Pad")


def _role(node: gs.Node, index: int, grid: TensorGrid) -> str:
    form = linear_form(node.op, node.domain)
    if form is not None and (index == form.weight or form.bias is not None):
        return "weight" if index == form.weight else "bias" if index == form.bias else "operand"
    if index == 0 and is_op(node, "Gather", "GatherND", "Reshape"):
        return "stored"
    return "bias" if grid.type == "int32" else "operand"
