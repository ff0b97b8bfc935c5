"""A Dask cluster gives the bytes that one process gives, whatever becomes of its workers; what fails is reported."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, TensorProto
from quantized import samples

import onnxq
from onnxq.calibration import collect
from onnxq.cli import main
from onnxq.data import Feed
from onnxq.errors import ClusterError, UsageError
from onnxq.evaluation.compare import compare
from onnxq.execution import distributed as cluster
from onnxq.execution.services import Here, open_workers
from onnxq.numeric.histogram import Histogram

distributed = pytest.importorskip("distributed")

NET = """(float[N,3,8,8] x) => (float[N,12] y) <float[5,3,3,3] a, float[6,5,3,3] b, float[6,12] f> {
         h = Conv<pads=[1,1,1,1]>(x, a)  r = Relu(h)  s = Conv(r, b)  t = Relu(s)
         g = GlobalAveragePool(t)  v = Flatten(g)  z = MatMul(v, f)  y = Softmax(z) }"""

PICKY = "(float[N,1] x) => (float[N,1,2] y) <float[3,2] w> { i = Cast<to=7>(x) y = Gather(w, i) }"
"""Takes 0, 1 and 2."""

SAMPLES = 100
"""Thirteen parts."""

Function = Callable[[Any], Any]


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=2, dashboard_address="127.0.0.1:0", silence_logs=60
    ) as made:
        yield made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    proto = graphs.model(NET)
    onnx.save(proto, tmp_path / "net.onnx")
    data = np.concatenate([feed["x"] for feed in samples(proto, SAMPLES)])
    np.save(tmp_path / "calib.npy", data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def calibrated(name: str, *arguments: str) -> bytes:
    result = invoke("calibrate", "net.onnx", name, "--calib", "calib.npy", *arguments)
    assert result.exit_code == 0, result.output
    assert f"over {SAMPLES} samples" in result.stdout
    assert result.stderr == ""
    return Path(name).read_bytes()


def each(function: Function, items: Iterable[Any], scheduler: str, most: int = 1) -> list[Any]:
    """`function` of each item, by workers."""
    with open_workers(scheduler) as workers:
        return list(workers.run(lambda threads: lambda part: map(function, part), items, 1, most))


# --- the same bytes


def test_calibration(place: Path, dask: Any) -> None:
    alone = calibrated("alone.npz")
    assert calibrated("spread.npz", "--scheduler", dask.scheduler_address) == alone
    (place / "onnxq.toml").write_text(f'scheduler = "{dask.scheduler_address}"')
    assert calibrated("again.npz", "--config", "onnxq.toml") == alone


def test_processes_of_its_own(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert calibrated("spread.npz", "--scheduler", "local:2") == calibrated("alone.npz")
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("by", ["quantizer", "layer"])
def test_sensitivity(place: Path, dask: Any, by: str) -> None:
    def found(*arguments: str) -> dict[str, Any]:
        result = invoke("sensitivity", "net.onnx", "--calib", "calib.npy", "--by", by, "--json", *arguments)
        assert result.exit_code == 0, result.output
        report: dict[str, Any] = json.loads(result.stdout)
        assert report.pop("seconds") > 0
        return report

    alone = found()
    assert len(alone["measured"]) > 3
    assert found("--scheduler", dask.scheduler_address) == alone


def test_a_metric_of_the_users_own(place: Path, dask: Any) -> None:
    (place / "users_scores.py").write_text("def score(outputs, labels):\n    return float(outputs['y'][:, 0].mean())\n")
    command = ["sensitivity", "net.onnx", "--calib", "calib.npy", "--metric", "users_scores:score", "--json"]
    alone, spread = (
        json.loads(invoke(*command, *more).stdout) for more in ([], ["--scheduler", dask.scheduler_address])
    )
    assert alone["measured"] == spread["measured"] != []


def test_comparison(place: Path, dask: Any) -> None:
    result = invoke("quantize", "net.onnx", "out.onnx", "--calib", "calib.npy", "-q")
    assert result.exit_code == 0, result.output
    alone = compare("net.onnx", "out.onnx", "calib.npy")
    assert compare("net.onnx", "out.onnx", "calib.npy", scheduler=dask.scheduler_address) == alone


def test_histograms_travel_as_their_filled_bins() -> None:
    histogram = Histogram()
    histogram.update(np.float32([0, -1.5, 3e38, -3e38, 7]))
    packed = pickle.dumps(histogram)
    copy = pickle.loads(packed)
    assert len(packed) < 1000
    assert copy.extremes == histogram.extremes
    assert np.array_equal(copy.counts, histogram.counts)
    copy.update(np.float32([1]))


# --- how work is spread


def test_all_workers_work_and_results_come_in_order(dask: Any) -> None:
    found = each(lambda i: (i, os.getpid(), time.sleep(0.02)), range(60), dask.scheduler_address)
    assert [i for i, *_ in found] == list(range(60))
    assert len({pid for _, pid, _ in found} - {os.getpid()}) == 3


def test_a_model_is_loaded_once_in_a_process(dask: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def prepare(threads: int) -> Any:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        return lambda part: [threads for _ in part]

    with open_workers(dask.scheduler_address) as workers:
        assert set(workers.run(prepare, range(50), 7, 5)) == {1}
        lines = log.read_text().splitlines()
        assert len(lines) == len(set(lines)) <= 3
        assert str(os.getpid()) not in lines
        assert list(workers.run(prepare, range(5), 7, 5)) == [7] * 5  # a single part stays here
        assert str(os.getpid()) in log.read_text().splitlines()


def test_few_parts_are_held_at_once(dask: Any) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(60):
            taken.append(i)
            yield i

    with open_workers(dask.scheduler_address) as workers:
        ahead = []
        for done, _ in enumerate(workers.run(lambda threads: lambda part: part, items(), 1, 2)):
            ahead.append(len(taken) - done)
    assert 12 < max(ahead) <= 2 * (6 + cluster.SPARE_PARTS)


def test_parts_are_bounded_in_items_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PART_BYTES", 10_000)
    small, large = np.zeros(10), np.zeros(1000)
    assert [len(p) for p in cluster._parts([small] * 70, 32)] == [32, 32, 6]
    assert [len(p) for p in cluster._parts([large] * 5, 32)] == [2, 2, 1]
    feeds = [Feed({"x": np.zeros(2000, np.float32)}, None, "") for _ in range(5)]
    assert [len(p) for p in cluster._parts(feeds, 32)] == [2, 2, 1]
    assert list(cluster._parts([], 32)) == []


def test_progress_is_reported(place: Path, dask: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    onnxq.calibrate(
        "net.onnx", "calib.npy", "out.npz", progress=lambda *call: seen.append(call), scheduler=dask.scheduler_address
    )
    assert [call for call in seen if call[0] == "calibrating"][-1] == ("calibrating", SAMPLES, SAMPLES)


# --- what goes wrong


def test_a_worker_killed_midway(place: Path, dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one to begin its second part."""
    alone = calibrated("alone.npz")
    collector, mark = collect._collector, str(place / "killed")

    def deadly(*arguments: Any) -> Any:
        stage, parts = collector(*arguments), []

        def work(feeds: Sequence[Any]) -> Any:
            parts.append(feeds)
            if len(parts) == 2 and not os.path.exists(mark):
                Path(mark).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return stage(feeds)

        return work

    monkeypatch.setattr(collect, "_collector", deadly)
    assert calibrated("spread.npz", "--scheduler", dask.scheduler_address) == alone
    assert int(Path(mark).read_text()) != os.getpid()


