"""Calibration data that a program holds or makes, as records.

    source                                            read
    array, mapping name -> array                      as it is: one sample, or a batch of them
    list                                              each of its items
    what can be iterated again, a dataset             again in each pass; the items must be the same ones then
    function without arguments that makes an iterable called again in each pass, likewise
    iterator, generator, ONNX Runtime's reader        once: its items are kept, in a scratch folder beyond `max_memory`

An item is an array, a mapping, or a tuple or list of arrays in the order of the model's inputs; one more at its end, as
loaders of (inputs, labels) have, is left out. An array is whatever numpy makes one of by `__array__`, such as tensors.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from ..errors import DataError, UsageError
from ..graph.scratch import scratch_folder
from .inputs import Array, shown
from .records import Record

MAX_MEMORY = 512 * 2**20
"""Bytes of an iterator's items that are kept in memory."""


@dataclass(frozen=True)
class InMemory(Record):
    """One item: a sample, or a batch of them, that the caller holds."""

    place: str
    value: object

    @property
    def origin(self) -> str:
        return self.place

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        value = self.value
        if isinstance(value, Mapping):
            self.pick(value)
            values = {name: value[key] for name, key in self.keys.items()}
        elif isinstance(value, tuple | list):
            if len(value) - len(self.keys) not in (0, 1):
                raise DataError(
                    f"{self.origin}: got {len(value)} values for inputs {self.names}; pass one for each input, in this"
                    " order, and labels behind them if there are some"
                )
            values = dict(zip(self.keys, value, strict=False))
        elif len(self.keys) == 1:
            values = {self.input_name: value}
        else:
            raise DataError(
                f"{self.origin}: got one value for inputs {self.names}; pass a mapping name -> array, or a tuple of"
                " arrays"
            )
        return {name: self._array(name, held) for name, held in values.items()}

    def _array(self, name: str, value: object) -> Array:
        if not isinstance(value, np.ndarray) and not hasattr(value, "__array__"):
            kind = type(value).__name__
            raise DataError(f"{self.origin}: input {shown(name)} is of type {kind}; make it a numpy array")
        try:
            return np.asarray(value)
        except Exception as error:  # of whichever library: a tensor on a GPU, or one that records gradients
            raise DataError(f"{self.origin}: input {shown(name)} cannot be made a numpy array: {error}") from None


@dataclass(frozen=True)
class _Unchanged(InMemory):
    """An item that is made anew in each pass. digests: of what was read before, by place, over all passes."""

    digests: dict[str, int]

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        arrays = super().read()
        digest = 0
        for array in arrays.values():
            digest = zlib.crc32(array.tobytes() if not array.dtype.hasobject else repr(array).encode(), digest)
        if self.digests.setdefault(self.place, digest) != digest:
            raise DataError(
                f"the calibration data changed: {self.place} is not what it was in the pass before; pass data in a"
                " fixed order (no shuffling, no random augmentation), or an iterator over it, which is read once"
            )
        return arrays


class _Again:
    """The items of what can be iterated again and again. They must be the same ones in each pass: with a loader that
    shuffles, results would be compared on what ranges were fitted to."""

    def __init__(self, make: Callable[[], Iterable[object]], keys: Mapping[str, str]) -> None:
        self._make, self._keys = make, keys
        self._digests: dict[str, int] = {}

    def __iter__(self) -> Iterator[Record]:
        for index, value in enumerate(self._make()):
            yield _Unchanged(self._keys, f"feed {index}", value, self._digests)


# --- what can be read once ----------------------------------------------------------------------------------------


class _Kept(list[Record]):
    """Records whose files go with them."""


