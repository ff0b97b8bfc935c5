"""What the result stores in float, and why: where the bytes are that quantization left."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto

from ..graph.model import Model
from ..graph.serialized import graphs_of, nodes_of
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import linear_form
from ..report import FloatConstant
from ..thresholds import SMALLEST_TABLE

_ITEM_BYTES: Mapping[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.DOUBLE: 8,
}
_LEAST_BYTES = 4 * SMALLEST_TABLE


def float_constants(proto: ModelProto, plan: Model) -> tuple[FloatConstant, ...]:
    """Of the result, which was lowered from the plan: those that are worth a word, the largest first."""
    readers: dict[str, NodeProto] = {}
    for node in nodes_of(proto.graph):
        for name in node.input:
            readers.setdefault(name, node)
    tensors = (t for graph in graphs_of(proto.graph) for t in graph.initializer if _float_bytes(t) >= _LEAST_BYTES)
    found = [_record(tensor, readers.get(tensor.name), plan) for tensor in tensors]
    return tuple(sorted(found, key=lambda c: (-c.bytes, c.tensor)))


def _float_bytes(tensor: TensorProto) -> int:
    """Of floats, 0 of others; those in files beside the model count as well."""
    return _ITEM_BYTES.get(tensor.data_type, 0) * math.prod(tensor.dims)


def _record(tensor: TensorProto, reader: NodeProto | None, plan: Model) -> FloatConstant:
    name, op = ("", "") if reader is None else (reader.name, reader.op_type)
    return FloatConstant(tensor.name, _float_bytes(tensor), name, op, _reason(tensor.name, reader, plan))


def _reason(tensor: str, reader: NodeProto | None, plan: Model) -> str:
    known = plan.placement.tensors.get(tensor)
    if known is not None:
        return known.text
    if reader is None:
        return "it is an output of the model"
    if reader.op_type in ("DequantizeLinear", "QuantizeLinear") and reader.domain in ONNX_DOMAINS:
        return "scales of quantized tensors"
    placed = plan.placement.nodes.get(reader.name)
    if placed is not None and placed.reason is not None:
        return placed.reason.text
    form = linear_form(reader.op_type, reader.domain)
    if form is not None and form.bias is not None and list(reader.input).index(tensor) == form.bias:
        return "it is a bias"
    return f"{reader.op_type} reads it, and computes in float"
