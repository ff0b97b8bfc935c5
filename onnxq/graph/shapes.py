"""Types and shapes of inner tensors, from ONNX's shape inference, and arithmetic on shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import google.protobuf.message
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..operators.node import is_op
from . import large
from .serialized import graphs_of


def infer_shapes(proto: ModelProto) -> ModelProto:
    """The model with all types and shapes that ONNX can infer; as it was where inference fails altogether."""
    try:
        return without_odd_values(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except (onnx.shape_inference.InferenceError, google.protobuf.message.EncodeError, ValueError, RuntimeError):
        return proto


def inferred_types(proto: ModelProto) -> ModelProto:
    """What `infer_shapes` gives, but without the values of weights: inference would copy them four times."""
    return infer_shapes(large.without_values(proto))


def odd_values(proto: ModelProto) -> bool:
    """Whether it notes types of inner values that graph surgeon has no words for: optional values, maps."""
    return any(not is_plain(v.type) for graph in graphs_of(proto.graph) for v in graph.value_info)


def without_odd_values(proto: ModelProto) -> ModelProto:
    """The model, changed, without such notes; whoever needs them infers them again."""
    for graph in graphs_of(proto.graph):
        kept = [value for value in graph.value_info if is_plain(value.type)]
        if len(kept) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(kept)
    return proto


def is_plain(kind: onnx.TypeProto) -> bool:
    """Whether a type is none, a tensor, or a sequence of tensors."""
    which = kind.WhichOneof("value")
    return which in (None, "tensor_type") or (
        which == "sequence_type" and kind.sequence_type.elem_type.WhichOneof("value") == "tensor_type"
    )


def dynamic_inputs(proto: ModelProto, feed: Mapping[str, np.ndarray]) -> str:
    """What to say of inputs with dynamic dimensions, with the option that makes them static as in `feed`; empty where
    there are none."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    words, options = [], []
    for value in proto.graph.input:
        kind = value.type.tensor_type
        if value.name in constant or not value.type.HasField("tensor_type"):
            continue
        dims = [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in kind.shape.dim]
        if kind.HasField("shape") and all(isinstance(d, int) for d in dims):
            continue
        shape = feed[value.name].shape if value.name in feed else [d if isinstance(d, int) else 1 for d in dims]
        words.append(f"{value.name!r} ({', '.join(map(str, dims))})")
        options.append(f"`freeze` {value.name}={'x'.join(map(str, shape))}")
    if not words:
        return ""
    return f"input {', '.join(words)} has dynamic dimensions: {' '.join(options)} makes them static"


def tensor_bytes(proto: ModelProto, names: Iterable[str], feed: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Size of each tensor in bytes for inputs shaped as in `feed`.

    Where inference leaves a dimension open, the largest tensor that is known stands in.
    """
    fixed = large.without_values(proto)
    for value in fixed.graph.input:
        if value.name in feed:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for length in feed[value.name].shape:
                shape.dim.add(dim_value=length)
    for value in (*fixed.graph.value_info, *fixed.graph.output):  # written for other input shapes, perhaps
        value.type.tensor_type.ClearField("shape")
    graph = infer_shapes(fixed).graph
    sizes = {v.name: _bytes(v) for v in (*graph.value_info, *graph.output, *graph.input)}
    largest = max((size for size in sizes.values() if size), default=0)
    return {name: sizes.get(name) or largest for name in names}


def _bytes(value: onnx.ValueInfoProto) -> int | None:
    """None where a dimension or the type is not known."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        return None
    try:
        itemsize = int(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)
    except (KeyError, TypeError):
        return None
    return int(np.prod([d.dim_value for d in kind.shape.dim], dtype=np.int64)) * itemsize


Dim: TypeAlias = "int | str | None"
"""A dimension: its length, the name of a dynamic one, None where nothing is known."""


def shape_elements(tensor: gs.Tensor) -> list[Dim] | None:
    """Elements of an integer tensor of rank 0 or 1 that is computed from shapes; None if it is no such tensor."""
    if isinstance(tensor, gs.Constant):
        is_shape = tensor.dtype == np.int64 and len(tensor.shape) < 2
        return [int(v) for v in np.ravel(tensor.values)] if is_shape else None
    node = tensor.inputs[0] if tensor.inputs else gs.Node("")
    if is_op(node, "Shape") and node.inputs[0].shape is not None:
        dims = [None if isinstance(d, int) and d < 0 else d for d in node.inputs[0].shape]
        return dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    if is_op(node, "Concat"):
        parts = [shape_elements(t) for t in node.inputs]
        return None if None in parts else [d for part in parts for d in part or ()]
    constants = [t.values for t in node.inputs[1:] if isinstance(t, gs.Constant)]
    if not is_op(node, "Gather", "Slice", "Unsqueeze") or len(constants) < len(node.inputs) - 1:
        return None
    source = shape_elements(node.inputs[0])
    if source is None:
        return None
    if is_op(node, "Gather"):
        fits = constants[0].ndim < 2 and all(-len(source) <= i < len(source) for i in constants[0].flat)
        return [source[int(i)] for i in constants[0].flat] if fits else None
    if is_op(node, "Slice"):
        start, stop = int(constants[0][0]), int(constants[1][0])
        step = int(constants[3][0]) if len(constants) > 3 else 1
        return source[start:stop:step] if step > 0 else None
    return source if node.inputs[0].shape is not None and len(node.inputs[0].shape) == 0 else None


def order_of_axes(
    source: Sequence[int | str | None] | None, target: Sequence[int | str | None] | None
) -> tuple[int, ...] | None:
    """p with target[i] = source[p[i]], where a Reshape from one shape to the other moves axes of length 1 only.

    None where it does more, or lengths are not known: one of each may be, which the others then tell. Axes of length 1
    stay in order among themselves.
    """
    if source is None or target is None or len(source) != len(target):
        return None
    if any(sum(not isinstance(size, int) for size in shape) > 1 for shape in (source, target)):
        return None

    def known(shape: Sequence[int | str | None]) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in shape]

    ones, longs = [[axis for axis, size in enumerate(source) if (size == 1) is short] for short in (True, False)]
    if 0 in source or [s for s in known(source) if s != 1] != [s for s in known(target) if s != 1]:
        return None
    return tuple(ones.pop(0) if size == 1 else longs.pop(0) for size in target)
