"""Mistakes that people make who know another tool, or type what seems natural: the message says what to write, nothing
is written, and the exit code tells the kind. From the manuals of quantize_static, AIMET, Quark, NNCF, ModelOpt,
trtexec, QNN's converter and RKNN-Toolkit2.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model
from PIL import Image

import onnxq
from onnxq import cli
from onnxq.errors import DataError, ModelError, OutputError, UsageError
from onnxq.graph import storage

NET = """(float[N,3,16,16] image) => (float[N,5] y) <float[8,3,3,3] w, float[5,8] v> {
    a = Conv<pads=[1,1,1,1]>(image, w)  r = Relu(a)  p = GlobalAveragePool(r)  f = Flatten(p)
    y = Gemm<transB=1>(f, v) }"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have them: a model, a quantized one, images, arrays, labels, and files of other tools."""
    folder = tmp_path_factory.mktemp("work")
    storage.write(model(NET), folder / "in.onnx")
    random = np.random.default_rng(0)
    data = random.standard_normal((40, 3, 16, 16)).astype(np.float32)
    np.save(folder / "calib.npy", data)
    np.save(folder / "double.npy", data.astype(np.float64))
    np.save(folder / "nhwc.npy", data.transpose(0, 2, 3, 1))
    np.savez(folder / "calib.npz", data=data)
    (folder / "images").mkdir()
    for index in range(8):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{index}.png")
    (folder / "empty").mkdir()
    (folder / "dataset.txt").write_text("images/0.png\n")
    (folder / "labels.csv").write_text("0\n")
    (folder / "net.pth").write_bytes(b"PK")
    onnxq.quantize(folder / "in.onnx", data, output=folder / "q.onnx", latency="off")
    return folder


WRITE = "onnxq quantize in.onnx out.onnx --calib images"

# ruff: noqa: E501
COMMANDS: list[tuple[str, int, str]] = [
    # the arguments
    ("quantize in.onnx out.onnx --data images", 2, f"No such option '--data': it is --calib here. Write: {WRITE}"),
    ("evaluate in.onnx --calib images", 2, "No such option '--calib': it is --data here. Write: onnxq evaluate in.onnx --data images"),
    ("quantize in.onnx out.onnx", 2, "Missing option '--calib' .* Write: onnxq quantize in.onnx out.onnx --calib images/"),
    ("quantize in.onnx --calib images", 2, "Write: onnxq quantize in.onnx in.int8.onnx --calib images$"),
    ("in.onnx out.onnx --calib images", 2, f"a command comes first. Write: {WRITE}$"),
    ("quantise in.onnx out.onnx --calib images", 2, "Did you mean 'quantize'?"),
    ("quantize in.onnx out.onnx images", 2, f"Write: {WRITE}$"),
    ("quantize in.onnx -o out.onnx --calib images", 2, f"the result is the second argument. Write: {WRITE}$"),
    ("quantize --model in.onnx --output out.onnx --calib images", 2, f"Write: {WRITE}$"),
    ("quantize --onnx=in.onnx --saveEngine=out.onnx --int8 --calib images", 2, "Write: onnxq quantize in.onnx out.onnx"),
    ("evaluate in.onnx q.onnx --data images", 2, "Write: onnxq evaluate in.onnx --reference q.onnx --data images$"),
    ("debug in.onnx out.onnx --calib images", 2, "Write: onnxq debug in.onnx --output out.onnx --calib images$"),
    ("check q.onnx", 2, "Missing option '--target'. Write: onnxq check q.onnx --target ort$"),
    # options of other tools
    (f"{WRITE[6:]} --int8", 2, f"int8 is the default, --preset w8a8. Write: {WRITE}$"),
    (f"{WRITE[6:]} --fp16", 2, f"vendors' compilers make float16 of it. Write: {WRITE}$"),
    (f"{WRITE[6:]} --num-samples 100", 2, f"it is --samples here. Write: {WRITE} --samples 100$"),
    (f"{WRITE[6:]} --nodes_to_exclude Conv_a", 2, f"it is --exclude here. Write: {WRITE} --exclude Conv_a$"),
    (f"{WRITE[6:]} --quant_format QDQ", 2, f"widths are one option, --preset w8a8, .* Write: {WRITE}$"),
    (f"{WRITE[6:]} --act_bitwidth=16 --weights_bitwidth=8", 2, f"Write: {WRITE} --preset w8a16$"),
    (f"{WRITE[6:]} --per-chanel", 2, f"did you mean --per-channel. Write: {WRITE} --per-channel$"),
    # values
    (f"{WRITE[6:]} --preset fp16", 2, "--preset 'fp16' is no integer format; expected w8a8"),
    (f"{WRITE[6:]} --preset 8", 2, "did you mean w8a8"),
    (f"{WRITE[6:]} --target tflite", 2, "reads no ONNX models with quantizers .* expected one of generic-int8"),
    (f"{WRITE[6:]} --target tensorr", 2, "did you mean 'tensorrt'"),
    (f"{WRITE[6:]} --target tensorrt --preset w4a8", 2, "tensorrt takes int4 weights only where activations stay in float"),
    (f"{WRITE[6:]} --mean 0.485 0.456", 2, "--mean must be one finite number, or one per channel"),
    (f"{WRITE[6:]} --mean grey", 2, "'grey' is not a list of numbers like 0.485,0.456,0.406"),
    (f"{WRITE[6:]} --max-memory lots", 2, "'lots' is not a size in MiB like 512, or 4GB"),
    (f"{WRITE[6:]} --activation-range histogram", 2, "range method 'histogram' is unknown; expected one of minmax"),
    (f"{WRITE[6:]} --exclude Conv_99", 2, "--exclude 'Conv_99' matches no node .* `onnxq inspect` lists them"),
    (f"{WRITE[6:]} --labels labels.csv", 2, "--labels goes with --eval-data"),
    (f"{WRITE[6:]} --report report.pdf", 2, "expected a name that ends in .html, .json, .md"),
    # files
    ("quantize net.pth out.onnx --calib images", 3, "expected an .onnx file; make one with torch.onnx.export"),
    ("quantize q.onnx out.onnx --calib images", 3, "already quantized: .* start from the float model"),
    ("quantize in.onnx out.onnx --calib dataset.txt", 4, "lists of files are not read: give the folder"),
    ("quantize in.onnx out.onnx --calib q.onnx", 4, "this is a model"),
    ("quantize in.onnx out.onnx --calib empty", 4, "no calibration files in empty: expected images"),
    ("quantize in.onnx out.onnx --calib double.npy", 4, r"expected float32, got float64; save it with .astype\(np.float32\)"),
    ("quantize in.onnx out.onnx --calib nhwc.npy", 4, "expected N x 3 x 16 x 16, got 1 x 16 x 16 x 3"),
    ("quantize in.onnx out.onnx --calib calib.npz", 4, "it has data. Map names with --input-key image=data"),
    ("quantize in.onnx in.onnx --calib images", 6, "the output is the input model itself; choose another name"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "code", "message"), COMMANDS, ids=[command for command, _, _ in COMMANDS])
