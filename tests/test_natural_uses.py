"""What people write who have read the manuals of other tools, or nothing: it works, and means what it says."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model
from PIL import Image
from test_natural_mistakes import NET

import onnxq
from onnxq import cli
from onnxq.graph import storage


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    storage.write(model(NET), folder / "in.onnx")
    random = np.random.default_rng(0)
    data = random.standard_normal((40, 3, 16, 16)).astype(np.float32)
    np.save(folder / "calib.npy", data)
    (folder / "images").mkdir()
    for index in range(8):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{index}.png")
    (folder / "labels.csv").write_text("\n".join(f"{index}.png,{index % 5}" for index in range(8)))
    onnxq.quantize(folder / "in.onnx", data, output=folder / "q.onnx", latency="off")
    return folder


QUANTIZE = "quantize in.onnx out.onnx --calib images --no-latency --effort fast --report out.json"


def options_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "out.json").read_text(encoding="utf-8"))["options"]
    return found


IMAGENET = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225", {"mean": IMAGENET[0], "std": IMAGENET[1]}),
    ("--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225", {"mean": IMAGENET[0], "std": IMAGENET[1]}),
    ("--mean '[0.485, 0.456, 0.406]' --std [0.229, 0.224, 0.225]", {"mean": IMAGENET[0], "std": IMAGENET[1]}),
    ("--mean=0.5 --std=0.5", {"mean": [0.5], "std": [0.5]}),
    ("--mean 123.675 116.28 103.53 --std 58.395 57.12 57.375 --scale 1", {"mean": [123.675, 116.28, 103.53]}),
    ("--scale 1/128 --mean 1", {"scale": 1 / 128}),
    ("--resize 20 --crop 16 16", {"resize": 20, "crop": [16, 16]}),
    ("--resize 16,16", {"resize": [16, 16]}),
    ("--resize 16x16 --layout NCHW --color RGB --interpolation Bicubic", {"layout": "nchw", "color": "rgb"}),
    ("--preset int8", {"preset": "w8a8"}),
    ("--preset INT4", {"preset": "w4"}),
    ("--preset W8A8", {"preset": "w8a8"}),
    ("--preset A16W8", {"preset": "w8a16"}),
    ("--target TensorRT", {"target": "TensorRT"}),
    ("--target trt --preset int8", {"target": "trt"}),
    ("--target tensorrt-rtx", {"target": "tensorrt-rtx"}),
    ("--target snpe --freeze N=1", {"target": "snpe"}),
    ("--target ov", {"target": "ov"}),
    ("--activation-range MinMax", {"activation_range": "MinMax"}),
    ("--activation-range kl", {"activation_range": "kl"}),
    ("--per_tensor", {"per_channel": False}),
    ("--Exclude Gemm", {"exclude": ["Gemm"]}),
    ("--max-memory 1GB", {"max_memory": 1024}),
]


@pytest.mark.parametrize(("written", "means"), FORMS, ids=[written for written, _ in FORMS])
def test_forms_on_the_command_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, written: str, means: dict[str, Any]
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(cli.main, shlex.split(f"{QUANTIZE} {written}"))
    assert result.exit_code == 0, result.output
    found = options_of(place)
    found |= found["preprocess"]
    assert {name: found[name] for name in means} == means
    assert onnx.load("out.onnx").graph.node


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("quantize in.onnx out.onnx --calib images --eval-data images --labels labels.csv",
         ["top-1 accuracy: float ", "quantized ", "top-5 accuracy|output y"]),
        ("quantize in.onnx out.onnx --preset w8", ["size "]),
        ("quantize in.onnx out.onnx --calib images --dry-run", ["a dry run, nothing is written", "CPU time"]),
        ("inspect in.onnx --calib images --mean 0.5", ["could be quantized: ", "data: "]),
        ("evaluate q.onnx --data images --labels labels.csv --reference in.onnx", ["top-1 accuracy", "SQNR"]),
        ("compare in.onnx q.onnx --calib images", ["tensors"]),
        ("sensitivity in.onnx --calib images --top 2", ["alone"]),
        ("check q.onnx --target trt", [""]),
        ("targets nvidia", ["tensorrt"]),
        ("calibrate in.onnx s.npz --calib images", ["s.npz: "]),
        ("debug in.onnx --calib images --closest", [""]),
        ("completion bash", ["_ONNXQ_COMPLETE"]),
    ],
)  # fmt: skip
def test_commands(place: Path, monkeypatch: pytest.MonkeyPatch, command: str, printed: list[str]) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(cli.main, shlex.split(command))
    assert result.exit_code in (0, 5 if command.startswith("check") else 0), result.output
    for text in printed:
        assert any(part in result.output for part in text.split("|")), result.output


class Reader:
    """Of ONNX Runtime's quantize_static."""

    def __init__(self, data: np.ndarray) -> None:
        self.items = iter(data)

    def get_next(self) -> dict[str, np.ndarray] | None:
        item = next(self.items, None)
        return None if item is None else {"image": item[None]}


