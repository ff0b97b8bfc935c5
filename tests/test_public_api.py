"""What users import: typed, documented, tested, shipped with its types, and safe to call from several threads."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import threading
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import model

import onnxq

ROOT = Path(__file__).parents[1]

DOCUMENTED = (
    "onnxq",
    "onnxq.data",
    "onnxq.errors",
    "onnxq.report",
    "onnxq.targets",
    "onnxq.encodings",
    "onnxq.checking",
)
"""Modules that users may import from; their public names are promises."""

NET = (
    "(float[N,3,4,4] x) => (float[N,?,?,?] y) <float[5,3,1,1] w, float[7,5,1,1] v>"
    " { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }"
)


def public() -> Iterator[tuple[str, Any]]:
    """(qualified name, object) of everything promised, each once."""
    seen: set[int] = set()
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None) or [
            n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == name and not n.startswith("_")
        ]
        for each in names:
            thing = getattr(module, each)
            if id(thing) not in seen:
                seen.add(id(thing))
                yield f"{name}.{each}", thing


CALLABLES = [(name, thing) for name, thing in public() if inspect.isfunction(thing) or inspect.isclass(thing)]


def functions(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """The function itself, or a class's own public methods and properties."""
    if inspect.isfunction(thing):
        yield name, thing
        return
    for each, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        generated = dataclasses.is_dataclass(thing) and each == "__init__"
        if inspect.isfunction(function) and (not each.startswith("_") or each == "__init__") and not generated:
            yield f"{name}.{each}", function


METHODS = [pair for name, thing in CALLABLES for pair in functions(name, thing)]


def test_the_walk_finds_them() -> None:
    names = {name for name, _ in METHODS}
    assert {"onnxq.quantize", "onnxq.calibrate", "onnxq.CalibrationData.digest", "onnxq.Report.to_html"} <= names
    assert len(CALLABLES) > 25


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_is_promised_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for each in getattr(module, "__all__", ()):
        assert hasattr(module, each), each


@pytest.mark.parametrize(("name", "thing"), CALLABLES, ids=[name for name, _ in CALLABLES])
def test_documented(name: str, thing: Any) -> None:
    own = thing.__doc__ or ""
    assert own.strip(), f"{name} has no docstring of its own"
    assert not own.startswith(f"{getattr(thing, '__name__', '')}("), f"{name} has the one that dataclasses make"


@pytest.mark.parametrize(("name", "function"), METHODS, ids=[name for name, _ in METHODS])
def test_typed(name: str, function: Any) -> None:
    signature = inspect.signature(function)
    untyped = [
        p.name
        for p in signature.parameters.values()
        if p.name not in ("self", "cls") and p.annotation is inspect.Parameter.empty
    ]
    assert not untyped, f"{name}: {untyped}"
    assert signature.return_annotation is not inspect.Signature.empty, f"{name}: no return type"


@pytest.mark.parametrize(("name", "thing"), CALLABLES, ids=[name for name, _ in CALLABLES])
def test_annotations_mean_something(name: str, thing: Any) -> None:
    """Names in annotations exist."""
    typing.get_type_hints(thing.__init__ if inspect.isclass(thing) and "__init__" in vars(thing) else thing)


TESTS = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))


PLAIN = {name.rpartition(".")[2] for name, _ in METHODS if re.fullmatch(r"onnxq\.\w+(\.\w+)?", name)} - {"__init__"}


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_tested(name: str) -> None:
    assert re.search(rf"\b{name}\b", TESTS), f"no test mentions {name}"


def test_what_the_options_come_down_to() -> None:
    options = onnxq.Options()
    assert (options.weight_method, options.weighs_weights, options.has_integer_kernels) == ("mse", False, True)
    per_tensor = onnxq.Options(per_channel=False, weight_range="minmax", preset="w4a8", store_4bit="int4")
    assert (per_tensor.weight_method, per_tensor.weighs_weights) == ("minmax", False)
    assert not per_tensor.has_integer_kernels
    assert (per_tensor.packs_int4(beside_integers=True), options.packs_int4(beside_integers=True)) == (True, False)
    assert onnxq.Options(per_channel=False).weighs_weights


