"""How far one tensor is from another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .quant import FloatArray


@dataclass
class Sqnr:
    """Signal to quantization noise ratio, streamed: 10 log10(sum x^2 / sum (x - x^)^2), in dB."""

    signal: float = 0.0
    noise: float = 0.0

    def update(self, reference: FloatArray, other: FloatArray) -> None:
        """Two arrays of one shape. Where both are the same infinity or both not-a-number they agree."""
        x, y = np.asarray(reference, np.float64), np.asarray(other, np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        self.signal += float(np.square(x[np.isfinite(x)]).sum())
        with np.errstate(invalid="ignore", over="ignore"):
            self.noise += float(np.square(x - y, where=~same, out=np.zeros_like(x)).sum())

    @property
    def db(self) -> float:
        """Infinite for identical tensors; minus infinity where the other is infinite or not-a-number."""
        if self.noise == 0:
            return np.inf
        if not np.isfinite(self.noise) or self.signal == 0:
            return -np.inf
        return 10 * float(np.log10(self.signal / self.noise))


def sqnr(reference: FloatArray, other: FloatArray) -> float:
    """SQNR of two arrays of one shape, in dB."""
    total = Sqnr()
    total.update(reference, other)
    return total.db
