"""Models whose weights are float16, bfloat16 or double, as float32 models: the one type that the rest works on.

    input x (float16) -> Cast -> x_float32 -> [ the network in float32 ] -> y_float32 -> Cast -> output y (float16)

What stays in float is stored in float16 again at last (`stored_as_given`). Half precision widens to float32 exactly. A
double loses what no 8-bit grid could have kept; one too large for float32 is refused. Inputs and outputs keep their
types, so that the model can take the place of the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from ..errors import ModelError
from ..operators.registry import linear_form, registered
from . import large
from .serialized import graphs_of, names_of, nodes_of, unused_name
from .shapes import inferred_types

WIDENED_FROM = "onnxq.float32_from"
"""Metadata of a model that was brought to float32: the types that it came in."""

_NAMES: Mapping[int, str] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "double",
}
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")
"""Attributes of standard operators that name the element type of what the operator makes."""


def as_float32(proto: ModelProto, origin: str) -> ModelProto:
    """The model in float32 where linear layers have weights of another float type; as it is, otherwise. ModelError."""
    found = _types_of_weights(proto)
    if not found:
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    if copy.functions:
        copy = onnx.inliner.inline_selected_functions(copy, list(registered()), exclude=True)
    for attribute in (a for function in copy.functions for node in function.node for a in node.attribute):
        _widen_attribute(attribute, found, origin)
    boundary = [v for v in (*copy.graph.input, *copy.graph.output) if _changes(v.type, found)]
    weights = {t.name for t in copy.graph.initializer}
    listed = weights & {v.name for v in copy.graph.input}
    for value in boundary:
        _refuse_boundary(value, origin)
    boundary = [v for v in boundary if v.name not in listed]
    types = _element_types(copy)
    for graph in graphs_of(copy.graph):
        _widen(graph, types, found, origin, listed if graph is copy.graph else None)
    _cast_boundary(copy.graph, {v.name: v.type.tensor_type.elem_type for v in boundary})
    entry = copy.metadata_props.add()
    entry.key, entry.value = WIDENED_FROM, ", ".join(sorted(_NAMES[kind] for kind in found))
    return copy


def stored_as_given(proto: ModelProto) -> ModelProto:
    """The result of a model that came in float16, with its float constants stored as they came: what is left in float
    computes in float32, and takes no more room than before.

    constant (float16) -> Cast -> its readers (float32): runtimes evaluate the Cast when they load the model. Only
    what float16 holds to its own precision is stored so (steps of the pipeline may have scaled it), and no scales
    of QuantizeLinear and DequantizeLinear, which must be constants.
    """
    came_in = next((entry.value for entry in proto.metadata_props if entry.key == WIDENED_FROM), "")
    if "float16" not in came_in.split(", "):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    scales = {name for node in nodes_of(graph) for name in node.input[1:] if node.op_type.endswith("eLinear")}
    scales |= {value.name for value in graph.output}
    taken = names_of(graph)
    casts: list[NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in scales or math.prod(tensor.dims) < _WORTH_A_CAST:
            continue
        values, name = large.array(tensor), tensor.name
        with np.errstate(over="ignore"):
            half = np.asarray(values, np.float16)
        if not np.allclose(half, values, rtol=2.0**-11, atol=2.0**-25, equal_nan=True):
            continue
        stored = unused_name(f"{name}_float16", taken)
        tensor.CopyFrom(large.tensor(half, stored, spilled=large.is_reference(tensor)))
        casts.append(_cast(stored, name, TensorProto.FLOAT))
    nodes = [*casts, *(node for node in graph.node)]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


_WORTH_A_CAST = 256
"""Elements from which on a constant in float16 saves more than the node that widens it takes."""


def _types_of_weights(proto: ModelProto) -> set[int]:
    """Float types, other than float32, that weights of linear layers have."""
    found = set()
    bodies = [proto.graph, *(GraphProto(node=f.node) for f in proto.functions)]
    for graph in (inner for body in bodies for inner in graphs_of(body)):
        kinds = {t.name: t.data_type for t in graph.initializer}
        kinds |= {n.output[0]: a.t.data_type for n in graph.node if n.op_type == "Constant" for a in n.attribute}
        linear = ((n, linear_form(n.op_type, n.domain)) for n in graph.node)
        read = {n.input[form.weight] for n, form in linear if form is not None and len(n.input) > form.weight}
        found |= {kind for name, kind in kinds.items() if name in read and kind in _NAMES}
    return found


def _element_types(proto: ModelProto) -> dict[str, int]:
    """Element types of the main graph's tensors, as far as ONNX can infer them."""
    graph = inferred_types(proto).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return types | {t.name: t.data_type for t in graph.initializer}


