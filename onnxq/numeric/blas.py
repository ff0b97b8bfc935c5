"""Threads of the library that multiplies NumPy's matrices (OpenBLAS), which has no setting in NumPy itself.

Its threads wait for each other in loops that burn time: for products of some hundred rows, as they are taken for a
layer, two threads took two to three times the CPU time of one and finished no earlier.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_PREFIXES = ("scipy_openblas_", "openblas_")
_SUFFIXES = ("64_", "")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Matrices are multiplied by one thread; nothing changes where NumPy has another library than OpenBLAS."""
    found = _openblas()
    if found is None:
        yield
        return
    read, write = found
    before = int(read())
    write(1)
    try:
        yield
    finally:
        write(before)


@cache
def product_seconds() -> float:
    """CPU seconds that one multiplication takes in a product of matrices, on this machine: for forecasts of time."""
    x, taken = np.ones((256, 256)), []
    with one_blas_thread():
        for _ in range(3):
            start = time.thread_time()
            x @ x
            taken.append(time.thread_time() - start)
    return float(max(min(taken), 1e-6) / len(x) ** 3)


@cache
def _openblas() -> tuple[Any, Any] | None:
    """The functions that read and set the number of threads, of the copy of OpenBLAS that NumPy's wheel has."""
    folders = Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".dylibs"
    for file in sorted(file for folder in folders if folder.is_dir() for file in folder.glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(file))
        except OSError:
            continue
        for name in (f"{prefix}{{}}_num_threads{suffix}" for prefix in _PREFIXES for suffix in _SUFFIXES):
            if hasattr(library, name.format("set")) and hasattr(library, name.format("get")):
                return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None
