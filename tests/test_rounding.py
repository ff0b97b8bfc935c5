"""Solvers against brute force, gradients against finite differences."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onnxq.numeric.quant import Grid, QuantParams
from onnxq.rounding.adaround import AdaRound, RectifiedSigmoid, SoftRounding
from onnxq.rounding.coordinate_descent import CoordinateDescent, best_of_all
from onnxq.rounding.dual import SampledForm
from onnxq.rounding.gptq import Gptq
from onnxq.rounding.grid import WeightGrid
from onnxq.rounding.methods import ROUNDINGS
from onnxq.rounding.objective import Columns, Gram, Objective
from onnxq.rounding.scale_search import search_scale


def problem(seed, groups=2, rows=3, inputs=5, columns=60, bits=3):
    """Correlated inputs, so that nearest is far from best; outputs of the float weights, and some noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, inputs, inputs)) @ rng.standard_normal((groups, inputs, columns)) + 0.5
    W = rng.standard_normal((groups, rows, inputs))
    y = W @ (x + 0.1 * rng.standard_normal(x.shape))
    gram = Gram.of(x, y).damped(W, 0.01)
    top = 2 ** (bits - 1) - 1
    scale = np.broadcast_to(np.float64(np.float32(np.abs(W).max((1, 2), keepdims=True) / top)), W.shape)
    return Objective(gram, W), WeightGrid(scale, np.full(W.shape, -top), np.full(W.shape, top)), x, y


def least_errors(objective, grid):
    """The least error of each row over all roundings up and down, one by one."""
    base = np.floor(objective.W / grid.scale)
    errors = [
        objective.form.error(grid.scale * np.clip(base + np.array(up), grid.low, grid.high))
        for up in itertools.product((0, 1), repeat=base.shape[2])
    ]
    return np.min(errors, axis=0)


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_enumeration_is_the_optimum(seed):
    objective, grid, *_ = problem(seed)
    q = best_of_all(objective.form, grid, objective.W)
    np.testing.assert_allclose(objective.row_errors(grid, q), least_errors(objective, grid))
    assert (q == np.rint(q)).all()
    assert (np.abs(q) <= 3).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_coordinate_descent_is_near_the_optimum_and_below_its_start(seed):
    objective, grid, *_ = problem(seed)
    start = Gptq().round(objective, grid)
    q = CoordinateDescent().descend(objective.form, grid, start)
    error = objective.row_errors(grid, q)
    assert (error <= objective.row_errors(grid, start) + 1e-9).all()
    assert error.sum() <= 1.3 * least_errors(objective, grid).sum()
    assert error.sum() < 0.9 * objective.row_errors(grid, grid.nearest(objective.W)).sum()
    for row, column, step in itertools.product(range(3), range(5), (-1, 1)):  # no single change helps any more
        other = q.copy()
        other[:, row, column] = np.clip(other[:, row, column] + step, -3, 3)
        assert (objective.row_errors(grid, other) >= error - 1e-9).all()


def test_coordinate_descent_over_several_blocks_of_columns_keeps_its_gradient_right():
    objective, grid, *_ = problem(0, groups=1, rows=2, inputs=150, columns=400)
    gram = objective.form
    q = CoordinateDescent(sweeps=100).descend(gram, grid, grid.nearest(objective.W))
    gradient = (grid.scale * q) @ gram.G - gram.B
    best = q - gradient / (np.diagonal(gram.G, axis1=1, axis2=2)[:, None] * grid.scale)
    np.testing.assert_array_equal(np.clip(np.rint(best), grid.low, grid.high), q)


def test_short_rows_also_start_from_the_best_of_all_their_roundings():
    for seed in SEEDS:
        objective, grid, *_ = problem(seed)
        both, one = (
            objective.row_errors(grid, CoordinateDescent(enumerable=most).round(objective, grid)) for most in (10, 0)
        )
        best = best_of_all(objective.form, grid, objective.W)
        other = objective.row_errors(grid, CoordinateDescent().descend(objective.form, grid, best))
        np.testing.assert_allclose(both, np.minimum(one, other))


