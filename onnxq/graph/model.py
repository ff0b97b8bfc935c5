"""The model that passes work on: a graph, the quantizers planned for it, and what is known of its tensors."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto

from ..errors import ModelError
from ..numeric.quant import QuantParams, QuantSpec
from ..operators.linear import LinearLayer
from ..operators.node import in_subgraph
from ..operators.tables import table_of
from ..report import Reason
from . import large
from .serialized import nodes_of, unused_name

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR


@dataclass(frozen=True)
class Quantizer:
    """Where a tensor is quantized, with which spec, and later with which params.

    tensor: its name, the key in `Model.quantizers` as well.
    axis: the channel axis of `tensor` for per-channel quantizers.
    grid_of: the tensor whose grid this one keeps (data movement, pooling, tied inputs of Add and Concat).
    widened_by: other tensors whose statistics count too, since their quantizers share this one's grid.
    fixed: a range known beforehand, such as (0, 1) after Softmax.
    method: how its range is set, where that differs from the pass's.
    readers: names of the nodes that read a weight through this quantizer; others read it in float. Of activations
    likewise, where there are any; else all.
    given: its parameters came with the model, and are not to be set from ranges.
    """

    tensor: str
    spec: QuantSpec
    axis: int | None = None
    params: QuantParams | None = None
    grid_of: str | None = None
    widened_by: tuple[str, ...] = ()
    fixed: tuple[float, float] | None = None
    method: str | None = None
    readers: tuple[str, ...] = ()
    given: bool = False

    def with_params(self, params: QuantParams) -> Quantizer:
        """The same quantizer with its parameters set."""
        return replace(self, params=params)


LONGEST_NAME = 120
"""Longer stems of derived names are shortened to this many letters."""


def grid_root(quantizers: Mapping[str, Quantizer], name: str) -> str:
    """The tensor whose own quantizer decides the grid of `name`."""
    while (source := quantizers[name].grid_of) is not None:
        name = source
    return name


@dataclass(frozen=True)
class PlacedNode:
    """What was decided of a node: to run in integers, for which its `data` and its `weight`, if it has one, must be
    quantized, and what it `writes`, where its kernel has no output in float; or to stay in float for a reason.
    dynamic: its activations are quantized at run time, from each sample's own range (`graph.dynamic_writer`)."""

    reason: Reason | None = None
    data: tuple[str, ...] = ()
    weight: str | None = None
    writes: str | None = None
    dynamic: bool = False


@dataclass
class Placement:
    """Where the target is to compute in integers, and why not elsewhere.

    nodes: those that compute floats, by name; one that runs as a part of another has no entry.
    tensors: why a tensor that was to be quantized is not, by name.
    """

    nodes: dict[str, PlacedNode] = field(default_factory=dict)
    tensors: dict[str, Reason] = field(default_factory=dict)


