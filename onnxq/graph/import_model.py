"""A model as users bring it, in the form that the rest works on; the function stays.

    operator set 6              13: ONNX Runtime runs nothing below 7
    local functions             inlined: what is inside of them is to be quantized, too; those of operators that users
                                have registered are kept
    sparse initializers         made dense: no kernel that matters here reads them
    nodes that share a name     renamed, for ONNX Runtime refuses them though ONNX does not
    types of optional values    not noted any more, for they can be inferred
    empty names behind inputs   gone: ONNX Runtime 1.32 dies of them as it fuses Add and LayerNormalization
    float16, bfloat16, double   float32 (`precision`)
    weights as nodes of a body  initializers of the body (`inner_constants`)

A model that has none of these stays as it is.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx.defs
import onnx.inliner
from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

from ..errors import ModelError
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import registered
from .inner_constants import with_inner_constants
from .opset import OLDEST_OPSET, convert_opset, opset_of
from .precision import as_float32
from .sanitize import LARGEST_INPUT
from .serialized import nodes_of, unused_name
from .shapes import odd_values, without_odd_values


def import_model(proto: ModelProto, origin: str) -> ModelProto:
    """The model in the form above; the given one is not changed. Raises ModelError."""
    if proto.functions:
        try:
            proto = onnx.inliner.inline_selected_functions(proto, list(registered()), exclude=True)
        except Exception as error:  # onnx raises its own types, and RuntimeError
            raise ModelError(f"{origin}: local functions cannot be inlined: {' '.join(str(error).split())}") from None
    if proto.graph.sparse_initializer:
        proto = _copy(proto)
        proto.graph.initializer.extend(_dense(sparse, origin) for sparse in proto.graph.sparse_initializer)
        del proto.graph.sparse_initializer[:]
    if odd_values(proto):
        proto = without_odd_values(_copy(proto))
    counts = Counter(node.name for node in nodes_of(proto.graph) if node.name)
    if any(count > 1 for count in counts.values()):
        proto = _copy(proto)
        _rename_nodes(proto, set(counts))
    if any(_inputs_to_drop(node, proto) for node in nodes_of(proto.graph)):
        proto = _copy(proto)
        for node in nodes_of(proto.graph):
            if count := _inputs_to_drop(node, proto):
                del node.input[-count:]
    if opset_of(proto) == OLDEST_OPSET:
        proto = convert_opset(proto, 13, origin)
    return with_inner_constants(as_float32(proto, origin))


def _copy(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _inputs_to_drop(node: NodeProto, proto: ModelProto) -> int:
    """How many optional inputs at the end are left out by an empty name: to name none is the same."""
    named = next((place for place in range(len(node.input), 0, -1) if node.input[place - 1]), 0)
    opset = opset_of(proto)
    if named == len(node.input) or node.domain not in ONNX_DOMAINS or opset is None:
        return 0
    try:
        least = int(onnx.defs.get_schema(node.op_type, opset).min_input)
    except onnx.defs.SchemaError:
        return 0
    return len(node.input) - max(named, least)


def _dense(sparse: SparseTensorProto, origin: str) -> TensorProto:
    """indices: flat ones (n,), or a row of coordinates for each value (n, rank)."""
    shape, name = tuple(sparse.dims), sparse.values.name
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if math.prod(shape) * values.itemsize > LARGEST_INPUT:
        raise ModelError(f"{origin}: sparse initializer {name!r} of shape {list(shape)} is too large to be made dense")
    dense = np.zeros(shape, values.dtype)
    dense[np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)] = values
    return numpy_helper.from_array(dense, name)


def _rename_nodes(proto: ModelProto, taken: set[str]) -> None:
    """The first of several nodes keeps its name, others get a number."""
    seen: set[str] = set()
    for node in nodes_of(proto.graph):
        if node.name in seen:
            node.name = unused_name(node.name, taken)
        if node.name:
            seen.add(node.name)
