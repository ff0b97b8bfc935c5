"""`onnxq evaluate`: accuracy with labels, distance with a reference, for models of any tool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import model, run
from quantized import quantized

from onnxq import OnnxqError, Preprocess, cli, evaluate
from onnxq.graph import storage

MLP = """(float[N,3] x) => (float[N,7] y) <float[3,5] w, float[5] b, float[5,7] v>
    { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v) }"""
MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture
def place(tmp_path):
    """A model, what it was quantized to, 20 samples and the labels that the float model gets right but for two."""
    proto = model(MLP)
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    storage.write(proto, tmp_path / "float.onnx")
    calibration = np.concatenate([x, np.random.default_rng(1).standard_normal((180, 3)).astype(np.float32)])
    storage.write(quantized(proto, calibration), tmp_path / "int8.onnx")
    labels = run(proto, {"x": x})["y"].argmax(1)
    labels[[3, 5]] = (labels[[3, 5]] + 1) % 7
    np.savez(tmp_path / "eval.npz", x=x, labels=labels)
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(cli.main, ["evaluate", *(str(a) for a in arguments)])


def figures(found):
    return {figure["name"]: figure["value"] for figure in found["figures"]}


def test_accuracy_of_the_float_model(place):
    result = invoke(place / "float.onnx", "--data", place / "eval.npz", "--labels", place / "eval.npz")
    assert result.exit_code == 0, result.output
    assert "20 samples\ntop-1 accuracy  90.00 %\ntop-5 accuracy" in result.output


def test_a_quantized_model_against_its_reference(place):
    options = ("--data", place / "eval.npz", "--reference", place / "float.onnx", "--json")
    result = invoke(place / "int8.onnx", *options, "--labels", place / "eval.npz")
    found = json.loads(result.output)
    assert list(figures(found)) == ["top-1 accuracy", "top-5 accuracy", "SQNR", "top-1 agreement", "-KL"]
    assert found["figures"][0]["reference"] == 90
    assert figures(found)["SQNR"] > 25
    assert -0.1 < figures(found)["-KL"] < 0
    same = json.loads(invoke(place / "float.onnx", *options).output)
    assert figures(same) == {"SQNR": None, "top-1 agreement": 100, "-KL": 0}
    fast = json.loads(invoke(place / "int8.onnx", *options, "--optimized").output)
    assert fast["figures"][0]["value"] != figures(found)["SQNR"]  # integer kernels round elsewhere


def test_chosen_metrics_and_samples(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "count_metric.py").write_text("def f(outputs, labels):\n    return len(labels)\n")
    options = ("--labels", place / "eval.npz", "--metric", "count_metric:f", "--metric", "top1", "--samples", 10)
    result = invoke(place / "int8.onnx", "--data", place / "eval.npz", *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["samples"], figures(found)["count_metric:f"]) == (10, 10)


def test_options_from_a_configuration_file(place):
    (place / "c.toml").write_text(f'labels = "{place}/eval.npz"\nmetric = ["top1"]\nsamples = 4\n')
    result = invoke(place / "int8.onnx", "--data", place / "eval.npz", "--config", place / "c.toml", "--json")
    assert [len(json.loads(result.output)["figures"]), json.loads(result.output)["samples"]] == [1, 4]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "nothing to measure"),
        (("--metric", "kl"), 2, "compares with another model: give it as --reference"),
        (("--metric", "nothing"), 2, "expected sqnr"),
        (("--reference", "none.onnx"), 3, "no such file"),
        (("--labels", "none.csv"), 4, "none.csv: cannot be read"),
        (("--labels", "eval.npz", "--output", "z"), 2, "the model has no output 'z'; it has y"),
        (("--reference", "float.onnx", "--output", "y"), 2, "without --labels it has no use"),
    ],
)
def test_what_cannot_be_measured(place, monkeypatch, options, code, message):
    monkeypatch.chdir(place)
    result = invoke("int8.onnx", "--data", "eval.npz", *options)
    assert (result.exit_code, message in result.output) == (code, True), result.output


def test_references_with_other_outputs_are_refused(place):
    other = model(MLP.replace("y", "z"))
    with pytest.raises(OnnxqError, match="different outputs: y; the reference z"):
        evaluate(place / "float.onnx", place / "eval.npz", reference=other)


def test_neither_threads_nor_batches_change_a_figure(place):
    results = [
        evaluate(place / "int8.onnx", place / "eval.npz", reference=place / "float.onnx", threads=t, batch_size=b)
        for t, b in ((1, 1), (2, 7))
    ]
    assert results[0] == results[1]


def test_the_accuracy_of_a_bundled_model():
    folder = MODELS / "vit_digits"  # as models/README.md states it, over images whose labels lie in the same file
    found = evaluate(
        folder / "model.onnx", folder / "eval.npz", labels=folder / "eval.npz", metric=["top1"],
        preprocess=Preprocess(mean=(0.5,), std=(0.5,)), input_keys={"pixels": "images"},
    )  # fmt: skip
    assert found.figures[0].value == pytest.approx(92.92, abs=0.005)
