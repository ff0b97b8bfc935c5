"""What the rounding of a linear layer minimises: the error of its output, from statistics that stream (section 3.4).

A layer's rows W~ (M, K) and bias b~ (M,), applied to the columns x^ (K,) of the quantized network, shall give what the
float network gives there, y (M,) (white paper 35, without the activation). Over P columns

    sum |W~ x^ + b~ - y|^2  =  tr(W~ G W~') - 2 tr(W~ B') + sum y^2 + 2 b~.(W~ s - t) + P |b~|^2

    G = sum x^ x^' (K, K)    B = sum y x^' (M, K)    s = sum x^ (K,)    t = sum y (M,)    yy = sum y^2 (M,)

G is the Gram matrix of the inputs: half the Hessian H of the error by a row of W~, and what (30) has with x for x^. The
bias that minimises the error takes its mean (empirical bias correction, 27 and 28): b~ = (t - W~ s) / P. With that bias
the error is the same form without bias terms over centred statistics, G - s s'/P and so on. Their size does not depend
on the amount of data; they add up over samples, and over layers that share a weight.

All arrays have g groups in front; everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .grid import WeightGrid

Array = NDArray[np.float64]

_SMALL = 32
"""Triangular matrices are inverted half by half down to this size."""


class Remainder(Protocol):
    """The columns that are not rounded yet, in the order of their rounding, for n grids of M rows at once."""

    def block(self, begin: int, end: int) -> tuple[Array, Array]:
        """Hinv (g, b, b) and the best real values (g, b, n M) of columns begin to end, given all that were rounded."""

    def spread(self, begin: int, end: int, Err: Array, rounded: Array) -> None:
        """They are `rounded` (g, b, n M) now: Err, their errors over Hinv's diagonal, reaches all columns behind."""


class Factor(Protocol):
    """order (g, K): in which columns are rounded."""

    @property
    def order(self) -> NDArray[np.intp]: ...

    def start(self, copies: int) -> Remainder:
        """Nothing is rounded yet, on so many grids."""


class Form(Protocol):
    """The squared error of a layer's output in its weights: `Gram`, or `dual.SampledForm` with few columns."""

    @property
    def yy(self) -> Array: ...
    @property
    def count(self) -> float: ...
    @property
    def nbytes(self) -> int: ...
    def bias(self, W: Array) -> Array: ...
    def centred(self) -> Form: ...
    def damped(self, W: Array, damping: float) -> Form: ...
    def error(self, W: Array, bias: Array | None = None) -> Array: ...
    def gradient(self, W: Array) -> Array: ...
    def factor(self) -> Factor: ...


