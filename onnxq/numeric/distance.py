"""Distance of a tensor from its reference, streamed, and the same up to a scale and an offset of each channel.

With x the reference, y the other tensor, and sums over all samples and positions:

    SQNR     10 log10(sum x^2 / sum (x - y)^2)
    cosine   sum x y / sqrt(sum x^2 sum y^2)

Cross-layer equalization and bias absorption leave a network's function as it is, and its tensors not: channel c becomes
y_c = (x_c - d_c) / g_c. The best such fit leaves, with C the covariances over channel c (sums, means removed),

    g_c = C_xy / C_yy        noise_c = C_xx - C_xy^2 / C_yy

Channels are scaled where the factors g_c differ by more than 10 % between channels that are well correlated, and the
fit explains 6 dB. A wrong scale of a whole tensor is one factor, and stays an error. Rounded weights change the gain of
channels, too, so that the caller must see whether the layers behind take it back. The same holds for a channel that
hardly varies in the reference, which may have been moved into the bias of the next layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..thresholds import CONSTANT_SHARE, CORRELATED, EXPLAINED_DB, FEWEST_VALUES, SLIGHT_SPREAD, SPREAD
from .metrics import Sqnr
from .quant import FloatArray

Vector = NDArray[np.float64]


@dataclass
class Distance:
    """axis: of the channels. Sums of arrays of another rank, or number of channels, are merged into one channel."""

    axis: int | None = None
    sqnr: Sqnr = field(default_factory=Sqnr)
    max_error: float = 0.0
    sums: NDArray[np.float64] | None = None

    def update(self, reference: FloatArray, other: FloatArray) -> None:
        """Two arrays of one shape."""
        self.sqnr.update(reference, other)
        x, y = (_by_channel(np.asarray(a, np.float64), self.axis) for a in (reference, other))
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            x, y = np.where(finite, x, 0.0), np.where(finite, y, 0.0)
            self.max_error = max(self.max_error, 0.0 if np.isfinite(self.sqnr.noise) else np.inf)
        self.max_error = max(self.max_error, float(np.abs(x - y).max(initial=0.0)))
        count = np.full(len(x), float(x.shape[1]))
        products = ((a * b).sum(axis=1) for a, b in ((x, x), (x, y), (y, y)))
        self._add(np.stack([count, x.sum(axis=1), y.sum(axis=1), *products]))

    def merge(self, other: Distance) -> None:
        """Add the sums of another one."""
        self.sqnr.merge(other.sqnr)
        self.max_error = max(self.max_error, other.max_error)
        if other.sums is not None:
            self._add(other.sums)

    def _add(self, sums: NDArray[np.float64]) -> None:
        if self.sums is not None and self.sums.shape != sums.shape:
            self.sums, sums = (s.sum(axis=1, keepdims=True) for s in (self.sums, sums))
        self.sums = sums if self.sums is None else self.sums + sums

    @property
    def cosine(self) -> float:
        """1 where both are zero, 0 where one is."""
        _, _, _, xx, xy, yy = np.zeros(6) if self.sums is None else self.sums.sum(axis=1)
        if xx == 0 or yy == 0:
            return float(xx == yy)
        return float(np.clip(xy / (np.sqrt(xx) * np.sqrt(yy)), -1, 1))

    @property
    def is_scaled(self) -> bool:
        """Whether channels are scaled by more than rounding usually does."""
        db = self.scaled_db(SPREAD)
        return db is not None and db >= self.sqnr.db + EXPLAINED_DB

    def scaled_db(self, spread: float = SLIGHT_SPREAD) -> float | None:
        """SQNR up to a scale and an offset of each channel, in dB; None where the scales differ by less than `spread`,
        their standard deviation in logarithms, or say nothing."""
        if not self._fits():
            return None
        _, _, _, xx, cxx, cxy, cyy = self._moments()
        live = (cxx > 1e-9 * xx) & (cyy > 0) & (cxy > 0)
        safe = np.where(live, cyy, 1.0)
        sure = live & (cxy**2 >= CORRELATED * cxx * safe)
        if not sure.any() or cxx[sure].sum() < 0.5 * cxx.sum() or np.log(cxy[sure] / safe[sure]).std() <= spread:
            return None
        return _ratio_db(xx, np.where(live, cxx - cxy**2 / safe, cxx))

    def shifted_db(self) -> float | None:
        """SQNR without the offsets of constant channels, in dB; None where these explain little."""
        if not self._fits():
            return None
        n, sx, sy, xx, cxx, cxy, cyy = self._moments()
        offset = np.where(cxx <= CONSTANT_SHARE * xx, 0.0, (sx - sy) ** 2 / n)
        db = _ratio_db(xx, cxx - 2 * cxy + cyy + offset)
        return db if db >= self.sqnr.db + EXPLAINED_DB else None

    def _fits(self) -> bool:
        """Whether there are errors, and values enough to separate them."""
        if self.sums is None or self.sums.shape[1] < 2 or self.sums[0].min() < FEWEST_VALUES:
            return False
        return 0 < self.sqnr.noise < np.inf

    def _moments(self) -> tuple[Vector, ...]:
        """n, sum x, sum y, sum x^2, and the covariances C_xx, C_xy, C_yy, each (C,)."""
        assert self.sums is not None
        n, sx, sy, xx, xy, yy = self.sums
        return n, sx, sy, xx, xx - sx**2 / n, xy - sx * sy / n, yy - sy**2 / n


def _ratio_db(signal: Vector, noise: Vector) -> float:
    left = float(np.maximum(noise, 0.0).sum())
    return 10 * float(np.log10(signal.sum() / left)) if left > 0 else np.inf


def _by_channel(x: Vector, axis: int | None) -> Vector:
    """(C, n)."""
    if axis is None or x.ndim < 2:
        return x.reshape(1, -1)
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
