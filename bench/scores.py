"""How good a model's outputs are: hits among labelled images, and the distance from what the float model says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
from cases import Case, Images
from numpy.typing import NDArray

from onnxq.numeric.metrics import Sqnr

Outputs = NDArray[np.float32]


def outputs(model: Path | bytes, x: Images, batch: int = 50) -> list[Outputs]:
    """All outputs for all samples, ONNX Runtime's optimisations on; one by one where the model takes no other batch."""
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    source = session.get_inputs()[0]
    size = source.shape[0] if isinstance(source.shape[0], int) else batch
    runs = [session.run(None, {source.name: x[i : i + size]}) for i in range(0, len(x), size)]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]


@dataclass
class Evaluation:
    """The evaluation images of a case, at most `images` of them, evenly spread, and what its model says in float."""

    case: Case
    images: int | None = None
    reference: list[Outputs] = field(init=False)

    def __post_init__(self) -> None:
        x, labels = self.case.evaluation()
        chosen = np.linspace(0, len(x) - 1, min(self.images or len(x), len(x))).astype(int)  # files are sorted by class
        self.x = x[chosen]
        self.labels = None if labels is None else labels[chosen]
        self.reference = outputs(self.case.model, self.x)

    def hits(self, scores: Outputs) -> NDArray[np.float64]:
        """1 for each image that is classified rightly; classes that tie for the first place share it."""
        assert self.labels is not None
        ties = scores == scores.max(axis=1, keepdims=True)
        return np.asarray(ties[np.arange(len(scores)), self.labels] / ties.sum(axis=1))

    def top1(self, scores: Outputs) -> float:
        """In percent."""
        return float(100 * self.hits(scores).mean())

    def error(self, scores: Outputs) -> float:
        """Standard error of the difference from the float model's top-1, in points."""
        return float(100 * np.std(self.hits(scores) - self.hits(self.reference[0])) / math.sqrt(len(scores)))

    def db(self, found: list[Outputs]) -> float:
        """SQNR of the worst output."""
        totals = [Sqnr() for _ in found]
        for total, expected, got in zip(totals, self.reference, found, strict=True):
            total.update(expected, got)
        return float(min(total.db for total in totals))

    def float_model(self) -> str:
        """A sentence on the float model, with its standard error."""
        if self.labels is None:
            return f"No labels: SQNR over {len(self.x)} images."
        share = self.top1(self.reference[0])
        error = math.sqrt(share * (100 - share) / len(self.x))
        return f"Float: {share:.2f} % of {len(self.x)} images, standard error {error:.1f} points."
