"""Ways to break a model: in its bytes, in its protobuf fields, in its graph. Each is mutate(model, rng) -> bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

Rng = np.random.Generator

INTEGERS = (0, 1, -1, 2, 3, 5, 7, 13, 16, 127, 255, 2**15, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e38, -1e38, 1e-38, 1e-45, float("nan"), float("inf"), -float("inf"), 0.5)
STRINGS = (
    "",
    "x",
    "y",
    "\n",
    "\x1b[2J",
    "ü✓",
    "a" * 3000,
    "../../x",
    "<b>",
    "w",
    "ai.onnx",
    "com.microsoft",
    "{}",
    "%s",
)
OPERATORS = (
    "Add", "Mul", "Relu", "Conv", "MatMul", "Gemm", "Concat", "Reshape", "Softmax", "BatchNormalization", "Transpose",
    "Identity", "Clip", "MaxPool", "AveragePool", "Flatten", "Split", "If", "Loop", "Constant", "Cast", "Resize",
    "ConvTranspose", "ReduceMean", "Dropout", "Shape", "Gather", "Squeeze", "Unsqueeze", "Pad", "LayerNormalization",
    "NoSuchOperator", "QuantizeLinear", "Expand", "Slice", "Where", "Pow", "Sqrt", "Div", "Sub", "GlobalAveragePool",
)  # fmt: skip
INTEGER_KINDS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
SIGNED_32 = (-(2**31), 2**31 - 1)
LARGEST = 2**20
"""Values of a tensor that is filled."""


def pick(rng: Rng, items: Any) -> Any:
    """One of `items`, a sequence that is not empty."""
    return items[int(rng.integers(len(items)))]


def mutate_bytes(model: ModelProto, rng: Rng) -> bytes:
    """Bits flipped, a stretch removed, repeated, filled with chance, or all from some place on cut off."""
    data = bytearray(model.SerializeToString())
    for _ in range(int(rng.integers(1, 3))):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
        action = int(rng.integers(5))
        if action == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif action == 1:
            del data[at : at + length]
        elif action == 2:
            data[at:at] = data[int(rng.integers(len(data))) :][:length]
        elif action == 3:
            data[at : at + length] = rng.bytes(length)
        elif rng.integers(4) == 0:
            del data[at:]
    return bytes(data)


def mutate_fields(model: ModelProto, rng: Rng) -> bytes:
    """Single fields of the protobuf, at any depth, set to extreme values, cleared, repeated, exchanged."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for _ in range(int(rng.integers(1, 3))):
        messages = list(_messages(copy))
        # By type first: else nearly all would be dimensions and tensors.
        kind = pick(rng, sorted({type(m).__name__ for m in messages}))
        message = pick(rng, [m for m in messages if type(m).__name__ == kind])
        _change_field(message, pick(rng, message.DESCRIPTOR.fields), rng)
    return copy.SerializeToString()


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if _is_repeated(field) else (value,):
                yield from _messages(inner)


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED)


def _change_field(message: Message, field: FieldDescriptor, rng: Rng) -> None:
    if _is_repeated(field):
        values = getattr(message, field.name)
        action = int(rng.integers(4))
        if action == 0 and len(values):
            del values[int(rng.integers(len(values)))]
        elif action == 1 and len(values):
            values.extend([pick(rng, list(values))])
        elif field.message_type is None:
            values.append(_value(field, rng))
        else:
            values.add()
    elif field.message_type is not None:
        if message.HasField(field.name):
            message.ClearField(field.name)
        else:
            getattr(message, field.name).SetInParent()
    elif rng.integers(4) == 0:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, rng))