def test_a_part_that_kills_every_worker(dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask.scheduler, "allowed_failures", 0)
    with pytest.raises(ClusterError, match="ended the worker that did it, 1 times; have workers enough memory"):
        each(lambda i: os.kill(os.getpid(), signal.SIGKILL), range(2), dask.scheduler_address)
    deadline = time.monotonic() + 20
    while len(dask.scheduler.workers) < 3 and time.monotonic() < deadline:  # for the tests behind this one
        time.sleep(0.1)


@pytest.mark.parametrize("arguments", [["calibrate", "net.onnx", "out.npz"], ["sensitivity", "net.onnx"]])
def test_a_scheduler_that_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    start = time.monotonic()
    result = invoke(*arguments, "--calib", "calib.npy", "--scheduler", "tcp://127.0.0.1:9")
    assert time.monotonic() - start < 20  # an idle machine takes 1 s
    assert result.exit_code == 8
    assert result.output.count("\n") == 1
    assert "error: tcp://127.0.0.1:9: the scheduler cannot be reached" in result.stderr
    assert not (place / "out.npz").exists()


def test_no_worker_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 2.0)
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, dashboard_address="127.0.0.1:0", silence_logs=60
        ) as empty,
        pytest.raises(ClusterError, match="there has been no worker for 2 s"),
    ):
        each(abs, range(3), empty.scheduler_address)


def test_a_scheduler_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    with distributed.LocalCluster(
        n_workers=1, processes=False, dashboard_address="127.0.0.1:0", silence_logs=60, protocol="tcp://"
    ) as going:
        timer = threading.Timer(0.5, going.close)
        timer.start()
        start = time.monotonic()
        with pytest.raises(ClusterError, match=r"connection to the scheduler was lost|cannot be reached, or no longer"):
            each(lambda i: time.sleep(0.2), range(100), going.scheduler_address)
        assert time.monotonic() - start < 30
        timer.join()


