"""A network's own scores on labelled samples, and the standard error of their difference from the float model's.

    theta_g    score without group g of G groups into which the samples are divided, every G-th one in one
    d_g        theta_g of the quantized model less theta_g of the float one, on the same samples
    error      sqrt((G - 1) / G  sum_g (d_g - mean d)^2)

The delete-a-group jackknife (Kott, 2001) leaves samples out, and repeats none as the bootstrap does: precision and
recall of a detector count an image once. Both models see the same samples, so that what makes these easy or hard
cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

GROUPS = 16

Outputs: TypeAlias = Sequence[Any]
"""The outputs of one run, in the model's order."""

Scores: TypeAlias = Mapping[str, float]
"""By name and unit; the first one counts."""


@dataclass(frozen=True)
class TaskScore:
    """labels: one for each sample, for which the model runs once, or several times.
    score: takes what the runs gave, and the labels of their samples."""

    labels: Sequence[Any]
    score: Callable[[Sequence[Outputs], Any], Scores]

    def of(self, outputs: Sequence[Outputs], chosen: Sequence[int] | None = None) -> dict[str, float]:
        """The scores; of these samples alone where they are `chosen`."""
        chosen = range(len(self.labels)) if chosen is None else chosen
        runs = len(outputs) // len(self.labels)
        labels: Any = [self.labels[i] for i in chosen]
        if isinstance(self.labels, np.ndarray):
            labels = np.asarray(labels)
        found = self.score([outputs[runs * i + j] for i in chosen for j in range(runs)], labels)
        return {name: float(value) for name, value in found.items()}

    def without_groups(self, outputs: Sequence[Outputs]) -> list[dict[str, float]]:
        """theta_g of each group."""
        count = min(GROUPS, len(self.labels))
        return [self.of(outputs, [i for i in range(len(self.labels)) if i % count != g]) for g in range(count)]


def difference_error(reference: Sequence[Scores], other: Sequence[Scores]) -> dict[str, float]:
    """Standard error of each score's difference, from both models' `without_groups`."""
    return {name: _error([b[name] - a[name] for a, b in zip(reference, other, strict=True)]) for name in reference[0]}


def standard_error(without: Sequence[Scores]) -> dict[str, float]:
    """Of each score itself."""
    return {name: _error([each[name] for each in without]) for name in without[0]}


def _error(without: Sequence[float]) -> float:
    return math.sqrt((len(without) - 1) * float(np.var(without)))


def top1(outputs: Sequence[Outputs], labels: Any) -> Scores:
    """In percent; classes that tie for the first place share the hit."""
    hits = []
    for (scores, *_), label in zip(outputs, labels, strict=True):
        first = scores.reshape(-1) == scores.max()
        hits.append(first[label] / first.sum())
    return {"top-1": 100 * float(np.mean(hits))}
