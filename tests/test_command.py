"""The help in two lengths, and what goes to standard output and standard error, for people and for programs."""

import json
import shlex

import click
import numpy as np
import pytest
from click.testing import CliRunner
from graphs import model

import onnxq
from onnxq import cli
from onnxq.cli.examples import LOOKS
from onnxq.graph import storage

NET = """(float[N,3,8,8] x) => (float[N,?] y) <float[4,3,3,3] w, float[5,4] v> {
    a = Conv(x, w)  r = Relu(a)  p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm<transB=1>(f, v) }"""

COMMANDS = {str(command.name): command for command in cli.COMMANDS}


@pytest.fixture
def place(tmp_path, monkeypatch):
    storage.write(model(NET), tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(text):
    return CliRunner().invoke(cli.main, shlex.split(text))


def events(result):
    return [json.loads(line) for line in result.stderr.splitlines()]


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOOKS)
def test_help_is_short_and_help_all_has_everything(name):
    command = COMMANDS[name]
    short, full = (" ".join(invoke(f"{name} {flag}").stdout.split()) for flag in ("--help", "--help-all"))
    flags = {p.name: p.opts[0] for p in command.params if isinstance(p, click.Option)}
    common = LOOKS[name].get("common", flags)
    assert set(common) <= set(flags), "an option that the command does not have"
    assert len(common) <= 14
    for option, flag in flags.items():
        assert flag in full
        assert (f" {flag}" in short) >= (option in common)
    assert ("more options: onnxq" in short) == (set(common) != set(flags))
    assert short.index("Exit codes") > 0


@pytest.mark.parametrize("name", LOOKS)
def test_every_heading_has_an_example_that_can_be_typed(name):
    command, text = COMMANDS[name], invoke(f"{name} --help-all").stdout
    groups = {p.group for p in command.params if isinstance(p, click.Option)}
    usual = LOOKS[name]["usual"]
    for group in groups:
        example = LOOKS[name]["examples"].get(group)
        assert example is not None, f"no example of {group}"
        if example:
            assert f"e.g. {example}\n" in text
        without = usual if "--data-free" not in example else usual.replace("--calib images/", "")
        command.make_context(name, shlex.split(f"{without} {example}"))
    assert usual in text


# --- standard output and standard error -----------------------------------------------------------------------------


def test_report_to_standard_output_is_json_and_the_rest_goes_to_standard_error(place):
    result = invoke("quantize in.onnx out.onnx --calib calib.npy --report - --report r.html")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["integer_nodes"] == 4
    assert json.loads(result.stdout)["layers"], "reports have details"
    assert result.stderr.startswith("out.onnx: 4 nodes in integers")
    assert (place / "r.html").exists()
    assert not (place / "-").exists()


def test_json_instead_of_the_summary(place):
    result = invoke("quantize in.onnx out.onnx --calib calib.npy --json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["result"]["path"] == "out.onnx"
    assert json.loads(invoke("calibrate in.onnx s.npz --calib calib.npy --json").stdout)["samples"] == 8
    found = json.loads(invoke("debug in.onnx --calib calib.npy --json --closest").stdout)
    assert found["metric"]
    assert found["log"]
    written = invoke("debug in.onnx --calib calib.npy --json --closest -o d.onnx")
    assert json.loads(written.stdout)["log"] == found["log"]
    assert found["log"][0]["title"] in written.stderr


@pytest.mark.parametrize(
    "command",
    [
        "quantize in.onnx out.onnx --calib calib.npy",
        "compare in.onnx in.onnx --calib calib.npy",
        "evaluate in.onnx --data calib.npy --reference in.onnx",
        "sensitivity in.onnx --calib calib.npy",
        "inspect in.onnx",
        "calibrate in.onnx s.npz --calib calib.npy",
        "debug in.onnx --calib calib.npy --closest -o d.onnx",
    ],
)
def test_log_format_json_makes_an_object_of_every_line(place, command):
    result = invoke(f"{command} --log-format json")
    assert result.exit_code == 0, result.stderr
    found = events(result)
    assert all("event" in event for event in found)
    assert [event["event"] for event in found].count("result") == 1
    assert result.stdout, "the result for people stays where it was"
    if command.startswith("quantize"):
        steps = [event for event in found if event["event"] == "progress"]
        assert {"calibrating"} <= {event["step"].lower() for event in steps}
        assert all(0 <= event["percentage"] <= 100 for event in steps)
        assert any(event["event"] == "warning" and "samples are few" in event["text"] for event in found)
        assert any(event["event"] == "log" and "Set activation ranges" in event["text"] for event in found)
        assert found[-1]["output"] == "out.onnx"


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("quantize none.onnx out.onnx --calib calib.npy", 3, "no such file"),
        ("quantize in.onnx out.onnx --calib calib.npy --cle maybe", 2, "maybe"),
        ("quantize in.onnx out.onnx --calib calib.npy --nonsense", 2, "No such option"),
        ("quantize in.onnx --calib calib.npy", 2, "Write: onnxq quantize in.onnx in.int8.onnx"),
    ],
)
def test_log_format_json_of_errors(place, command, code, text):
    result = invoke(f"{command} --log-format json")
    assert result.exit_code == code
    (event,) = (event for event in events(result) if event["event"] == "error")
    assert (event["exit_code"], text in event["text"]) == (code, True)
    assert result.stdout == ""


