"""Tensors that a model keeps in files beside it (ONNX IR, "External Tensor Data").

    location   path relative to the model's folder, with / between names
    offset     bytes from the file's begin; 0 if missing
    length     bytes; to the file's end if missing

A model comes from anywhere, so a location may lead nowhere but to a regular file below the model's folder: no absolute
path, no `..`, no symbolic link, no file with a second name, no pipe, no device.

Written are files `MODEL.onnx.HASH.data`, where HASH begins the SHA-256 of the content: what a model refers to is never
overwritten by another one's, so that a model can be replaced together with its data.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto

from ..errors import ModelError
from . import large
from .large import Place
from .serialized import constants_of

SMALLEST, PAGE = 1024, 4096
"""Bytes: of a tensor that is written to a file, and what its beginnings there are multiples of."""

_HASH_DIGITS = 12


def load(proto: ModelProto, folder: Path) -> None:
    """Put all external tensors into the model; those of a large one become references (`graph.large`).

    Raises ModelError, with the tensor's name, and OSError.
    """
    places = [(t, locate(t, folder)) for t in constants_of(proto) if t.data_location == TensorProto.EXTERNAL]
    is_large = sum(place.length for _, place in places) > large.LARGE
    initializers = {id(t) for t in proto.graph.initializer}
    for tensor, place in places:
        whole_bytes = tensor.data_type not in _PACKED
        if is_large and place.length >= large.SMALLEST and id(tensor) in initializers and whole_bytes:
            large.refer(tensor, place)
        else:
            embed(tensor, place)


def embed(tensor: TensorProto, place: Place) -> None:
    """Put the bytes at a place into the tensor."""
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        data = file.read(place.length)
    if len(data) != place.length:
        raise ModelError(f"tensor {tensor.name!r}: {place.path.name} has become shorter while it was read")
    tensor.raw_data = data
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def locate(tensor: TensorProto, folder: Path) -> Place:
    """Where an external tensor lies, all of it. Raises ModelError."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"tensor {tensor.name!r}"
    path = _path(entries.get("location", ""), folder, where)
    size = path.stat().st_size
    offset = _number(entries.get("offset", "0"), where)
    expected = _bytes(tensor, where)
    length = _number(entries["length"], where) if entries.get("length") else expected
    if length != expected:
        raise ModelError(f"{where}: expected {expected} bytes for its type and shape, got a length of {length}")
    if offset + length > size:
        raise ModelError(f"{where}: expected {length} bytes at {offset} of {path.name}, which has {size}")
    return Place(path, offset, length)


def _path(location: str, folder: Path, where: str) -> Path:
    names = PurePosixPath(location.removeprefix("./")).parts
    odd = not names or "\0" in location or "\\" in location or location.startswith("/") or ".." in names
    if odd or Path(location).is_absolute() or Path(location).drive:
        raise ModelError(f"{where}: location {location[:200]!r} leads out of the model's folder, or nowhere")
    path = folder
    try:
        for name in names:
            path = path / name
            if stat.S_ISLNK(os.lstat(path).st_mode):
                raise ModelError(f"{where}: location {location!r} is a symbolic link, which may lead anywhere")
        status = os.lstat(path)
    except OSError as error:
        raise ModelError(f"{where}: location {location[:200]!r}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{where}: location {location!r} is no regular file")
    if status.st_nlink > 1:
        raise ModelError(f"{where}: location {location!r} is a hard link, another name of a file that may be anywhere")
    return path


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ModelError(f"{where}: expected a number of bytes as offset and length, got {text[:40]!r}")
    return int(text)


def _bytes(tensor: TensorProto, where: str) -> int:
    """What the type and the shape take."""
    count = 1
    for size in tensor.dims:
        count *= size
    if min(tensor.dims, default=0) < 0:
        raise ModelError(f"{where}: negative dimension in {list(tensor.dims)}")
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, ValueError, TypeError):
        raise ModelError(f"{where}: type {tensor.data_type} cannot be kept in a file") from None
    bits: int = _PACKED.get(tensor.data_type, 8 * dtype.itemsize)
    return -(-count * bits // 8)


_PACKED = {
    getattr(TensorProto, name): bits
    for name, bits in (("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2))
    if hasattr(TensorProto, name)
}


def moved_out(proto: ModelProto, path: Path) -> ModelProto:
    """A copy of the model, to be written to `path`, with its large initializers in a file beside that, which is written
    here: each at a page of its own, as it is mapped. Raises OSError."""
    result, moved = _without_initializers(proto), []
    unnamed, digest = path.with_name(f"{path.name}.data"), hashlib.sha256()
    with open(unnamed, "wb") as file:
        for tensor in proto.graph.initializer:
            if not large.is_reference(tensor) and len(tensor.raw_data) < SMALLEST:
                result.graph.initializer.append(tensor)
                continue
            gap = bytes(-file.tell() % PAGE)
            begin = file.tell() + len(gap)
            for chunk in itertools.chain([gap], _content(tensor)):
                digest.update(chunk)
                file.write(chunk)
            light = result.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            moved.append((light, begin, file.tell() - begin))
        file.flush()
        os.fsync(file.fileno())
    named = path.with_name(f"{path.name}.{digest.hexdigest()[:_HASH_DIGITS]}.data")
    os.replace(unnamed, named)
    for light, offset, length in moved:
        light.data_location = TensorProto.EXTERNAL
        for key, value in {"location": named.name, "offset": offset, "length": length}.items():
            light.external_data.add(key=key, value=str(value))
    return result


def files_of(path: Path) -> set[str]:
    """Names of files that look like those that `moved_out` wrote for `path`. Raises OSError."""
    form = re.compile(re.escape(path.name) + rf"\.[0-9a-f]{{{_HASH_DIGITS}}}\.data")
    return set(filter(form.fullmatch, os.listdir(path.parent)))


def locations(proto: ModelProto) -> set[str]:
    """Where a model keeps its external tensors."""
    return {str(e.value) for t in constants_of(proto) for e in t.external_data if e.key == "location"}


def _content(tensor: TensorProto) -> Iterable[bytes]:
    return large.chunks(large.place(tensor)) if large.is_reference(tensor) else (tensor.raw_data,)


def _without_initializers(proto: ModelProto) -> ModelProto:
    """A copy that never holds the weights: everything but them is copied field by field."""
    result, graph = ModelProto(), GraphProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _copy_field(result, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _copy_field(graph, field.name, value)
    result.graph.CopyFrom(graph)
    return result


def _copy_field(target: object, name: str, value: object) -> None:
    held = getattr(target, name)
    if hasattr(held, "extend"):
        held.extend(value)
    elif hasattr(held, "CopyFrom"):
        held.CopyFrom(value)
    else:
        setattr(target, name, value)