def _element(kind: TypeProto) -> TypeProto.Tensor | None:
    """Where a type says of which elements it is: its own, or those of the sequence or optional that it is."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return kind.tensor_type
    if which in ("sequence_type", "optional_type"):
        return _element(getattr(kind, which).elem_type)
    return None


def _changes(kind: TypeProto, found: set[int]) -> bool:
    element = _element(kind)
    return element is not None and element.elem_type in found


def _refuse_boundary(value: onnx.ValueInfoProto, origin: str) -> None:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(f"{origin}: {value.name!r} is a {kind} of half or double precision; export it in float32")
    if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
        raise ModelError(
            f"{origin}: {value.name!r} is bfloat16, which cannot be fed through ONNX Runtime's Python interface;"
            " export the model with float32 inputs and outputs (weights may be bfloat16)"
        )


def _widen(graph: GraphProto, types: dict[str, int], found: set[int], origin: str, listed: set[str] | None) -> None:
    """All tensors of one graph. listed: inputs of the main graph that are initializers; others keep their types."""
    for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
        _widen_tensor(tensor, found, origin)
    values = [*graph.value_info]
    values += [v for v in graph.input if listed is None or v.name in listed]
    values += graph.output if listed is None else ()
    for value in values:
        _widen_type(value.type, found)
    floats = found | {TensorProto.FLOAT}
    for node in graph.node:
        for attribute in node.attribute:
            _widen_attribute(attribute, found, origin)
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        if node.op_type == "Cast" and types.get(node.input[0]) in floats and to == TensorProto.FLOAT:
            node.op_type = "Identity"
            del node.attribute[:]


def _widen_attribute(attribute: AttributeProto, found: set[int], origin: str) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT and attribute.i in found:
        attribute.i = TensorProto.FLOAT
    for tensor in (*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors):
        _widen_tensor(tensor, found, origin)
    if attribute.HasField("sparse_tensor"):
        _widen_tensor(attribute.sparse_tensor.values, found, origin)
    if attribute.HasField("tp"):
        _widen_type(attribute.tp, found)


def _widen_type(kind: TypeProto, found: set[int]) -> None:
    element = _element(kind)
    if element is not None and element.elem_type in found:
        element.elem_type = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto, found: set[int], origin: str) -> None:
    if tensor.data_type not in found:
        return
    values, name = large.array(tensor), tensor.name
    with np.errstate(over="ignore"):
        narrow = np.asarray(values, np.float32)
    if np.isinf(narrow).sum() > np.isinf(values).sum():
        raise ModelError(f"{origin}: constant {tensor.name!r} holds doubles beyond the range of float32")
    tensor.CopyFrom(large.tensor(narrow, name, spilled=large.is_reference(tensor)))


def _cast_boundary(graph: GraphProto, kinds: dict[str, int]) -> None:
    """Casts behind inputs and before outputs, whose types are `kinds`."""
    taken = names_of(graph)
    fresh: dict[str, str] = {}
    for name in kinds:
        fresh[name] = unused_name(f"{name}_float32", taken)
    for node in nodes_of(graph):
        node.input[:] = [fresh.get(name, name) for name in node.input]
        node.output[:] = [fresh.get(name, name) for name in node.output]
    inner = [o for g in list(graphs_of(graph))[1:] for o in g.output]
    named: list[TensorProto | ValueInfoProto] = [*graph.initializer, *graph.value_info, *inner]
    for value in named:
        value.name = fresh.get(value.name, value.name)
    inputs = {v.name for v in graph.input}
    before = [_cast(name, fresh[name], TensorProto.FLOAT) for name in kinds if name in inputs]
    after = [_cast(fresh[name], name, kind) for name, kind in kinds.items() if name not in inputs]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=target, to=kind)
