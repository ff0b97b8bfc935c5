"""Arrays that must be kept for a while: in memory up to a limit, in files beyond it."""

from __future__ import annotations

import mmap
import threading
import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..graph.scratch import scratch_folder

Array = NDArray[np.generic]

OWN_MEMORY = 1 << 16
"""Bytes from which on an array gets memory of its own, which returns to the system with it."""


class SpillCache:
    """Holds arrays in memory up to `limit` bytes, writes the others to files; both go when nobody refers to them.

    limit: may change; what is held already stays.
    held, most: bytes in memory, now and at most so far. spilled: bytes written to files in all.
    folder: for the files; None: a temporary one, made for the first of them, which goes with the cache.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._folder, self.limit, self._count = folder, limit, 0
        self._lock = threading.RLock()  # the collector may release in the middle of `put`
        self.held = self.most = self.spilled = 0

    def put(self, array: Array) -> CachedArray:
        """Raises OutputError where a file cannot be written."""
        with self._lock:
            fits = array.dtype.hasobject or self.held + array.nbytes <= self.limit  # strings go into no file
            path = None if fits else self._next_path()
            if fits:
                self.held += array.nbytes
                self.most = max(self.most, self.held)
            else:
                self.spilled += array.nbytes
        handle = CachedArray(array, path)
        weakref.finalize(handle, self._release, array.nbytes, path).atexit = False
        return handle

    def _next_path(self) -> Path:
        if self._folder is None:
            stack = ExitStack()
            self._folder = stack.enter_context(scratch_folder())
            weakref.finalize(self, stack.close)
        self._count += 1
        return self._folder / f"{self._count}.npy"

    def _release(self, size: int, path: Path | None) -> None:
        if path is not None:
            path.unlink(missing_ok=True)
            return
        with self._lock:
            self.held -= size


class CachedArray:
    """An array in the cache, in memory or in a file."""

    def __init__(self, array: Array, path: Path | None) -> None:
        self.dtype = array.dtype
        self._array = _copied(array) if path is None else None
        self._path = path
        if path is not None:
            try:
                np.save(path, array)
            except OSError as error:
                raise OutputError(
                    f"activations that `max_memory` has no room for cannot be kept in {path.parent.parent}:"
                    f" {error.strerror or error}; set TMPDIR to a larger disk, or raise `max_memory`"
                ) from None

    def array(self) -> Array:
        if self._path is None:
            return np.asarray(self._array)
        return np.asarray(np.load(self._path))


def _copied(array: Array) -> Array:
    """A copy: an array that ONNX Runtime returns keeps all the memory that the runtime reserves for further runs alive,
    and the allocator keeps small pieces that it gets back. Together that was twice what is held."""
    if array.nbytes < OWN_MEMORY or array.dtype.hasobject:
        return np.array(array)
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
