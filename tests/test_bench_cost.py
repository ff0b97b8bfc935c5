"""bench/cost.py: its command line, its row of a small network, and what it makes of a tool that fails or takes long."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import compare
import cost

BENCH = Path(cost.__file__).parent
DONE = {"outcome": "done", "why": "", "mebibytes": 100.0}


def made(tool: str, seconds: float, sqnr: float = 30.0, printed: float = 30.0, **fields: object) -> cost.Row:
    measured = {"cpu_seconds": seconds, "sqnr_db": {"y": sqnr}, "printed_db": {"y": printed}, **DONE, **fields}
    return cost.Row("realmodels/x", "w8a8", tool, 10, 20, **measured)  # type: ignore[arg-type]


def by_tool(*rows: cost.Row) -> dict[tuple[str, str, str], cost.Row]:
    return {(row.network, row.preset, row.tool): row for row in rows}


def test_help() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "cost.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--limit" in done.stdout


def test_one_row_of_a_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "CASES", tmp_path / "missing")
    page, figures = tmp_path / "cost.md", tmp_path / "cost.json"
    options = ["--only", "models/mobilenet_digits", "--tools", "nearest", "--samples", "8", "--unseen", "20"]
    cost.main([*options, "--markdown", str(page), "--json", str(figures)])
    [row] = json.loads(figures.read_text())
    assert (row["network"], row["tool"], row["outcome"]) == ("models/mobilenet_digits", "nearest", "done")
    assert (row["calibration_samples"], row["unseen_samples"]) == (8, 20)
    assert row["cpu_seconds"] > 0.5
    assert row["mebibytes"] > 50
    assert 25 < row["sqnr_db"]["logits"] < 60
    assert 25 < row["printed_db"]["logits"] < 60
    assert "| models/mobilenet_digits | 8 |" in page.read_text()
    said = capsys.readouterr()
    assert "cases are left out" in said.out
    assert said.err.startswith("[1/1] models/mobilenet_digits w8a8 nearest: ")


def test_a_command_over_its_limit_is_ended(tmp_path: Path) -> None:
    model = BENCH.parent / "models" / "mobilenet_digits"
    run = compare.attempt("onnxq", model / "model.onnx", model / "calib", tmp_path / "q.onnx", limit=0.2)
    assert run.code is None
    assert 0.2 < run.cpu_seconds < 5
    assert run.mebibytes > 5


def test_a_refused_option_has_its_exit_status(tmp_path: Path) -> None:
    model = BENCH.parent / "models" / "mobilenet_digits"
    run = compare.attempt("onnxq", model / "model.onnx", model / "calib", tmp_path / "q.onnx", "--effort", "none")
    assert run.code == 2
    assert "--effort" in run.said.splitlines()[-1]


def test_cells_and_bounds() -> None:
    static, default, nearest = (
        made("quantize_static", 2, 25, printed_db={}),
        made("default", 20, 28, 31),
        made("nearest", 4, 29),
    )
    found = by_tool(static, default, nearest)
    assert cost.cost(static, found) == "2.0 s, 100 MiB"
    assert cost.cost(default, found) == "20.0 s (10.0), 100 MiB"
    assert cost.quality(static) == "25.0"
    assert cost.quality(default) == "28.0 (31.0)"
    where = "- realmodels/x, w8a8, default: "
    assert list(cost.misses(found)) == [
        where + "10.0 times the CPU time of quantize_static, at most 4.",
        where + "28.0 dB on unseen samples, nearest 29.0.",
        where + "31.0 dB printed, 28.0 on unseen samples.",
    ]
    assert list(cost.misses(by_tool(static, made("default", 7, 28.8, 30), nearest))) == []


def test_printed_figures() -> None:
    said = "output a: b: SQNR 26.4 dB against float, on 12 samples held out\noutput c: SQNR identical\nfile: SQNR 3\n"
    assert cost.printed_db(said) == {"a: b": 26.4, "c": math.inf}


def test_what_has_no_figure() -> None:
    static = made("quantize_static", 2)
    ended = made("default", 300, outcome="ended", why="ended after 300 CPU s", sqnr_db={}, printed_db={})
    refused = made("fast", 1, outcome="refused", why="exit 2: no", sqnr_db={}, printed_db={})
    found = by_tool(static, ended, refused)
    assert cost.cost(ended, found) == ">300.0 s (>150.0), 100 MiB"
    assert cost.quality(ended) == "-"
    assert cost.cost(refused, found) == "-"
    assert cost.quality(made("default", 1, sqnr_db={}, printed_db={"y": 30.0})) == "unknown (unknown)"
    assert cost.quality(made("default", 1, math.inf, math.inf)) == "identical (identical)"
    assert cost.ratio(ended, by_tool(made("quantize_static", 2, outcome="failed"), ended)) is None
