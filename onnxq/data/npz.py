"""Arrays in .npz files from anywhere: nothing is unpickled, and a header is believed only as far as its file goes.

A few kilobytes of .npz can declare any size: what is to be read is bounded before numpy allocates it.
"""

from __future__ import annotations

import math
import os
import zipfile
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import DataError

Array = NDArray[Any]

MAX_ARRAY_BYTES = 8 << 30
"""No calibration batch comes near this."""

UNSUSPICIOUS_BYTES, BOMB_RATIO = 1 << 28, 100
"""Larger arrays of data shrink by less than this; deflate makes zeros a thousand times smaller."""


class NpzFile:
    """An open .npz file. where: what messages call it.

    Raises what zipfile raises where it is none, and DataError for an array that is not to be read.
    """

    def __init__(self, path: str | os.PathLike[str], where: str, limit: int = MAX_ARRAY_BYTES) -> None:
        with open(path, "rb") as file:
            if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):  # zipfile reads archives behind anything
                raise zipfile.BadZipFile("not a zip file")
        self._zip, self._where, self._limit = zipfile.ZipFile(path), where, limit

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def names(self) -> list[str]:
        """Of the arrays, in the order of the file."""
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Array:
        """An array of the declared shape and dtype that takes no memory. Raises KeyError."""
        info = self._zip.getinfo(f"{name}.npy")
        where = f"{self._where}, array {name}"
        with self._zip.open(info) as stream:
            header = _npy_header(stream, where)
            if header.nbytes > self._limit:
                raise DataError(f"{where} declares {header.nbytes} bytes, over {self._limit}; split it up")
            if header.nbytes > max(UNSUSPICIOUS_BYTES, BOMB_RATIO * info.compress_size):
                raise DataError(
                    f"{where} declares {header.nbytes} bytes, packed into {info.compress_size}: a decompression bomb,"
                    " or data of next to no content; save it uncompressed, with np.savez"
                )
            if header.nbytes > info.file_size - stream.tell():
                raise DataError(f"{where} is truncated: it declares {header.nbytes} bytes; save it again")
        return header

    def __getitem__(self, name: str) -> Array:
        """Raises KeyError."""
        self.header(name)
        with self._zip.open(f"{name}.npy") as stream:
            return np.asarray(npy.read_array(stream, allow_pickle=False))


def _npy_header(stream: IO[bytes], where: str) -> Array:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where}: .npy version {version} is not supported; save it with np.save")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which are not unpickled; save a numeric array")
    if math.prod(shape) * dtype.itemsize >= 1 << 62:  # past what numpy can even describe
        raise DataError(f"{where} declares the absurd shape {shape}; save it again")
    return np.broadcast_to(np.zeros((), dtype), shape)
