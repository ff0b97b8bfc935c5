"""The vendor's own tool-chain on a model: the process that it runs in, and what is made of its answers.

Adapters of our own stand in for the vendors': they answer, crash, hang and compute nonsense as those do. Those whose
packages are there are run by `test_vendors`.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model
from quantized import PLAIN, samples

import onnxq
from onnxq.cli import main
from onnxq.errors import EngineError, UsageError, VerificationError
from onnxq.report import toolchain_lines
from onnxq.toolchains import Toolchain, ToolchainOptions, process, toolchain

ADAPTERS = Path(toolchain.__file__).parent / "adapters"

RUNS = """
import onnxruntime
session = onnxruntime.InferenceSession(job.model)
print("noise that is no answer")
job.accept()
job.run(lambda feed: session.run(None, feed))
"""

STATIC = model("(float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,3,3] w> { y = Conv <pads = [1,1,1,1]> (x, w) }")
DYNAMIC = model("(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w> { y = Conv <pads = [1,1,1,1]> (x, w) }")


@dataclass(frozen=True)
class Fake(Toolchain):
    """One whose adapter is a file of the test's."""

    file: Path = Path()

    @property
    def script(self):
        return self.file


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes the tool-chain of every target one with this code inside of `attempt(job)`."""

    def make(code, head="", **fields):
        body = "\n".join("    " + line for line in code.strip().splitlines())
        text = f"import sys\nsys.path.insert(0, {str(ADAPTERS)!r})\nimport protocol\n{head}\n"
        file = tmp_path / "adapter.py"
        file.write_text(f"{text}def attempt(job):\n{body}\nprotocol.main(('numpy',), attempt)\n")
        found = Fake("qnn", "Fake", "fake-package", file=file, **fields)
        monkeypatch.setattr(process, "toolchain_of", lambda target: found)

    return make


def written(proto=STATIC, target="qnn"):
    return onnxq.quantize(proto, samples(proto), target=target, **PLAIN).model


def checked(proto, **options):
    return onnxq.check(proto, "qnn", toolchain=ToolchainOptions(**options)).toolchain


def test_what_runs_and_agrees_has_no_problem(fake):
    fake(RUNS)
    result = checked(written())
    assert result.accepted
    assert not result.problem
    assert result.samples == 8
    assert result.source == "random inputs"
    assert result.is_compared
    assert result.sqnr_db is None or result.sqnr_db > 30
    assert result.versions == {"numpy": np.__version__}


def test_random_inputs_cover_the_grid_of_the_input(fake):
    fake("for feed in job.feeds():\n    job.answer.message += f\"{abs(feed['x']).max()} \"\njob.accept()")
    proto = onnxq.quantize(STATIC, [{"x": 100 * feed["x"]} for feed in samples(STATIC)], target="qnn", **PLAIN).model
    largest = [float(word) for word in checked(proto).message.split()]
    assert len(largest) == 8
    assert min(largest) > 50


def test_quantize_measures_against_float_too(fake):
    fake(RUNS)
    report = onnxq.quantize(STATIC, samples(STATIC), target="qnn", toolchain=ToolchainOptions(), **PLAIN).report
    found = report.toolchain
    assert found.quality_db == pytest.approx(found.runtime_quality_db, abs=1)
    assert "\n".join(toolchain_lines(found)) in report.to_text()
    assert toolchain_lines(found)[0] == f"Fake (numpy {np.__version__}): accepted"
    assert json.loads(report.to_json())["toolchain"]["accepted"] is True
    assert "Fake" in report.to_markdown()
    assert "Fake" in report.to_html()


REFUSALS = {
    "says no": ("raise RuntimeError('no kernel for Foo')", "RuntimeError: no kernel for Foo"),
    "crashes": ("import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "exits": ("import os\nos._exit(3)", "status 3"),
    "crashes as it runs": ("job.accept()\nimport os\nos._exit(3)", "cannot run it"),
    "computes nonsense": ("import numpy\njob.accept()\njob.run(lambda feed: [numpy.zeros((1, 4, 8, 8))])", "0.0 dB"),
    "not-a-number": ("import numpy\njob.accept()\njob.run(lambda feed: [numpy.full((1, 4, 8, 8), numpy.nan)])", "dB"),
    "runs nothing": ("job.answer.partitions = 0\njob.accept()", "runs nothing"),
    "takes little": ("job.answer.nodes, job.answer.integer_nodes = 9, 1\njob.accept()", "1 of 9 nodes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_problems_are_named_and_nothing_is_written(fake, tmp_path, case):
    code, words = REFUSALS[case]
    fake(code)
    assert words in checked(written()).problem
    output = tmp_path / "out.onnx"
    with pytest.raises(VerificationError, match="not written"):
        onnxq.quantize(
            STATIC, samples(STATIC), target="qnn", output=output, toolchain=ToolchainOptions(), **PLAIN
        )  # fmt: skip
    assert not output.exists()


def test_last_words_of_a_crash_are_told(fake):
    fake(REFUSALS["crashes"][0])
    assert "last words" in checked(written()).problem


def test_a_tool_that_hangs_is_ended(fake, tmp_path):
    note = tmp_path / "alive"
    fake(f"import pathlib, time\nwhile True:\n    pathlib.Path({str(note)!r}).touch()\n    time.sleep(0.05)")
    with pytest.raises(EngineError, match=r"within 3 s; give `toolchain_limit` more"):
        checked(written(), toolchain_limit=3.0)
    note.unlink()
    time.sleep(0.3)
    assert not note.exists()


@pytest.mark.parametrize("target", ["qnn", "openvino"])
def test_dynamic_dimensions_are_named_as_the_cause(fake, target):
    fake(REFUSALS["runs nothing"][0])
    found = onnxq.check(written(DYNAMIC, target), target, toolchain=ToolchainOptions()).toolchain
    assert ("`freeze` x=1x3x8x8" in found.problem) == (target == "qnn")
    assert "freeze" not in checked(written(STATIC)).problem


def test_quantize_runs_samples_that_were_held_out(fake):
    fake("job.answer.message = str([float(feed['x'][0, 0, 0, 0]) for feed in job.feeds()])" + RUNS)
    feeds = [{"x": np.full((1, 3, 8, 8), n, np.float32)} for n in range(32)]
    found = onnxq.quantize(STATIC, feeds, target="qnn", toolchain=ToolchainOptions(), **PLAIN).report
    assert len(json.loads(found.toolchain.message)) == 8 < found.samples.reporting
    assert found.toolchain.source == "data in memory, held out"


@pytest.mark.parametrize(("preset", "layers"), [("w8a8", 1), ("w8a16", 0), ("w8", 0)])
def test_layers_that_are_to_run_in_int8(fake, preset, layers):
    fake("job.answer.message = str(len(job.linear))\njob.accept()")
    assert checked(onnxq.quantize(STATIC, samples(STATIC), target="ort", preset=preset, **PLAIN).model).message == str(
        layers
    )


def test_samples_may_be_an_array(fake):
    fake(RUNS)
    batch = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    found = onnxq.check(written(), "qnn", toolchain=ToolchainOptions(), calibration=batch).toolchain
    assert (found.samples, found.source) == (3, "data in memory")


def test_integers_as_inputs_are_compiled_only(fake):
    proto = model(
        "(int64[1,4] i) => (float[1,4,5] y) <float[9,6] t, float[6,5] w> { e = Gather(t, i) y = MatMul(e, w) }"
    )
    feeds = [{"i": np.full((1, 4), n, np.int64)} for n in range(8)]
    fake(RUNS)
    found = checked(onnxq.quantize(proto, feeds, target="qnn", **PLAIN).model)
    assert found.accepted
    assert not found.problem
    assert found.samples == 0


def test_what_is_missing_is_said_before_any_work(fake):
    fake("pass", head="try:\n    import no_such_package\nexcept ImportError as error:\n    protocol.missing(error)")
    with pytest.raises(UsageError, match=r"pip install fake-package.*`toolchain_python`"):
        onnxq.quantize(STATIC, "no such data", target="qnn", toolchain=ToolchainOptions())


def test_a_target_without_a_tool_chain_is_refused():
    with pytest.raises(UsageError, match="target ort has no tool-chain"):
        onnxq.check(written(target="ort"), "ort", toolchain=ToolchainOptions())


def test_an_interpreter_that_is_none_is_refused():
    with pytest.raises(UsageError, match="cannot be started"):
        checked(written(), toolchain_python="/no/such/python")


def test_the_interpreter_is_the_options_then_the_variables_then_this_one(monkeypatch):
    monkeypatch.delenv(toolchain.PYTHON_VARIABLE, raising=False)
    assert ToolchainOptions().interpreter == sys.executable
    monkeypatch.setenv(toolchain.PYTHON_VARIABLE, "/theirs")
    assert ToolchainOptions().interpreter == "/theirs"
    assert ToolchainOptions(toolchain_python="/mine").interpreter == "/mine"


def test_samples_without_a_tool_chain_are_refused():
    with pytest.raises(UsageError, match="`calibration` has samples for the tool-chain"):
        onnxq.check(written(), "qnn", calibration=samples(STATIC))


@pytest.mark.parametrize("flag", [("--toolchain-limit", "3"), ("--toolchain-samples", "2")])
def test_flags_that_would_do_nothing_are_refused(tmp_path, flag):
    onnx.save(written(), tmp_path / "m.onnx")
    result = CliRunner().invoke(main, ["check", str(tmp_path / "m.onnx"), "--target", "qnn", *flag])
    assert result.exit_code == 2
    assert f"{flag[0]} goes with --toolchain" in result.output


def test_check_on_the_command_line(fake, tmp_path):
    onnx.save(written(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", samples(STATIC)[0]["x"])
    arguments = ["check", str(tmp_path / "m.onnx"), "--target", "qnn", "--toolchain"]
    fake(RUNS)
    result = CliRunner().invoke(main, [*arguments, "--calib", str(tmp_path / "x.npy")])
    assert result.exit_code == 0, result.output
    assert f"1 samples of {tmp_path / 'x.npy'}" in result.output
    fake("job.answer.fallback = [('n', 'Conv', 'CPU')] * 2\nraise RuntimeError('no')")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 5
    assert "falls back to CPU: 2 Conv" in result.output
    assert "problem: Fake does not take the model: RuntimeError: no" in result.output
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 5
    assert json.loads(result.output)["toolchain"]["fallback"][0] == {"node": "n", "op": "Conv", "where": "CPU"}


def test_options_are_options_of_the_result_only_where_it_is_asked_for(fake):
    fake(RUNS)
    plain = onnxq.quantize(STATIC, samples(STATIC), target="qnn", **PLAIN)
    assert plain.report.toolchain is None
    asked = onnxq.quantize(STATIC, samples(STATIC), target="qnn", toolchain=ToolchainOptions(), **PLAIN)
    assert asked.model == plain.model
    assert replace(asked.report, toolchain=None, seconds=0).quality == plain.report.quality
