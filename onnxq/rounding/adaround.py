"""AdaRound as published: weights between floor and ceil, pushed to one of them (white paper section 3.4).

    W~(V) = s clip(floor(W / s) + h(V), low, high)                                                           (32)
    h(V)  = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),  zeta = 1.1, gamma = -0.1                          (33)
    minimise over V   loss(W~(V)) + weight * sum (1 - |2 h(V) - 1|^beta),  beta annealed from 20 to 2         (34)

with Adam, the regulariser left out in the first fifth of the iterations. Its weight is in units of the loss, ten times
that of rounding to nearest for all weights together: the published constant, 0.01, leaves layers with large outputs
between floor and ceil, and from 3 to 30 times the results are alike. Two losses, both per column of data:

    the quadratic form `gram.Gram`                                        no activation, exact over all data
    `Columns`: |f(W~ x^ + b) - f(y)|^2, f = clip(., lo, hi)               the paper's (35), on minibatches
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .gptq import Lattice
from .gram import Gram

Array = NDArray[np.float64]

ZETA, GAMMA = 1.1, -0.1
STRENGTH = 10.0


class Loss(Protocol):
    """A function of the weights W~ (g, M, K)."""

    def value(self, W: Array) -> float:
        """Error per column of data."""

    def gradient(self, W: Array) -> Array:
        """Its derivative, (g, M, K)."""


@dataclass(frozen=True)
class Quadratic:
    """The loss without activation."""

    form: Gram

    def value(self, W: Array) -> float:
        return float(self.form.error(W).sum() / self.form.count)

    def gradient(self, W: Array) -> Array:
        return np.asarray(2 / self.form.count * (W @ self.form.G - self.form.B))


@dataclass(frozen=True)
class Columns:
    """The loss with activation clip(., lo, hi), on columns x (g, K, P) and y (g, M, P); bias (g, M)."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]
    bias: Array
    lo: float
    hi: float

    def value(self, W: Array) -> float:
        return float(np.square(self._error(self._response(W))).sum() / self.x.shape[2])

    def gradient(self, W: Array) -> Array:
        response = self._response(W)
        active = (response > self.lo) & (response < self.hi)
        return np.asarray(2 / self.x.shape[2] * (self._error(response) * active) @ self.x.swapaxes(1, 2))

    def part(self, chosen: NDArray[np.intp]) -> Columns:
        """A minibatch."""
        return Columns(self.x[..., chosen], self.y[..., chosen], self.bias, self.lo, self.hi)

    def _response(self, W: Array) -> Array:
        return np.asarray(W @ self.x + self.bias[:, :, None])

    def _error(self, response: Array) -> Array:
        return np.asarray(np.clip(response, self.lo, self.hi) - np.clip(self.y, self.lo, self.hi))


def rectified_sigmoid(V: Array) -> Array:
    """h(V) (33)."""
    return np.asarray(np.clip((ZETA - GAMMA) / (1 + np.exp(-V)) + GAMMA, 0, 1))


def inverse_rectified_sigmoid(h: Array) -> Array:
    """V with h(V) = h, for 0 <= h <= 1."""
    return np.asarray(-np.log((ZETA - GAMMA) / (h - GAMMA) - 1))


@dataclass(frozen=True)
class SoftRounding:
    """The objective (34) in V (g, M, K). base: floor(W / s)."""

    lattice: Lattice
    base: Array
    weight: float

    def weights(self, V: Array) -> Array:
        """W~(V) (32)."""
        q = np.clip(self.base + rectified_sigmoid(V), self.lattice.low, self.lattice.high)
        return np.asarray(self.lattice.scale * q)

    def value(self, loss: Loss, V: Array, beta: float) -> float:
        regulariser = (1 - np.abs(2 * rectified_sigmoid(V) - 1) ** beta).sum()
        return loss.value(self.weights(V)) + self.weight * float(regulariser)

    def gradient(self, loss: Loss, V: Array, beta: float | None) -> Array:
        """Derivative of `value` by V; without the regulariser where beta is None."""
        sigmoid = 1 / (1 + np.exp(-V))
        h = (ZETA - GAMMA) * sigmoid + GAMMA
        slope = np.where((h > 0) & (h < 1), (ZETA - GAMMA) * sigmoid * (1 - sigmoid), 0)
        q = self.base + np.clip(h, 0, 1)
        inside = (q >= self.lattice.low) & (q <= self.lattice.high)
        by_h = loss.gradient(self.weights(V)) * self.lattice.scale * inside
        if beta is not None:
            t = 2 * np.clip(h, 0, 1) - 1
            by_h = by_h - 2 * self.weight * beta * np.abs(t) ** (beta - 1) * np.sign(t)
        return np.asarray(by_h * slope)


def adaround(
    loss: Loss, lattice: Lattice, W: Array, iterations: int, seed: int = 0, batch: int = 256, rate: float = 0.01
) -> Array:
    """q (g, M, K) for real weights W. batch: columns of a minibatch, drawn anew in each iteration."""
    base = np.floor(W / lattice.scale)
    weight = STRENGTH * loss.value(lattice.scale * lattice.nearest(W)) / max(W.size, 1)
    soft, V = SoftRounding(lattice, base, weight), inverse_rectified_sigmoid(W / lattice.scale - base)
    rng, first, second = np.random.default_rng(seed), np.zeros_like(V), np.zeros_like(V)
    for t in range(1, iterations + 1):
        progress = (t / iterations - 0.2) / 0.8
        beta = 11 + 9 * float(np.cos(np.pi * progress)) if progress > 0 else None
        sampled = loss.part(rng.integers(loss.x.shape[2], size=batch)) if isinstance(loss, Columns) else loss
        gradient = soft.gradient(sampled, V, beta)
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        V -= rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return np.asarray(np.clip(base + (rectified_sigmoid(V) >= 0.5), lattice.low, lattice.high))
