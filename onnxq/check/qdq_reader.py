"""A QDQ graph as `onnxq check` sees it, whatever tool wrote it: which tensors are on which grids, and who reads them.

    activation    x -> QuantizeLinear -> DequantizeLinear (one, or one for each reader) -> readers      a Pair
    constant      integers -> DequantizeLinear -> readers, or float -> QuantizeLinear -> DequantizeLinear

Both operators are known in the standard domain and in com.microsoft, which had the 4- and 16-bit types first. Graphs
inside control flow are not looked into.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto, helper

from ..errors import ModelError
from ..graph.model import Model
from ..graph.patterns import find_composites
from ..operators.elementwise import clip_bounds
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import linear_form

DOMAINS = (*ONNX_DOMAINS, "com.microsoft")


@dataclass(frozen=True)
class Encoding:
    """Parameters of one QuantizeLinear or DequantizeLinear. axis: None where the scale is one number."""

    type: str
    scale: NDArray[np.float64]
    zero_point: NDArray[np.int64]
    axis: int | None
    block: int

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and highest integer of the type."""
        bits = int(self.type.lstrip("uint"))
        return (0, (1 << bits) - 1) if self.type.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)

    def same_grid(self, other: Encoding) -> bool:
        """Whether integers of one mean the same in the other."""
        return (
            self.type == other.type
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __str__(self) -> str:
        if self.scale.size > 1:
            return f"{self.type} with {self.scale.size} scales along axis {self.axis}"
        return f"{self.type} with scale {self.scale.item():g} and zero point {self.zero_point.reshape(-1)[0]}"


@dataclass(frozen=True)
class Pair:
    """An activation on a grid. quantize: its QuantizeLinear. readers: of the dequantized values, each once."""

    tensor: gs.Tensor
    encoding: Encoding
    quantize: gs.Node
    readers: tuple[gs.Node, ...]
    is_output: bool


@dataclass(frozen=True)
class Constant:
    """A constant on a grid, as one input of a node reads it. role: `weight` and `bias` of linear operators, or else."""

    node: gs.Node
    index: int
    tensor: gs.Constant
    encoding: Encoding
    role: str

    @property
    def integers(self) -> NDArray[np.int64]:
        """Its integers, those of a float constant as QuantizeLinear makes them."""
        values = np.asarray(self.tensor.values)
        if values.dtype.kind != "f":
            return values.astype(np.int64)
        scale, zero_point = (_broadcast(v, values.shape, self.encoding.axis) for v in self._parameters())
        return np.asarray(np.clip(np.rint(values / scale) + zero_point, *self.encoding.limits), np.int64)

    def _parameters(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.encoding.scale, np.asarray(self.encoding.zero_point, np.float64)


class QdqGraph:
    """The quantized tensors of a model. Raises ModelError where nothing in it is quantized."""

    def __init__(self, proto: ModelProto, origin: str) -> None:
        self.model = Model.from_proto(proto, origin)
        self.opset = next((o.version for o in proto.opset_import if o.domain in ONNX_DOMAINS), 0)
        nodes = self.model.graph.nodes
        self.nodes = [n for n in nodes if not (is_quantize(n) or is_dequantize(n) or _passes_on(n))]
        if not any(is_quantize(n) or is_dequantize(n) for n in nodes):
            raise ModelError(
                f"{origin}: holds no QuantizeLinear and no DequantizeLinear, so there is nothing to check; `onnxq"
                " quantize` writes such models"
            )

    @cached_property
    def pairs(self) -> list[Pair]:
        """All activations on grids, in graph order."""
        found = (self._pair(node) for node in self.model.graph.nodes if is_quantize(node))
        return [pair for pair in found if pair is not None]

    @cached_property
    def pieces(self) -> set[int]:
        """Nodes, by identity, that are but a part of one operator and stay in float with it."""
        return {id(node) for whole in find_composites(self.model) for node in whole.nodes}

    @cached_property
    def constants(self) -> list[Constant]:
        """All constants on grids, for each node that reads them."""
        return [c for node in self.nodes for i in range(len(node.inputs)) if (c := self.constant(node, i)) is not None]

    def read(self, node: gs.Node, index: int) -> Encoding | None:
        """The grid of an input; None where it is read in float."""
        if index >= len(node.inputs):
            return None
        producer = _producer(_source(node.inputs[index]))
        return _encoding(producer) if producer is not None and is_dequantize(producer) else None

    def constant(self, node: gs.Node, index: int) -> Constant | None:
        """An input that is a constant on a grid."""
        encoding = self.read(node, index)
        source = _behind_pair(node.inputs[index]) if encoding is not None else None
        if encoding is None or not isinstance(source, gs.Constant):
            return None
        return Constant(node, index, source, encoding, _role(node, index, encoding))

    def float_source(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor whose values arrive at `tensor`: itself, or what its pair quantizes."""
        return _behind_pair(tensor)

    def activations(self, node: gs.Node) -> Iterator[tuple[int, gs.Tensor]]:
        """Index and tensor of the inputs that are computed, those of the first node as well as what pairs quantize."""
        for index, tensor in enumerate(node.inputs):
            if tensor.name and not isinstance(self.float_source(tensor), gs.Constant):
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
        return next((pair for pair in self.pairs if pair.tensor is tensor), None)

    def _pair(self, node: gs.Node) -> Pair | None:
        encoding = _encoding(node)
        if encoding is None or isinstance(node.inputs[0], gs.Constant):
            return None
        behind = [reader.outputs[0] for reader in node.outputs[0].outputs if is_dequantize(reader)]
        readers = {id(n): n for tensor in behind for n in tensor.outputs}
        is_output = any(self.model.is_output(tensor) for tensor in behind)
        return Pair(node.inputs[0], encoding, node, tuple(readers.values()), is_output)


def is_quantize(node: gs.Node) -> bool:
    return node.op == "QuantizeLinear" and node.domain in DOMAINS


def is_dequantize(node: gs.Node) -> bool:
    return node.op == "DequantizeLinear" and node.domain in DOMAINS


def label(node: gs.Node) -> str:
    """What messages call a node."""
    return node.name or f"{node.op} of {node.outputs[0].name if node.outputs else 'nothing'}"


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _passes_on(node: gs.Node) -> bool:
    """Whether a node hands on its one input: Identity, and the Sum that keeps ONNX Runtime from rewriting."""
    return node.op in ("Identity", "Sum") and node.domain in ONNX_DOMAINS and len(node.inputs) == 1


def _source(tensor: gs.Tensor) -> gs.Tensor:
    while (producer := _producer(tensor)) is not None and _passes_on(producer):
        tensor = producer.inputs[0]
    return tensor


def _behind_pair(tensor: gs.Tensor) -> gs.Tensor:
    producer = _producer(_source(tensor))
    if producer is None or not is_dequantize(producer):
        return tensor
    source = producer.inputs[0]
    before = _producer(source)
    return before.inputs[0] if before is not None and is_quantize(before) else source


def _role(node: gs.Node, index: int, encoding: Encoding) -> str:
    form = linear_form(node.op, node.domain)
    if form is not None and (index == form.weight or form.bias is not None):
        return "weight" if index == form.weight else "bias" if index == form.bias else "operand"
    return "bias" if encoding.type == "int32" else "operand"


def _encoding(node: gs.Node) -> Encoding | None:
    """None where scale or zero point are computed."""
    scale, zero_point = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if not isinstance(scale, gs.Constant) or not (zero_point is None or isinstance(zero_point, gs.Constant)):
        return None
    scales = np.asarray(scale.values, np.float64)
    zeros = np.zeros(scales.shape, np.int64) if zero_point is None else np.asarray(zero_point.values).astype(np.int64)
    axis = None if scales.size == 1 and not node.attrs.get("block_size") else int(node.attrs.get("axis", 1))
    return Encoding(_type(node, zero_point), scales, zeros, axis, int(node.attrs.get("block_size", 0)))


def _type(node: gs.Node, zero_point: gs.Tensor | None) -> str:
    """The integer type: that of the zero point, of the stored integers, or of the attribute; uint8 by default."""
    for tensor in (zero_point, node.inputs[0] if is_dequantize(node) else None):
        if tensor is not None and tensor.dtype is not None:
            dtype = tensor.dtype
            if isinstance(dtype, int):  # one that numpy has not, as onnx numbers it
                dtype = helper.tensor_dtype_to_np_dtype(dtype)
            return str(np.dtype(dtype).name)
    stated = node.attrs.get("output_dtype", 0)
    if stated:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(stated)).name)
    before = _producer(node.inputs[0]) if is_dequantize(node) else None
    return _type(before, before.inputs[2] if len(before.inputs) > 2 else None) if before is not None else "uint8"


def _broadcast(values: NDArray[np.float64], shape: tuple[int, ...], axis: int | None) -> NDArray[np.float64]:
    if axis is None or values.ndim != 1:
        return values.reshape(()) if values.size == 1 else values
    return values.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
