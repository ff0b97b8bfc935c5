"""What is freed goes back to the system, though small pieces that are kept lie between."""

import platform
from pathlib import Path

import numpy as np
import pytest

from onnxq.execution import memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one than glibc's")
def test_freed_memory_between_kept_pieces_goes_back():
    pieces = [np.ones(10_000, np.uint8) for _ in range(20_000)]
    kept = pieces[::50]
    del pieces
    before = resident()
    memory.return_freed_memory()
    assert before - resident() > 150 * 2**20
    assert len(kept) == 400


def test_nothing_happens_with_another_library(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.return_freed_memory()
