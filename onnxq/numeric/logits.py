"""Vectors of logits, for ranges that look at all classes of a sample together (cross-entropy, equation 17).

A bottom-k sketch: of all samples seen, those with the smallest hash of their bytes are kept. Which they are depends
on the samples alone, not on their order or on the merging of partial collections.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .histogram import Histogram
from .quant import FloatArray
from .samples import Samples

KEPT = 512
LARGEST = 2**16
"""Classes: a longer vector (an image of logits) is not kept, and the tensor is treated like any other."""


@dataclass
class Logits:
    """The histogram of a tensor and up to 512 of its sample vectors: by hash, float32 (classes,)."""

    histogram: Histogram = field(default_factory=Histogram)
    rows: dict[bytes, NDArray[np.float32]] = field(default_factory=dict)

    def update(self, x: FloatArray) -> None:
        """Count a batch: axis 0 counts samples, all else of a sample is its vector."""
        self.histogram.update(x)
        if x.ndim < 2 or not 1 < x[0].size <= LARGEST:
            return
        for row in np.ascontiguousarray(x, np.float32).reshape(x.shape[0], -1):
            self.rows[hashlib.blake2b(row.tobytes(), digest_size=8).digest()] = row.copy()
        self._cut()

    def merge(self, other: Logits) -> Logits:
        merged = Logits(self.histogram.merge(other.histogram), {**self.rows, **other.rows})
        merged._cut()
        return merged

    def _cut(self) -> None:
        if len(self.rows) > KEPT:
            self.rows = {key: self.rows[key] for key in sorted(self.rows)[:KEPT]}

    def samples(self) -> Samples:
        """The histogram's samples, with `vectors` (m, classes) where all vectors seen have one length."""
        samples = self.histogram.samples()
        lengths = {row.size for row in self.rows.values()}
        if len(lengths) != 1:
            return samples
        return replace(samples, vectors=np.stack([self.rows[key] for key in sorted(self.rows)]))
