"""Memory that is freed and that the allocator keeps: glibc gives back the end of its heap alone, so that small pieces
in use hold on to all that is free in front of them.

ResNet-50, 98 MiB of weights, whose copies come and go with every pass: 1021 MiB once BatchNorm was folded, and 294 once
what was free had been given back; 954 and 326 MiB once ranges were set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def return_freed_memory() -> None:
    """Give it back to the system; nothing happens where the C library is another one than glibc."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another system, or another C library
        return None
