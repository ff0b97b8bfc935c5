"""The reconstruction error of a linear layer as a quadratic form, from statistics that stream.

A layer's rows W~ (M, K) and bias b~ (M,), applied to the columns x^ (K,) of the quantized network, shall give what the
float network gives there, y (M,) (white paper 35, without the activation). Over P columns

    sum |W~ x^ + b~ - y|^2  =  tr(W~ G W~') - 2 tr(W~ B') + sum y^2 + 2 b~.(W~ s - t) + P |b~|^2

    G = sum x^ x^' (K, K)    B = sum y x^' (M, K)    s = sum x^ (K,)    t = sum y (M,)    yy = sum y^2 (M,)

The bias that minimises it takes the mean error (empirical bias correction, 27 and 28): b~ = (t - W~ s) / P. With
that bias the error is the same form without bias terms over centred statistics, G - s s'/P and so on. Their size
does not depend on the amount of data; they add up over samples, and over layers that share a weight.

All arrays have g groups in front; everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Means:
    """The small part of the form, which biases come from: s (g, K), t (g, M), and the number of columns."""

    s: Array
    t: Array
    count: float

    def bias(self, W: Array) -> Array:
        """The bias (g, M) that minimises the error of W (g, M, K)."""
        return np.asarray((self.t - np.einsum("gmk,gk->gm", W, self.s)) / max(self.count, 1))


@dataclass(frozen=True)
class Gram:
    """G (g, K, K), B (g, M, K), s (g, K), t (g, M), yy (g, M), and the number of columns."""

    G: Array
    B: Array
    s: Array
    t: Array
    yy: Array
    count: float

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.floating]) -> Gram:
        """From columns x (g, K, P) and y (g, M, P)."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        xt = x.swapaxes(1, 2)
        return cls(x @ xt, y @ xt, x.sum(2), y.sum(2), np.square(y).sum(2), x.shape[2])

    def __add__(self, other: Gram) -> Gram:
        return Gram(
            self.G + other.G,
            self.B + other.B,
            self.s + other.s,
            self.t + other.t,
            self.yy + other.yy,
            self.count + other.count,
        )

    def centred(self) -> Gram:
        """The statistics of x^ and y less their means: the form that is left once the bias is optimal."""
        n = max(self.count, 1)
        return Gram(
            self.G - self.s[:, :, None] * self.s[:, None, :] / n,
            self.B - self.t[:, :, None] * self.s[:, None, :] / n,
            np.zeros_like(self.s),
            np.zeros_like(self.t),
            np.maximum(self.yy - self.t * self.t / n, 0),
            self.count,
        )

    @property
    def means(self) -> Means:
        """What the best bias depends on."""
        return Means(self.s, self.t, self.count)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(a.nbytes for a in (self.G, self.B, self.s, self.t, self.yy))

    def error(self, W: Array, bias: Array | None = None) -> Array:
        """Total squared error of each row, (g, M), with a bias (g, M) or with none."""
        error = self.yy + np.einsum("gmk,gmk->gm", W, W @ self.G - 2 * self.B)
        if bias is not None:
            error = error + bias * (2 * (np.einsum("gmk,gk->gm", W, self.s) - self.t) + self.count * bias)
        return np.asarray(np.maximum(error, 0))

    def damped(self, W: Array, share: float) -> Gram:
        """The same form plus lambda |W~ - W|^2, lambda a share of G's mean diagonal: rows that the data does not
        determine stay where W (g, M, K) has them."""
        mean = np.trace(self.G, axis1=1, axis2=2) / self.G.shape[1]
        strength = (share * np.where(mean > 0, mean, 1.0))[:, None]
        G, diagonal = self.G.copy(), np.arange(self.G.shape[1])
        G[:, diagonal, diagonal] += strength
        B = self.B + strength[:, :, None] * W
        yy = self.yy + strength * np.square(W).sum(2)
        return Gram(G, B, self.s, self.t, yy, self.count)
