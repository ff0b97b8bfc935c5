"""Text detectors and recognisers of other frameworks: operator sets 11 and 12, weights in Constant nodes, sizes known
at run time only. On every target, and through the command line from pictures of different sizes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import ocr
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto
from PIL import Image
from quantized import PLAIN, kernels

import onnxq
from onnxq.cli import main
from onnxq.passes.base import Context
from onnxq.pipeline.prepare import prepare
from onnxq.targets import TARGETS

HEIGHTS = {"detector": None, "recogniser": 16, "transformer": 16}
LEAST_DB = {"detector": 14.0, "recogniser": 22.0, "transformer": 14.5}
"""Of four samples nothing is clipped, which costs scales that are powers of two up to half a dB."""
PIXELS = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")


@cache
def made(name: str) -> ModelProto:
    return ocr.MODELS[name]()


def feeds(name: str, count: int = 4, seed: int = 0) -> list[dict[str, np.ndarray]]:
    return ocr.feeds(ocr.pixels(count, HEIGHTS[name], seed))


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, target) for name in HEIGHTS for target in sorted(TARGETS) if name != "detector" or "-" not in target],
)
def test_every_target_takes_them(name: str, target: str) -> None:
    """The detector takes up to 2 s, for it has 300 nodes; variants of targets are left to the others."""
    result = onnxq.quantize(made(name), feeds(name), target=target, **PLAIN)
    (quality,) = result.report.quality
    assert quality.sqnr_db is not None
    assert quality.sqnr_db > LEAST_DB[name]


def test_sizes_are_left_to_run_time_and_all_else_is_in_one_form() -> None:
    proto = made("detector")
    prepared, _ = prepare(proto, "detector", onnxq.Options(), Context())
    found = [node.op for node in prepared.graph.nodes]
    assert not {"Constant", "BatchNormalization", "Clip", "Div", "Pad"} & set(found)
    assert (found.count("HardSwish"), found.count("Resize")) == (7, 4)
    convolutions = [node for node in prepared.graph.nodes if node.op in ("Conv", "ConvTranspose")]
    assert sum(len(node.inputs) > 2 for node in convolutions) == len(convolutions) - 6  # the neck has none


@pytest.mark.parametrize("name", sorted(ocr.MODELS))
def test_layers_run_in_integers(name: str) -> None:
    found = kernels(onnxq.quantize(made(name), feeds(name), **PLAIN, hard_swish="float").model)
    assert found["QLinearConv"] >= {"detector": 20, "recogniser": 6, "transformer": 2}[name]
    between_hard_swishes = {"detector": 3, "recogniser": 1, "transformer": 0}[name]  # depthwise
    assert found["FusedConv"] + found["Conv"] + found["FusedGemm"] == between_hard_swishes


@pytest.mark.parametrize("kind", ["png", "npy", "npz"])
def test_from_files_of_different_sizes(kind: str, tmp_path: Path) -> None:
    model, folder, out = tmp_path / "model.onnx", tmp_path / "calib", tmp_path / "out.onnx"
    onnx.save(made("recogniser"), model)
    folder.mkdir()
    pictures = ocr.pixels(4, height=16)
    assert len({p.shape for p in pictures}) == 4
    for index, (picture, feed) in enumerate(zip(pictures, ocr.feeds(pictures), strict=True)):
        if kind == "png":
            Image.fromarray(picture).save(folder / f"{index}.png")
        elif kind == "npy":
            np.save(folder / f"{index}.npy", feed["x"])
        else:
            np.savez(folder / f"{index}.npz", **feed)
    arguments = ["quantize", str(model), str(out), "--calib", str(folder), "--report", str(tmp_path / "report.json")]
    run = CliRunner().invoke(main, [*arguments, *PIXELS * (kind == "png")])
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"]["fitting"] == 4
    assert report["quality"][0]["sqnr_db"] > 25
    checked = CliRunner().invoke(main, ["check", str(out), "--target", "ort"])
    assert checked.exit_code == 0, checked.output
