"""Labels of samples, from whatever file a user has them in, in the order of the samples.

    .txt, .csv    one class index a line, in data order; or `file name, index` a line, in any order; a header may stand
                  above. Fields are parted by comma, semicolon, tab or blanks.
    .json         a list of indices, or an object `file name: index`
    .npy          an array (N,) of integers
    .npz          that array under `labels`, `label` or `y`, or as the only one of its kind

A list counts all samples of the data, also those that the option `samples` leaves out. A file's name may be given with
as many of its folders as make it unique, and with or without its suffix; `x.npz[3]` is the fourth sample in a file of
several.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np

from ..data import CalibrationData
from ..data.npz import NpzFile
from ..errors import DataError, OnnxqError

KEYS = ("labels", "label", "y")

Named: TypeAlias = "dict[str, int]"


def read_labels(source: str | os.PathLike[str] | Sequence[int], data: CalibrationData) -> tuple[int, ...]:
    """The labels of the samples of `data` that are used, in the order of its feeds.

    source: a file as above, or the labels of all samples. Raises DataError where it cannot be read, or does not fit.
    """
    if isinstance(source, (str, os.PathLike)):
        where = str(source)
        found = _read(Path(source))
    else:
        where, found = "labels", _indices(np.asarray(source), "labels")
    origins = data.origins()
    if isinstance(found, dict):
        return _by_name(found, origins, data.numbers(), where)
    if len(found) != len(origins):
        raise DataError(f"{where}: expected {len(origins)} labels, one for each sample of the data, got {len(found)}")
    return tuple(found[n] for n in data.numbers())


def _read(path: Path) -> list[int] | Named:
    readers = {".txt": _lines, ".csv": _lines, ".json": _json, ".npy": _npy, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected labels as {', '.join(readers)}")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: no regular file")
    try:
        return readers[path.suffix.lower()](path)
    except OnnxqError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # numpy, zipfile and the parsers raise a dozen types over damaged bytes
        raise DataError(f"{path}: cannot be read as labels: {error}") from None


def _lines(path: Path) -> list[int] | Named:
    rows = [_fields(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if rows and not _is_index(rows[0][-1]):
        rows = rows[1:]  # a header
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]) or len(row) > 2 or not _is_index(row[-1]):
            raise DataError(
                f"{path}: entry {number} is {' '.join(row)!r}; expected a class index, or a file name and a class index"
            )
    if not rows or len(rows[0]) == 1:
        return [int(label) for (label,) in rows]
    return _named(((name, int(label)) for name, label in rows), path)


def _fields(line: str) -> list[str]:
    delimiter = next((d for d in ",;\t" if d in line), None)
    if delimiter is None:
        return line.rsplit(None, 1)
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter))]


def _is_index(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def _named(pairs: Any, path: Path) -> Named:
    named: Named = {}
    for name, label in pairs:
        if named.setdefault(name, label) != label:
            raise DataError(f"{path}: {name!r} has two labels, {named[name]} and {label}")
    return named


def _json(path: Path) -> list[int] | Named:
    found = json.loads(path.read_text(encoding="utf-8"))
    values = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(values, list) or not all(type(v) is int for v in values):
        raise DataError(f"{path}: expected a list of class indices, or an object of file names and class indices")
    return found if isinstance(found, dict) else values


def _npy(path: Path) -> list[int]:
    return _indices(np.load(path, allow_pickle=False), str(path))


def _npz(path: Path) -> list[int]:
    with NpzFile(path, str(path)) as arrays:
        key = next((key for key in KEYS if key in arrays.names()), None)
        if key is None:
            headers = {k: arrays.header(k) for k in arrays.names()}
            integers = [k for k, header in headers.items() if header.dtype.kind in "iu" and _is_vector(header)]
            if len(integers) != 1:
                held = ", ".join(arrays.names()) or "nothing"
                raise DataError(f"{path}: expected an array {', '.join(KEYS)}, or one of integers (N,); it has {held}")
            key = integers[0]
        return _indices(arrays[key], f"{path}, array {key!r}")


def _is_vector(array: np.ndarray) -> bool:
    return array.ndim > 0 and array.size == len(array)


def _indices(array: np.ndarray, where: str) -> list[int]:
    if array.dtype.kind not in "iu" or not _is_vector(array):
        raise DataError(f"{where}: expected integers (N,), got {array.dtype} {array.shape}")
    return [int(label) for label in array.reshape(-1)]


def _by_name(named: Mapping[str, int], origins: Sequence[str], numbers: Sequence[int], where: str) -> tuple[int, ...]:
    """The label of each sample that is used, by the longest of its names that `named` knows."""
    keys = {PurePath(name).parts: name for name in named}
    names = [next((keys[tail] for tail in _names(origin) if tail in keys), None) for origin in origins]
    taken: dict[str, str] = {}
    for name, origin in zip(names, origins, strict=True):
        if name is not None and taken.setdefault(name, origin) != origin:
            raise DataError(f"{where}: {name!r} may be {taken[name]} or {origin}; write the folder before the name")
    missing = [n for n in numbers if names[n] is None]
    if missing:
        raise DataError(f"{where}: no label for {origins[missing[0]]} ({len(missing)} samples have none)")
    return tuple(named[name] for name in (names[n] for n in numbers) if name is not None)


def _names(origin: str) -> list[tuple[str, ...]]:
    """What a file may be called: its path, then with fewer and fewer folders, each with and without its suffix."""
    path = PurePath(origin)
    tails = [path.parts[start:] for start in range(len(path.parts))]
    return [name for tail in tails for name in (tail, (*tail[:-1], path.stem))]
