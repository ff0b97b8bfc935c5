"""Quantizers that train: the arithmetic of `QuantParams.fake`, and the gradients of the white paper, (36) to (40)."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxq.numeric.quant import Grid, QuantParams, QuantSpec  # noqa: E402
from onnxq.qat.quantizer import FakeQuantize, LearnedQuantizer, on_bias_grid  # noqa: E402

GRIDS = [Grid(4, False), Grid(8, False), Grid(8, True), Grid(4, True, narrow=True), Grid(2, True), Grid(16, False)]


def params_of(grid: Grid, axis: int | None = None, block: int | None = None, symmetric: bool = False) -> QuantParams:
    """Grids of different sizes along axis 0 of (5, 7), in blocks of 3 along axis 1, or one."""
    rng = np.random.default_rng(3)
    shape = () if axis is None else (5,) if block is None else (5, 3)
    hi = rng.uniform(1, 2, shape)
    spec = QuantSpec(grid, symmetric, axis is not None and block is None, block=block)
    return QuantParams.from_range(-0.4 * hi, hi, spec, axis)


def values(shape: tuple[int, ...] = (5, 7), seed: int = 1) -> np.ndarray:
    """Some beyond any grid, some between its steps."""
    return np.asarray(np.random.default_rng(seed).normal(0, 1.5, shape), np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (1, 3)])
def test_the_forward_pass_is_that_of_numpy_to_the_last_bit(grid: Grid, axis: int | None, block: int | None) -> None:
    params = params_of(grid, axis, block)
    x = np.concatenate([values(), params.dequantize(np.full((5, 7), grid.qmax)) + np.float32(0)])[:5]
    ties = (np.arange(35).reshape(5, 7) - 9 + 0.5) * params.broadcast((5, 7))[0]
    quantizer = LearnedQuantizer(params, QuantSpec(grid, False, block=block), (5, 7), learned=True)
    for array in (x, np.asarray(ties, np.float32)):
        found = quantizer(torch.from_numpy(array)).detach().numpy()
        np.testing.assert_array_equal(found, params.fake(array))


def closed_forms(x: np.ndarray, s: float, z: float, n: int, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d x^ / d x (37), / d s (38), / d z (40) of each element, by the paper's cases."""
    v = x.astype(np.float64) / s
    below, above = np.rint(v) + z < n, np.rint(v) + z > p
    inside = ~(below | above)
    by_s = np.where(below, n - z, np.where(above, p - z, np.rint(v) - v))
    return inside.astype(float), by_s, np.where(inside, 0.0, -s)


@pytest.mark.parametrize(("z", "n", "p"), [(0, 0, 15), (5, 0, 15), (0, -7, 7), (100, 0, 255)])
def test_gradients_are_the_closed_forms(z: int, n: int, p: int) -> None:
    x, g, s = values((6, 8)), values((6, 8), seed=2), 0.11
    leaves = [torch.tensor(v, requires_grad=True) for v in (x, np.float32(s), np.float32(z))]
    (FakeQuantize.apply(*leaves, n, p, 1.0) * torch.from_numpy(g)).sum().backward()
    by_x, by_s, by_z = closed_forms(x, np.float32(s), z, n, p)
    assert (by_x == 0).any() or p > 15
    np.testing.assert_array_equal(leaves[0].grad.numpy(), (g * by_x).astype(np.float32))
    np.testing.assert_allclose(float(leaves[1].grad), (g * by_s).sum(), rtol=1e-4)
    np.testing.assert_allclose(float(leaves[2].grad), (g * by_z).sum(), rtol=1e-4, atol=1e-5)


def test_gradients_are_the_slopes_of_the_surrounding_function() -> None:
    """Rounding replaced by adding what it adds here: x, s and z then move the output smoothly (the straight-through
    estimator's assumption), and central differences of that function are what the backward pass gives."""
    x, s, z, n, p = values((40,)).astype(np.float64), 0.23, 4.0, 0, 15
    shift = np.rint(x / s) - x / s
    raw = np.rint(x / s) + z

    def surrounding(x: np.ndarray, s: float, z: float) -> np.ndarray:
        inside = (x / s + shift) * s
        return np.where(raw < n, s * (n - z), np.where(raw > p, s * (p - z), inside))

    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, s, z)]
    (FakeQuantize.apply(*leaves, n, p, 1.0) * torch.arange(40.0)).sum().backward()
    weight, h = np.arange(40.0), 1e-6
    slope_s = (surrounding(x, s + h, z) - surrounding(x, s - h, z)) @ weight / (2 * h)
    slope_z = (surrounding(x, s, z + h) - surrounding(x, s, z - h)) @ weight / (2 * h)
    slope_x = (surrounding(x + h, s, z) - surrounding(x - h, s, z)) * weight / (2 * h)
    np.testing.assert_allclose(leaves[0].grad.numpy(), slope_x, atol=1e-6)
    np.testing.assert_allclose(float(leaves[1].grad), slope_s, rtol=1e-6)
    np.testing.assert_allclose(float(leaves[2].grad), slope_z, rtol=1e-6)


