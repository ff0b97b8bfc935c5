"""Large models: tensors that stay in files, since they outgrow a protobuf and should not be held in memory twice.

A protobuf holds 2 GB. Where a model keeps more than `LARGE` in external data, its large tensors are left there, and its
protobuf has references instead: external tensors whose location is

    onnxq:HASH        HASH is BLAKE2b over the bytes, so that equal content has an equal name

`array` maps what a reference stands for into memory, read only: the kernel loads pages as they are touched, drops them
when memory is short, and all of them when the array goes. New values of such a model (quantized weights, say) are
written to a scratch folder and referred to likewise, as soon as the model is turned into a protobuf.

What is referred to must not change: references into a model's own files stay valid as long as these are as they were,
those into the scratch folder as long as the outermost `storing` block runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from .scratch import scratch_folder

LARGE = 1 << 30
"""Bytes of external data from which on a model's tensors stay in files."""

SMALLEST = 1 << 20
"""Bytes: smaller tensors are kept in the protobuf all the same."""

_LEFT_OUT_FROM = 1 << 12
"""Bytes from which on copying a tensor takes longer than replacing it."""

_PREFIX = "onnxq:"
_CHUNK = 1 << 24

Array = NDArray[Any]


@dataclass(frozen=True)
class Place:
    """Bytes in a file."""

    path: Path
    offset: int
    length: int


class _Store:
    """Where references lead, and the folder for new values."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.mapped: weakref.WeakValueDictionary[str, Array] = weakref.WeakValueDictionary()
        self.folder: Path | None = None
        self.users = 0
        self.exit = contextlib.ExitStack()
        self.lock = threading.RLock()


_STORE = _Store()


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """While it runs, values of large models may be spilled to a scratch folder; blocks may nest and overlap."""
    with _STORE.lock:
        _STORE.users += 1
    try:
        yield
    finally:
        with _STORE.lock:
            _STORE.users -= 1
            if not _STORE.users and _STORE.folder is not None:
                folder, _STORE.folder = _STORE.folder, None
                _STORE.places = {k: p for k, p in _STORE.places.items() if p.path.parent != folder}
                _STORE.exit.close()


def refer(tensor: TensorProto, place: Place) -> None:
    """Make a tensor a reference to the bytes at a place."""
    location = _PREFIX + _hash_of_file(place)
    with _STORE.lock:
        _STORE.places[location] = place
    _set_location(tensor, location)


def is_reference(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL and _location(tensor).startswith(_PREFIX)


def references(proto: ModelProto) -> list[TensorProto]:
    """The initializers that are references; there are none elsewhere."""
    return [t for t in proto.graph.initializer if is_reference(t)]


def place(tensor: TensorProto) -> Place:
    """What a reference refers to."""
    with _STORE.lock:
        return _STORE.places[_location(tensor)]


def nbytes(proto: ModelProto) -> int:
    """Size of a model, with what it refers to. Large values are counted, not serialized, as protobuf does for it."""
    bare, grown = without_values(proto), 0
    for whole, tensor in zip(proto.graph.initializer, bare.graph.initializer, strict=True):
        before, length = tensor.ByteSize(), len(whole.raw_data)
        if length < SMALLEST:
            after = whole.ByteSize()
        else:
            rest = TensorProto()
            _copy_fields(whole, rest, but="raw_data")
            after = rest.ByteSize() + 1 + _varint(length) + length  # tag, length, bytes
        grown += after - before + _varint(after) - _varint(before)
    graph = bare.graph.ByteSize()
    in_memory = bare.ByteSize() + grown + _varint(graph + grown) - _varint(graph)
    return int(in_memory) + sum(place(t).length for t in references(proto))


def _varint(value: int) -> int:
    """Bytes in which protobuf writes a length."""
    return max(-(-value.bit_length() // 7), 1)


def without_values(proto: ModelProto) -> ModelProto:
    """A copy whose weights have names, types and shapes alone."""
    copy = ModelProto()
    _copy_fields(proto, copy, but="graph")
    _copy_fields(proto.graph, copy.graph, but="initializer")
    for tensor in proto.graph.initializer:
        if tensor.data_type in _WEIGHT_TYPES and math.prod(tensor.dims) > _SHAPE:
            copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            copy.graph.initializer.append(tensor)
    return copy


_SHAPE = 1024
"""Elements of a tensor from on which no shape depends on its values: they are weights."""

_WEIGHT_TYPES = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
}


def listed_as_inputs(proto: ModelProto) -> ModelProto:
    """The model with its large tensors as inputs, for tools that serialize what they look at and need no values."""
    large = [t for t in proto.graph.initializer if is_reference(t) or _is_plain_and_large(t)]
    if not large:
        return proto
    inputs, names = {v.name for v in proto.graph.input}, {t.name for t in large}
    copy = ModelProto()
    _copy_fields(proto, copy, but="graph")
    _copy_fields(proto.graph, copy.graph, but="initializer")
    copy.graph.initializer.extend(t for t in proto.graph.initializer if t.name not in names)
    for tensor in large:
        if tensor.name not in inputs:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def _is_plain_and_large(tensor: TensorProto) -> bool:
    """Whether nothing is to be said against a tensor but the length of its bytes, which `sanitize` looks at."""
    fields = {field.name for field, _ in tensor.ListFields()}
    return len(tensor.raw_data) >= SMALLEST and fields <= {"dims", "data_type", "name", "raw_data", "doc_string"}


def _copy_fields(source: Any, target: Any, but: str) -> None:
    """All fields of a message that are set, except for one."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "MergeFrom"):  # messages, and repeated fields
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)


