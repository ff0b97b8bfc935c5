"""Calibration data in files and folders, as records; `open_source` opens what is in memory as well."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError
from .images import decode
from .in_memory import MAX_MEMORY, in_memory
from .inputs import Array, reading, shown
from .npz import NpzFile
from .records import Record

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class FileRecord(Record):
    path: Path

    @property
    def origin(self) -> str:
        return shown(self.path)


class ImageFile(FileRecord):
    is_image = True

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        return {self.input_name: decode(self.path)}


class NpyFile(FileRecord):
    def read(self, headers_only: bool = False) -> dict[str, Array]:
        with reading(self.path):
            return {self.input_name: npy.open_memmap(self.path, mode="r")}


class Archive(FileRecord):
    """An .npz file."""

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        with reading(self.path), NpzFile(self.path, self.origin) as file:
            self.pick(file.names())
            return {name: file.header(key) if headers_only else file[key] for name, key in self.keys.items()}


class ProtoFile(FileRecord):
    def read(self, headers_only: bool = False) -> dict[str, Array]:
        return {self.input_name: _load_proto(self.path)}


class ProtoFolder(FileRecord):
    """A test_data_set folder of ONNX: input_0.pb, input_1.pb, ... in the order of the model's inputs."""

    def read(self, headers_only: bool = False) -> dict[str, Array]:
        files = {file.name for file in self.path.glob("input_*.pb")}
        expected = [f"input_{index}.pb" for index in range(len(self.keys))]
        if files != set(expected):
            raise DataError(
                f"{self.origin}: expected {', '.join(expected)} for inputs {self.names}, "
                f"found {', '.join(shown(f) for f in sorted(files, key=natural_order)) or 'none'}"
            )
        return {name: _load_proto(self.path / file) for name, file in zip(self.keys, expected, strict=True)}


def open_source(source: object, keys: Mapping[str, str], max_memory: int = MAX_MEMORY) -> Iterable[Record]:
    """The records of a path or an object in memory, in a fixed order (folders: natural order of their paths).

    Raises DataError where the path has no calibration data, UsageError where `source` is no source at all.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with reading(path):
            return _open_path(path, keys)
    return in_memory(source, keys, max_memory)


def natural_order(path: str | Path) -> tuple[list[list[int | str]], str]:
    """Sort key under which 2.png comes before 10.png, folder by folder; the text itself decides 1 and 01."""
    # A split with a group alternates text and digits, so that ints only ever meet ints.
    parts = [
        [int(piece) if place % 2 else piece for place, piece in enumerate(re.split("([0-9]+)", part))]
        for part in Path(path).parts
    ]
    return parts, str(path)


_HINTS = {
    ".onnx": "; this is a model, and in Python the result's path is `output`",
    ".txt": "; lists of files are not read: give the folder that has the files",
    ".raw": "; raw tensors have no shape and no type: save them with numpy.save",
    ".bin": "; raw tensors have no shape and no type: save them with numpy.save",
    ".zip": "; unpack it first",
    ".tar": "; unpack it first",
    ".pt": "; save tensors with numpy.save, or pass the loader in Python",
    ".h5": "; save arrays with numpy.save, or pass them in Python",
}

_KINDS: dict[str, tuple[str, type[FileRecord]]] = {
    **dict.fromkeys(IMAGE_SUFFIXES, ("images", ImageFile)),
    ".npy": (".npy", NpyFile),
    ".npz": (".npz", Archive),
    ".pb": (".pb", ProtoFile),
}


def _open_path(path: Path, keys: Mapping[str, str]) -> list[Record]:
    if path.is_dir():
        return _open_folder(path, keys)
    if not path.is_file():
        trouble = "is no regular file or folder" if path.exists() else "does not exist"
        raise DataError(f"calibration data {shown(path)} {trouble}; expected {_EXPECTED}")
    if path.suffix.lower() not in _KINDS:
        hint = _HINTS.get(path.suffix.lower(), "")
        raise DataError(f"calibration file {shown(path)}: expected {_EXPECTED}{hint}")
    return [_open_file(path, keys)]


def _open_folder(folder: Path, keys: Mapping[str, str]) -> list[Record]:
    sets = [path for path in folder.glob("test_data_set_*") if path.is_dir()]
    if any(folder.glob("input_*.pb")):
        sets = [folder]
    if sets:
        return [ProtoFolder(keys, path) for path in sorted(sets, key=natural_order)]
    files = sorted(_walk(folder), key=natural_order)
    if not files:
        raise DataError(f"no calibration files in {shown(folder)}: expected {_EXPECTED}")
    examples: dict[str, Path] = {}
    for file in files:
        examples.setdefault(_KINDS[file.suffix.lower()][0], file)
    if len(examples) > 1:
        found = " and ".join(f"{kind} ({shown(file)})" for kind, file in examples.items())
        raise DataError(f"{shown(folder)} mixes {found}; keep one kind of calibration files in a folder")
    return [_open_file(file, keys) for file in files]


def _walk(folder: Path) -> Iterator[Path]:
    """Files with a known suffix below the folder, hidden ones left out, each real folder visited once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a symbolic link to where we have been
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            # ONNX test data: output_0.pb is what the model computes from input_0.pb, no input.
            output = name.startswith("output_") and name.endswith(".pb")
            if Path(name).suffix.lower() in _KINDS and not name.startswith(".") and not output:
                yield Path(place, name)


def _raise(error: OSError) -> NoReturn:
    raise error


def _open_file(path: Path, keys: Mapping[str, str]) -> Record:
    if not path.is_file():  # a pipe would be waited for, a device never ends
        raise DataError(f"calibration file {shown(path)} is no regular file; leave it out")
    kind, record = _KINDS[path.suffix.lower()]
    if len(keys) != 1 and record is not Archive:
        raise DataError(
            f"{shown(path)}: {kind} hold one array, and the model has inputs {', '.join(map(shown, keys))}; "
            "use .npz files whose keys are the input names"
        )
    return record(keys, path)


def _load_proto(path: Path) -> Array:
    from onnx import TensorProto, numpy_helper

    with reading(path):
        if not path.is_file():
            raise DataError(f"calibration file {shown(path)} is no regular file; leave it out")
        tensor = TensorProto.FromString(path.read_bytes())
        if tensor.data_location == TensorProto.EXTERNAL:
            raise DataError(f"{shown(path)} keeps its values in another file; save them inside")
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
        return array


_EXPECTED = f"images ({' '.join(IMAGE_SUFFIXES)}), .npy, .npz or test_data_set_*/input_*.pb"
