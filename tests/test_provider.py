"""--provider: which sessions run on it, what stays on the CPU; what is said where it is missing or does not start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

import onnxq
from onnxq.cli import main
from onnxq.errors import EngineError, UsageError
from onnxq.execution.session import CPU, Session, running_on
from onnxq.graph import storage

NET = "(float[N,4] x) => (float[N,3] y) <float[4,5] w, float[5,3] v> { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
FAST = "FastExecutionProvider"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A runtime with one more provider, which is the CPU under another name; the providers of each session."""
    seen: list[list[str]] = []
    real = ort.InferenceSession

    class Fake:
        def __init__(self, source: Any, options: Any, providers: Sequence[tuple[str, Any]]) -> None:
            self._session = real(source, options, providers=[CPU])
            self._names = [name for name, _ in providers]
            seen.append(self._names)

        def get_providers(self) -> list[str]:
            return self._names

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    monkeypatch.setattr(ort, "InferenceSession", Fake)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [FAST, CPU])
    return seen


def data(count: int = 20) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


def test_the_model_runs_there_and_the_result_is_verified_on_the_cpu(asked: list[list[str]]) -> None:
    proto = graphs.model(NET)
    result = onnxq.quantize(proto, data(), provider=FAST).model
    on_cpu = asked.count([CPU])
    assert asked.count([FAST, CPU]) >= 3  # ranges, trials
    assert 3 <= on_cpu < len(asked)  # float, as written, optimised
    for work in (
        lambda: onnxq.compare(proto, result, data(), provider=FAST),
        lambda: onnxq.evaluate(result, data(), reference=proto, provider=FAST),
        lambda: onnxq.sensitivity(proto, data(), options=onnxq.Options(provider=FAST)),
        lambda: onnxq.debug(proto, data(), options=onnxq.Options(provider=FAST), closest=True),
    ):
        asked.clear()
        work()
        assert [FAST, CPU] in asked
    asked.clear()
    onnxq.quantize(proto, data())
    assert {*map(tuple, asked)} == {(CPU,)}


def test_a_missing_one_is_refused_by_name_before_any_work(tmp_path: Path) -> None:
    storage.write(graphs.model(NET), tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", data())
    quantize = ["quantize", "in.onnx", "out.onnx", "--calib", "calib.npy"]
    for command in (quantize, ["evaluate", "in.onnx", "--data", "calib.npy"]):
        paths = [str(tmp_path / part) if part.endswith(("onnx", "npy")) else part for part in command]
        done = CliRunner().invoke(main, [*paths, "--provider", "MadeUpExecutionProvider"])
        assert done.exit_code == 2
        assert "--provider" in done.output
        assert "MadeUpExecutionProvider" in done.output
        assert all(name in done.output for name in ort.get_available_providers())
    assert not (tmp_path / "out.onnx").exists()


def test_one_that_does_not_start_is_an_error(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: [CPU])
    with running_on(FAST), pytest.raises(EngineError, match=f"cannot start it.*`provider` {CPU}"):
        Session(graphs.model(NET))
    assert Session(graphs.model(NET)).outputs == ["y"]


def test_processes_of_a_scheduler_run_on_the_cpu(asked: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scheduler"):
        onnxq.calibrate(graphs.model(NET), data(), tmp_path / "s.npz", provider=FAST, scheduler="local")
