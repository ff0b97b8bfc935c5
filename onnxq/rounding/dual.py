"""The same error with fewer columns of data than weights in a row, P < K: nothing beyond (K, P) and (P, P) is held.

    E(W~) = |W~ X - Y|^2 + lambda |W~ - W|^2        X (K, P), Y (M, P), both less their means                 (30, 35)

has the Hessian H = X X' + lambda 1. For the columns F of W~ that are not rounded yet, S = lambda 1 + X_F' X_F (P, P),
and the error that is left, R = Y - sum_rounded w~_k x_k - W_F X_F (M, P),

    best real values     W*_F = W_F + R S^-1 X_F'
    of the inverse       (H_F)^-1 = (1 - X_F S^-1 X_F') / lambda                                          (Woodbury)

GPTQ reads (H_F)^-1 of one block b of columns at a time, the first ones of F; behind it, with V = S^-1 X_b',

    S^-1  <-  S^-1 + V (1 - X_b V)^-1 V'           R  <-  R - (W~_b - W_b) X_b

All arrays have g groups in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .objective import Array, triangular_inverse

BLOCK = 128
"""Columns of which the inverse is taken at once: GPTQ's block."""


@dataclass(frozen=True)
class SampledForm:
    """Columns x (g, K, P) and y (g, M, P) themselves, and the damping: strength (g,) of |W~ - W|^2, 0 without."""

    x: NDArray[Any]
    y: NDArray[Any]
    strength: Array
    W: Array | None = None

    @classmethod
    def of(cls, x: NDArray[Any], y: NDArray[Any]) -> SampledForm:
        return cls(x, y, np.zeros(x.shape[0]))

    def __add__(self, other: SampledForm) -> SampledForm:
        x, y = (np.concatenate(pair, axis=2) for pair in ((self.x, other.x), (self.y, other.y)))
        return SampledForm(x, y, self.strength)

    @property
    def count(self) -> float:
        """Columns."""
        return float(self.x.shape[2])

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.x.nbytes + self.y.nbytes

    @property
    def yy(self) -> Array:
        """The error of W~ = 0, (g, M)."""
        damping = 0.0 if self.W is None else self.strength[:, None] * np.square(self.W).sum(2)
        return np.asarray(np.square(self.y, dtype=np.float64).sum(2) + damping)

    def bias(self, W: Array) -> Array:
        """The bias (g, M) that minimises the error of W (g, M, K)."""
        return np.asarray(self._error(W).mean(2)) if self.count else np.zeros(W.shape[:2])

    def centred(self) -> SampledForm:
        """Less the means: the form that is left once the bias is optimal."""
        means = (a.mean(2, dtype=np.float64, keepdims=True) for a in (self.x, self.y))
        x, y = (np.float32(a - mean) for a, mean in zip((self.x, self.y), means, strict=True))
        return SampledForm(x, y, self.strength)

    def damped(self, W: Array, damping: float) -> SampledForm:
        """Plus lambda |W~ - W|^2, lambda = `damping` times the mean diagonal of X X', as `Gram.damped`."""
        mean = np.square(self.x, dtype=np.float64).sum((1, 2)) / self.x.shape[1]
        return SampledForm(self.x, self.y, damping * np.where(mean > 0, mean, 1.0), W)

    def error(self, W: Array, bias: Array | None = None) -> Array:
        """Total squared error of each row, (g, M)."""
        error = self._error(W) if bias is None else self._error(W) - bias[:, :, None]
        total = np.square(error).sum(2)
        damping = 0.0 if self.W is None else self.strength[:, None] * np.square(W - self.W).sum(2)
        return np.asarray(total + damping)

    def gradient(self, W: Array) -> Array:
        """Half the derivative of `error` by W, (g, M, K)."""
        gradient = -self._error(W) @ self.x.swapaxes(1, 2)
        damping = 0.0 if self.W is None else self.strength[:, None, None] * (W - self.W)
        return np.asarray(gradient + damping)

    def factor(self) -> DualFactor:
        """What GPTQ reads."""
        return DualFactor.of(self)

    def _error(self, W: Array) -> Array:
        return np.asarray(self.y - np.asarray(W, np.float64) @ self.x)


@dataclass(frozen=True)
class _Block:
    """x (g, b, P): columns of X.  V (g, P, b) = S^-1 X_b' once all columns before are rounded.  Hinv (g, b, b)."""

    x: NDArray[Any]
    V: NDArray[Any]
    Hinv: Array


@dataclass(frozen=True)
class DualFactor:
    """All blocks in the order in which they are rounded; W (g, K, M) in that order; R (g, P, M) at the start."""

    order: NDArray[np.intp]
    blocks: tuple[_Block, ...]
    W: Array
    R: Array

    @classmethod
    def of(cls, form: SampledForm) -> DualFactor:
        assert form.W is not None
        order = np.argsort(-np.square(form.x, dtype=np.float64).sum(2), axis=1, kind="stable")
        x = np.take_along_axis(form.x, order[:, :, None], 1)
        strength = form.strength[:, None, None]
        S = np.asarray(form.x.swapaxes(1, 2) @ form.x, np.float64)
        S[:, np.arange(S.shape[1]), np.arange(S.shape[1])] += form.strength[:, None]
        root = triangular_inverse(np.asarray(np.linalg.cholesky(S), np.float64))
        inverse, blocks = root.swapaxes(1, 2) @ root, []
        for begin in range(0, x.shape[1], BLOCK):
            part = np.asarray(x[:, begin : begin + BLOCK], np.float64)
            V = inverse @ part.swapaxes(1, 2)
            H = (np.eye(part.shape[1]) - part @ V) / strength
            H = (H + H.swapaxes(1, 2)) / 2
            L = np.asarray(np.linalg.cholesky(H), np.float64)  # H = L L': Hinv = L'
            blocks.append(_Block(x[:, begin : begin + BLOCK], np.float32(V), L.swapaxes(1, 2)))
            root = V @ triangular_inverse(L).swapaxes(1, 2)
            inverse += root @ root.swapaxes(1, 2) / strength
        W = np.take_along_axis(form.W.swapaxes(1, 2), order[:, :, None], 1)
        R = np.ascontiguousarray((form.y - form.W @ form.x).swapaxes(1, 2))
        return cls(order, tuple(blocks), W, R)

    def start(self, copies: int) -> _Rest:
        """All columns at the float weights."""
        return _Rest(self, copies, np.tile(self.R, (1, 1, copies)))


@dataclass(frozen=True)
class _Rest:
    """`Remainder` of few columns of data: R (g, P, n M)."""

    factor: DualFactor
    copies: int
    R: Array

    def block(self, begin: int, end: int) -> tuple[Array, Array]:
        block = self.factor.blocks[begin // BLOCK]
        return block.Hinv, self._weights(begin, end) + block.V.swapaxes(1, 2) @ self.R

    def spread(self, begin: int, end: int, Err: Array, rounded: Array) -> None:
        moved = rounded - self._weights(begin, end)
        np.subtract(self.R, self.factor.blocks[begin // BLOCK].x.swapaxes(1, 2) @ moved, out=self.R)

    def _weights(self, begin: int, end: int) -> Array:
        return np.tile(self.factor.W[:, begin:end], (1, 1, self.copies))