def test_samples_have_names_and_hashes(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "a.npy", array)
    spec = onnxq.data.InputSpec("x", np.dtype("f4"), (None, 2))
    data = onnxq.CalibrationData(tmp_path / "a.npy", [spec], samples=2)
    assert data.origins() == [f"{tmp_path / 'a.npy'}[{row}]" for row in range(3)]
    hashes = data.sample_hashes()
    assert hashes == sorted(hashes)
    assert set(hashes) < set(onnxq.CalibrationData(array, [spec]).sample_hashes())
    image = onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 4, 4))
    assert (onnxq.Preprocess().accepts_pixels(image), onnxq.Preprocess().accepts_pixels(spec)) == (True, False)


def test_arguments_are_what_they_were() -> None:
    """A changed name or order breaks callers: change these lists on purpose, and the changelog with them."""
    keywords = (
        "output encodings statistics options preprocess input_keys transform progress details eval_data labels metric"
    )
    keywords += " evaluation_samples toolchain before_writing settings"
    assert list(inspect.signature(onnxq.quantize).parameters) == ["model", "calibration", *keywords.split()]
    keywords = "options preprocess input_keys progress scheduler settings"
    assert list(inspect.signature(onnxq.calibrate).parameters)[:3] == ["model", "calibration", "output"]
    assert set(keywords.split()) <= set(inspect.signature(onnxq.calibrate).parameters)
    codes = {e.__name__: e.exit_code for e in vars(onnxq.errors).values() if inspect.isclass(e)}
    assert codes == {
        "OnnxqError": 1, "UsageError": 2, "ModelError": 3, "AlreadyQuantizedError": 3, "NothingToQuantizeError": 3,
        "DataError": 4, "VerificationError": 5, "OutputError": 6, "EngineError": 7, "ClusterError": 8,
    }  # fmt: skip
    assert onnxq.errors.INTERNAL_ERROR == 70


def test_types_are_shipped(tmp_path: Path) -> None:
    """A wheel, built from a copy, holds py.typed and the page's files."""
    pytest.importorskip("setuptools", minversion="77")  # the first that reads the licence in pyproject.toml
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "onnxq", tmp_path / "onnxq", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    (tmp_path / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"onnxq/py.typed", "onnxq/report/page.css", "onnxq/report/page.js"} <= held
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "onnxq").rglob("*.py")}
    assert modules <= held


def test_two_quantizations_at_the_same_time() -> None:
    """Each gives the bytes that it gives alone."""
    jobs = [(model(NET, seed=seed), np.random.default_rng(seed).standard_normal((6, 3, 4, 4))) for seed in range(4)]
    presets = ("w8a8", "w4a8", "w8a16", "w8a8")

    def quantized(index: int) -> bytes:
        net, data = jobs[index]
        result = onnxq.quantize(net, data.astype(np.float32), preset=presets[index], threads=2)
        return bytes(result.model.SerializeToString(deterministic=True))

    alone = [quantized(index) for index in range(len(jobs))]
    together: dict[int, list[bytes]] = {index: [] for index in range(len(jobs))}
    barrier = threading.Barrier(len(jobs), timeout=60)

    def work(index: int) -> None:
        barrier.wait()
        together[index] += [quantized(index), quantized(index)]

    threads = [threading.Thread(target=work, args=(index,)) for index in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {index: [expected, expected] for index, expected in enumerate(alone)}


def test_printable_text_stays_and_the_rest_is_escaped() -> None:
    assert onnxq.report.printable("Größe/x:0") == "Größe/x:0"
    assert onnxq.report.printable("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"


def test_only_public_names_show() -> None:
    """Those that are promised, without the sub-packages that importing them adds, and what api.py offers."""
    assert sorted(dir(onnxq)) == sorted(onnxq.__all__)
    assert set(importlib.import_module("onnxq.api").__all__) <= set(dir(onnxq))
    assert "graph" not in dir(onnxq)


def test_python_m_onnxq_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "onnxq", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: onnxq [OPTIONS] COMMAND")


def test_inspect_and_check_take_what_quantize_takes(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model(NET).SerializeToString())
    found = onnxq.inspect(path, exclude=("Conv_a",))
    assert found == onnxq.inspect(path, options=onnxq.Options(exclude=("Conv_a",)))
    assert any(float_node.node == "Conv_a" for float_node in found.float_nodes)
    data = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
    onnxq.quantize(path, data, target="tensorrt", output=tmp_path / "trt.onnx")
    for target in ("tensorrt", onnxq.TARGETS["tensorrt"]):
        assert not onnxq.check(tmp_path / "trt.onnx", target).violations
    assert onnxq.check(tmp_path / "trt.onnx", "qnn").violations
