"""Which way to round each weight (white paper section 3.4), as minimisation of a quadratic form over a lattice.

    E(W~) = tr(W~ G W~') - 2 tr(W~ B') + const        W~ = s q,  low <= q <= high, q integers           (30, 35)

(see `gram`: G, B over the data; W~ (g, M, K), rows independent of each other). Solvers, all of them exact in E and
none of them looking at data again:

    nearest         q = round(W / s)
    error_feedback  columns one after another, each rounding error passed on to the columns still free, by the
                    Cholesky factor of G^-1 (optimal brain quantization, in GPTQ's order; Babai's nearest plane)
    descend         single weights to their best integer while all others stay, sweep after sweep: never worse than
                    where it starts, ends where no single change helps
    enumerate       all 2^K ways to round up or down, exact: depthwise 3 x 3 filters have 512
    adaround        the paper's: rectified sigmoid h(V) between floor and ceil (33), pushed to 0 or 1 by
                    1 - |2 h - 1|^beta with beta annealed (34), by Adam
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .gram import Gram

Array = NDArray[np.float64]

_BLOCK = 64
"""Columns whose updates are gathered before they go to the rest as one product of matrices."""


@dataclass(frozen=True)
class Lattice:
    """Where weights may lie: s q for integers low <= q <= high; zero points are in the bounds. All (g, M, K)."""

    scale: Array
    low: Array
    high: Array

    def nearest(self, W: Array) -> Array:
        """q (g, M, K) nearest to real weights, halves to even as QuantizeLinear."""
        return np.clip(np.rint(W / self.scale), self.low, self.high)

    def scaled(self, factor: Array) -> Lattice:
        """Every row's steps `factor` (g, M) times as large; the scale stays a float32."""
        scale = np.float64(np.float32(self.scale * factor[:, :, None]))
        return Lattice(scale, self.low, self.high)

    def columns(self, part: NDArray[np.intp]) -> Lattice:
        """Columns permuted, `part` (g, K)."""
        at = part[:, None, :]
        return Lattice(*(np.take_along_axis(a, at, 2) for a in (self.scale, self.low, self.high)))


class ErrorFeedback:
    """G factorised once, for several lattices. The form must be positive definite (`Gram.damped`)."""

    def __init__(self, form: Gram) -> None:
        self.order = np.argsort(-np.diagonal(form.G, axis1=1, axis2=2), axis=1, kind="stable")
        G = np.take_along_axis(form.G, self.order[:, :, None], 1)
        G = np.take_along_axis(G, self.order[:, None, :], 2)
        self.target = np.take_along_axis(form.solution(), self.order[:, None, :], 2)
        self.factor = np.linalg.cholesky(np.linalg.inv(G)).swapaxes(1, 2)  # upper

    def round(self, lattice: Lattice) -> Array:
        """q (g, M, K)."""
        lattice, free, U = lattice.columns(self.order), self.target.copy(), self.factor
        q = np.empty_like(free)
        for begin in range(0, free.shape[2], _BLOCK):
            end = min(begin + _BLOCK, free.shape[2])
            errors = np.empty((*free.shape[:2], end - begin))
            for j in range(begin, end):
                s = lattice.scale[:, :, j]
                q[:, :, j] = np.clip(np.rint(free[:, :, j] / s), lattice.low[:, :, j], lattice.high[:, :, j])
                error = (free[:, :, j] - s * q[:, :, j]) / U[:, None, j, j]
                free[:, :, j + 1 : end] -= error[:, :, None] * U[:, None, j, j + 1 : end]
                errors[:, :, j - begin] = error
            free[:, :, end:] -= errors @ U[:, begin:end, end:]
        back = np.argsort(self.order, axis=1, kind="stable")
        return np.take_along_axis(q, back[:, None, :], 2)


def descend(form: Gram, lattice: Lattice, q: Array, sweeps: int = 20) -> Array:
    """Coordinate descent from integers q (g, M, K); `sweeps` at most."""
    q, diagonal = q.copy(), np.diagonal(form.G, axis1=1, axis2=2)
    gradient = (lattice.scale * q) @ form.G - form.B
    for _ in range(sweeps):
        if not _sweep(form, lattice, q, gradient, diagonal):
            break
    return q


