"""`logging.getLogger("onnxq")`: silent until somebody listens; then each step, the placement, warnings and files."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import model

import onnxq
from onnxq.cli import main
from onnxq.graph import storage

NET = "(float[N,3,4,4] x) => (float[N,?,?,?] y) <float[5,3,1,1] w> { a = Conv(x, w) b = Relu(a) y = Neg(b) }"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    storage.write(model(NET), tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32))
    return tmp_path


def test_steps_placement_warnings_and_files_are_logged(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onnxq")
    result = onnxq.quantize(place / "in.onnx", place / "calib.npy", output=place / "out.onnx")
    assert {record.name for record in caplog.records} == {"onnxq"}
    for step in result.report.steps:
        assert any(text.startswith(f"{step.title}: ") for text in caplog.messages), step.title
        assert all(any(note in text for text in caplog.messages) for note in step.notes)
    assert any(re.match(r"\d+ nodes in integers, \d+ in float", text) for text in caplog.messages)
    assert any(text.startswith("in float: 1 Neg: ") for text in caplog.messages)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == list(result.report.warnings)
    assert warned, "4 samples are few"
    assert caplog.messages[-1].startswith(f"{place / 'out.onnx'}: written, ")


def test_nothing_is_printed_where_nobody_listens(place: Path) -> None:
    """Not even warnings, which logging prints on standard error where there is no handler at all."""
    code = "import onnxq; onnxq.quantize('in.onnx', 'calib.npy')"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_command_line_logs_with_v_alone(place: Path) -> None:
    command = ["quantize", str(place / "in.onnx"), str(place / "out.onnx"), "--calib", str(place / "calib.npy")]
    silent = CliRunner().invoke(main, command)
    verbose = CliRunner().invoke(main, [*command, "-v", "--tie", "Concat"])
    again = CliRunner().invoke(main, command)
    assert (silent.exit_code, verbose.exit_code) == (0, 0)
    assert silent.stderr == again.stderr == ""
    assert "onnxq: FoldBatchNorm: " in verbose.stderr or "onnxq: Normalize: " in verbose.stderr
    assert "onnxq: warning: 4 calibration samples are few" in verbose.stderr
    assert "onnxq: warning: --tie Concat did nothing" in verbose.stderr
    assert f"onnxq: {place / 'out.onnx'}: written, " in verbose.stderr
    assert "in float: Neg" in verbose.stdout


def test_quiet_and_verbose_print_the_log_alone(place: Path) -> None:
    command = ["quantize", str(place / "in.onnx"), str(place / "out.onnx"), "--calib", str(place / "calib.npy"), "-q"]
    assert CliRunner().invoke(main, command).output == ""
    both = CliRunner().invoke(main, [*command, "-v"])
    assert (both.stdout, "written" in both.stderr) == ("", True)