def drop_quantizer(model: Model, name: str, reason: Reason) -> None:
    """Leave a tensor in float, where it is to be quantized, and those that keep its grid."""
    gone = {name} & set(model.quantizers)
    while followers := {n for n, q in model.quantizers.items() if q.grid_of in gone} - gone:
        gone |= followers
    for follower in gone:
        del model.quantizers[follower]
        model.placement.tensors[follower] = reason if follower == name else replace(reason, cause=name)


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
    placement: what stays in float, and why.
    moments: by tensor name.
    tied: weight -> table, by name: weights that are a table transposed (`graph.ties`).
    origin: what messages call the model, usually its path.
    is_large: its weights stay in files (`graph.large`).
    """

    graph: gs.Graph
    origin: str = "model"
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    placement: Placement = field(default_factory=Placement)
    moments: dict[str, Moments] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    header: ModelProto = field(default_factory=ModelProto)
    is_large: bool = False
    _names: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def from_proto(cls, proto: ModelProto, origin: str = "model", *, read_only: bool = False) -> Model:
        """Raises ModelError for content that graph surgeon would drop silently; where the model is `read_only`,
        and will not be turned into a protobuf again, such content is left out."""
        if read_only:
            proto = _without_losses(proto)
        else:
            _refuse_losses(proto, origin)
        graph = gs.import_onnx(proto)
        for inner in graph.subgraphs(recursive=True):
            for node in inner.nodes:
                node.in_subgraph = True
        graph.functions.clear()  # kept as they are in the header
        is_large = bool(large.references(proto))
        if is_large:
            large.spill(t for t in graph.tensors().values() if isinstance(t, gs.Constant))
        for value, tensor in zip(proto.graph.output, graph.outputs, strict=True):
            if tensor.shape is None and value.type.tensor_type.HasField("shape"):
                tensor.shape = ()  # graph surgeon takes a scalar's shape for none at all
        return cls(graph, origin, header=_header_of(proto), is_large=is_large)

    def to_proto(self) -> ModelProto:
        """The float model as it stands, with the metadata of the original; quantizers are not part of it."""
        if self.is_large:
            large.spill(self.initializers())
        proto = gs.export_onnx(self.graph, do_type_check=False)
        proto.MergeFrom(self.header)
        return proto

    def set_opset(self, opset: int, ir_version: int) -> None:
        """Declare a newer operator set of the standard domain, and at least this IR version."""
        self.graph.opset = opset
        for imported in self.graph.import_domains or ():
            if imported.domain in ("", "ai.onnx"):
                imported.version = opset
        self.header.ir_version = max(self.header.ir_version, ir_version)

    def convert(self, conversion: Callable[[ModelProto], ModelProto]) -> None:
        """Replace the graph by another one of the same function, and of the same names of tensors that stay."""
        other = self.converted(conversion)
        self.graph, self.header, self.is_large = other.graph, other.header, other.is_large
        self._names.clear()

    def clone(self) -> Model:
        """An independent model; weight arrays are shared until either side replaces one."""
        return self.converted(lambda proto: proto)

    def converted(self, conversion: Callable[[ModelProto], ModelProto]) -> Model:
        """The model, with this one's plan, that `conversion` makes of this one's outline: values of large constants
        pass by it, uncopied. What it makes must have the names of tensors that the plan speaks of."""
        shared = {c.name: (c.values, c.data_location) for c in self._large_constants()}  # read once for all copies
        other = Model.from_proto(conversion(self.outline()), self.origin)
        for constant in other.initializers():
            if constant.name in shared:
                constant._values, constant.data_location = shared[constant.name]
        other.is_large = self.is_large
        other.take_plan(self)
        return other

    def outline(self) -> ModelProto:
        """The protobuf of `to_proto` with references (`graph.large`) in place of the values of large constants: what
        the graph looks like, at no cost of its weights."""
        with self._without_large_values():
            return self.to_proto()

    def fingerprint(self) -> bytes:
        """SHA-256 of what the model computes: equal for equal graphs with equal weights, in this process."""
        part = self.outline()
        part.graph.ClearField("doc_string")
        digest = hashlib.sha256(ModelProto(graph=part.graph).SerializeToString(deterministic=True))
        for constant in self._large_constants():
            digest.update(constant.name.encode() + large.digest(constant._values))
        return digest.digest()

    def _large_constants(self) -> list[gs.Constant]:
        """Those whose values are worth keeping out of a protobuf; those of a large model are out of it anyway."""
        return [] if self.is_large else [c for c in self.initializers() if large.may_be_left_out(c)]

    @contextlib.contextmanager
    def _without_large_values(self) -> Iterator[None]:
        constants = [(c, c._values, c.data_location) for c in self._large_constants()]
        for constant, values, _ in constants:
            constant._values = large.stand_in(constant.name, values)
        try:
            yield
        finally:
            for constant, values, location in constants:
                constant._values, constant.data_location = values, location

    def take_plan(self, other: Model) -> None:
        """Adopt what is planned and known of another model of the same tensors."""
        self.quantizers, self.moments = dict(other.quantizers), dict(other.moments)
        self.placement = Placement(dict(other.placement.nodes), dict(other.placement.tensors))
        self.tied = other.tied

    def unique_name(self, stem: str) -> str:
        """A tensor name that nothing in the graph (subgraphs included) has: `stem`, or `stem_1`, ...

        The middle of a long stem is left out: exporters join the names of all operators that became one, and derived
        names of 500 letters made a small model larger than its float original.
        """
        if len(stem) > LONGEST_NAME:
            stem = f"{stem[: LONGEST_NAME // 2]}...{stem[3 - LONGEST_NAME // 2 :]}"
        if not self._names:
            self._names.update(tensor_names(self.graph))
        return unused_name(stem, self._names)

    def consumers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Nodes that read `tensor`, each once, those in subgraphs included."""
        return list({id(node): node for node in tensor.outputs}.values())

    def is_output(self, tensor: gs.Tensor) -> bool:
        return any(tensor is output for output in self.graph.outputs)

    def sole_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads `tensor`, once, where nothing else does: no other input, output or subgraph."""
        if len(tensor.outputs) == 1 and not self.is_output(tensor) and not in_subgraph(tensor.outputs[0]):
            return tensor.outputs[0]
        return None

    def is_shared(self, layer: LinearLayer) -> bool:
        """Whether others read a layer's weight, too, so that it cannot change for this layer alone."""
        return self.sole_consumer(layer.weight) is None or layer.weight.name in self.tied

    def reads_table(self, layer: LinearLayer) -> bool:
        """Whether a layer's weight is a table of which other nodes look up rows."""
        return layer.weight.name in self.tied or any(table_of(n) is layer.weight for n in layer.weight.outputs)

    def weight_quantizer(self, layer: LinearLayer) -> Quantizer | None:
        """The quantizer through which a layer reads its weight; None where it reads the weight in float."""
        quantizer = self.quantizers.get(layer.weight.name)
        return quantizer if quantizer is not None and layer.node.name in quantizer.readers else None

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