@pytest.mark.parametrize(("axis", "block"), [(0, None), (1, 3)])
def test_every_scale_gets_the_gradient_of_its_own_elements(axis: int, block: int | None) -> None:
    grid = Grid(4, True, narrow=True)
    params = params_of(grid, axis, block, symmetric=True)
    quantizer = LearnedQuantizer(params, QuantSpec(grid, True, block is None, block=block), (5, 7), learned=True)
    x, g = values(), values(seed=2)
    (quantizer(torch.from_numpy(x)) * torch.from_numpy(g)).sum().backward()
    scales = params.broadcast((5, 7))[0] * np.ones((5, 7), np.float32)
    by_s = np.array([[closed_forms(x[i, j], scales[i, j], 0, -7, 7)[1] for j in range(7)] for i in range(5)]) * g
    elements = 35 // params.scale.size
    factor = 1 / np.sqrt(elements * 7)  # LSQ
    if block is None:
        expected = by_s.sum(axis=1) * params.scale * factor
    else:
        expected = np.stack([by_s[:, i : i + 3].sum(axis=1) for i in (0, 3, 6)], axis=1) * params.scale * factor
    np.testing.assert_allclose(quantizer.growth.grad.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_the_zero_point_is_learned_where_zero_lies_inside_the_grid() -> None:
    spec = QuantSpec(Grid(4, False), symmetric=False)
    behind_relu = QuantParams.from_range(np.asarray(0.0), np.asarray(2.0), spec)
    both_sides = QuantParams.from_range(np.asarray(-1.0), np.asarray(2.0), spec)
    assert not LearnedQuantizer(behind_relu, spec, (9,), True).shift.requires_grad
    assert LearnedQuantizer(both_sides, spec, (9,), True).shift.requires_grad
    assert not LearnedQuantizer(both_sides, spec, (9,), False).growth.requires_grad


def test_a_trained_grid_is_returned_as_it_is_used() -> None:
    spec = QuantSpec(Grid(4, False), symmetric=False)
    params = QuantParams.from_range(np.asarray(-1.0), np.asarray(2.0), spec)
    quantizer = LearnedQuantizer(params, spec, (9,), True)
    with torch.no_grad():
        quantizer.growth.fill_(0.3)
        quantizer.shift.fill_(-0.1)
    trained = quantizer.trained_params()
    np.testing.assert_allclose(trained.scale, params.scale * np.exp(0.3), rtol=1e-6)
    assert int(trained.zero_point) == round(int(params.zero_point) - 1.5)
    x = values()
    np.testing.assert_array_equal(quantizer(torch.from_numpy(x)).detach().numpy(), trained.fake(x))


def test_scales_stay_powers_of_two() -> None:
    spec = QuantSpec(Grid(8, True), symmetric=True, power_of_two=True)
    params = QuantParams.from_range(np.asarray(-1.0), np.asarray(1.0), spec)
    quantizer = LearnedQuantizer(params, spec, (9,), True)
    with torch.no_grad():
        quantizer.growth.fill_(0.5)
    assert float(quantizer.trained_params().scale) == 2 * float(params.scale)
    quantizer(torch.from_numpy(values())).sum().backward()
    assert quantizer.growth.grad.item() != 0


def test_biases_are_rounded_to_the_accumulators_grid() -> None:
    bias = torch.tensor([0.5, -1.23], requires_grad=True)
    scales = torch.tensor(0.125), torch.tensor([0.5, 0.25])
    rounded = on_bias_grid(bias, *scales, groups=1)
    np.testing.assert_array_equal(rounded.detach().numpy(), np.float32([0.5, -1.21875]))
    rounded.sum().backward()
    np.testing.assert_array_equal(bias.grad.numpy(), [1, 1])
