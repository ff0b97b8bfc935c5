"""Whatever happens to a run: outputs are the old or the new ones, no rubbish stays, one message, the right code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import model

import onnxq
from onnxq.cli import main
from onnxq.errors import INTERNAL_ERROR, DataError, EngineError, OutputError
from onnxq.execution import layerwise
from onnxq.graph import storage
from onnxq.graph.scratch import scratch_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

NET = (
    "(float[N,3,H,W] x) => (float[N,?,?,?] y) <float[5,3,1,1] u, float[7,5,1,1] v, float[3,7,1,1] w>"
    " { a = Conv(x, u) b = Relu(a) c = Conv(b, v) d = Relu(c) y = Conv(d, w) }"
)
WIDE = (
    "(float[N,30] x) => (float[N,?] y) <float[30,40] u, float[40,50] v>"
    " { a = MatMul(x, u) b = Relu(a) y = MatMul(b, v) }"
)
QUICK: dict[str, Any] = {"activation_range": "minmax", "cle": "off", "dead_channels": False, "bias_correction": "off"}
OLD = (b"old " * 20).hex()[-64:]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    storage.write(model(NET), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "calib.npy", rng.standard_normal((4, 3, 4, 4)).astype(np.float32))
    return tmp_path


def killed_runs(place: Path, scenario: str, *arguments: object) -> Any:
    """What became of the runs of a scenario of killed_runs.py."""
    script = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), scenario, str(place)]
    done = subprocess.run([*script, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def one_message(run: dict[str, Any]) -> bool:
    return run["stderr"].startswith("onnxq: ") and len(run["stderr"].splitlines()) == 1


# --- killed -----------------------------------------------------------------------------------------------------


def whole(runs: list[dict[str, Any]], new: dict[str, str]) -> None:
    """Every output of every run is the old one or the new one."""
    for run in runs:
        for name, held in run["outputs"].items():
            whole_report = name == "report.json" and held.endswith(b"}\n".hex())  # it holds seconds
            assert held in (OLD, new[name]) or whole_report, (name, held)


def test_killed_at_any_time(place: Path) -> None:
    """Outputs are whole, and what the killed runs left behind goes with the next one."""
    first, *killed, last = killed_runs(place, "killed_at_random", 12)
    assert first["code"] == last["code"] == 0
    assert {run["code"] for run in killed} <= {-9, 0}
    assert sum(run["code"] == -9 for run in killed) >= 3
    whole(killed, first["outputs"])
    assert last["outputs"]["out.onnx"] == first["outputs"]["out.onnx"]
    assert last["leftovers"] == []


def test_killed_at_every_step_of_writing(place: Path) -> None:
    *killed, last = killed_runs(place, "killed_while_writing")
    assert len(killed) >= 4
    assert {run["code"] for run in killed} == {-9}
    whole(killed, last["outputs"])
    assert any(run["leftovers"] for run in killed)
    assert last["leftovers"] == []


def test_killed_while_a_model_with_a_data_file_is_replaced(place: Path) -> None:
    """The model always has all of its data; data that no model refers to goes with the next run."""
    storage.write(model(WIDE), place / "net.onnx")
    np.save(place / "calib.npy", np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32))
    *killed, last = killed_runs(place, "killed_with_data_beside")
    held = [run["held"] for run in killed]
    assert {run["code"] for run in killed} == {-9}
    assert held == sorted(held, reverse=True), "the old one up to some moment, then the new one"
    assert held.count("old") >= 5
    assert held.count("new") >= 1
    assert any(run["more_files"] for run in killed)
    assert (last["held"], last["more_files"], last["leftovers"]) == ("new", 0, [])


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_stopped_by_a_signal(place: Path, name: str, code: int) -> None:
    np.lib.format.open_memmap(place / "big.npy", mode="w+", dtype=np.float32, shape=(200_000, 3, 4, 4))
    (run,) = killed_runs(place, "stopped", name)
    assert (run["code"], one_message(run), run["leftovers"]) == (code, True, []), run
    assert "nothing was written" in run["stderr"]
    assert run["outputs"]["out.onnx"] is None


def test_what_others_work_in_stays(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, ".out.") as live:
        (live / "file").write_bytes(b"")
        (tmp_path / ".out.abandond.tmp").mkdir()
        (tmp_path / ".out.abandond.tmp" / "file").write_bytes(b"")
        for other in (".out.mine", ".out.too_long_.tmp", ".put.abandond.tmp"):
            (tmp_path / other).mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "file").write_bytes(b"")
        (tmp_path / ".out.linklink.tmp").symlink_to(tmp_path / "elsewhere")
        with scratch_folder(tmp_path, ".out.") as another:
            assert another != live
        assert (live / "file").exists()
    assert (tmp_path / "elsewhere" / "file").exists()
    stay = {".out.mine", ".out.too_long_.tmp", ".put.abandond.tmp", ".out.linklink.tmp", "elsewhere"}
    assert set(os.listdir(tmp_path)) == stay


def test_a_folder_that_is_taken_for_an_abandoned_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes it between its making and its locking."""
    mkdtemp, made = onnxq.graph.scratch.tempfile.mkdtemp, []

    def robbed(**arguments: Any) -> str:
        made.append(mkdtemp(**arguments))
        if len(made) < 3:
            os.rmdir(made[-1])
        return made[-1]

    monkeypatch.setattr("onnxq.graph.scratch.tempfile.mkdtemp", robbed)
    with scratch_folder(tmp_path) as folder:
        assert (len(made), str(folder)) == (3, made[-1])


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("onnxq.graph.scratch.fcntl.flock", refuse)
    (tmp_path / "onnxq-abandond.tmp").mkdir()
    with scratch_folder(tmp_path) as folder:
        assert folder.exists()
    assert os.listdir(tmp_path) == ["onnxq-abandond.tmp"], "nobody can tell whose it is"


