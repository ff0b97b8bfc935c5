"""Arrays that are kept for a while: as they were, whoever changes or frees theirs; no more in memory than agreed."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import numpy as np
import pytest

from onnxq.execution.spill import OWN_MEMORY, SpillCache


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, OWN_MEMORY)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_, np.int64])
def test_an_array_comes_back_as_it_was(tmp_path: Path, limit: int, shape: tuple[int, ...], dtype: type) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape), dtype)
    cache = SpillCache(limit, tmp_path)
    handle, expected = cache.put(array.T), array.T.copy()
    array[...] = 1
    np.testing.assert_array_equal(handle.array(), expected)
    assert handle.array().dtype == dtype


def test_what_does_not_fit_goes_to_files_and_both_go_with_their_handles(tmp_path: Path) -> None:
    cache = SpillCache(1000, tmp_path)
    handles = [cache.put(np.zeros(100, np.float32)) for _ in range(5)]
    assert (cache.held, cache.most, cache.spilled, len(os.listdir(tmp_path))) == (800, 800, 1200, 3)
    del handles
    gc.collect()
    assert (cache.held, os.listdir(tmp_path)) == (0, [])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read as Linux tells it")
def test_memory_goes_back_to_the_system_in_whatever_order_arrays_go(tmp_path: Path) -> None:
    """An allocator would keep what lies between arrays that are still there."""
    cache = SpillCache(1 << 30, tmp_path)
    before = _resident()
    handles = [cache.put(np.ones(OWN_MEMORY, np.float32)) for _ in range(400)]
    full = _resident() - before
    del handles[::2]
    gc.collect()
    assert full > 400 * 4 * OWN_MEMORY * 0.9
    assert _resident() - before < 0.6 * full


def _resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def test_the_temporary_folder_is_made_when_it_is_needed_and_goes_with_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = SpillCache(100)
    kept = [cache.put(np.zeros(25, np.float32))]
    assert os.listdir(tmp_path) == []
    kept.append(cache.put(np.ones(25, np.float32)))
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 1
    del cache
    np.testing.assert_array_equal(kept[1].array(), np.ones(25, np.float32))
    kept.clear()
    gc.collect()
    assert os.listdir(tmp_path) == []
