"""Calibration data that a program holds or makes, as records.

    source                                            read
    array, tensor, mapping name -> array              as it is: one sample, or a batch of them
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

Transform = Callable[[Any], Any]
"""Called with each item as it is read; returns an item."""

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

    @property
    def item(self) -> object:
        """A mapping, a tuple or one array."""
        return self.value

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        value = self.item
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
        what = f"{self.origin}: input {shown(name)}"
        if not hasattr(value, "__array__"):
            raise DataError(f"{what} is of type {type(value).__name__}; make it a numpy array")
        return as_array(value, what)


def as_array(value: object, what: str) -> Array:
    """Raises DataError where it cannot be one: a tensor on a GPU, or one that records gradients."""
    try:
        return np.asarray(value)
    except Exception as error:  # of whichever library
        raise DataError(f"{what} cannot be made a numpy array: {error}") from None


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


class Replayed:
    """The items of an iterator, read once and kept as long as this lives: arrays in memory, and beyond `max_memory`
    bytes in files of a scratch folder. Raises DataError for an item that is no sample, OutputError where no file can
    be made.
    """

    def __init__(self, items: Iterable[object], max_memory: int = MAX_MEMORY) -> None:
        self._left, self._files = max_memory, 0
        self._folder: Path | None = None
        self._items = [self._kept(item, f"feed {index}") for index, item in enumerate(items)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> object:
        """An item as it was: a mapping, a tuple, or one array."""
        item = self._items[index]
        if isinstance(item, dict):
            return {key: _loaded(value) for key, value in item.items()}
        return tuple(map(_loaded, item)) if isinstance(item, tuple) else _loaded(item)

    def _kept(self, item: object, place: str) -> object:
        if isinstance(item, Mapping):
            return {key: self._stored(value, place) for key, value in item.items()}
        if isinstance(item, tuple | list):
            return tuple(self._stored(value, place) for value in item)
        return self._stored(item, place)

    def _stored(self, value: object, place: str) -> object:
        """An array as a copy, since loaders reuse their buffers, or as a file; anything else as it is."""
        if not hasattr(value, "__array__"):
            return value
        array = np.array(as_array(value, f"{place}: a value"))
        self._left -= array.nbytes
        if self._left >= 0 or array.dtype.hasobject:
            return array
        if self._folder is None:
            stack = ExitStack()
            self._folder = stack.enter_context(scratch_folder())
            finalize(self, stack.close)
        path = self._folder / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        return path


def _loaded(value: object) -> object:
    return np.load(value, mmap_mode="r") if isinstance(value, Path) else value


def replayable(source: object, max_memory: int = MAX_MEMORY) -> object:
    """A source that can be opened again and again: an iterator or a reader is read, any other is left as it is."""
    if callable(get_next := getattr(source, "get_next", None)):  # onnxruntime.quantization.CalibrationDataReader
        return Replayed(iter(get_next, None), max_memory)
    return Replayed(source, max_memory) if isinstance(source, Iterator) else source


@dataclass(frozen=True)
class _FromReplayed(InMemory):
    """An item by its place in `value`."""

    index: int

    @property
    def item(self) -> object:
        assert isinstance(self.value, Replayed)
        return self.value[self.index]


# --- a caller's function ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transformed(Record):
    """A record behind the caller's function: of an image its pixels, else the array or the mapping that is stored."""

    record: Record
    function: Transform

    @property
    def origin(self) -> str:
        return self.record.origin

    @property
    def is_single(self) -> bool:
        return self.record.is_image

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        if isinstance(self.record, InMemory):
            value = self.record.item
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

    def __init__(self, records: Iterable[Record], function: Transform) -> None:
        self._records, self._function = records, function

    def __iter__(self) -> Iterator[Record]:
        return (Transformed(record.keys, record, self._function) for record in self._records)


def transformed(records: Iterable[Record], function: Transform) -> Iterable[Record]:
    """Records behind a function, which is called with each item as it is read, and returns an item."""
    behind = _AllTransformed(records, function)
    return list(behind) if isinstance(records, list) else behind


# --- any source ---------------------------------------------------------------------------------------------------


def in_memory(source: object, keys: Mapping[str, str], max_memory: int = MAX_MEMORY) -> Iterable[Record]:
    """The records of what is no path. max_memory: bytes of an iterator's items that stay in memory.

    Raises UsageError where it is nothing that data can be read from, and what reading an iterator raises.
    """
    source = replayable(source, max_memory)
    if isinstance(source, Replayed):
        return [_FromReplayed(keys, f"feed {index}", source, index) for index in range(len(source))]
    if hasattr(source, "__array__"):  # a tensor
        source = as_array(source, "calibration data")
    if isinstance(source, np.ndarray | Mapping):
        return [InMemory(keys, "calibration data", source)]
    if isinstance(source, list | tuple):
        return [InMemory(keys, f"feed {index}", value) for index, value in enumerate(source)]
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