def test_a_bad_sample(place: Path, dask: Any) -> None:
    data = np.load("calib.npy")
    data[60, 1, 2, 3] = np.nan
    np.save("calib.npy", data)
    command = ["calibrate", "net.onnx", "out.npz", "--calib", "calib.npy"]
    alone, spread = invoke(*command), invoke(*command, "--scheduler", dask.scheduler_address)
    assert (spread.exit_code, spread.stderr) == (alone.exit_code, alone.stderr)
    assert alone.exit_code == 4
    assert "calib.npy[60]" in alone.stderr


def test_a_sample_that_the_model_fails_on(place: Path, dask: Any) -> None:
    onnx.save(graphs.model(PICKY), "net.onnx")
    np.save("calib.npy", np.where(np.arange(70) == 50, 9, 1).astype(np.float32)[:, None])
    command = ["calibrate", "net.onnx", "out.npz", "--calib", "calib.npy"]
    alone, spread = invoke(*command), invoke(*command, "--scheduler", dask.scheduler_address)
    assert (spread.exit_code, spread.stderr) == (alone.exit_code, alone.stderr)
    assert alone.exit_code == 7
    assert not (place / "out.npz").exists()


def test_what_no_one_foresaw_keeps_its_type_and_place(dask: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        each(lambda i: 1 // (i - 3), range(6), dask.scheduler_address)
    text = str(caught.value.__cause__)  # the place, whatever name the function's file has on the worker
    assert "on a worker" in text
    assert "in <lambda>" in text


def test_other_versions(place: Path, dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {**cluster.versions(), "NumPy": "1.99.0"}
    monkeypatch.setattr(cluster, "versions", lambda: ours)
    result = invoke("calibrate", "net.onnx", "out.npz", "--calib", "calib.npy", "--scheduler", dask.scheduler_address)
    assert result.exit_code == 8
    assert "would compute other bytes: NumPy is" in result.stderr
    assert f"NumPy is {np.__version__}, and 1.99.0 here" in " ".join(result.stderr.split())


def test_a_package_that_is_missing_somewhere() -> None:
    here: dict[str, Any] = {"packages": dict.fromkeys(cluster.PACKAGES, "1.0")}
    other = {"packages": {**here["packages"], "numpy": "2.0"}}
    found = {"client": here, "scheduler": here, "workers": {"tcp://a:1": here, "tcp://b:1": other}}
    with pytest.raises(ClusterError, match=r"tcp://s:1: worker tcp://b:1 has numpy 2\.0, and 1\.0 is installed here"):
        cluster._refuse_others(found, "tcp://s:1")
    with pytest.raises(ClusterError, match=r"the scheduler has no onnxq, and 1\.0 is installed"):
        cluster._refuse_others({**found, "scheduler": {"packages": {}}}, "tcp://s:1")


def test_the_processor_counts() -> None:
    assert {"onnxq", "Python", "NumPy", "onnx", "ONNX Runtime", "the processor"} == cluster.versions().keys()


def test_a_module_that_workers_do_not_have(dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only_here = types.ModuleType("only_here")
    exec("def double(x): return 2 * x", vars(only_here))
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    with pytest.raises(ClusterError, match=r"cannot load what was sent to it: ModuleNotFoundError: .*only_here"):
        each(only_here.double, range(3), dask.scheduler_address)


def test_weights_in_files_do_not_travel(dask: Any) -> None:
    tensor = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="onnxq:0123")
    proto = ModelProto()
    proto.graph.initializer.append(tensor)
    with pytest.raises(UsageError, match="over 1 GiB"):
        each(lambda i: proto.ir_version, range(3), dask.scheduler_address)


@pytest.mark.parametrize("text", ["", "locally", "local:", "local:0", "local:x", "127.0.0.1:8786", "tcp://"])
def test_what_is_no_scheduler(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected local, local:N or an address like tcp://host:8786"):
        each(abs, range(3), text)


def test_an_unknown_protocol() -> None:
    with pytest.raises(ClusterError, match=r"carrier-pigeon"):
        each(abs, range(3), "pigeon://carrier-pigeon:1")


def test_without_dask(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = invoke("calibrate", "net.onnx", "out.npz", "--calib", "calib.npy", "--scheduler", "local")
    assert result.exit_code == 2
    assert "--scheduler needs Dask, which is not installed: pip install 'onnxq[dask]'" in result.stderr


def test_dask_is_left_alone_without_a_scheduler() -> None:
    code = "import sys, onnxq.cli; sys.exit(any(m in sys.modules for m in ('dask', 'onnxq.execution.distributed')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_scheduler_everything_is_done_here() -> None:
    with open_workers(None) as workers:
        assert isinstance(workers, Here)
        assert list(workers.run(lambda threads: lambda part: [threads, *part], iter([1, 2]), 3)) == [3, 1, 2]