# --- resumed ----------------------------------------------------------------------------------------------------


def test_rounding_goes_on_from_its_checkpoint(place: Path) -> None:
    outcome = killed_runs(place, "resumed")
    whole_run, first, second, last = outcome["runs"]
    assert [run["code"] for run in outcome["runs"]] == [0, -9, -9, 0]
    assert first["outputs"]["out.onnx"] is second["outputs"]["out.onnx"] is None
    assert last["outputs"]["out.onnx"] == whole_run["outputs"]["out.onnx"]
    kept = [{tuple(f) for f in files if not f[0].startswith(".")} for files in outcome["files"]]
    assert [len(files) for files in kept] == [1, 2, 3]
    assert kept[0] < kept[1] < kept[2], "what was saved is not made again"
    assert not [f for f in outcome["files"][-1] if f[0].startswith(".")]


# --- disks ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full(place: Path) -> None:
    """Wherever a file does not fit: OutputError, or the check of a truncated model fails."""
    ended = killed_runs(place, "full_disk", 0, 100, 2000, 5000)
    assert "report.json: cannot be written" in ended["quantize 5000"]["stderr"]
    assert {run["code"] for what, run in ended.items() if "5000" not in what} == {6}
    for what, run in ended.items():
        assert run["leftovers"] == [], what
        if run["code"] != 0:
            assert (one_message(run), "File too large" in run["stderr"]) == (True, True), run
            assert set(run["outputs"].values()) == {None}, (what, run)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become somebody else")
