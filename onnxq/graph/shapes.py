"""Types and shapes of inner tensors, from ONNX's shape inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import ModelProto


def infer_shapes(proto: ModelProto) -> ModelProto:
    """The model with all types and shapes that ONNX can tell; as it was where inference fails altogether."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return proto


def tensor_bytes(proto: ModelProto, names: Iterable[str], feed: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Size of each tensor in bytes for inputs shaped as in `feed`.

    Where inference leaves a dimension open, the largest tensor that is known stands in.
    """
    fixed = ModelProto()
    fixed.CopyFrom(proto)
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
