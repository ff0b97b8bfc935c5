"""What tests of hostile files share: a folder with a good model and good data, and what a refusal looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from graphs import model

from onnxq.cli import main
from onnxq.graph import storage

NET = (
    "(float[N,3,4,4] x) => (float[N,?,?,?] y) <float[5,3,1,1] w, float[7,5,1,1] v>"
    " { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }"
)
QUICK = ["--activation-range", "minmax", "--cle", "off", "--no-dead-channels", "--bias-correction", "off"]
HOSTILE = "\x1b[2J<script>alert(1)</script>\n|`' onerror=\"x\u202e"


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A test that waits for a pipe is ended."""
    import signal

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    storage.write(model(NET), tmp_path / "net.onnx")
    np.save(tmp_path / "calib.npy", np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32))
    return tmp_path


def run(place: Path, *options: object, net: str = "net.onnx", calib: str = "calib.npy") -> Result:
    command = ["quantize", place / net, place / "out.onnx", "--calib", place / calib, *QUICK, *options]
    return CliRunner().invoke(main, list(map(str, command)))


def refused(place: Path, code: int, message: str, *options: object, **files: str) -> None:
    result = run(place, *options, **files)
    assert result.exit_code == code, (result.output, result.exception)
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(message, last), result.stderr
    assert last.isprintable()
    assert code == 2 or len(result.stderr.splitlines()) == 1
    assert not (place / "out.onnx").exists()