def test_a_folder_that_is_read_only(place: Path) -> None:
    run = killed_runs(place, "locked")
    assert (run["code"], one_message(run)) == (6, True), run
    assert "Permission denied" in run["stderr"]


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("onnxq.graph.scratch.tempfile.gettempdir", none)
    with pytest.raises(OutputError, match=r"no temporary folder can be made: No usable .*; set TMPDIR"):
        onnxq.quantize(model(NET), np.ones((2, 3, 4, 4), np.float32), **QUICK)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_standard_output_that_is_full(place: Path) -> None:
    command = [sys.executable, "-m", "onnxq", "inspect", "net.onnx"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=place, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("onnxq: error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


# --- data and engine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["gone", "short", "empty", "folder"])
@pytest.mark.parametrize("moment", [1, 4])
def test_a_calibration_file_that_changes_midway(place: Path, harm: str, moment: int) -> None:
    folder = place / "calib"
    folder.mkdir()
    for index in range(3):
        np.save(folder / f"{index}.npy", np.ones((2, 3, 40, 40), np.float32))
    calls = []

    def hurt(*_: object) -> None:
        calls.append(_)
        file = folder / "2.npy"
        if len(calls) == moment:
            if harm in ("gone", "folder"):
                file.unlink()
            if harm == "folder":
                file.mkdir()
            if harm == "short":
                os.truncate(file, 5000)
            if harm == "empty":
                os.truncate(file, 0)

    with pytest.raises(DataError, match=r"2\.npy"):
        onnxq.quantize(place / "net.onnx", folder, output=place / "out.onnx", progress=hurt, **QUICK)
    assert sorted(os.listdir(place)) == ["calib", "calib.npy", "net.onnx"]


def test_a_mapped_file_that_shrinks_while_it_is_read(place: Path) -> None:
    """Touching a page that is gone would end the process (SIGBUS)."""
    np.save(place / "long.npy", np.ones((64, 3, 40, 40), np.float32))
    data = onnxq.CalibrationData(place / "long.npy", [onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 40, 40))])
    feeds = iter(data)
    next(feeds)
    os.truncate(place / "long.npy", 30_000)
    with pytest.raises(DataError, match=r"long\.npy\[1\] is gone: the file has become shorter"):
        next(feeds)


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_onnx_runtime_fails_on_one_segment(place: Path, monkeypatch: pytest.MonkeyPatch, segment: int) -> None:
    sessions = []

    class Failing(layerwise.Session):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            sessions.append(self)

        def run(self, feed: Any) -> Any:
            if self in sessions[segment : segment + 1]:
                raise EngineError("ONNX Runtime failed to run the model: kernel on fire")
            return super().run(feed)

    monkeypatch.setattr(layerwise, "Session", Failing)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    options = ["--activation-range", "minmax", "--cle", "off", "--preset", "w4a8", "--rounding", "gptq"]
    paths = [str(place / name) for name in ("net.onnx", "out.onnx", "calib.npy")]
    done = CliRunner().invoke(main, ["quantize", *paths[:2], "--calib", paths[2], *options])
    assert done.exit_code == 7, (done.output, done.exception)
    assert done.stderr == "onnxq: error: ONNX Runtime failed to run the model: kernel on fire\n"
    assert sorted(os.listdir(place)) == ["calib.npy", "net.onnx"]


def test_out_of_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        np.empty(1 << 60, np.uint8)

    monkeypatch.setattr("onnxq.cli.quantize.quantize", greedy)
    paths = [str(place / name) for name in ("net.onnx", "out.onnx", "calib.npy")]
    done = CliRunner().invoke(main, ["quantize", *paths[:2], "--calib", paths[2]])
    assert done.exit_code == 7
    assert done.stderr.startswith("onnxq: error: out of memory (Unable to allocate")


# --- bugs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["onnxq.pipeline.pipeline.correct", "onnxq.api.storage.write", "onnxq.cli.reports.write_text"]
)
def test_a_bug(place: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Whatever a pass, the report builder or a writer stumbles over: one message, an exit code of its own, no file."""

    def stumble(*_: object, **__: object) -> None:
        raise TypeError("\x1b[2Junsupported\noperand")

    before = sorted(os.listdir(place))
    monkeypatch.setattr(where, stumble)
    paths = [str(place / name) for name in ("net.onnx", "out.onnx", "calib.npy", "report.json")]
    command = ["quantize", *paths[:2], "--calib", paths[2], "--report", paths[3]]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == INTERNAL_ERROR
    assert done.stderr.startswith("onnxq: internal error: TypeError: \\x1b[2Junsupported operand; please report it")
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
    for arguments, environment in (["--traceback"], {}), ([], {"ONNXQ_TRACEBACK": "1"}):
        outcome = CliRunner().invoke(main, [*arguments, *command], env=environment)
        assert outcome.exit_code == INTERNAL_ERROR
        assert "in stumble" in outcome.stderr
        assert outcome.stderr.endswith(done.stderr)
    assert sorted(os.listdir(place)) == before


def test_a_bug_seen_from_python(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr("onnxq.api.build_report", stumble)
    with pytest.raises(TypeError, match="operand"):
        onnxq.quantize(place / "net.onnx", place / "calib.npy", output=place / "out.onnx", **QUICK)
    assert sorted(os.listdir(place)) == ["calib.npy", "net.onnx"]


def test_usage_errors_stay_what_they_are() -> None:
    assert CliRunner().invoke(main, ["quantize"]).exit_code == 2
    assert CliRunner().invoke(main, ["no-such-command"]).exit_code == 2
    assert CliRunner().invoke(main, ["--version"]).exit_code == 0
