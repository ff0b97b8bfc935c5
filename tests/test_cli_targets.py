import json

import onnx
import pytest
from click.testing import CliRunner
from families import FAMILIES
from quantized import PLAIN, samples

import onnxq
from onnxq import TARGETS
from onnxq.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def place(tmp_path):
    proto = FAMILIES["Conv-Relu"]
    onnx.save(onnxq.quantize(proto, samples(proto), target="tensorrt", **PLAIN).model, tmp_path / "trt.onnx")
    return tmp_path


def test_targets_are_listed():
    result = run("targets")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(TARGETS)


def test_a_target_is_described_with_sources():
    text = run("targets", "tensorrt").stdout
    assert "bias: biases stay in float" in text
    assert "widths: w4 or w8, a8; int4 weights where activations stay in float; blocks of int4" in text
    assert all(source in text for source in TARGETS["tensorrt"].requirements.values())
    everything = [line.strip() for line in run("targets", "-v").stdout.splitlines()]
    assert {line.strip() for line in text.splitlines()[1:]} <= set(everything)


def test_targets_as_json():
    records = json.loads(run("targets", "--json").stdout)
    assert [record["name"] for record in records] == list(TARGETS)
    for record in records:
        assert {r["id"]: r["source"] for r in record["requirements"]} == dict(TARGETS[record["name"]].requirements)


def test_a_clean_model(place):
    result = run("check", place / "trt.onnx", "--target", "tensorrt")
    asked = len(TARGETS["tensorrt"].requirements)
    assert result.exit_code == 0
    assert result.stdout.endswith(f"trt.onnx keeps to all {asked} requirements of tensorrt\n")


def test_violations_are_named_and_the_exit_code_says_so(place):
    result = run("check", place / "trt.onnx", "--target", "qnn")
    assert result.exit_code == 5
    *lines, last = result.stdout.splitlines()
    assert lines[0].startswith("activation-types is broken in 2 places: activations are uint8 and uint16 (http")
    assert lines[1:3] == [
        "    QuantizeLinear_x_quantized: 'x': expected uint8 or uint16, got int8; 1 more, -v lists them",
        "    what to do: quantize with activations of such a type: `onnxq quantize --target` takes it",
    ]
    assert "breaks 3 of 12 requirements: 2 of activation-types" in last
    listed = run("check", place / "trt.onnx", "--target", "qnn", "-v").stdout.splitlines()
    assert sum("expected uint8 or uint16, got int8" in line for line in listed) == 2
    assert not any("more, -v lists them" in line for line in listed)


def test_violations_as_json(place):
    result = run("check", place / "trt.onnx", "--target", "qnn", "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 5
    assert record["violations"][0]["requirement"] == "activation-types"
    assert record["target"] == "qnn"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere.onnx", "--target", "ort"), 3, "nowhere.onnx"),
        (("trt.onnx", "--target", "otr"), 2, "did you mean 'ort'"),
        (("trt.onnx",), 2, "Missing option '--target'"),
        (("float.onnx", "--target", "ort"), 3, "holds no QuantizeLinear"),
    ],
)
def test_bad_input(place, monkeypatch, arguments, code, message):
    onnx.save(FAMILIES["Conv-Relu"], place / "float.onnx")
    monkeypatch.chdir(place)
    result = run("check", *arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr


def test_the_target_may_stand_in_the_configuration_file(place):
    (place / "job.toml").write_text('target = "tensorrt"\npreset = "w8a8"\n')
    assert run("check", place / "trt.onnx", "--config", place / "job.toml").exit_code == 0
