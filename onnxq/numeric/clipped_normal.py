"""Moments of a normal variable behind Relu or Clip (white paper equation 28).

z ~ N(mu, sigma^2), y = min(max(z, a), b), alpha = (a - mu) / sigma, beta = (b - mu) / sigma; phi and Phi are the
density and the distribution function of N(0, 1), P = Phi(beta) - Phi(alpha) the share of z that is not clipped.

    E[y]   = mu P + sigma (phi(alpha) - phi(beta)) + a Phi(alpha) + b (1 - Phi(beta))
    E[y^2] = (mu^2 + sigma^2) P + sigma (mu + a) phi(alpha) - sigma (mu + b) phi(beta)
             + a^2 Phi(alpha) + b^2 (1 - Phi(beta))

Terms of an infinite bound vanish. All arrays are (C,), float64; not-a-number stays that.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def moments(mean: Vector, std: Vector, lo: float, hi: float) -> tuple[Vector, Vector]:
    """Mean and standard deviation of the clipped variable."""
    below, above = _side(mean, std, lo), _side(mean, std, hi)
    inside = above[0] - below[0]
    first = mean * inside + std * (below[1] - above[1])
    second = (mean**2 + std**2) * inside
    for bound, (_, density), mass in ((lo, below, below[0]), (hi, above, 1 - above[0])):
        if np.isfinite(bound):
            first = first + bound * mass
            second = second + (1 if bound == lo else -1) * std * (mean + bound) * density + bound**2 * mass
    still = std == 0
    value = np.clip(mean, lo, hi)
    spread = np.sqrt(np.maximum(second - first**2, 0.0))
    # clipped from z, y lies between the bounds whatever rounding says
    return np.where(still, value, np.clip(first, lo, hi)), np.where(still, 0.0, spread)


def passing(mean: Vector, std: Vector, lo: float, hi: float) -> Vector:
    """The share P of z that is not clipped."""
    return np.asarray(_side(mean, std, hi)[0] - _side(mean, std, lo)[0])


def _side(mean: Vector, std: Vector, bound: float) -> tuple[Vector, Vector]:
    """Phi and phi at a bound."""
    if np.isinf(bound):
        return np.where(np.isnan(mean), np.nan, float(bound > 0)), 0 * mean
    with np.errstate(over="ignore"):
        t = np.clip((bound - mean) / np.where(std > 0, std, np.finfo(float).tiny), -40.0, 40.0)
    return np.asarray(_erfc(-t / math.sqrt(2)) / 2), np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