def _header_of(proto: ModelProto) -> ModelProto:
    """What graph surgeon does not carry, or not unchanged: metadata, documentation, functions."""
    header = ModelProto(ir_version=proto.ir_version, domain=proto.domain, model_version=proto.model_version)
    header.doc_string = proto.doc_string
    header.metadata_props.extend(proto.metadata_props)
    header.functions.extend(proto.functions)
    return header


def _refuse_losses(proto: ModelProto, origin: str) -> None:
    """Graph surgeon skips attributes of some types silently, fails on others, and cannot write some types."""
    for node in nodes_of(proto.graph):
        lost = [a.name for a in node.attribute if not _is_carried(a)]
        if lost:
            raise ModelError(
                f"{origin}: node {node.name or node.output[0]!r} ({node.op_type}) has attributes of a type that"
                f" cannot be carried over ({', '.join(sorted(lost))}); models with these are not supported"
            )
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        kind = value.type.WhichOneof("value")
        if kind == "sequence_type" and not value.type.sequence_type.elem_type.HasField("tensor_type"):
            kind = "sequence_type of other than tensors"
        if kind not in (None, "tensor_type", "sequence_type"):
            raise ModelError(f"{origin}: tensor {value.name!r} is of {kind}, which is not supported")


def _without_losses(proto: ModelProto) -> ModelProto:
    """The model without the attributes that graph surgeon skips, or fails on."""
    if all(_is_carried(attribute) for node in nodes_of(proto.graph) for attribute in node.attribute):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    for node in nodes_of(copy.graph):
        kept = [attribute for attribute in node.attribute if _is_carried(attribute)]
        del node.attribute[:]
        node.attribute.extend(kept)
    return copy


def _is_carried(attribute: AttributeProto) -> bool:
    kinds = AttributeProto
    try:
        text = [s.decode() for s in (attribute.s, *attribute.strings)]
    except UnicodeDecodeError:
        return False
    if attribute.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS):
        return bool(attribute.ints or attribute.floats or text[1:])  # an empty list loses its type
    return attribute.type in (kinds.FLOAT, kinds.INT, kinds.STRING, kinds.TENSOR, kinds.GRAPH)
