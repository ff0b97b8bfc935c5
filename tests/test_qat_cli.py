"""`onnxq qat`, with PyTorch and without it."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model

import onnxq
from onnxq.cli import main

NET = """(float[N,3,6,6] x) => (float[N,5] y) <float[6,3,3,3] w, float[6] b, float[6,5] u> {
    h = Conv(x, w, b)
    r = Relu(h)
    g = GlobalAveragePool(r)
    f = Flatten(g)
    y = Gemm(f, u)
}"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    onnx.save(model(NET), tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    np.save(tmp_path / "data.npy", np.asarray(rng.normal(0, 1, (60, 3, 6, 6)), np.float32))
    np.save(tmp_path / "labels.npy", rng.integers(0, 5, 60))
    return tmp_path


def invoke(folder: Path, *arguments: str):
    paths = [str(folder / "net.onnx"), str(folder / "out.onnx"), "--data", str(folder / "data.npy")]
    return CliRunner().invoke(main, ["qat", *paths, *arguments])


def test_without_torch_the_command_says_what_to_install(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    for name in [n for n in sys.modules if n.startswith("onnxq.qat")]:
        monkeypatch.delitem(sys.modules, name)
    result = invoke(files)
    assert result.exit_code == 2
    assert "pip install 'onnxq[qat]'" in result.output
    assert not (files / "out.onnx").exists()


def test_torch_is_imported_by_this_part_alone() -> None:
    root = Path(onnxq.__file__).parent
    for path in root.rglob("*.py"):
        names = [
            name
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        ]
        if any(name.split(".")[0] == "torch" for name in names):
            assert path.parent == root / "qat", path


@pytest.mark.parametrize("arguments", [(), ("--labels", "labels.npy")])
def test_the_command_trains_and_reports(files: Path, arguments: tuple[str, ...]) -> None:
    pytest.importorskip("torch")
    given = [str(files / a) if a.endswith(".npy") else a for a in arguments]
    report = files / "report.json"
    result = invoke(
        files, *given, "--preset", "w4a4", "--steps", "4", "--batch", "16", "--evaluations", "2", "--augment", "none",
        "--lr", "0.01", "--report", str(report),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "trained network and written model on 6 held-out samples" in result.output
    onnx.checker.check_model(onnx.load(files / "out.onnx"), full_check=True)
    written = json.loads(report.read_text())
    assert written["options"]["training"]["steps"] == 4
    assert written["options"]["training"]["augment"] == []
    assert any(step["name"] == "Train" for step in written["steps"])


def test_options_may_stand_in_a_file(files: Path) -> None:
    pytest.importorskip("torch")
    config = files / "qat.toml"
    config.write_text(
        'steps = 2\nbatch = 8\nevaluations = 1\npreset = "w4a8"\naugment = ["crop"]\nlearn-ranges = false\n'
    )
    report = files / "report.json"
    result = invoke(files, "--config", str(config), "--report", str(report))
    assert result.exit_code == 0, result.output
    training = json.loads(report.read_text())["options"]["training"]
    assert (training["steps"], training["augment"], training["learn_ranges"]) == (2, ["crop"], False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--loss", "nowhere:f"), 2, "cannot be imported"),
        (("--device", "nonsense"), 2, "--device 'nonsense'"),
        (("--distill-tensors", "nowhere"), 2, "matches no inner float tensor"),
        (("--samples", "1"), 4, "at least two samples"),
    ],
)
def test_what_makes_no_sense_is_said_before_training(
    files: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    pytest.importorskip("torch")
    result = invoke(files, *arguments, "--steps", "2")
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not (files / "out.onnx").exists()