def _sweep(form: Gram, lattice: Lattice, q: Array, gradient: Array, diagonal: Array) -> bool:
    """One pass over all columns, in place; whether anything changed. gradient: W~ G - B, half the derivative."""
    changed = False
    for begin in range(0, q.shape[2], _BLOCK):
        end = min(begin + _BLOCK, q.shape[2])
        local, steps = gradient[:, :, begin:end], np.zeros((*q.shape[:2], end - begin))
        for j in range(begin, end):
            s = lattice.scale[:, :, j]
            best = np.rint(q[:, :, j] - local[:, :, j - begin] / (diagonal[:, None, j] * s))
            best = np.clip(best, lattice.low[:, :, j], lattice.high[:, :, j])
            step = s * (best - q[:, :, j])
            if step.any():
                q[:, :, j], steps[:, :, j - begin] = best, step
                local = local + step[:, :, None] * form.G[:, None, j, begin:end]
        if steps.any():
            gradient += steps @ form.G[:, begin:end, :]
            changed = True
    return changed


def enumerate_roundings(form: Gram, lattice: Lattice, W: Array) -> Array:
    """The best of all 2^K roundings of W (g, M, K) up or down, K <= 12; q (g, M, K)."""
    K = W.shape[2]
    up = np.float64((np.arange(2**K)[:, None] >> np.arange(K)) & 1)  # (2^K, K)
    best = np.empty_like(W)
    for g in range(W.shape[0]):
        base, s = np.floor(W[g] / lattice.scale[g]), lattice.scale[g]
        q = np.clip(base[:, None, :] + up, lattice.low[g][:, None, :], lattice.high[g][:, None, :])
        rows = q * s[:, None, :]
        error = np.einsum("mck,mck->mc", rows, rows @ form.G[g] - 2 * form.B[g][:, None, :])
        best[g] = np.take_along_axis(q, error.argmin(1)[:, None, None], 1)[:, 0]
    return best


ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(V: Array) -> Array:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)                                                (33)"""
    return np.clip((ZETA - GAMMA) / (1 + np.exp(-V)) + GAMMA, 0, 1)


def inverse_rectified_sigmoid(h: Array) -> Array:
    """V with h(V) = h, for 0 <= h <= 1."""
    return np.asarray(-np.log((ZETA - GAMMA) / (h - GAMMA) - 1))


@dataclass(frozen=True)
class SoftRounding:
    """The paper's objective in V (g, M, K), per column of data: E(W~(V)) / P + weight * sum 1 - |2 h(V) - 1|^beta."""

    form: Gram
    lattice: Lattice
    base: Array
    weight: float = 0.01

    def weights(self, V: Array) -> Array:
        """W~ = s clip(floor(W / s) + h(V), low, high)                                                     (32)"""
        q = np.clip(self.base + rectified_sigmoid(V), self.lattice.low, self.lattice.high)
        return np.asarray(self.lattice.scale * q)

    def value(self, V: Array, beta: float) -> float:
        h = rectified_sigmoid(V)
        regulariser = (1 - np.abs(2 * h - 1) ** beta).sum()
        W = self.weights(V)
        error = np.einsum("gmk,gmk->", W, W @ self.form.G - 2 * self.form.B) + self.form.yy.sum()
        return float(error / self.form.count + self.weight * regulariser)

    def gradient(self, V: Array, beta: float, regularised: bool = True) -> Array:
        """Derivative of `value` by V."""
        sigmoid = 1 / (1 + np.exp(-V))
        h = (ZETA - GAMMA) * sigmoid + GAMMA
        slope = np.where((h > 0) & (h < 1), (ZETA - GAMMA) * sigmoid * (1 - sigmoid), 0)
        h = np.clip(h, 0, 1)
        q = self.base + h
        inside = (q >= self.lattice.low) & (q <= self.lattice.high)
        W = self.lattice.scale * np.clip(q, self.lattice.low, self.lattice.high)
        by_h = 2 / self.form.count * (W @ self.form.G - self.form.B) * self.lattice.scale * inside
        if regularised:
            t = 2 * h - 1
            by_h = by_h - 2 * self.weight * beta * np.abs(t) ** (beta - 1) * np.sign(t)
        return np.asarray(by_h * slope)


def adaround(
    form: Gram, lattice: Lattice, W: Array, iterations: int = 1000, rate: float = 0.01, weight: float = 0.01
) -> Array:
    """Adam on the soft rounding of W (g, M, K), no regulariser in the first fifth, then beta from 20 to 2; q."""
    base = np.floor(W / lattice.scale)
    soft = SoftRounding(form, lattice, base, weight)
    V = inverse_rectified_sigmoid(W / lattice.scale - base)
    first, second = np.zeros_like(V), np.zeros_like(V)
    for t in range(1, iterations + 1):
        progress = max(0.0, (t / iterations - 0.2) / 0.8)
        beta = 2 + 9 * (1 + np.cos(np.pi * progress))
        gradient = soft.gradient(V, beta, regularised=progress > 0)
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        V -= rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return np.clip(base + (rectified_sigmoid(V) >= 0.5), lattice.low, lattice.high)
