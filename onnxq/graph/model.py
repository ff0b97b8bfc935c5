"""The model that passes work on: a graph, the quantizers planned for it, and what is known of its tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from ..errors import ModelError
from ..numeric.quant import QuantParams, QuantSpec

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR


@dataclass(frozen=True)
class Quantizer:
    """Where a tensor is quantized, with which wish, and later with which answer.

    tensor: its name, the key in `Model.quantizers` as well.
    axis: the channel axis of `tensor` for per-channel quantizers.
    grid_of: the tensor whose grid this one keeps (data movement, pooling, tied inputs of Add and Concat).
    widened_by: other tensors whose statistics count too, since their quantizers share this one's grid.
    fixed: a range known beforehand, such as (0, 1) after Softmax.
    readers: names of the nodes that read a weight through this quantizer; others read it in float.
    """

    tensor: str
    spec: QuantSpec
    axis: int | None = None
    params: QuantParams | None = None
    grid_of: str | None = None
    widened_by: tuple[str, ...] = ()
    fixed: tuple[float, float] | None = None
    readers: tuple[str, ...] = ()

    def answered(self, params: QuantParams) -> Quantizer:
        """The same quantizer with its parameters set."""
        return replace(self, params=params)


@dataclass(frozen=True)
class Moments:
    """Per-channel mean and standard deviation of a tensor, (C,) each, in the tensor's units (section 3.2)."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def affine(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> Moments:
        """Moments of `scale * x + shift`, both (C,) or scalars."""
        return Moments(scale * self.mean + shift, np.abs(scale) * self.std)


@dataclass
class Model:
    """`graph` is edited in place by passes; weights are replaced, never written into, since copies share them.

    quantizers: by tensor name, in the order in which they were placed; data until `lower_to_qdq`.
    moments: by tensor name.
    origin: what messages call the model, usually its path.
    """

    graph: gs.Graph
    origin: str = "model"
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    header: ModelProto = field(default_factory=ModelProto)
    _names: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def from_proto(cls, proto: ModelProto, origin: str = "model") -> Model:
        """Raises ModelError for content that graph surgeon would drop without a word."""
        model = cls(gs.import_onnx(proto), origin, header=_header_of(proto))
        _refuse_losses(proto, model, origin)
        return model

    def to_proto(self) -> ModelProto:
        """The float model as it stands, with the metadata of the original; quantizers are not part of it."""
        proto = gs.export_onnx(self.graph, do_type_check=False)
        proto.MergeFrom(self.header)
        return proto

    def clone(self) -> Model:
        """An independent model; weight arrays are shared until either side replaces one."""
        copy = Model.from_proto(self.to_proto(), self.origin)
        copy.quantizers, copy.moments = dict(self.quantizers), dict(self.moments)
        return copy

    def unique_name(self, stem: str) -> str:
        """A tensor name that nothing in the graph (subgraphs included) has: `stem`, or `stem_1`, ..."""
        if not self._names:
            self._names.update(tensor_names(self.graph))
        candidates = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
        name = next(name for name in candidates if name not in self._names)
        self._names.add(name)
        return name

    def consumers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Nodes that read `tensor`, each once, those in subgraphs included."""
        return list({id(node): node for node in tensor.outputs}.values())

    def is_output(self, tensor: gs.Tensor) -> bool:
        return any(tensor is output for output in self.graph.outputs)

    def sole_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads `tensor`, once, where nothing else does: no other input, no graph output."""
        if len(tensor.outputs) == 1 and not self.is_output(tensor):
            return tensor.outputs[0]
        return None

    def initializers(self) -> Iterator[gs.Constant]:
        """Constants that the main graph reads, each once."""
        return (t for t in self.graph.tensors().values() if isinstance(t, gs.Constant))


def tensor_names(graph: gs.Graph) -> Iterator[str]:
    """Names of all tensors, those in subgraphs included."""
    yield from graph.tensors()
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from tensor_names(value)


def extract(proto: ModelProto, outputs: Iterable[str]) -> ModelProto:
    """The part of a model that computes `outputs`, any of its tensors, in their order; the inputs all stay.

    Raises KeyError for a name that nothing produces. Types of new outputs are left for the runtime to infer.
    """
    outputs = list(outputs)
    needed, nodes = set(outputs), []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_captured(node))
    part = ModelProto()
    part.CopyFrom(_without_graph(proto))
    part.graph.name = proto.graph.name or "extract"
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(proto.graph.input)
    part.graph.initializer.extend(t for t in proto.graph.initializer if t.name in needed)
    part.graph.sparse_initializer.extend(t for t in proto.graph.sparse_initializer if t.values.name in needed)
    known = {v.name: v for v in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    made = {name for node in nodes for name in node.output} | set(known)
    for name in outputs:
        if name not in made:
            raise KeyError(name)
        part.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    return part


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the node's subgraphs read; some are their own, which does no harm."""
    graphs = [a.g for a in node.attribute if a.HasField("g")]
    graphs += [g for a in node.attribute for g in a.graphs]
    names: set[str] = set()
    for graph in graphs:
        names.update(output.name for output in graph.output)
        for inner in graph.node:
            names.update(inner.input)
            names.update(_captured(inner))
    return names


def _without_graph(proto: ModelProto) -> ModelProto:
    rest = ModelProto(ir_version=proto.ir_version, producer_name=proto.producer_name)
    rest.opset_import.extend(proto.opset_import)
    rest.functions.extend(proto.functions)
    return rest


def _header_of(proto: ModelProto) -> ModelProto:
    """What graph surgeon does not carry: metadata, model version and domain, documentation."""
    header = ModelProto(domain=proto.domain, model_version=proto.model_version, doc_string=proto.doc_string)
    header.metadata_props.extend(proto.metadata_props)
    return header


def _refuse_losses(proto: ModelProto, model: Model, origin: str) -> None:
    """Graph surgeon skips attributes of types that it does not know and cannot write optional types back."""
    for node, kept in zip(proto.graph.node, model.graph.nodes, strict=True):
        lost = {a.name for a in node.attribute} - set(kept.attrs)
        if lost:
            raise ModelError(
                f"{origin}: node {node.name or node.output[0]!r} ({node.op_type}) has attributes of a type that"
                f" cannot be carried over ({', '.join(sorted(lost))}); models with these are not supported"
            )
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type", "sequence_type", "sparse_tensor_type"):
            raise ModelError(f"{origin}: tensor {value.name!r} is of {kind}, which is not supported")
