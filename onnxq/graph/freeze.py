"""Dynamic dimensions made static: many tool-chains run nothing of a model whose batch is open.

    NAME=1x3x224x224    the shape of an input; its named dimensions get their lengths wherever the model has these names
    NAME=1              a named dimension, wherever it stands

Inner shapes are then inferred anew, and what the model computes from shapes becomes constant as it is normalised.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import ModelProto, TensorShapeProto, ValueInfoProto

from ..errors import UsageError
from .serialized import graphs_of
from .shapes import infer_shapes


def parse_freeze(texts: Iterable[str]) -> list[tuple[str, tuple[int, ...]]]:
    """(name, lengths) of each text. Raises UsageError."""
    found = []
    for text in texts:
        match = re.fullmatch(r"(.+)=([1-9]\d{0,8}(?:[xX][1-9]\d{0,8})*)", text)
        if match is None:
            raise UsageError(
                f"`freeze` {text!r} is not of the form NAME=1x3x224x224 (an input) or NAME=1 (a named dimension)"
            )
        found.append((match[1], tuple(int(length) for length in match[2].lower().split("x"))))
    return found


def frozen(proto: ModelProto, texts: Sequence[str], origin: str) -> ModelProto:
    """The model with these axes fixed; the given one is not changed. Raises UsageError where they do not fit it."""
    if not texts:
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    constant = {tensor.name for tensor in copy.graph.initializer}
    inputs = {value.name: value for value in copy.graph.input if value.name not in constant}
    known = {d.dim_param for value in inputs.values() for d in _dims(value) if d.dim_param}
    lengths: dict[str, int] = {}
    for name, shape in parse_freeze(texts):
        if name in known and len(shape) == 1:
            _agree(lengths, {name: shape[0]}, origin)
        elif name in inputs:
            _agree(lengths, _fix_input(inputs[name], shape, origin), origin)
        else:
            names = {each.lower(): each for each in (*inputs, *known)}
            close = difflib.get_close_matches(name.lower(), names, 1)
            hint = f"; did you mean {names[close[0]]!r}?" if close else ""
            raise UsageError(
                f"`freeze` {name!r} is neither an input of {origin} ({', '.join(inputs)}) nor the name of a dynamic"
                f" dimension of one ({', '.join(sorted(known)) or 'it has none'}){hint}"
            )
    for value in (*copy.graph.input, *copy.graph.output):
        for dim in _dims(value):
            if dim.dim_param in lengths:
                dim.dim_value = lengths[dim.dim_param]
    for graph in graphs_of(copy.graph):
        del graph.value_info[:]
    trouble = _trouble(copy)
    if trouble and not _trouble(proto):
        raise UsageError(f"`freeze` {' '.join(texts)}: {origin} does not take such inputs: {trouble}")
    return infer_shapes(copy)


def _fix_input(value: ValueInfoProto, shape: tuple[int, ...], origin: str) -> dict[str, int]:
    """Give an input a shape; the lengths of its named dimensions."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        for length in shape:
            kind.shape.dim.add(dim_value=length)
        return {}
    dims = list(_dims(value))
    fits = len(dims) == len(shape) and all(
        length == dim.dim_value for dim, length in zip(dims, shape, strict=True) if dim.dim_value > 0
    )
    if not fits:
        words = ", ".join(str(dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?") for dim in dims)
        raise UsageError(
            f"`freeze` {value.name}={'x'.join(map(str, shape))}: input {value.name!r} of {origin} has the shape"
            f" ({words}), of which only dynamic dimensions can be chosen"
        )
    named = {dim.dim_param: length for dim, length in zip(dims, shape, strict=True) if dim.dim_param}
    for dim, length in zip(dims, shape, strict=True):
        if not dim.dim_param:
            dim.dim_value = length
    return named


def _agree(lengths: dict[str, int], more: Mapping[str, int], origin: str) -> None:
    """Add lengths of named dimensions to those that are known."""
    for name, length in more.items():
        if lengths.setdefault(name, length) != length:
            raise UsageError(
                f"`freeze` makes dimension {name!r} of {origin} {lengths[name]} as well as {length}: it has one length"
            )


def _dims(value: ValueInfoProto) -> Sequence[TensorShapeProto.Dimension]:
    """Dimensions of a tensor; none of what is none."""
    return value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ()


def _trouble(proto: ModelProto) -> str:
    """What does not fit in the shapes of a model; empty where all does."""
    try:
        onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except Exception as error:  # of onnx's own types
        return " ".join(str(error).split())[:300]
    return ""