def test_on_the_command_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int, message: str
) -> None:
    monkeypatch.chdir(place)
    before = {path: os.stat(path).st_mtime_ns for path in sorted(place.iterdir())}
    result = CliRunner().invoke(cli.main, shlex.split(command))
    said = result.stderr.strip().splitlines()
    assert result.exit_code == code, result.output
    assert re.search(message, said[-1]), said[-1]
    assert said[-1].startswith(("Error: ", "onnxq: error: "))
    assert result.stdout == ""
    assert {path: os.stat(path).st_mtime_ns for path in sorted(place.iterdir())} == before


WRITTEN = re.compile(r"Write: (onnxq .*)$")


@pytest.mark.parametrize("command", [c for c, code, message in COMMANDS if "Write" in message])
def test_the_line_that_is_to_be_written_can_be(place: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Correcting one mistake after the other leads to a line that click takes."""
    monkeypatch.chdir(place)
    for _ in range(4):
        result = CliRunner().invoke(
            cli.main, [*shlex.split(command), *(["--dry-run"] if "quantize" in command else [])]
        )
        found = WRITTEN.search(result.stderr.strip())
        if found is None:
            break
        command = found[1].removeprefix("onnxq ").replace(" --dry-run", "")
    else:
        pytest.fail(f"corrected again and again: {command}")
    assert "Error: " not in result.stderr
    assert result.exit_code in (0, 2, 4)


class Reader:
    """Of ONNX Runtime's quantize_static."""

    def __init__(self, data: np.ndarray) -> None:
        self.items = iter(data)

    def get_next(self) -> dict[str, np.ndarray] | None:
        item = next(self.items, None)
        return None if item is None else {"image": item[None]}


CALLS: list[tuple[str, type[onnxq.OnnxqError], str]] = [
    (
        "quantize('in.onnx', 'out.onnx', Reader(x))",
        UsageError,
        "too many positional arguments; call it as quantize\\(model",
    ),
    ("quantize('in.onnx', 'out.onnx')", DataError, "this is a model|out.onnx does not exist"),
    ("quantize('in.onnx', 'q.onnx')", DataError, "this is a model, and in Python the result's path is `output`"),
    (
        "quantize(model_input='in.onnx', model_output='out.onnx', calibration=x)",
        UsageError,
        "'model'; call it as quantize",
    ),
    ("quantize('in.onnx', x, output='in.onnx')", OutputError, "the input model itself"),
    ("quantize('in.onnx', calibration_data_reader=Reader(x))", UsageError, "it is `calibration` here"),
    ("quantize('in.onnx', x, nodes_to_exclude=['Conv_a'])", UsageError, "it is `exclude` here"),
    ("quantize('in.onnx', x, calibrate_method='MinMax')", UsageError, "it is `activation_range` here"),
    ("quantize('in.onnx', x, weight_type='QInt8')", UsageError, "widths are one option, `preset` w8a8"),
    ("quantize('in.onnx', x, default_param_bw=8)", UsageError, "widths are one option, `preset` w8a8"),
    ("quantize('in.onnx', x, ignored_scope=['Conv_a'])", UsageError, "it is `exclude` here"),
    ("quantize('in.onnx', x, target_platform='rk3588')", UsageError, "it is `target` here"),
    ("quantize('in.onnx', x, quantize_mode='int8')", UsageError, "`preset` w8a8"),
    (
        "quantize('in.onnx', 'images', mean=[0.485, 0.456, 0.406])",
        UsageError,
        r"preprocess=onnxq.Preprocess\(mean=...\)",
    ),
    (
        "quantize('in.onnx', 'images', preprocess={'mean': 0.5})",
        UsageError,
        r"`preprocess` must be onnxq.Preprocess\(...\)",
    ),
    ("quantize('in.onnx', x, options={'preset': 'w4a8'})", UsageError, "`options` must be onnxq.Options, got dict"),
    ("quantize('in.onnx', x, overrides=[{'tensor': 'w'}])", UsageError, "`overrides` must be a list of onnxq.Override"),
    ("quantize('in.onnx', x, per_channel='yes')", UsageError, "`per_channel` must be true or false, got 'yes'"),
    ("quantize('in.onnx', x, samples='100')", UsageError, "`samples` must be a whole number, got '100'"),
    ("quantize('in.onnx', x, smaples=100)", UsageError, "did you mean 'samples'"),
    ("quantize(object(), x)", UsageError, "`model` must be a path or an onnx.ModelProto, got object"),
    ("quantize('net.pth', x)", ModelError, "torch.onnx.export"),
    ("quantize('in.onnx', x.astype('float64'))", DataError, "expected float32, got float64"),
    ("quantize('in.onnx', {'input': x})", DataError, "Map names with `input_keys` image=input"),
    ("quantize('in.onnx', [])", DataError, "no samples"),
    ("quantize('in.onnx', lambda: x)", UsageError, "it must return an iterable of samples"),
    ("quantize('in.onnx', 'images', transform=lambda p: p.nothing)", DataError, "`transform` failed: AttributeError"),
    ("quantize('in.onnx', x, labels=[1] * 40)", UsageError, "give it as `eval_data`"),
    ("quantize('in.onnx', x, eval_data=x, labels=[1] * 39)", DataError, "expected 40 labels"),
    ("quantize('in.onnx', x, progress='tqdm')", UsageError, "`progress` must be a function"),
    ("evaluate('in.onnx', x, metric='accuracy')", UsageError, "`metric` 'accuracy': expected sqnr"),
    ("evaluate('in.onnx', x, metric=lambda outputs: 1.0)", UsageError, "`metric` <lambda> failed: TypeError"),
    ("evaluate('in.onnx', x, metric=3)", UsageError, "`metric` must be a name or a function"),
    ("compare('in.onnx', x)", UsageError, "'calibration'; call it as compare\\(reference, quantized, calibration"),
    ("check('q.onnx')", UsageError, "'target'; call it as check\\(model, target"),
    ("debug('in.onnx', x, goal=1.0)", UsageError, "`goal` must be onnxq.AccuracyTarget"),
    ("debug('in.onnx', x, target_drop=1.0)", UsageError, "it is `goal` here"),
    ("auto_mixed('in.onnx', x, 'w4,w8')", UsageError, "'limits'; call it as auto_mixed\\(model, calibration"),
    ("auto_mixed('in.onnx', x, 'w4,w8', 1.0)", UsageError, "`limits` must be onnxq.Limits"),
    (
        "sensitivity('in.onnx', x, by='tensor')",
        UsageError,
        "`by` 'tensor' is unknown; expected one of quantizer, layer",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), CALLS, ids=[call for call, _, _ in CALLS])
def test_in_python(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: type[onnxq.OnnxqError], message: str
) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {**{name: getattr(onnxq, name) for name in onnxq.__all__}, "Reader": Reader}
    before = sorted(place.iterdir())
    with pytest.raises(kind, match=message) as caught:
        eval(call, {**names, "x": np.load("calib.npy"), "onnx": onnx})
    assert "--" not in str(caught.value), "flags are the command line's"
    assert len(str(caught.value)) < 400
    assert sorted(place.iterdir()) == before


def test_errors_name_arguments_of_functions_and_no_flags() -> None:
    """Whatever is raised below the command line, which prints the flag instead of what stands in backquotes."""
    functions = [getattr(onnxq, name) for name in onnxq.__all__ if inspect.isfunction(getattr(onnxq, name))]
    names = {parameter for function in functions for parameter in inspect.signature(function).parameters}
    for record in (
        onnxq.Options,
        onnxq.Override,
        onnxq.Preprocess,
        onnxq.ToolchainOptions,
        onnxq.Limits,
        onnxq.qat.Recipe,
    ):
        names |= {field.name for field in dataclasses.fields(record)}
    root = Path(onnxq.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        if {"cli", "adapters"} & set(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                texts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
                flags = [text for text in texts if re.search(r"(^|[\s(])--[a-z]", text)]
                strange = [
                    n for text in texts for n in re.findall(r"`(\w+)`", text) if n not in names | {"ort", "quantize"}
                ]
                found += [(path.name, node.lineno, each) for each in (*flags, *strange)]
    assert found == []