def test_quiet_json_has_the_result_alone(place):
    result = invoke("evaluate in.onnx --data calib.npy --reference in.onnx --log-format json -q --json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["samples"] == 8


def test_the_version_and_help_need_no_model():
    assert invoke("quantize --help --log-format json").exit_code == 0
    assert onnxq.__version__ in invoke("--version").stdout


# --- dry run ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_plan_and_writes_nothing(place):
    before = sorted(path.name for path in place.iterdir())
    result = invoke("quantize in.onnx out.onnx --calib calib.npy --dry-run --exclude Gemm --report r.html")
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("2 nodes, 4 tensors; 1 nodes in float", "of CPU time", "Set activation ranges", "excluded by 'Gemm'"):
        assert text in result.stdout
    assert sorted(path.name for path in place.iterdir()) == before
    assert (
        json.loads(invoke("quantize in.onnx out.onnx --calib calib.npy --dry-run --json").stdout)["integer_nodes"] == 4
    )


@pytest.mark.parametrize("preset", ["w8a8", "w4a8", "w8", "w8a8-dynamic"])
@pytest.mark.parametrize("target", ["ort", "tensorrt"])
def test_a_dry_run_knows_what_the_run_then_finds(place, preset, target):
    """Nodes, tensors, reasons and samples are those of the report, the size to a tenth."""
    settings = {"preset": preset, "target": target, "rounding": "nearest"}
    if target == "tensorrt" and preset in ("w8a8-dynamic", "w4a8"):
        with pytest.raises(onnxq.OnnxqError):
            onnxq.dry_run("in.onnx", "calib.npy", **settings)
        return
    plan = onnxq.dry_run("in.onnx", "calib.npy", **settings)
    report = onnxq.quantize("in.onnx", "calib.npy", **settings).report
    assert plan.integer_nodes == report.integer_nodes + report.simulated_nodes + len(report.dynamic_nodes)
    assert plan.weights_only_nodes == report.weights_only_nodes
    assert plan.quantized_tensors == len(report.tensors)
    assert {n.node for n in plan.float_nodes} == {n.node for n in report.float_nodes}
    assert plan.samples == (report.samples.fitting, report.samples.choosing, report.samples.reporting)
    assert abs(plan.bytes - report.result.bytes) < 0.1 * report.result.bytes + 1024  # biases that a correction adds
    assert {step.name for step in report.steps} <= {step.name for step in plan.steps} | {
        "RoundWeights",
        "CorrectBiasEmpirically",
    }
    assert plan.cpu_seconds is not None
    assert 0 < plan.cpu_seconds[0] < plan.cpu_seconds[1]
    assert plan.to_text().splitlines()[0].endswith("a dry run, nothing is written")


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ("--calib none/", 4, "none"),
        ("--calib calib.npy --target tensorrt --preset w8a16", 2, "target"),
        ("--calib calib.npy --auto-mixed w4,w8 --target-drop 1", 2, "does not search for bits"),
        ("--calib calib.npy --exclude *", 3, "nothing to quantize"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(place, options, code, text):
    result = invoke(f"quantize in.onnx out.onnx --dry-run {options}")
    assert (result.exit_code, text in result.stderr) == (code, True), result.stderr
