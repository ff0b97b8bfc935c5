"""The model carries how it was made, and the report what makes it again."""

import hashlib
import json
import shlex
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model

import onnxq
from onnxq import cli
from onnxq.graph import storage
from onnxq.pipeline.provenance import KEY

NET = """(float[N,3,8,8] x) => (float[N,?] y) <float[4,3,3,3] w, float[5,4] v> {
    a = Conv(x, w)  r = Relu(a)  p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm<transB=1>(f, v) }"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "a b"  # quoted in a shell
    folder.mkdir()
    storage.write(model(NET), folder / "in.onnx")
    np.save(folder / "calib.npy", np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(folder)
    return folder


def invoke(*arguments):
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def made(path):
    proto = path if isinstance(path, onnx.ModelProto) else onnx.load(path)
    return next((json.loads(entry.value) for entry in proto.metadata_props if entry.key == KEY), None)


def test_the_model_names_version_options_source_and_data(place):
    invoke("quantize", "in.onnx", "out.onnx", "--calib", "calib.npy", "--preset", "w4a8", "--exclude", "Gemm")
    assert made(place / "out.onnx") == {
        "onnxq": onnxq.__version__,
        "source_sha256": hashlib.sha256((place / "in.onnx").read_bytes()).hexdigest(),
        "calibration_sha256": onnxq.calibrate("in.onnx", "calib.npy", "s.npz").digest,
        "options": {"preset": "w4a8", "exclude": ["Gemm"]},
    }


def test_the_same_input_gives_the_same_bytes_wherever_it_is_and_however_it_runs(place, tmp_path):
    invoke("quantize", "in.onnx", "out.onnx", "--calib", "calib.npy")
    first = (place / "out.onnx").read_bytes()
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("in.onnx", "calib.npy"):
        (other / name).write_bytes((place / name).read_bytes())
    options = ("--threads", 1, "--batch-size", 3, "--report", other / "r.json", "--no-latency")
    invoke("quantize", other / "in.onnx", other / "q.onnx", "--calib", other / "calib.npy", *options)
    assert (other / "q.onnx").read_bytes() == first
    loaded = onnxq.quantize(onnx.load("in.onnx"), np.load("calib.npy"), output="loaded.onnx")
    assert (place / "loaded.onnx").read_bytes() == first
    assert made(loaded.model) == made(place / "out.onnx")


def test_it_can_be_left_out(place):
    invoke("quantize", "in.onnx", "out.onnx", "--calib", "calib.npy", "--no-provenance")
    assert made(place / "out.onnx") is None
    kept, without = onnx.load("out.onnx"), onnxq.quantize("in.onnx", "calib.npy").model
    del without.metadata_props[:]
    assert kept == without


def test_every_sample_is_told_apart_and_hardly_read_again(place):
    """The digest is of what the model was fed: `CalibrationData.remember_digests`."""
    data, passes = np.load("calib.npy"), []

    def items():
        passes.append(1)
        return iter(data)

    onnxq.quantize("in.onnx", items, provenance=False, latency="off")
    before = len(passes)
    passes.clear()
    first = onnxq.quantize("in.onnx", items, latency="off").model
    assert len(passes) <= before + 2, "those to report on alone are read once more"
    data[7, 0, 0, 0] += 1
    second = onnxq.quantize("in.onnx", items, latency="off").model
    assert made(first)["calibration_sha256"] != made(second)["calibration_sha256"]
    assert made(onnxq.quantize("in.onnx", preset="w8").model).keys() == {"onnxq", "source_sha256", "options"}
    assert "evaluation_sha256" in made(onnxq.quantize("in.onnx", "calib.npy", eval_data="calib.npy").model)


def test_external_tensors_belong_to_the_source(place):
    onnx.save(onnx.load("in.onnx"), "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    one = made(onnxq.quantize("big.onnx", "calib.npy").model)["source_sha256"]
    data = bytearray((place / "big.data").read_bytes())
    data[3] ^= 1
    (place / "big.data").write_bytes(data)
    assert made(onnxq.quantize("big.onnx", "calib.npy").model)["source_sha256"] != one


@pytest.mark.parametrize(
    "options",
    [
        ["--preset", "w4a8", "--exclude", "Gemm*", "--samples", "33"],
        ["--config", "my options.toml"],
        ["--data-free", "--input-range", "x=-3,3"],
        ["--encodings", "e.json", "--target", "qnn"],
    ],
)
def test_the_command_in_the_report_gives_the_same_bytes(place, options):
    (place / "my options.toml").write_text('[[override]]\ntensor = "w"\nbits = 6\n', encoding="utf-8")
    data = [] if "--data-free" in options else ["--calib", "calib.npy"]
    invoke("quantize", "in.onnx", "the result.onnx", *data, *options, "--report", "r.json")
    first = (place / "the result.onnx").read_bytes()
    command = json.loads((place / "r.json").read_text())["command"]
    assert command.startswith("onnxq quantize in.onnx 'the result.onnx' ")
    (place / "the result.onnx").unlink()
    shell = command.replace("onnxq", f"{shlex.quote(sys.executable)} -m onnxq", 1)
    subprocess.run(shell, shell=True, check=True, capture_output=True)
    assert (place / "the result.onnx").read_bytes() == first


def test_the_call_in_the_report_gives_the_same_bytes(place):
    settings = {"preset": "w4a8", "exclude": ("Gemm*",), "overrides": (onnxq.Override(tensor="w", bits=6),)}
    found = onnxq.quantize("in.onnx", place / "calib.npy", output="out.onnx", **settings)
    first, call = (place / "out.onnx").read_bytes(), found.report.command
    assert call.startswith("onnxq.quantize(model='in.onnx', calibration='")
    (place / "out.onnx").unlink()
    eval(call, {"onnxq": onnxq})
    assert (place / "out.onnx").read_bytes() == first
    held = onnxq.quantize(onnx.load("in.onnx"), np.load("calib.npy"), transform=lambda item: item).report.command
    assert held == "onnxq.quantize(model=model, calibration=calibration, transform=transform)"


def test_reports_show_the_command(place):
    result = invoke("quantize", "in.onnx", "out.onnx", "--calib", "calib.npy", "-v", "--report", "r.md")
    text = "onnxq quantize in.onnx out.onnx --calib calib.npy -v --report r.md"
    assert f"repeat it with: {text}\n" in result.stdout
    assert f"repeat it with `{text}`" in (place / "r.md").read_text(encoding="utf-8")
