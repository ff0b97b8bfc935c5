"""The top of a report: what was verified, what to do next, and lines of TOML that work when they are pasted."""

from __future__ import annotations

import json
import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from graphs import model
from quantized import samples
from reports import HOSTILE, report
from test_debug import net

from onnxq import Override, cli
from onnxq.graph import storage
from onnxq.report import Latency, Measure, OperatorTime, OutputQuality, Timing
from onnxq.report.advice import kept_float, next_steps, not_verified, verified, worst_layers
from onnxq.thresholds import ADVISED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NET = """(float[N,3,6,6] x) => (float[N,4,?,?] y) <float[5,3,3,3] w, float[6,5,1,1] v, float[4,6,1,1] u> {
    a = Conv(x, w) r = Relu(a) b = Conv(r, v) t = Relu(b) y = Conv(t, u) }"""
PLAIN = [
    "--force-int-kernels",
    "--no-latency",
    "--no-cle",
    "--no-dead-channels",
    "--no-absorb",
    "--rounding",
    "nearest",
]


def texts(**fields: Any) -> str:
    return " ".join(step.text for step in next_steps(report(**fields)))


def overrides(lines: str) -> list[Override]:
    return [Override(**table) for table in tomllib.loads(lines).get("override", [])]


# --- what was verified


def test_verified_says_what_was_verified() -> None:
    clauses = "; ".join(verified(report()))
    assert clauses == (
        "it is valid ONNX; it runs in ONNX Runtime 0 as written and in a default session, which agree; its outputs were"
        " compared with the float model's on 13 samples held out; it keeps to the 1 requirements of target ort"
    )
    elsewhere = OutputQuality("y", 31.0, None, None, runs_in_default_session=False)
    assert "as written; its outputs" in "; ".join(verified(report(quality=(elsewhere,))))
    unknown = OutputQuality("y", None, None, None, is_unknown=True)
    assert "compared" not in "; ".join(verified(report(quality=(unknown,))))
    assert not_verified(report(measures=())) == "its accuracy on labelled data was not measured"
    assert not_verified(report(measures=(Measure("top-1", "%", 60.0, 59.0),))) == ""
    for text in (report(measures=()).to_html(), report(measures=()).to_markdown()):
        assert "Verified: it is valid ONNX; it runs" in text
        assert "Not verified: its accuracy on labelled data was not measured" in text


# --- what to do next


def test_what_to_do_follows_from_what_was_found() -> None:
    good, constants = {"quality": (OutputQuality("y", 45.0, 50.0, 1.0),)}, {"float_constants": ()}
    assert next_steps(report(**good, **constants)) == []
    assert "Measure the accuracy" in texts(**good, **constants, measures=())
    assert "`onnxq debug` finds out" in texts(quality=(OutputQuality("y", 15.0, 50.0, 1.0),))
    assert "The noisiest layers are conv19 (16.0 dB), conv18 (17.0 dB), conv17" in texts(
        quality=(OutputQuality("y", 22.0, 50.0, 1.0),)
    )
    assert "500% of the file are constants in float, the largest is node" not in texts(**good)
    assert "500% of the file are constants in float; the largest is node: reason node." in texts(**good)


def test_latency_that_is_no_gain_has_lines_to_paste() -> None:
    slow = OperatorTime("AveragePool", 2, 1.0, 0.2, ("pool[0]", "pool*"))
    latency = Latency("CPUExecutionProvider", 4, (Timing(1, 2.0, 1.5, 1.3, 1.2, 1.4, 9),), slow=(slow,))
    (step, _) = next_steps(report(quality=(), latency=latency))
    assert "no faster than float here; what costs most: AveragePool" in step.text
    (first, second) = overrides(step.lines)
    assert first.keep_float
    assert fnmatchcase("pool[0]", first.node or "")
    assert not fnmatchcase("pool0", first.node or "")
    assert fnmatchcase("pool*", second.node or "")
    assert not fnmatchcase("pools", second.node or "")
    busy = Latency("CPUExecutionProvider", 4, (Timing(1, 2.0, 1.5, 1.3, 0.5, 2.9, 9),), slow=(slow,))
    assert "faster" not in texts(quality=(), latency=busy)


def test_layers_without_loss_are_not_the_worst() -> None:
    assert [place for place, _ in worst_layers(report(layers=4))] == [4, 3, 2, 1]


