"""`--report`: which forms, how often, and that nothing else is overwritten or left behind."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model

from onnxq import cli

NET = """(float[N,3] x) => (float[N,7] y) <float[5,3] w, float[7,5] v> {
    a = Gemm<transB=1>(x, w)  r = Relu(a)  y = Gemm<transB=1>(r, v) }"""


@pytest.fixture
def place(tmp_path):
    onnx.save(model(NET), tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32))
    return tmp_path


def quantize(place, *options):
    command = ["quantize", place / "in.onnx", place / "out.onnx", "--calib", place / "calib.npy", "-q", *options]
    return CliRunner().invoke(cli.main, [str(word) for word in command])


def files(place):
    return sorted(p.name for p in place.iterdir())


def test_every_form_in_one_run_tells_the_same(place):
    reports = [place / name for name in ("r.json", "r.HTML", "r.md")]
    result = quantize(place, *(word for path in reports for word in ("--report", path)))
    assert result.exit_code == 0, result.output
    assert files(place) == ["calib.npy", "in.onnx", "out.onnx", "r.HTML", "r.json", "r.md"]
    found = json.loads(reports[0].read_text())
    assert [layer["node"] for layer in found["layers"]] == ["Gemm_a", "Gemm_y"]
    for text in (reports[1].read_text(), reports[2].read_text()):
        assert f"{found['quality'][0]['sqnr_db']:.1f} ± {found['quality'][0]['standard_error_db']:.1f} dB" in text
        assert all(layer["node"] in text for layer in found["layers"])
        assert all(seen["tensor"] in text for seen in found["distributions"])


def test_a_configuration_file_names_reports(place):
    (place / "c.toml").write_text(f'report = ["{place}/a.md", "{place}/b.json"]')
    assert quantize(place, "--config", place / "c.toml").exit_code == 0
    assert {"a.md", "b.json"} <= set(files(place))


@pytest.mark.parametrize("name", ["report", "report.txt", "report.htm", "r.json.gz"])
def test_another_ending_is_refused(place, name):
    before = files(place)
    result = quantize(place, "--report", place / name)
    assert result.exit_code == 2
    assert "ends in .html, .json, .md" in result.stderr
    assert files(place) == before


def test_the_same_file_twice_is_refused(place):
    result = quantize(place, "--report", place / "r.md", "--report", place / "." / "r.md")
    assert (result.exit_code, "twice" in result.stderr) == (6, True)


def test_a_model_that_cannot_be_quantized_leaves_old_reports_alone(place):
    (place / "r.html").write_text("old")
    result = quantize(place, "--report", place / "r.html", "--report", place / "r.md", "--exclude", "Gemm")
    assert result.exit_code == 3
    assert files(place) == ["calib.npy", "in.onnx", "r.html"]
    assert (place / "r.html").read_text() == "old"


def test_a_report_that_cannot_be_written_stops_the_others(place):
    result = quantize(place, "--report", place / "r.md", "--report", place / "none" / "r.md")
    assert result.exit_code == 6
    assert files(place) == ["calib.npy", "in.onnx"]