@dataclass(frozen=True)
class Gram:
    """The quadratic form: G (g, K, K), B (g, M, K), s (g, K), t (g, M), yy (g, M), and the number of columns."""

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
        return Gram(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def bias(self, W: Array) -> Array:
        """The bias (g, M) that minimises the error of W (g, M, K)."""
        return np.asarray((self.t - np.einsum("gmk,gk->gm", W, self.s)) / max(self.count, 1))

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

    def damped(self, W: Array, damping: float) -> Gram:
        """The same form plus lambda |W~ - W|^2, lambda = `damping` times G's mean diagonal (GPTQ's percdamp): rows that
        the data does not determine stay where W (g, M, K) has them."""
        mean = np.trace(self.G, axis1=1, axis2=2) / self.G.shape[1]
        strength = (damping * np.where(mean > 0, mean, 1.0))[:, None]
        G, diagonal = self.G.copy(), np.arange(self.G.shape[1])
        G[:, diagonal, diagonal] += strength
        B = self.B + strength[:, :, None] * W
        yy = self.yy + strength * np.square(W).sum(2)
        return Gram(G, B, self.s, self.t, yy, self.count)

    def error(self, W: Array, bias: Array | None = None) -> Array:
        """Total squared error of each row, (g, M), with a bias (g, M) or with none."""
        error = self.yy + np.einsum("gmk,gmk->gm", W, W @ self.G - 2 * self.B)
        if bias is not None:
            error = error + bias * (2 * (np.einsum("gmk,gk->gm", W, self.s) - self.t) + self.count * bias)
        return np.asarray(np.maximum(error, 0))

    def gradient(self, W: Array) -> Array:
        """Half the derivative of `error` by W, (g, M, K)."""
        return np.asarray(W @ self.G - self.B)

    def factor(self) -> Factor:
        """What GPTQ reads."""
        return InverseFactor.of(self)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(a.nbytes for a in (self.G, self.B, self.s, self.t, self.yy))


@dataclass(frozen=True)
class Columns:
    """The error with the activation f = clip(., lo, hi) in it (35), per column: |f(W~ x^ + b) - f(y)|^2, on columns
    x (g, K, P) and y (g, M, P); bias (g, M). No quadratic form: the columns themselves are held."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]
    bias: Array
    lo: float
    hi: float

    def value(self, W: Array) -> float:
        """Squared error per column of weights W (g, M, K)."""
        return float(np.square(self._error(self._output(W))).sum() / self.x.shape[2])

    def gradient(self, W: Array) -> Array:
        """Its derivative by W, (g, M, K)."""
        output = self._output(W)
        active = (output > self.lo) & (output < self.hi)
        return np.asarray(2 / self.x.shape[2] * (self._error(output) * active) @ self.x.swapaxes(1, 2))

    def minibatch(self, chosen: NDArray[np.intp]) -> Columns:
        """Some columns."""
        return Columns(self.x[..., chosen], self.y[..., chosen], self.bias, self.lo, self.hi)

    def _output(self, W: Array) -> Array:
        return np.asarray(W @ self.x + self.bias[:, :, None])

    def _error(self, output: Array) -> Array:
        return np.asarray(np.clip(output, self.lo, self.hi) - np.clip(self.y, self.lo, self.hi))


@dataclass(frozen=True)
class Objective:
    """What a rounding method minimises for one weight.

    form: centred and damped, over all layers that share the weight; positive definite.  W: the float weights
    (g, M, K).  columns: the error with the activation, for methods that read it; None where it is not known.
    """

    form: Form
    W: Array
    columns: Columns | None = None

    def value(self, W: Array) -> float:
        """The quadratic form per column of data."""
        return float(self.form.error(W).sum() / self.form.count)

    def gradient(self, W: Array) -> Array:
        """Its derivative by W, (g, M, K)."""
        return np.asarray(2 / self.form.count * self.form.gradient(W))

    def row_errors(self, grid: WeightGrid, q: Array) -> Array:
        """The quadratic form of each row (g, M); of grids stacked to n M rows, (g, n M)."""
        rows = np.split(grid.scale * q, grid.scale.shape[1] // self.W.shape[1], axis=1)
        return np.concatenate([self.form.error(part) for part in rows], axis=1)

    @cached_property
    def factor(self) -> Factor:
        """Taken once for all grids that are tried: it costs K^3."""
        return self.form.factor()


@dataclass(frozen=True)
class InverseFactor:
    """The Cholesky factor of G^-1, its columns in the order in which they are rounded.

    order (g, K): columns by falling diagonal of G.  U (g, K, K): upper triangular, G^-1 = U' U.  optimum (g, M, K): the
    real-valued weights W* = B G^-1 of least error.
    """

    order: NDArray[np.intp]
    U: Array
    optimum: Array

    @classmethod
    def of(cls, gram: Gram) -> InverseFactor:
        order = np.argsort(-np.diagonal(gram.G, axis1=1, axis2=2), axis=1, kind="stable")
        G = np.take_along_axis(gram.G, order[:, :, None], 1)
        G = np.take_along_axis(G, order[:, None, :], 2)
        backward = np.asarray(np.linalg.cholesky(G[:, ::-1, ::-1]), np.float64)
        U = np.ascontiguousarray(triangular_inverse(backward)[:, ::-1, ::-1])
        B = np.take_along_axis(gram.B, order[:, None, :], 2)
        return cls(order, U, B @ U.swapaxes(1, 2) @ U)

    def start(self, copies: int) -> Remainder:
        """All columns at the optimum."""
        return _Spread(self.U, np.tile(self.optimum.swapaxes(1, 2), (1, 1, copies)))


@dataclass(frozen=True)
class _Spread:
    """`Remainder` of a Gram matrix: W (g, K, n M)."""

    U: Array
    W: Array

    def block(self, begin: int, end: int) -> tuple[Array, Array]:
        return self.U[:, begin:end, begin:end], self.W[:, begin:end]

    def spread(self, begin: int, end: int, Err: Array, rounded: Array) -> None:
        self.W[:, end:] -= self.U[:, begin:end, end:].swapaxes(1, 2) @ Err


def triangular_inverse(L: Array) -> Array:
    """Of lower triangular matrices (g, K, K), half by half: a quarter of the multiplications of `np.linalg.inv`."""
    half = L.shape[1] // 2
    if half < _SMALL:
        return np.tril(np.linalg.inv(L))
    inverse = np.zeros_like(L)
    inverse[:, :half, :half] = A = triangular_inverse(L[:, :half, :half])
    inverse[:, half:, half:] = D = triangular_inverse(L[:, half:, half:])
    inverse[:, half:, :half] = -D @ (L[:, half:, :half] @ A)
    return inverse