class Tensor:
    """What numpy makes an array of by `__array__`, as a tensor of PyTorch."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.data


class Dataset:
    """Of PyTorch: images with their labels."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return Tensor(self.data[index]), 3


def generator(data: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    yield from ({"image": item[None]} for item in data)


FAST: dict[str, Any] = {"latency": "off", "effort": "fast", "provenance": False}

SOURCES: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda x: x,
    "mapping": lambda x: {"image": x},
    "list of arrays": list,
    "list of mappings": lambda x: [{"image": item} for item in x],
    "list of batches": lambda x: [x[:16], x[16:]],
    "path": lambda x: "calib.npy",
    "Path": lambda x: Path("calib.npy"),
    "generator": generator,
    "function that makes a generator": lambda x: lambda: generator(x),
    "function that makes a list": lambda x: lambda: list(x),
    "iterator of tuples with labels": lambda x: ((item[None], 1) for item in x),
    "ONNX Runtime's reader": Reader,
    "dataset of tensors and labels": Dataset,
    "tensor": Tensor,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_calibration_data_in_python(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The same samples, the same bytes, whatever holds them."""
    monkeypatch.chdir(place)
    data = np.load("calib.npy")
    expected = onnxq.quantize("in.onnx", "calib.npy", **FAST).model
    assert onnxq.quantize("in.onnx", SOURCES[kind](data), **FAST).model == expected


def agreement(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> float:
    return 100 * float((outputs["y"].argmax(1) == labels).mean())


def test_a_session_in_python(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of the command line as functions, with metrics that are functions, and progress of any kind."""
    monkeypatch.chdir(place)
    x, labels = np.load("calib.npy"), [0] * 40
    seen: list[str] = []
    result = onnxq.quantize(
        "in.onnx", x, output="out.onnx", target="TRT", exclude="Gemm", eval_data=x, labels=labels, metric=agreement,
        progress=lambda label, done, total: seen.append(label), **FAST,
    )  # fmt: skip
    assert seen
    (measure,) = result.report.measures
    assert (measure.name, measure.reference is not None) == ("agreement", True)
    assert onnxq.check("out.onnx", "trt").is_clean
    found = onnxq.evaluate("out.onnx", x, labels=labels, metric=[agreement, "top1"])
    assert [figure.name for figure in found.figures] == ["agreement", "top-1 accuracy"]
    assert found.figures[0].value == found.figures[1].value
    assert onnxq.compare("in.onnx", "out.onnx", x, progress=True).tensors
    ranked = onnxq.sensitivity("in.onnx", x, labels=labels, metric=agreement, rounding="nearest")
    assert (ranked.metric, bool(ranked.measured)) == ("agreement", True)
    assert onnxq.debug("in.onnx", x, labels=labels, metric=agreement, preset="w4a8", closest=True).metric == "agreement"
    mixed = onnxq.auto_mixed("in.onnx", x, "w4,w8", onnxq.Limits(drop=100.0), labels=labels, metric=agreement)
    assert mixed.reached
    assert onnxq.dry_run("in.onnx", x, target="ov").float_nodes == ()
    assert onnxq.inspect("in.onnx", exclude="Gemm").float_nodes
    assert onnxq.calibrate("in.onnx", x, "s.npz").samples
    assert onnxq.quantize("in.onnx", statistics="s.npz", **FAST).report.samples.fitting == 40
    assert onnxq.qat.Recipe(steps=10).steps == 10
    assert capsys.readouterr().out == ""


def test_the_operator_of_a_command_hears_of_contradictions_at_once(place: Path) -> None:
    """A contradiction of options and one with this model: within two seconds of processor time, imports included."""
    for options in ("--preset w4a8 --target tensorrt", "--data-free --rounding gptq", "--preset w8a16 --target rknn"):
        command = [sys.executable, "-m", "onnxq", *shlex.split(f"quantize in.onnx out.onnx --calib images {options}")]
        start = sum(_children())
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert sum(_children()) - start < 2.0
        assert len(done.stderr.strip().splitlines()) == 1


def _children() -> tuple[float, float]:
    """Processor seconds of processes that have ended: user, system."""
    resource = pytest.importorskip("resource")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime
