"""What the notebooks share: the bundled networks with their data, quantization without any aid, a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxq

MODELS = Path(__file__).resolve().parents[2] / "models"
sys.path.insert(0, str(MODELS))

import evaluate  # noqa: E402

PLAIN: Mapping[str, Any] = {
    "dead_channels": False, "cle": "off", "absorb": False, "bias_correction": "off", "rounding": "nearest",
    "weight_range": "minmax", "activation_range": "minmax", "force_int_kernels": True, "samples": 32,
    "exceptions": 0.0, "latency": "off",
}  # fmt: skip
"""No step, the whole range, rounding to nearest, every layer on a grid: quantization as a beginner writes it."""


@dataclass(frozen=True)
class Network:
    """A bundled network. images: evaluation inputs; labels: their classes."""

    name: str
    images: np.ndarray
    labels: np.ndarray

    @property
    def path(self) -> Path:
        return MODELS / self.name / "model.onnx"

    def quantized(self, **settings: Any) -> onnx.ModelProto:
        """The network as PLAIN quantizes it, and settings change that."""
        return onnxq.quantize(self.path, MODELS / self.name / "calib", **{**PLAIN, **settings}).model

    def top1(self, model: onnx.ModelProto | Path) -> float:
        """Top-1 accuracy in %, by ONNX Runtime."""
        given = model if isinstance(model, Path) else model.SerializeToString()
        return 100 * evaluate.top1(given, self.images, self.labels)


def network(name: str, count: int = 500) -> Network:
    """A bundled network with the first evaluation images."""
    images, labels = evaluate.load(name)
    return Network(name, images[:count], labels[:count])


@dataclass(frozen=True)
class Table:
    """Rows of cells, which a notebook shows as a table."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]

    def _repr_markdown_(self) -> str:
        cells = [[f"{c:.1f}" if isinstance(c, float) else str(c) for c in row] for row in self.rows]
        lines = [self.head, ["---", *["--:"] * (len(self.head) - 1)], *cells]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines)
