"""`onnxq debug` prints what it does, writes what it accepts, and a configuration that gives the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from quantized import samples
from test_debug import net

from onnxq import cli
from onnxq.graph import storage

BARE = ["--force-int-kernels", "--per-tensor", "--no-dead-channels", "--no-cle", "--no-absorb", "--no-bias-correction"]
BARE += ["--weight-range", "minmax", "--activation-range", "minmax", "--rounding", "nearest"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model whose activation `t` has an extreme range, and 8 samples."""
    proto = net("range")
    storage.write(proto, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.concatenate([feed["x"] for feed in samples(proto, 8)]))
    return tmp_path


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def debug(place: Path, *options: Any) -> Result:
    calib = ("--calib", place / "calib.npy", "--target-score", 30)
    return invoke("debug", place / "in.onnx", *calib, *BARE, *options)


def test_the_accepted_model_its_report_and_its_configuration(place: Path) -> None:
    out, config = place / "out.onnx", place / "found.toml"
    written = ["--report", place / "r.json", "--report", place / "r.html", "--report", place / "r.md"]
    result = debug(place, "-o", out, "--write-config", config, *written)
    assert result.exit_code == 0, result.output
    order = ["Sanity", "Weights or activations", "t (activation)", "Single tensors", "16 bits", "Take back", "Accepted"]
    assert [result.output.index(text) for text in order] == sorted(result.output.index(text) for text in order)
    report = json.loads((place / "r.json").read_text())
    assert report["log"][-1]["title"] == "Accepted"
    assert report["sensitivity"]["ranking"][0]["unit"] == "t"
    assert "What became of the sensitive quantizers" in (place / "r.html").read_text()
    assert "What became of the sensitive quantizers" in (place / "r.md").read_text()
    again = invoke(
        "quantize", place / "in.onnx", place / "two.onnx", "--calib", place / "calib.npy", "--config", config
    )
    assert again.exit_code == 0, again.output
    assert (place / "two.onnx").read_bytes() == out.read_bytes()


def test_nothing_is_written_where_the_target_is_not_reached(place: Path) -> None:
    barred = ["--without", "tensor-16-bit", "--without", "float"]
    written = ["-o", place / "out.onnx", "--write-config", place / "c.toml", "--report", place / "r.html"]
    result = debug(place, *barred, *written)
    assert result.exit_code == 5
    assert "the target is not reached; the closest: SQNR 2" in result.output
    assert sorted(path.name for path in place.iterdir()) == ["calib.npy", "in.onnx"]
    result = debug(place, *barred, *written, "--closest", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (place / "out.onnx").exists()


def test_files_are_not_overwritten(place: Path) -> None:
    assert debug(place, "-o", place / "calib.npy").exit_code == 6
    assert debug(place, "--write-config", place / "in.onnx").exit_code == 6
    assert debug(place, "--eval", place / "calib.npy", "-o", place / "in.onnx").exit_code == 6
