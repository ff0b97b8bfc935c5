"""Solvers against brute force, gradients against finite differences."""

import itertools

import numpy as np
import pytest

from onnxq.numeric.quant import Grid, QuantParams
from onnxq.rounding.adaround import (
    Columns,
    Quadratic,
    SoftRounding,
    adaround,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)
from onnxq.rounding.gptq import Gptq, Lattice, descend, enumerate_all, fit_scale
from onnxq.rounding.gram import Gram


def problem(seed, groups=2, rows=3, inputs=5, columns=60, bits=3):
    """Correlated inputs, so that nearest is far from best; outputs of the float weights, and some noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, inputs, inputs)) @ rng.standard_normal((groups, inputs, columns)) + 0.5
    W = rng.standard_normal((groups, rows, inputs))
    y = W @ (x + 0.1 * rng.standard_normal(x.shape))
    form = Gram.of(x, y).damped(W, 0.01)
    top = 2 ** (bits - 1) - 1
    scale = np.broadcast_to(np.float64(np.float32(np.abs(W).max((1, 2), keepdims=True) / top)), W.shape)
    return form, Lattice(scale, np.full(W.shape, -top), np.full(W.shape, top)), W, x, y


def best_of_all(form, lattice, W):
    """The least error of each row over all roundings up and down, one by one."""
    base = np.floor(W / lattice.scale)
    errors = [
        form.error(lattice.scale * np.clip(base + np.array(up), lattice.low, lattice.high))
        for up in itertools.product((0, 1), repeat=W.shape[2])
    ]
    return np.min(errors, axis=0)


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_enumeration_is_the_optimum(seed):
    form, lattice, W, *_ = problem(seed)
    q = enumerate_all(form, lattice, W)
    np.testing.assert_allclose(form.error(lattice.scale * q), best_of_all(form, lattice, W))
    assert (q == np.rint(q)).all()
    assert (np.abs(q) <= 3).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_descent_is_near_the_optimum_and_below_its_start(seed):
    form, lattice, W, *_ = problem(seed)
    start = Gptq(form).round(lattice)
    q = descend(form, lattice, start)
    error = form.error(lattice.scale * q)
    assert (error <= form.error(lattice.scale * start) + 1e-9).all()
    assert error.sum() <= 1.3 * best_of_all(form, lattice, W).sum()
    assert error.sum() < 0.9 * form.error(lattice.scale * lattice.nearest(W)).sum()
    for row, column, step in itertools.product(range(3), range(5), (-1, 1)):  # no single change helps any more
        other = q.copy()
        other[:, row, column] = np.clip(other[:, row, column] + step, -3, 3)
        assert (form.error(lattice.scale * other) >= error - 1e-9).all()


def test_descent_over_several_blocks_of_columns_keeps_its_gradient_right():
    form, lattice, W, *_ = problem(0, groups=1, rows=2, inputs=150, columns=400)
    q = descend(form, lattice, lattice.nearest(W), sweeps=100)
    gradient = (lattice.scale * q) @ form.G - form.B
    best = q - gradient / (np.diagonal(form.G, axis1=1, axis2=2)[:, None] * lattice.scale)
    np.testing.assert_array_equal(np.clip(np.rint(best), lattice.low, lattice.high), q)


def test_error_feedback_is_the_textbook_recursion():
    """After rounding column j, the free columns minimise the error given those fixed: solved anew each time here."""
    form, lattice, *_ = problem(1, groups=1, rows=1, inputs=6)
    G, B, s = form.G[0], form.B[0, 0], lattice.scale[0, 0]
    q, fixed, order = np.zeros(6), [], np.argsort(-np.diag(G), kind="stable")
    for j in order:
        free = [k for k in range(6) if k not in fixed]
        right = B[free] - G[np.ix_(free, fixed)] @ (s * q)[fixed]
        solution = dict(zip(free, np.linalg.solve(G[np.ix_(free, free)], right), strict=True))
        q[j] = np.clip(np.rint(solution[j] / s[j]), -3, 3)
        fixed.append(j)
    np.testing.assert_array_equal(Gptq(form).round(lattice)[0, 0], q)


def test_nearest_rounds_as_quantize_linear_does():
    W = np.random.default_rng(0).standard_normal((1, 4, 9))
    W[0, 0, :4] = (0.05, 0.15, -0.25, 9)
    params = QuantParams(Grid(4, True, True), np.float32(0.1), np.int8(0))
    lattice = Lattice(np.full(W.shape, float(np.float32(0.1))), np.full(W.shape, -7.0), np.full(W.shape, 7.0))
    np.testing.assert_array_equal(lattice.nearest(W), params.quantize(np.float32(W)))


def test_scales_are_fitted_for_rows_that_share_them():
    form, lattice, W, *_ = problem(2)
    wide = lattice.scaled(np.full((2, 3), 5.0))
    units = np.array([[0, 1, 1], [2, 0, 2]])
    factor = fit_scale(lambda grids: errors(form, grids, grids.nearest(W)), wide, units)
    assert all(np.unique(factor[units == unit]).size == 1 for unit in range(3))

    def total(factor, unit):
        grid = wide.scaled(factor)
        return form.error(grid.scale * grid.nearest(W))[units == unit].sum()

    for unit in range(3):
        at = total(factor, unit)
        assert all(at <= total(factor * nudge, unit) + 1e-9 for nudge in (2**-0.03125, 2**0.03125, 2.0))


def errors(form, grids, q):
    """Of several stacked lattices."""
    rows = grids.scale * q
    return np.concatenate([form.error(part) for part in np.split(rows, rows.shape[1] // form.yy.shape[1], 1)], 1)


def test_error_feedback_knows_what_it_costs():
    form, lattice, *_ = problem(3, inputs=40)
    feedback = Gptq(form)
    grids = Lattice.stacked([lattice, lattice.scaled(np.full((2, 3), 0.7))])
    q, excess = feedback.solve(grids)
    found = errors(form, grids, q)
    least = form.error(np.linalg.solve(form.G, form.B.swapaxes(1, 2)).swapaxes(1, 2))
    np.testing.assert_allclose(excess + np.tile(least, (1, 2)), found, rtol=1e-8)


def test_power_of_two_scales_change_by_octaves():
    form, lattice, *_ = problem(2)
    wide, units = lattice.scaled(np.full((2, 3), 5.0)), np.arange(6).reshape(2, 3)
    factor = fit_scale(lambda grids: Gptq(form).solve(grids)[1], wide, units, octaves=True)
    assert (np.log2(factor) == np.rint(np.log2(factor))).all()


def test_rectified_sigmoid():
    h = np.linspace(0, 1, 11)
    np.testing.assert_allclose(rectified_sigmoid(inverse_rectified_sigmoid(h)), h, atol=1e-12)
    np.testing.assert_array_equal(rectified_sigmoid(np.array([-9.0, 9.0])), [0, 1])


@pytest.mark.parametrize("activation", [None, (0.0, 2.0)])
@pytest.mark.parametrize("beta", [None, 2.0, 7.5])
def test_gradients(activation, beta):
    form, lattice, W, x, y = problem(4)
    loss = Quadratic(form) if activation is None else Columns(x, y, np.full((2, 3), 0.3), *activation)
    soft = SoftRounding(lattice, np.floor(W / lattice.scale), weight=0 if beta is None else 0.5)
    V = np.random.default_rng(0).standard_normal(W.shape)
    gradient, h = soft.gradient(loss, V, beta), 1e-6
    for index in np.ndindex(V.shape):
        step = np.zeros_like(V)
        step[index] = h
        rise = soft.value(loss, V + step, beta or 2.0) - soft.value(loss, V - step, beta or 2.0)
        assert gradient[index] == pytest.approx(rise / (2 * h), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("activation", [None, (0.0, np.inf)])
@pytest.mark.parametrize("seed", range(3))
def test_adaround_finds_what_descent_finds(activation, seed):
    form, lattice, W, x, y = problem(seed, groups=1, rows=8, inputs=40, columns=600)
    loss = Quadratic(form) if activation is None else Columns(x, y, np.zeros((1, 8)), *activation)
    q = adaround(loss, lattice, W, 1500, seed=1)
    other = descend(form, lattice, Gptq(form).round(lattice))
    assert loss.value(lattice.scale * q) < 1.2 * loss.value(lattice.scale * other)
    assert loss.value(lattice.scale * q) < 0.7 * loss.value(lattice.scale * lattice.nearest(W))
    assert (np.abs(q - W / lattice.scale) < 1).all()
    np.testing.assert_array_equal(q, adaround(loss, lattice, W, 1500, seed=1))
