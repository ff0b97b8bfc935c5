"""AdaRound as published (Nagel et al., arXiv:2004.10568): weights between floor and ceil, pushed to one of them.

    W~(V) = s clip(floor(W / s) + h(V), low, high)                                                           (32)
    h(V)  = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)                                                     (33)
    minimise over V   loss(W~(V)) + weight * sum (1 - |2 h(V) - 1|^beta)                                     (34)

by Adam, beta annealed, the regulariser left out in a warm-up. The loss is per column of data: the quadratic form of
`Objective`, exact over all of it; or, where columns of data were kept, `Columns`, the paper's (35) with the layer's
activation, on minibatches. Equations of the white paper, section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .gptq import Gptq
from .grid import WeightGrid
from .objective import Columns, Objective

Array = NDArray[np.float64]

_ITERATIONS = {"fast": 500, "default": 2000, "high": 10000}
"""Iterations of Adam, by effort."""


@dataclass(frozen=True)
class RectifiedSigmoid:
    """h(V) (33), stretched beyond [gamma, zeta] = [-0.1, 1.1] so that 0 and 1 are reached at finite V."""

    zeta: float
    gamma: float

    def __call__(self, V: Array) -> Array:
        return np.asarray(np.clip((self.zeta - self.gamma) / (1 + np.exp(-V)) + self.gamma, 0, 1))

    def inverse(self, h: Array) -> Array:
        """V with h(V) = h, for 0 <= h <= 1."""
        return np.asarray(-np.log((self.zeta - self.gamma) / (h - self.gamma) - 1))


@dataclass(frozen=True)
class AdaRound:
    """iterations: of Adam. rate: its learning rate. batch: columns of a minibatch, drawn anew by `seed` in each
    iteration. scale_by: the method by whose errors scales are chosen.

    beta: at the end of the warm-up and at the end, with half a cosine between them: a large one leaves V free, a small
        one pushes h to 0 or 1.
    warmup: share of the iterations in which the regulariser is left out.
    strength: weight of the regulariser of all weights together, over the loss of rounding to nearest. The published
        constant, 0.01 a weight, leaves layers with large outputs between floor and ceil; from 3 to 30 the results are
        alike.
    zeta, gamma: how far the sigmoid is stretched (33).
    decay: 1 - beta_1 and 1 - beta_2 of Adam.
    """

    iterations: int = 2000
    seed: int = 0
    rate: float = 0.01
    batch: int = 256
    beta: tuple[float, float] = (20.0, 2.0)
    warmup: float = 0.2
    strength: float = 10.0
    zeta: float = 1.1
    gamma: float = -0.1
    decay: tuple[float, float] = (0.1, 0.001)
    scale_by: Gptq = field(default_factory=Gptq)

    title: ClassVar[str] = "AdaRound"
    tries_dampings: ClassVar[bool] = False
    reads_columns: ClassVar[bool] = True

    @classmethod
    def of_effort(cls, effort: str, seed: int) -> AdaRound:
        """Iterations by effort."""
        return cls(iterations=_ITERATIONS[effort], seed=seed)

    def round(self, objective: Objective, grid: WeightGrid) -> Array:
        """q (g, M, K)."""
        loss, W = objective.columns or objective, objective.W
        base, h = np.floor(W / grid.scale), RectifiedSigmoid(self.zeta, self.gamma)
        weight = self.strength * loss.value(grid.scale * grid.nearest(W)) / max(W.size, 1)
        soft, V = SoftRounding(grid, base, weight, h), h.inverse(W / grid.scale - base)
        rng, first, second = np.random.default_rng(self.seed), np.zeros_like(V), np.zeros_like(V)
        for t in range(1, self.iterations + 1):
            gradient = soft.gradient(self._sampled(loss, rng), V, self.beta_at(t))
            first += self.decay[0] * (gradient - first)
            second += self.decay[1] * (gradient * gradient - second)
            corrected = first / (1 - (1 - self.decay[0]) ** t), second / (1 - (1 - self.decay[1]) ** t)
            V -= self.rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        return np.asarray(np.clip(base + (h(V) >= 0.5), grid.low, grid.high))

    def scale_cost(self, objective: Objective, grid: WeightGrid) -> Array:
        """What GPTQ costs."""
        return self.scale_by.scale_cost(objective, grid)

    def beta_at(self, t: int) -> float | None:
        """beta of iteration t, counted from 1; None in the warm-up."""
        progress = (t / self.iterations - self.warmup) / (1 - self.warmup)
        if progress <= 0:
            return None
        start, end = self.beta
        return (start + end) / 2 + (start - end) / 2 * float(np.cos(np.pi * progress))

    def _sampled(self, loss: Objective | Columns, rng: np.random.Generator) -> Objective | Columns:
        if isinstance(loss, Objective):
            return loss
        return loss.minibatch(rng.integers(loss.x.shape[2], size=self.batch))


@dataclass(frozen=True)
class SoftRounding:
    """The objective (34) in V (g, M, K). base: floor(W / s).  weight: of the regulariser."""

    grid: WeightGrid
    base: Array
    weight: float
    h: RectifiedSigmoid

    def weights(self, V: Array) -> Array:
        """W~(V) (32)."""
        q = np.clip(self.base + self.h(V), self.grid.low, self.grid.high)
        return np.asarray(self.grid.scale * q)

    def value(self, loss: Objective | Columns, V: Array, beta: float) -> float:
        regulariser = (1 - np.abs(2 * self.h(V) - 1) ** beta).sum()
        return loss.value(self.weights(V)) + self.weight * float(regulariser)

    def gradient(self, loss: Objective | Columns, V: Array, beta: float | None) -> Array:
        """Derivative of `value` by V; without the regulariser where beta is None."""
        sigmoid, width = 1 / (1 + np.exp(-V)), self.h.zeta - self.h.gamma
        h = width * sigmoid + self.h.gamma
        slope = np.where((h > 0) & (h < 1), width * sigmoid * (1 - sigmoid), 0)
        q = self.base + np.clip(h, 0, 1)
        inside = (q >= self.grid.low) & (q <= self.grid.high)
        by_h = loss.gradient(self.weights(V)) * self.grid.scale * inside
        if beta is not None:
            t = 2 * np.clip(h, 0, 1) - 1
            by_h = by_h - 2 * self.weight * beta * np.abs(t) ** (beta - 1) * np.sign(t)
        return np.asarray(by_h * slope)