def test_gptq_is_the_textbook_recursion():
    """After rounding column j, the free columns minimise the error given those fixed: solved anew each time here."""
    objective, grid, *_ = problem(1, groups=1, rows=1, inputs=6)
    G, B, s = objective.form.G[0], objective.form.B[0, 0], grid.scale[0, 0]
    q, fixed, order = np.zeros(6), [], np.argsort(-np.diag(G), kind="stable")
    for j in order:
        free = [k for k in range(6) if k not in fixed]
        right = B[free] - G[np.ix_(free, fixed)] @ (s * q)[fixed]
        solution = dict(zip(free, np.linalg.solve(G[np.ix_(free, free)], right), strict=True))
        q[j] = np.clip(np.rint(solution[j] / s[j]), -3, 3)
        fixed.append(j)
    np.testing.assert_array_equal(Gptq().round(objective, grid)[0, 0], q)


def test_nearest_rounds_as_quantize_linear_does():
    W = np.random.default_rng(0).standard_normal((1, 4, 9))
    W[0, 0, :4] = (0.05, 0.15, -0.25, 9)
    params = QuantParams(Grid(4, True, True), np.float32(0.1), np.int8(0))
    grid = WeightGrid(np.full(W.shape, float(np.float32(0.1))), np.full(W.shape, -7.0), np.full(W.shape, 7.0))
    np.testing.assert_array_equal(grid.nearest(W), params.quantize(np.float32(W)))


def test_scales_are_fitted_for_rows_that_share_them():
    objective, grid, *_ = problem(2)
    wide = grid.scaled(np.full((2, 3), 5.0))
    ids = np.array([[0, 1, 1], [2, 0, 2]])
    factor = search_scale(lambda grids: ROUNDINGS["nearest"]().scale_cost(objective, grids), wide, ids)
    assert all(np.unique(factor[ids == i]).size == 1 for i in range(3))

    def total(factor, i):
        grid = wide.scaled(factor)
        return objective.row_errors(grid, grid.nearest(objective.W))[ids == i].sum()

    for i in range(3):
        at = total(factor, i)
        assert all(at <= total(factor * nudge, i) + 1e-9 for nudge in (2**-0.03125, 2**0.03125, 2.0))


def test_gptq_measures_what_it_costs():
    objective, grid, *_ = problem(3, inputs=40)
    gram = objective.form
    grids = WeightGrid.stacked([grid, grid.scaled(np.full((2, 3), 0.7))])
    q, excess = Gptq().quantize(objective, grids)
    found = objective.row_errors(grids, q)
    least = gram.error(np.linalg.solve(gram.G, gram.B.swapaxes(1, 2)).swapaxes(1, 2))
    np.testing.assert_allclose(excess + np.tile(least, (1, 2)), found, rtol=1e-8)


def test_power_of_two_scales_change_by_octaves():
    objective, grid, *_ = problem(2)
    wide, ids = grid.scaled(np.full((2, 3), 5.0)), np.arange(6).reshape(2, 3)
    factor = search_scale(lambda grids: Gptq().scale_cost(objective, grids), wide, ids, power_of_two=True)
    assert (np.log2(factor) == np.rint(np.log2(factor))).all()


SIGMOID = RectifiedSigmoid(zeta=1.1, gamma=-0.1)


def test_rectified_sigmoid():
    h = np.linspace(0, 1, 11)
    np.testing.assert_allclose(SIGMOID(SIGMOID.inverse(h)), h, atol=1e-12)
    np.testing.assert_array_equal(SIGMOID(np.array([-9.0, 9.0])), [0, 1])


def test_beta_is_annealed_after_the_warm_up():
    schedule = AdaRound(iterations=100, beta=(8.0, 4.0), warmup=0.5)
    assert {schedule.beta_at(t) for t in range(1, 51)} == {None}
    betas = [schedule.beta_at(t) for t in range(51, 101)]
    assert betas == sorted(betas, reverse=True)
    assert (betas[0], betas[24], betas[-1]) == (pytest.approx(8, abs=0.01), pytest.approx(6), 4)


