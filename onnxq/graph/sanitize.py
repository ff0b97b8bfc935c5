"""What the ONNX checker lets through, and numpy, graph surgeon or ONNX Runtime would stumble over.

strings       UTF-8
attributes    have values: outside of functions there is nothing to refer to
tensors       a type that onnx knows, no segments, dimensions that are not negative, data of the size that they need
values        element types that onnx knows; inputs that fit into memory
graphs        within graphs, but not too deep: ONNX Runtime 1.23 takes twice as long for each level
"""

from __future__ import annotations

import math

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from ..errors import ModelError
from .serialized import bodies_of, constants_of, graphs_of, nodes_of

LARGEST_INPUT = 2**33
"""Bytes that one input of fixed size may take; a sample is held in memory as a whole."""

DEEPEST = 10
"""Graphs within graphs."""

_BITS = {
    TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4,
    **{TensorProto.DataType.Value(name): 2 for name in ("UINT2", "INT2") if name in TensorProto.DataType.keys()},  # noqa: SIM118
}  # fmt: skip
"""Types of which several elements share a byte."""


def refuse_unsound(proto: ModelProto, origin: str) -> None:
    """Raise ModelError for tensors and values that are not what they claim to be."""
    if garbled := _garbled(proto):
        raise ModelError(f"{origin}: not a valid ONNX model: {garbled} is not UTF-8")
    if (depth := _depth(proto.graph)) > DEEPEST:
        raise ModelError(f"{origin}: graphs within graphs, {depth} levels deep; at most {DEEPEST} are supported")
    for node in nodes_of(proto.graph):
        if referring := [a.name for a in node.attribute if a.ref_attr_name]:
            raise ModelError(
                f"{origin}: not a valid ONNX model: node {node.name!r} ({node.op_type}) takes"
                f" {', '.join(referring)} from a function's attribute, but is in no function"
            )
    for tensor in constants_of(proto):
        if flaw := _flaw(tensor):
            raise ModelError(f"{origin}: not a valid ONNX model: tensor {tensor.name!r} {flaw}")
    for value in (v for g in graphs_of(proto.graph) for v in (*g.input, *g.output, *g.value_info)):
        if not _is_known(value.type):
            raise ModelError(f"{origin}: not a valid ONNX model: {value.name!r} is of an unknown element type")
    for value in proto.graph.input:
        if _bytes(value) > LARGEST_INPUT:
            raise ModelError(f"{origin}: input {value.name!r} takes {_bytes(value)} bytes; at most {LARGEST_INPUT} may")


def _depth(graph: GraphProto) -> int:
    """1 for a graph without subgraphs. The parser lets through no more than some 30."""
    return 1 + max((_depth(body) for node in graph.node for body in bodies_of(node)), default=0)


def _garbled(message: Message) -> str | None:
    """The first string that is none, which protobuf hands out as bytes. Of tensors only the name is looked at."""
    if isinstance(message, TensorProto):
        return "the name of a tensor" if isinstance(message.name, bytes) else None  # type: ignore[unreachable]
    for field, value in message.ListFields():
        values = value if hasattr(value, "append") else (value,)
        if field.type == FieldDescriptor.TYPE_STRING and any(isinstance(text, bytes) for text in values):
            return f"{field.name} in a {message.DESCRIPTOR.name}"
        if field.message_type is not None:
            found = next((f for f in map(_garbled, values) if f is not None), None)
            if found is not None:
                return found
    return None


def _flaw(tensor: TensorProto) -> str | None:
    kind = tensor.data_type
    if kind not in TensorProto.DataType.values() or kind == TensorProto.UNDEFINED:
        return f"is of unknown type {kind}"
    if tensor.HasField("segment"):
        return "is one segment of several, which no runtime reads"
    if any(d < 0 for d in tensor.dims):
        return f"has a negative dimension: {list(tensor.dims)}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    expected, got = _lengths(tensor)
    return None if expected == got else f"of shape {list(tensor.dims)} needs {expected} values or bytes, has {got}"


def _lengths(tensor: TensorProto) -> tuple[int, int]:
    """How much data the shape needs, and how much there is: bytes where stored raw, else entries."""
    count, kind = math.prod(tensor.dims), tensor.data_type
    bits = _BITS.get(kind)
    if kind == TensorProto.STRING:
        return count, len(tensor.string_data)
    if tensor.HasField("raw_data"):
        itemsize = int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
        return (count * itemsize if bits is None else -(-count * bits // 8)), len(tensor.raw_data)
    got = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(kind)))
    if bits is not None:
        return -(-count * bits // 8), got
    return (2 * count if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else count), got


def _is_known(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        return bool(getattr(kind, which).elem_type in TensorProto.DataType.values())
    if which in ("sequence_type", "optional_type"):
        return _is_known(getattr(kind, which).elem_type)
    return True


def _bytes(value: ValueInfoProto) -> int:
    """Of a tensor, dynamic dimensions taken as 1."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    itemsize = int(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)
    return itemsize * int(math.prod(max(d.dim_value, 1) for d in kind.shape.dim))