def _value(field: FieldDescriptor, rng: Rng) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.bytes(int(rng.integers(16)))
    if field.type == FieldDescriptor.TYPE_STRING:
        return pick(rng, STRINGS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return pick(rng, field.enum_type.values).number
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return float(np.clip(pick(rng, FLOATS), -3e38, 3e38)) if rng.integers(2) else pick(rng, FLOATS)
    number = int(pick(rng, INTEGERS))
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT32:
        return min(max(number, SIGNED_32[0]), SIGNED_32[1])
    return number if field.cpp_type in INTEGER_KINDS else abs(number)


def mutate_graph(model: ModelProto, rng: Rng) -> bytes:
    """Nodes rewired, removed, repeated, exchanged; attributes, shapes and types changed."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for _ in range(int(rng.integers(1, 3))):
        pick(rng, CHANGES)(copy.graph, rng)
    return copy.SerializeToString()


def _tensors(graph: GraphProto) -> list[str]:
    made = [name for node in graph.node for name in node.output]
    return [*made, *(v.name for v in graph.input), *(t.name for t in graph.initializer)] or [""]


def _node(graph: GraphProto, rng: Rng) -> NodeProto:
    return pick(rng, graph.node) if graph.node else graph.node.add(op_type="Identity")


def _rewire(graph: GraphProto, rng: Rng) -> None:
    node = _node(graph, rng)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = pick(rng, [*_tensors(graph), ""])


def _other_operator(graph: GraphProto, rng: Rng) -> None:
    _node(graph, rng).op_type = pick(rng, OPERATORS)


def _more_or_fewer_inputs(graph: GraphProto, rng: Rng) -> None:
    inputs = _node(graph, rng).input
    if inputs and rng.integers(2):
        del inputs[-1]
    else:
        inputs.append(pick(rng, _tensors(graph)))


def _repeat_node(graph: GraphProto, rng: Rng) -> None:
    node, copy = _node(graph, rng), NodeProto()
    copy.CopyFrom(node)
    if rng.integers(2):  # else names come twice, which is invalid
        for index, name in enumerate(copy.output):
            copy.output[index] = f"{name}_again"
    nodes = list(graph.node)
    nodes.insert(int(rng.integers(len(nodes) + 1)), copy)
    del graph.node[:]
    graph.node.extend(nodes)


def _remove_node(graph: GraphProto, rng: Rng) -> None:
    if graph.node:
        index = int(rng.integers(len(graph.node)))
        node = graph.node[index]
        source, target = (node.input[0] if node.input else ""), set(node.output)
        del graph.node[index]
        if rng.integers(2):  # else what read it is left without
            for other in graph.node:
                for place, name in enumerate(other.input):
                    if name in target:
                        other.input[place] = source


def _change_attribute(graph: GraphProto, rng: Rng) -> None:
    node = _node(graph, rng)
    if not node.attribute or rng.integers(4) == 0:
        value = pick(rng, (1, -1, 7, [1, 1], [0], 0.5, "NOTSET", "SAME_UPPER", [2**31, 1]))
        name = pick(rng, ("axis", "group", "alpha", "transB", "pads", "strides", "dilations", "auto_pad", "perm", "to"))
        node.attribute.append(helper.make_attribute(name, value))
        return
    attribute = pick(rng, node.attribute)
    if rng.integers(4) == 0:
        node.attribute.remove(attribute)
    elif attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = int(pick(rng, INTEGERS))
    else:
        attribute.i, attribute.f = int(pick(rng, INTEGERS)), float(pick(rng, FLOATS))


def _change_values(graph: GraphProto, rng: Rng) -> None:
    """Weights that are all the same, huge, tiny, or not finite."""
    floats = [t for t in graph.initializer if t.data_type == TensorProto.FLOAT]
    floats = [t for t in floats if 0 <= math.prod(t.dims) <= LARGEST]  # shapes may have been mutated, too
    if floats:
        tensor = pick(rng, floats)
        count = math.prod(tensor.dims)
        values = np.full(count, pick(rng, FLOATS), np.float32)
        if rng.integers(2) and count:
            values = np.frombuffer(tensor.raw_data, np.float32).copy() if tensor.raw_data else values
            values[int(rng.integers(len(values)))] = pick(rng, FLOATS)
        tensor.ClearField("float_data")
        tensor.raw_data = values.tobytes()


def _change_shape(graph: GraphProto, rng: Rng) -> None:
    if graph.initializer and rng.integers(2):
        tensor = pick(rng, graph.initializer)
        if rng.integers(2) and tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = int(pick(rng, INTEGERS))
        else:
            tensor.dims.extend(list(reversed(tensor.dims)))
    else:
        values = [*graph.input, *graph.output, *graph.value_info]
        shape = pick(rng, values).type.tensor_type.shape if values else None
        if shape is not None and shape.dim:
            pick(rng, shape.dim).dim_value = int(pick(rng, INTEGERS))


def _change_type(graph: GraphProto, rng: Rng) -> None:
    kind = int(rng.integers(0, 26))
    if graph.initializer and rng.integers(2):
        pick(rng, graph.initializer).data_type = kind
    elif values := [*graph.input, *graph.output, *graph.value_info]:
        pick(rng, values).type.tensor_type.elem_type = kind


def _rename(graph: GraphProto, rng: Rng) -> None:
    """A tensor everywhere, or a node, to a name that is odd, or taken."""
    old, new = pick(rng, _tensors(graph)), pick(rng, [*STRINGS, *_tensors(graph)])
    if rng.integers(4) == 0:
        _node(graph, rng).name = new
        return
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        if value.name == old:
            value.name = new


def _other_output(graph: GraphProto, rng: Rng) -> None:
    name = pick(rng, _tensors(graph))
    if graph.output and rng.integers(2):
        pick(rng, graph.output).name = name
    else:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


CHANGES: tuple[Callable[[GraphProto, Rng], None], ...] = (
    _rewire, _rewire, _other_operator, _more_or_fewer_inputs, _repeat_node, _remove_node, _change_attribute,
    _change_values, _change_shape, _change_type, _rename, _other_output,
)  # fmt: skip
MUTATIONS: dict[str, Callable[[ModelProto, Rng], bytes]] = {
    "bytes": mutate_bytes,
    "fields": mutate_fields,
    "graph": mutate_graph,
}