@pytest.mark.parametrize("activation", [None, (0.0, 2.0)])
@pytest.mark.parametrize("beta", [None, 2.0, 7.5])
def test_gradients(activation, beta):
    objective, grid, x, y = problem(4)
    loss = objective if activation is None else Columns(x, y, np.full((2, 3), 0.3), *activation)
    soft = SoftRounding(grid, np.floor(objective.W / grid.scale), 0 if beta is None else 0.5, SIGMOID)
    V = np.random.default_rng(0).standard_normal(objective.W.shape)
    gradient, h = soft.gradient(loss, V, beta), 1e-6
    for index in np.ndindex(V.shape):
        step = np.zeros_like(V)
        step[index] = h
        rise = soft.value(loss, V + step, beta or 2.0) - soft.value(loss, V - step, beta or 2.0)
        assert gradient[index] == pytest.approx(rise / (2 * h), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("activation", [None, (0.0, np.inf)])
@pytest.mark.parametrize("seed", range(3))
def test_adaround_finds_what_coordinate_descent_finds(activation, seed):
    objective, grid, x, y = problem(seed, groups=1, rows=8, inputs=40, columns=600)
    if activation is not None:
        objective = replace(objective, columns=Columns(x, y, np.zeros((1, 8)), *activation))
    loss, W, method = objective.columns or objective, objective.W, AdaRound(iterations=1500, seed=1)
    q = method.round(objective, grid)
    other = CoordinateDescent(enumerable=0).round(objective, grid)
    assert loss.value(grid.scale * q) < 1.2 * loss.value(grid.scale * other)
    assert loss.value(grid.scale * q) < 0.7 * loss.value(grid.scale * grid.nearest(W))
    assert (np.abs(q - W / grid.scale) < 1).all()
    np.testing.assert_array_equal(q, method.round(objective, grid))


@pytest.mark.parametrize(
    "method", [Gptq(), CoordinateDescent(), CoordinateDescent(enumerable=0), AdaRound(iterations=500)]
)
def test_two_candidates_are_floor_and_ceil(method):
    objective, grid, *_ = problem(5, rows=6, inputs=9)
    q = method.round(objective, grid.between(objective.W))
    quotient = objective.W / grid.scale
    assert ((q == np.floor(quotient)) | (q == np.ceil(quotient))).all()
    assert (objective.row_errors(grid, q) <= objective.row_errors(grid, grid.nearest(objective.W))).mean() > 0.5


def few_columns(columns, seed=0, rows=5, inputs=300):
    """Statistics of fewer columns than a row has weights, as columns and as a Gram matrix."""
    rng = np.random.default_rng(seed)
    x = np.float32(rng.standard_normal((2, inputs, 8)) @ rng.standard_normal((2, 8, columns)) + 0.3)
    x += np.float32(rng.standard_normal(x.shape))
    W = rng.standard_normal((2, rows, inputs))
    y = np.float32(W @ (x + 0.1 * rng.standard_normal(x.shape)) + 1)
    top = np.float64(np.float32(np.abs(W).max((1, 2), keepdims=True) / 7))
    grid = WeightGrid(np.broadcast_to(top, W.shape), np.full(W.shape, -7.0), np.full(W.shape, 7.0))
    return SampledForm.of(x, y), Gram.of(x, y), W, grid


def test_few_columns_are_the_same_error():
    few, gram, W, grid = few_columns(40)
    other, bias = grid.scale * grid.nearest(W), np.full(W.shape[:2], 0.2)
    np.testing.assert_allclose(few.bias(other), gram.bias(other), rtol=1e-4)
    np.testing.assert_allclose(few.error(other, bias), gram.error(other, bias), rtol=1e-6)
    few, gram = (form.centred().damped(W, 0.1) for form in (few, gram))
    np.testing.assert_allclose(few.error(other), gram.error(other), rtol=1e-4)
    np.testing.assert_allclose(few.yy, gram.yy, rtol=1e-4)
    np.testing.assert_allclose(few.gradient(other), gram.gradient(other), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("copies", [1, 2])
def test_gptq_by_the_dual_is_gptq(copies):
    few, gram, W, grid = few_columns(40)
    grids = WeightGrid.stacked([grid.scaled(np.full(W.shape[:2], 1 - 0.2 * n)) for n in range(copies)])
    dual, primal = (Objective(form.centred().damped(W, 0.1), W) for form in (few, gram))
    (q, losses), (expected, same_losses) = (Gptq().quantize(each, grids) for each in (dual, primal))
    assert (q == expected).mean() > 0.98  # ties, and what follows from them
    np.testing.assert_allclose(losses, same_losses, rtol=0.05)
    assert (losses < 0.8 * dual.row_errors(grids, grids.nearest(W))).all()
