"""The range of least objective inside the extremes of the values, each channel by itself, for any objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .quant import QuantParams, QuantSpec
from .quantization_error import Objective
from .samples import Samples

Vector = NDArray[np.float64]
Range = tuple[Vector, Vector]
"""lo and hi, (C,) each."""

Share = Vector | float | None

_COARSE = 2.0 ** (-np.arange(0, 96) / 8)
"""Shares of the full range that a search tries first, 9 % apart, down to 1/4096."""

_TOO_LARGE = 100.0
"""A sweep ends where every channel's error is so many times the least that was found."""


def search(objective: Objective, samples: Samples, spec: QuantSpec, at_once: int = 1) -> Range:
    """The range inside [lo, hi] of least objective, each channel by itself; never worse than the whole range.

    at_once: how many grids the objective takes together, of samples of one channel.

    The objective has many local minima, one for every value that crosses a step: first shares of the range that
    are evenly spaced in their logarithm, then each end by itself, then finer and finer around what was found.
    """
    best = _Best(objective, samples, spec, at_once)
    best.sweep((share, share) for share in _COARSE)
    two_ended = not spec.symmetric and bool((samples.lo < 0).any() and (samples.hi > 0).any())
    if two_ended:
        for low in _COARSE[::6]:
            best.sweep((low, high) for high in _COARSE[::6])
        for _ in range(2):
            best.sweep((share, None) for share in _COARSE)
            best.sweep((None, share) for share in _COARSE)
    for spread in (0.09, 0.015, 0.003):
        factors = 1 - np.linspace(-spread, spread, 13)
        lo, hi = best.lo, best.hi
        if two_ended:
            best.sweep((factor * lo, None) for factor in factors)
            best.sweep((None, factor * hi) for factor in factors)
        else:
            best.sweep((factor * lo, factor * hi) for factor in factors)
    return best.lo * samples.lo, best.hi * samples.hi


class _Best:
    """Per channel, the shares of the lower and upper end that were best so far."""

    def __init__(self, objective: Objective, samples: Samples, spec: QuantSpec, at_once: int) -> None:
        self.objective, self.samples, self.spec, self.at_once = objective, samples, spec, at_once
        self.lo, self.hi = np.ones_like(samples.lo), np.ones_like(samples.hi)
        self.error = self._error(self.lo, self.hi)

    def _error(self, lo: Vector, hi: Vector) -> Vector:
        params = QuantParams.from_range(lo * self.samples.lo, hi * self.samples.hi, self.spec, axis=0)
        return self.objective(params)

    def sweep(self, shares: Iterable[tuple[Share, Share]]) -> None:
        """Try pairs of shares, of the lower and upper end; None leaves an end where it is best so far.

        Ends once every channel's error is too large (`_TOO_LARGE`): shares come in descending order, and clipping only
        gets worse.
        """
        if self.at_once > 1:
            self._sweep_together(list(shares))
            return
        for low, high in shares:
            lo = self.lo if low is None else np.broadcast_to(np.minimum(low, 1), self.lo.shape)
            hi = self.hi if high is None else np.broadcast_to(np.minimum(high, 1), self.hi.shape)
            error = self._error(lo, hi)
            better = error < self.error
            self.lo, self.hi = np.where(better, lo, self.lo), np.where(better, hi, self.hi)
            self.error = np.where(better, error, self.error)
            if (error > _TOO_LARGE * self.error).all():
                break

    def _sweep_together(self, shares: Sequence[tuple[Share, Share]]) -> None:
        """The same for one channel, several pairs at once: within a sweep none depends on the others."""
        for first in range(0, len(shares), self.at_once):
            part = shares[first : first + self.at_once]
            lo = np.concatenate([self.lo if low is None else np.minimum(low, [1.0]).ravel() for low, _ in part])
            hi = np.concatenate([self.hi if high is None else np.minimum(high, [1.0]).ravel() for _, high in part])
            errors = self._error(lo, hi)
            least = int(np.argmin(errors))
            if errors[least] < self.error[0]:
                self.lo, self.hi, self.error = lo[[least]], hi[[least]], errors[[least]]
            if errors[-1] > _TOO_LARGE * self.error[0]:
                break
