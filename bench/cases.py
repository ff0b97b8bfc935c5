"""The models that are compared, with their calibration and evaluation data as arrays.

The real models lie in ../shared/realmodels and are left out where that folder does not exist.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq import CalibrationData, Preprocess
from onnxq.pipeline.open_inputs import input_specs

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "models"
REAL = ROOT.parent / "shared" / "realmodels"

Images: TypeAlias = NDArray[np.float32]
Labelled: TypeAlias = tuple[Images, NDArray[np.int64] | None]


@dataclass(frozen=True)
class Case:
    """One model. calibration, evaluation: load the data as the model takes it, N x C x H x W; labels or None."""

    name: str
    model: Path
    calibration: Callable[[], Images]
    evaluation: Callable[[], Labelled]
    data: str


def example(name: str) -> Case:
    """One of the models of models/."""
    folder = EXAMPLES / name
    return Case(
        name,
        folder / "model.onnx",
        lambda: read(folder / "model.onnx", folder / "calib"),
        lambda: evaluator(EXAMPLES)["load"](name),
        "calib/ and eval.npz beside the model",
    )


def real(name: str) -> Case:
    """One of the labelled models of ../shared/realmodels."""
    load = evaluator(REAL)["load"]
    return Case(
        name,
        REAL / name / "model.onnx",
        lambda: load(name, "calib")[0],
        lambda: load(name),
        "the model's calib and eval parts",
    )


def ultraface() -> Case:
    """The face detector, which comes without data: the MobileNet's photographs stand in, stretched to 320 x 240."""
    model, photos = REAL / "ultraface" / "model.onnx", REAL / "mobilenet_v1_025_imagenet"
    preprocess = Preprocess(scale=1 / 128, mean=(127 / 128,))
    return Case(
        "ultraface",
        model,
        lambda: read(model, photos / "calib", preprocess)[:100],
        lambda: (read(model, photos / "eval", preprocess)[:100], None),
        "no data of its own: 100 + 100 ImageNet photographs stretched to 320 x 240, no labels",
    )


def read(model: Path, folder: Path, preprocess: Preprocess | None = None) -> Images:
    """All samples of a calibration folder, as inputs of the model."""
    feeds = CalibrationData(folder, input_specs(onnx.load(model)), preprocess=preprocess)
    return np.concatenate([next(iter(feed.arrays.values())) for feed in feeds])


def evaluator(folder: Path) -> dict[str, Any]:
    """The functions of the evaluate.py in `folder`: load(name), top1(model, x, labels)."""
    return runpy.run_path(str(folder / "evaluate.py"))


def top1(case: Case, model: Path, x: Images, labels: NDArray[np.int64]) -> float:
    """Top-1 accuracy in percent, by the evaluate.py that belongs to the model."""
    accuracy = float(evaluator(case.model.parents[1])["top1"](model, x, labels))
    return accuracy if REAL in case.model.parents else 100 * accuracy


def all_cases() -> Iterator[Case]:
    """Those whose model is there."""
    yield from map(example, ("resnet_digits", "mobilenet_digits", "vit_digits"))
    if REAL.is_dir():
        yield from map(real, ("resnet20_cifar10", "mobilenet_v1_025_imagenet"))
        yield ultraface()
