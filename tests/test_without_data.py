"""Weights alone need no data: nearest rounding on grids from the weights' own values."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from graphs import model

import onnxq
from onnxq.cli import main
from onnxq.errors import UsageError

DENSE = """(float[N,T,32] x) => (float[N,T,8] y) <float[32,64] w, float[64,8] v> {
    h = MatMul(x, w) g = Relu(h) y = MatMul(g, v) }"""
IDS = """(int64[N,T] i, int64[N,T] mask) => (float[N,T,8] y) <float[200,32] t, float[32,8] w> {
    e = Gather(t, i) m = Cast<to=1>(mask) u = Unsqueeze(m, axes) s = ReduceSum<keepdims=1>(u) a = Mul(e, u)
    b = Div(a, s) y = MatMul(b, w) }""".replace("float[32,8] w>", "float[32,8] w, int64[1] axes>")


@pytest.mark.parametrize(
    "settings", [{"preset": "w8"}, {"preset": "w4", "block_size": 16}, {"preset": "w8", "per_channel": False}]
)
@pytest.mark.parametrize("text", [DENSE, IDS], ids=["floats", "ids"])
def test_weights_alone(text: str, settings: dict[str, object]) -> None:
    proto = model(text, **({"axes": -1} if "axes" in text else {}))
    result = onnxq.quantize(proto, threads=1, **settings)
    assert result.report.quality[0].sqnr_db is not None
    assert result.report.quality[0].sqnr_db > (10 if settings["preset"] == "w4" else 30)
    assert result.report.samples.fitting == 0
    text = result.report.to_text()
    assert "random inputs" in text
    assert all(not step.changed for step in result.report.steps if step.name in ("EqualizeLayers", "RoundWeights"))


def test_a_model_that_runs_on_no_random_input() -> None:
    """It is quantized all the same, and nothing is claimed of it."""
    text = "(int64[2] shape, float[8] x) => (float[?,?] z) <float[4,6] w> { y = Reshape(x, shape) z = MatMul(y, w) }"
    result = onnxq.quantize(model(text), threads=1, preset="w8")
    assert all(q.is_unknown for q in result.report.quality)
    assert "runs on none of the random inputs" in result.report.to_text()


def test_activations_need_data() -> None:
    with pytest.raises(UsageError, match="quantize the weights alone"):
        onnxq.quantize(model(DENSE), threads=1)


def test_what_was_asked_for_and_needs_data() -> None:
    with pytest.raises(UsageError, match="need calibration data"):
        onnxq.quantize(model(DENSE), threads=1, preset="w8", rounding="gptq")


def test_on_the_command_line(tmp_path) -> None:
    import onnx

    onnx.save(model(DENSE), tmp_path / "m.onnx")
    files = [str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]
    done = CliRunner().invoke(main, ["quantize", *files, "--preset", "w8"])
    assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(main, ["quantize", *files])
    assert refused.exit_code == 2
    assert "'--preset w8'" in refused.output
