"""Operators that an older operator set does not have, as the operators of which ONNX's specification composes them.

The specification has such a function for Gelu, Swish, GroupNormalization, RMSNormalization, RotaryEmbedding, Attention,
LayerNormalization, Mish, HardSwish and more. Its text is for all types and shapes; written for one model it is
simplified where types and ranks are known:

    attributes            that a node leaves out get their defaults first: the function reads them
    CastLike(x, like)     Cast to the type of `like`; this and Cast are Identity where that is the type of x already
    Sum(x, y)             Add, as exporters write it, so that decomposed operators are recognised (`patterns`)
    Size(Shape(x))        the rank of x
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..operators.node import ONNX_DOMAINS
from .serialized import graphs_of, nodes_of
from .shapes import inferred_types

_CHANGED = {"GroupNormalization": 21}
"""Operators whose meaning changed with an operator set, and which ONNX's converter does not bring back behind it."""

_LEFT = ("AffineGrid",)
"""Operators whose function the converter does not bring through: it computes shapes inside of an If."""


def expand_newer(proto: ModelProto, opset: int, wanted: int) -> ModelProto:
    """The model without operators that came after the operator set `wanted`, as far as the specification composes them;
    the given one is not changed. opset: the model's, whose initializers are among its inputs: types come from there."""
    while names := sorted(_newer(proto, opset, wanted)):
        proto = _with_defaults(proto, opset, names)
        expanded = onnx.inliner.inline_selected_functions(
            proto, [("", name) for name in names], exclude=False, inline_schema_functions=True
        )
        if not any(node.op_type not in names for node in nodes_of(expanded.graph)):
            break
        proto = _simplified(expanded)
    return proto


def _newer(proto: ModelProto, opset: int, wanted: int) -> Iterator[str]:
    """Names of the operators that are to be expanded, and can be."""
    for name in {node.op_type for node in nodes_of(proto.graph) if node.domain in ONNX_DOMAINS}.difference(_LEFT):
        try:
            schema: Any = onnx.defs.get_schema(name, opset)  # onnx's stubs know nothing of functions
        except onnx.defs.SchemaError:
            continue
        can = schema.has_function or schema.has_context_dependent_function
        if can and (not onnx.defs.has(name, wanted, "") or wanted < _CHANGED.get(name, 0) <= schema.since_version):
            yield name


def _with_defaults(proto: ModelProto, opset: int, names: list[str]) -> ModelProto:
    """A copy in which nodes of these operators state all attributes that have a default."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for node in nodes_of(copy.graph):
        if node.domain in ONNX_DOMAINS and node.op_type in names:
            stated = {attribute.name for attribute in node.attribute}
            for name, attribute in onnx.defs.get_schema(node.op_type, opset).attributes.items():
                if name not in stated and attribute.default_value.name:
                    node.attribute.append(attribute.default_value)
    return copy


def _simplified(proto: ModelProto) -> ModelProto:
    """The model, changed, with what functions wrote for all types as it is for the types that there are."""
    types: dict[str, int] = {}
    ranks: dict[str, int] = {}
    inferred = inferred_types(proto)
    for graph in graphs_of(inferred.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            kind = value.type.tensor_type
            types[value.name] = kind.elem_type
            if kind.HasField("shape"):
                ranks[value.name] = len(kind.shape.dim)
        for initializer in graph.initializer:
            types[initializer.name], ranks[initializer.name] = initializer.data_type, len(initializer.dims)
    shapes = {node.output[0]: node.input[0] for node in nodes_of(proto.graph) if _is_whole_shape(node)}
    for node in nodes_of(proto.graph):
        if node.domain not in ONNX_DOMAINS:
            continue
        if node.op_type == "CastLike" and types.get(node.input[1]):
            _become_cast(node, types.get(node.input[0], 0), types[node.input[1]])
        elif node.op_type == "Cast" and types.get(node.input[0]) == _cast_to(node):
            node.op_type = "Identity"
            del node.attribute[:]
        elif node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"
        elif node.op_type == "Size" and (rank := ranks.get(shapes.get(node.input[0], ""))) is not None:
            del node.input[:]
            node.op_type = "Constant"
            number = helper.make_tensor("rank", TensorProto.INT64, [], [rank])
            node.attribute.append(helper.make_attribute("value", number))
    return proto


def _is_whole_shape(node: NodeProto) -> bool:
    return node.op_type == "Shape" and node.domain in ONNX_DOMAINS and not node.attribute


def _cast_to(node: NodeProto) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


def _become_cast(node: NodeProto, source: int, wanted: int) -> None:
    """Make a CastLike a Cast, or Identity where there is nothing to cast."""
    del node.input[1], node.attribute[:]
    if source == wanted:
        node.op_type = "Identity"
    else:
        node.op_type = "Cast"
        node.attribute.append(helper.make_attribute("to", wanted))