@pytest.mark.parametrize("name", ["plain", "a[0]*?", 'quo"te\\', "line\nbreak", HOSTILE, "\U0001f600", "\x7f"])
def test_pasted_names_mean_themselves(name: str) -> None:
    (node, tensor) = overrides(kept_float(nodes=[name], tensors=[name]))
    assert node.keep_float
    assert fnmatchcase(name, node.node or "")
    assert tensor.keep_float
    assert fnmatchcase(name, tensor.tensor or "")
    assert all(c.isprintable() or c == "\n" for c in kept_float(nodes=[name]))


def test_a_page_shows_them_whole() -> None:
    made = report(name=HOSTILE, quality=(OutputQuality("y", 12.0, 50.0, 1.0),))
    lines = next_steps(made)[1].lines
    assert len(overrides(lines)) == ADVISED
    blocks = re.findall(r"```toml\n(.*?)```", made.to_markdown(), re.S)
    assert [o.node for o in overrides(blocks[0])] == [o.node for o in overrides(lines)]


def test_the_terminal_ends_with_what_is_urgent() -> None:
    made = report(quality=(OutputQuality("y", 12.0, 50.0, 1.0),), measures=())
    first, second = made.to_text().splitlines()[-2:]
    assert first.startswith("next: The outputs are at 12.0 dB: `onnxq debug`")
    assert second.startswith("next: The noisiest layers are conv19 (16.0 dB)")
    assert "[[override]]" not in made.to_text()
    assert overrides(made.to_text(verbose=True).split("leave them in float:\n")[1])
    assert "next: " not in report().to_text()


# --- pasted into a configuration


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("by", ["quantizer", "layer"])
def test_what_sensitivity_ends_with_works(tmp_path: Path, by: str) -> None:
    proto = model(NET)
    for name, node in zip(("first", "r", "sec[o]nd", "t", "third"), proto.graph.node, strict=True):
        node.name = name
    storage.write(proto, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.concatenate([feed["x"] for feed in samples(proto, 6)]))
    calib = ("--calib", tmp_path / "calib.npy")
    said = invoke("sensitivity", tmp_path / "in.onnx", *calib, *PLAIN[:1], *PLAIN[2:], "--by", by, "--quiet")
    assert said.exit_code == 0, said.output
    lines = said.output[said.output.index("[[override]]") :]
    given = overrides(lines)
    assert len(given) == ADVISED
    (tmp_path / "c.toml").write_text(lines, encoding="utf-8")
    out, report_file = tmp_path / "out.onnx", tmp_path / "r.json"
    config = ("--config", tmp_path / "c.toml", "--report", report_file, "--quiet")
    done = invoke("quantize", tmp_path / "in.onnx", out, *calib, *PLAIN, *config)
    assert done.exit_code == 0, done.output
    found = json.loads(report_file.read_text())
    quantized = {tensor["tensor"] for tensor in found["tensors"]}
    in_float = {node["node"] for node in found["float_nodes"]}
    for override in given:
        if override.tensor is not None:
            assert not any(fnmatchcase(tensor, override.tensor) for tensor in quantized)
        else:
            assert any(fnmatchcase(node, override.node or "") for node in in_float)


def test_what_debug_ends_with_works(tmp_path: Path) -> None:
    proto = net("weights")
    storage.write(proto, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.concatenate([feed["x"] for feed in samples(proto, 8)]))
    bare = ["--force-int-kernels", "--per-tensor", "--no-dead-channels", "--no-cle", "--no-absorb"]
    bare += [
        "--no-bias-correction",
        "--weight-range",
        "minmax",
        "--activation-range",
        "minmax",
        "--rounding",
        "nearest",
    ]
    calib = ("--calib", tmp_path / "calib.npy")
    out, page = tmp_path / "out.onnx", tmp_path / "r.html"
    barred = ("dead-channels", "cle", "weight-range", "rounding", "per-channel", "activation-range", "smoothquant")
    barred = (*barred, "bias-correction")  # leaves remedies for single tensors
    written = ("-o", out, "--report", page, *(each for name in barred for each in ("--without", name)))
    said = invoke("debug", tmp_path / "in.onnx", *calib, "--target-score", 30, *bare, *written)
    assert said.exit_code == 0, said.output
    lines = said.output[said.output.rindex("quantize --config") :].partition("\n")[2]
    assert overrides(lines)
    assert "paste this into the file of onnxq quantize --config" in page.read_text()
    (tmp_path / "c.toml").write_text(lines, encoding="utf-8")
    again = invoke(
        "quantize", tmp_path / "in.onnx", tmp_path / "two.onnx", *calib, *bare, "--config", tmp_path / "c.toml"
    )
    assert again.exit_code == 0, again.output
    assert (tmp_path / "two.onnx").read_bytes() == out.read_bytes()