def array(tensor: TensorProto) -> Array:
    """A tensor's values; those of a reference are mapped, and cannot be written to."""
    if not is_reference(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    where, dtype = place(tensor), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    key = f"{_location(tensor)} {dtype} {list(tensor.dims)}"
    with _STORE.lock:
        mapped = _STORE.mapped.get(key)  # one mapping for all its readers: each counts as memory
        if mapped is None:
            mapped = np.memmap(where.path, dtype, "r", where.offset, tuple(tensor.dims))
            _STORE.mapped[key] = mapped
        others = [other for other in _STORE.mapped.values() if other is not mapped]
    for other in others:  # whoever reads one tensor is done with the others, as a rule
        forget(other)
    return mapped


def forget(mapped: Array) -> None:
    """Free the pages of a mapped array; they are loaded again, mostly without the disk, if they are read again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def tensor(values: Array, name: str, *, spilled: bool) -> TensorProto:
    """A tensor with these values; `spilled`: a reference to a file that holds them, where they are large."""
    if not spilled or values.nbytes < SMALLEST or not _STORE.users or values.dtype.hasobject:
        return numpy_helper.from_array(np.ascontiguousarray(values), name)
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    result = TensorProto(name=name, data_type=kind, dims=values.shape)
    _set_location(result, _known(values) or _spill_array(values))
    return result


def without_references(proto: ModelProto, change: Callable[[ModelProto], ModelProto]) -> ModelProto:
    """What `change` makes of the model, which it sees with inputs in place of references: some tools read all data."""
    order = {t.name: place for place, t in enumerate(proto.graph.initializer)}
    inputs = {v.name for v in proto.graph.input}
    copy = ModelProto()
    copy.CopyFrom(proto)
    kept = {t.name: t for t in references(proto)}
    small = [t for t in proto.graph.initializer if t.name not in kept]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(small)
    for name in sorted(kept.keys() - inputs):
        copy.graph.input.append(onnx.helper.make_tensor_value_info(name, kept[name].data_type, kept[name].dims))
    result = change(copy)
    for value in [v for v in result.graph.input if v.name in kept.keys() - inputs]:
        result.graph.input.remove(value)
    tensors = sorted((*result.graph.initializer, *kept.values()), key=lambda t: order.get(t.name, len(order)))
    del result.graph.initializer[:]
    result.graph.initializer.extend(tensors)
    return result


class StoredValues(LazyValues):
    """What a constant of a large model holds until its values are read."""

    def load(self) -> Array:
        return array(self.tensor)


def spill(constants: Iterable[gs.Constant]) -> None:
    """Take large values out of memory; they are mapped again when they are read."""
    for constant in constants:
        values = constant._values
        if isinstance(values, np.ndarray):
            stored = tensor(values, constant.name, spilled=True)
            if is_reference(stored):
                constant._values = StoredValues(stored)
        elif type(values) is LazyValues and is_reference(values.tensor):
            constant._values, constant.data_location = StoredValues(values.tensor), None


def may_be_left_out(constant: gs.Constant) -> bool:
    """Whether a constant is large enough to be kept out of a protobuf that is but looked at (`Model.outline`)."""
    values = constant._values
    if getattr(constant, "_export_dtype", None) is not None:
        return False
    if isinstance(values, np.ndarray):
        return bool(values.dtype == np.float32 and values.nbytes >= _LEFT_OUT_FROM)
    return (
        type(values) is LazyValues and values.tensor.data_type == TensorProto.FLOAT and values.nbytes >= _LEFT_OUT_FROM
    )


def stand_in(name: str, values: Array | LazyValues) -> LazyValues:
    """A reference that leads nowhere, for float values that its maker keeps."""
    result = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
    _set_location(result, f"{_PREFIX}left-out")
    return LazyValues(result)


def digest(values: Array | LazyValues) -> bytes:
    """BLAKE2b of the values of a constant."""
    found = values if isinstance(values, np.ndarray) else array(values.tensor)
    return hashlib.blake2b(np.ascontiguousarray(found).reshape(-1).view(np.uint8).data).digest()


def _known(values: Array) -> str | None:
    """The location of an array that was mapped from there, as a whole."""
    with _STORE.lock:
        return next((key.split()[0] for key, mapped in _STORE.mapped.items() if mapped is values), None)


def _spill_array(values: Array) -> str:
    values = np.ascontiguousarray(values)
    location = _PREFIX + hashlib.blake2b(values.reshape(-1).view(np.uint8).data, digest_size=20).hexdigest()
    with _STORE.lock:
        if location not in _STORE.places:
            if _STORE.folder is None:
                _STORE.folder = _STORE.exit.enter_context(scratch_folder())
            path = _STORE.folder / f"{len(_STORE.places)}.bin"
            values.tofile(path)
            _STORE.places[location] = Place(path, 0, values.nbytes)
    return location


def _hash_of_file(where: Place) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for chunk in chunks(where):
        digest.update(chunk)
    return digest.hexdigest()


def chunks(where: Place) -> Iterator[bytes]:
    """The bytes at a place, some at a time. Raises OSError."""
    with open(where.path, "rb") as file:
        file.seek(where.offset)
        left = where.length
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise OSError(f"{where.path} has become shorter")
            left -= len(chunk)
            yield chunk


def _location(tensor: TensorProto) -> str:
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _set_location(tensor: TensorProto, location: str) -> None:
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    tensor.data_location = TensorProto.EXTERNAL
