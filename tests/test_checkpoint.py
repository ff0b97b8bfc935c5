"""Checkpoints: whole or not there, and only for the same work."""

import numpy as np
import pytest

from onnxq.calibration.checkpoint import Checkpoint, key_of
from onnxq.errors import OutputError


def test_what_was_saved_is_loaded(tmp_path):
    checkpoint = Checkpoint(tmp_path / "new", "key")
    assert checkpoint.load("conv/1") is None
    checkpoint.save("conv/1", {"weight": np.arange(3), "error": np.float64(0.5)})
    np.testing.assert_array_equal(checkpoint.load("conv/1")["weight"], [0, 1, 2])
    assert checkpoint.load("conv/1")["error"] == 0.5
    assert checkpoint.load("conv/2") is None
    assert Checkpoint(tmp_path / "new", "other").load("conv/1") is None
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PK" + data])
def test_damaged_files_count_as_missing(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save("a", {"weight": np.arange(1000)})
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert checkpoint.load("a") is None


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the checkpoint"):
        Checkpoint(tmp_path / "file" / "folder", "key").save("a", {})


def test_keys_tell_parts_apart():
    assert key_of(b"ab", b"c") != key_of(b"a", b"bc")
    assert key_of(b"ab", b"c") == key_of(b"ab", b"c")
