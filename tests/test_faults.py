"""Whatever happens to a run: outputs are the old ones or the new ones, nothing else stays, one message, the right code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import model

import onnxq
from onnxq import layerwise
from onnxq.cli import main
from onnxq.errors import DataError, EngineError, OutputError
from onnxq.graph import storage
from onnxq.scratch import scratch_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

NET = (
    "(float[N,3,4,4] x) => (float[N,?,?,?] y) <float[5,3,1,1] u, float[7,5,1,1] v, float[3,7,1,1] w>"
    " { a = Conv(x, u) b = Relu(a) c = Conv(b, v) d = Relu(c) y = Conv(d, w) }"
)
QUICK = {"activation_range": "minmax", "cle": "off", "dead_channels": False, "bias_correction": "off"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    storage.write(model(NET), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "calib.npy", rng.standard_normal((4, 3, 4, 4)).astype(np.float32))
    del np.lib.format.open_memmap  # type: ignore[attr-defined]
    return tmp_path
