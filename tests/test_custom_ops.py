"""--custom-ops: sessions know the operators of a user's library, those of worker processes too; bad files are refused.

ONNX Runtime's own collection (onnxruntime-extensions) is such a library; without it the plumbing is tested with a fake.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from graphs import model
from onnx import ModelProto

import onnxq
from onnxq import cli
from onnxq.cli import main
from onnxq.errors import EngineError, UsageError
from onnxq.execution.session import Session, parallel_map, with_custom_ops

PLAIN = (
    "(float[N,4] x) => (float[N,3] y) <float[4,5] w, float[5,3] v> { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
)
CUSTOM = """(float[N,4] x) => (float[N,3] y) <float[4,5] w, float[5,3] v> {
            h = MatMul(x, w)  a, b = ai.onnx.contrib.NegPos(h)  d = Sub(b, a)  y = MatMul(d, v) }"""


CHECK = ("check", "in.onnx", "--target", "ort")


def custom() -> ModelProto:
    """A model of which ONNX Runtime alone cannot run one operator: h as its negative and its positive part."""
    return model(CUSTOM, domains="ai.onnx.contrib", check=False)


def data(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


@pytest.fixture
def library() -> str:
    pytest.importorskip("onnxruntime_extensions")
    return str(importlib.import_module("onnxruntime_extensions").get_library_path())


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, list[list[str]]]:
    """A file that a fake runtime takes for a library, and the libraries of each session."""
    seen: list[list[str]] = []
    real_options, real_session = ort.SessionOptions, ort.InferenceSession

    class Options(real_options):  # type: ignore[misc, valid-type]
        def register_custom_ops_library(self, path: str) -> None:
            self.__dict__.setdefault("libraries", []).append(path)

    def session(source: Any, options: Any, **arguments: Any) -> Any:
        seen.append(options.__dict__.get("libraries", []))
        return real_session(source, options, **arguments)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr(ort, "InferenceSession", session)
    path = tmp_path / "operators.so"
    path.write_bytes(b"")
    return str(path), seen


def test_every_session_of_every_function_has_the_libraries(registered: tuple[str, list[list[str]]]) -> None:
    path, seen = registered
    proto = model(PLAIN)
    result = onnxq.quantize(proto, data(), custom_ops=(path,)).model
    options = onnxq.Options(custom_ops=(path,))
    works: tuple[Callable[[], object], ...] = (
        lambda: onnxq.quantize(proto, data(), options=options),
        lambda: onnxq.compare(proto, result, data(), options=options),
        lambda: onnxq.evaluate(result, data(), reference=proto, options=options),
        lambda: onnxq.sensitivity(proto, data(), options=options),
        lambda: onnxq.debug(proto, data(), options=options, closest=True),
        lambda: onnxq.auto_mixed(proto, data(), "w4,w8,a8", onnxq.Limits(drop=5.0), options=options, closest=True),
    )
    for work in works:
        seen.clear()
        work()
        assert len(seen) >= 2
        assert all(libraries == [path] for libraries in seen)
    seen.clear()
    onnxq.quantize(proto, data())
    assert seen
    assert not any(seen)


def test_a_written_configuration_names_the_libraries(registered: tuple[str, list[list[str]]], tmp_path: Path) -> None:
    path, _ = registered
    arguments = ["in.onnx", "out.onnx"]
    with cli.quantize_command.make_context("quantize", [*arguments, "--custom-ops", path]) as context:
        given = dict(context.params)
    config = tmp_path / "c.toml"
    text = cli.config.config_text(cli.quantize_command, given, onnxq.Options(custom_ops=(path,)), "made by a test")
    config.write_text(text, encoding="utf-8")
    with cli.quantize_command.make_context("quantize", [*arguments, "--config", str(config)]) as context:
        assert cli.options.parse(dict(context.params))["options"].custom_ops == (path,)


def test_threads_have_what_the_thread_has_that_started_them(registered: tuple[str, list[list[str]]]) -> None:
    path, seen = registered
    with with_custom_ops([path]):
        list(parallel_map(lambda _: Session(model(PLAIN)), range(4), threads=2))
    assert seen == [[path]] * 4


def test_what_is_no_library_is_refused_before_any_work(tmp_path: Path) -> None:
    onnx.save(model(PLAIN), tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", data())
    (tmp_path / "text.so").write_text("no library")
    for name, said in (("missing.so", "no such file"), ("text.so", "cannot load it as a library of custom operators")):
        for command in (("quantize", "in.onnx", "out.onnx", "--calib", "calib.npy"), ("inspect", "in.onnx"), CHECK):
            paths = [str(tmp_path / part) if "." in part else part for part in command]
            done = CliRunner().invoke(main, [*paths, "--custom-ops", str(tmp_path / name)])
            assert done.exit_code == 2
            assert "--custom-ops" in done.output
            assert name in done.output
            assert said in done.output
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(UsageError, match=r"`custom_ops`.*no such file"):
        onnxq.Options(custom_ops=("missing.so",))


def test_a_model_of_custom_operators_is_quantized_around_them(library: str, tmp_path: Path) -> None:
    onnx.save(custom(), tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", data())
    command = ["quantize", "in.onnx", "out.onnx", "--calib", "calib.npy"]
    paths = [str(tmp_path / part) if "." in part else part for part in command]
    without = CliRunner().invoke(main, paths)
    assert without.exit_code != 0
    assert "NegPos" in without.output
    config = tmp_path / "options.toml"
    config.write_text(f'custom-ops = ["{library}"]')
    done = CliRunner().invoke(main, [*paths, "--config", str(config)])
    assert done.exit_code == 0, done.output
    result = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in result.graph.node].count("NegPos") == 1
    with with_custom_ops([library]):
        feed = {"x": data(5)}
        float_y, y = (Session(proto).run(feed)["y"] for proto in (custom(), result))
    assert 0 < np.abs(y - float_y).max() < 0.05 * np.abs(float_y).max()
    with pytest.raises(EngineError, match="NegPos"):
        Session(custom())


def test_processes_of_a_scheduler_load_them_too(library: str, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    here, there = (tmp_path / name for name in ("here.npz", "there.npz"))
    onnxq.calibrate(custom(), data(100), here, custom_ops=(library,))
    onnxq.calibrate(custom(), data(100), there, custom_ops=(library,), scheduler="local:2")
    assert here.read_bytes() == there.read_bytes()