def _kept(items: Iterable[object], keys: Mapping[str, str], max_memory: int) -> list[Record]:
    """The items of an iterator. Raises DataError for one that is no sample, OutputError where no file can be made."""
    records, folder, nbytes = _Kept(), None, 0
    own = {name: name for name in keys}
    for index, value in enumerate(items):
        place = f"feed {index}"
        arrays = {name: np.array(array) for name, array in InMemory(keys, place, value).read().items()}  # not a buffer
        nbytes += sum(array.nbytes for array in arrays.values())
        if nbytes <= max_memory or any(array.dtype.hasobject for array in arrays.values()):
            records.append(InMemory(own, place, arrays))
            continue
        if folder is None:
            stack = ExitStack()
            folder = stack.enter_context(scratch_folder())
            finalize(records, stack.close)
        files = {name: folder / f"{index}-{number}.npy" for number, name in enumerate(arrays)}
        for name, array in arrays.items():
            np.save(files[name], array)
        records.append(_InFiles(own, place, files))
    return records


@dataclass(frozen=True)
class _InFiles(Record):
    """An item with a file for each array."""

    place: str
    files: Mapping[str, Path]

    @property
    def origin(self) -> str:
        return self.place

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        return {name: np.load(file, mmap_mode="r") for name, file in self.files.items()}


# --- a caller's function ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transformed(Record):
    """A record behind the caller's function: of an image its pixels, else the array or the mapping that is stored."""

    record: Record
    function: Callable[[Any], Any]

    @property
    def origin(self) -> str:
        return self.record.origin

    @property
    def is_single(self) -> bool:
        return self.record.is_image

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        if isinstance(self.record, InMemory):
            value = self.record.value
        else:
            arrays = self.record.read()
            value = next(iter(arrays.values())) if len(arrays) == 1 else arrays
        try:
            value = self.function(value)
        except Exception as error:
            raise DataError(f"{self.origin}: `transform` failed: {type(error).__name__}: {error}") from error
        return InMemory(self.keys, self.origin, value).read()


class _AllTransformed:
    """Records behind a function, each time they are iterated."""

    def __init__(self, records: Iterable[Record], function: Callable[[Any], Any]) -> None:
        self._records, self._function = records, function

    def __iter__(self) -> Iterator[Record]:
        return (Transformed(record.keys, record, self._function) for record in self._records)


def transformed(records: Iterable[Record], function: Callable[[Any], Any]) -> Iterable[Record]:
    """Records behind a function, which is called with each item as it is read, and returns an item."""
    behind = _AllTransformed(records, function)
    return list(behind) if isinstance(records, list) and not isinstance(records, _Kept) else behind


# --- any source ---------------------------------------------------------------------------------------------------


def in_memory(source: object, keys: Mapping[str, str], max_memory: int = MAX_MEMORY) -> Iterable[Record]:
    """The records of what is no path. max_memory: bytes of an iterator's items that stay in memory.

    Raises UsageError where it is nothing that data can be read from, and what reading an iterator raises.
    """
    if isinstance(source, np.ndarray | Mapping):
        return [InMemory(keys, "calibration data", source)]
    if isinstance(source, list | tuple):
        return [InMemory(keys, f"feed {index}", value) for index, value in enumerate(source)]
    if callable(get_next := getattr(source, "get_next", None)):  # onnxruntime.quantization.CalibrationDataReader
        return _kept(iter(get_next, None), keys, max_memory)
    if isinstance(source, Iterator):
        return _kept(source, keys, max_memory)
    if isinstance(source, Iterable):
        return _Again(lambda: source, keys)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):  # a dataset of PyTorch
        return _Again(lambda: (source[index] for index in range(len(source))), keys)
    if callable(source):
        return _Again(lambda: _called(source), keys)
    raise UsageError(
        "calibration data must be a path, array, mapping, list or other iterable of samples, or a function that makes"
        f" one, got {type(source).__name__}"
    )


def _called(make: Callable[[], object]) -> Iterable[object]:
    try:
        made = make()
    except TypeError as error:
        raise UsageError(f"the function that makes calibration data is called without arguments: {error}") from error
    if isinstance(made, np.ndarray | Mapping) or not isinstance(made, Iterable):
        raise UsageError(
            f"the function that makes calibration data returned {type(made).__name__}; it must return an iterable of"
            " samples"
        )
    return made
