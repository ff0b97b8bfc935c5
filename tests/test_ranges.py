"""Range-setting methods against brute force on their own objectives."""

from dataclasses import replace

import numpy as np
import pytest

from onnxq.numeric.histogram import Histogram
from onnxq.numeric.quant import Grid, QuantParams, QuantSpec
from onnxq.numeric.quantization_error import squared_error, squared_error_of
from onnxq.numeric.range_search import search as range_search
from onnxq.numeric.ranges import Moments, batchnorm, cross_entropy, minmax, mse, percentile, set_range
from onnxq.numeric.samples import Samples

RANDOM = np.random.default_rng(0)
DATA = {
    "normal": RANDOM.standard_normal(3000),
    "heavy-tailed": RANDOM.standard_t(2, 3000),
    "one-tailed": np.maximum(RANDOM.standard_normal(3000), 0),
    "shifted": RANDOM.standard_normal(3000) + 3,
    "outlier": np.append(RANDOM.standard_normal(3000), 40),
    "constant": np.full(10, 3.3),
    "negative": -np.abs(RANDOM.standard_normal(50)),
    "few": RANDOM.standard_normal(9),
}
SYMMETRIC = {bits: QuantSpec(Grid(bits, True, narrow=True), symmetric=True) for bits in (2, 4, 8)}
ASYMMETRIC = {bits: QuantSpec(Grid(bits, False), symmetric=False) for bits in (2, 4, 8)}


def error(samples: Samples, lo: np.ndarray, hi: np.ndarray, spec: QuantSpec) -> float:
    return float(squared_error(samples, QuantParams.from_range(lo, hi, spec, 0))[0])


def brute_force(samples: Samples, spec: QuantSpec) -> float:
    """Least squared error over a dense grid of ranges."""
    if spec.symmetric:
        shares = [(s, s) for s in np.linspace(0.005, 1, 2000)]
    else:
        ends = 2.0 ** (-np.arange(0, 64) / 12)
        one_ended = samples.lo[0] == 0 or samples.hi[0] == 0
        shares = [(s, s) for s in np.linspace(0.005, 1, 2000)] if one_ended else [(a, b) for a in ends for b in ends]
    return min(error(samples, samples.lo * a, samples.hi * b, spec) for a, b in shares)


@pytest.mark.parametrize("spec", [*SYMMETRIC.values(), *ASYMMETRIC.values()], ids=str)
@pytest.mark.parametrize("name", DATA)
def test_mse_is_no_worse_than_minmax_and_close_to_brute_force(name: str, spec: QuantSpec) -> None:
    samples = Samples.of_weights(np.float32(DATA[name]), None)
    found = error(samples, *mse(samples, spec), spec)
    assert found <= error(samples, *minmax(samples, spec), spec)
    assert found <= 1.01 * brute_force(samples, spec) + 1e-12


@pytest.mark.parametrize("spec", [SYMMETRIC[4], SYMMETRIC[8], ASYMMETRIC[4], ASYMMETRIC[8]], ids=str)
@pytest.mark.parametrize("name", ["normal", "heavy-tailed", "one-tailed", "shifted"])
def test_mse_on_a_histogram_is_as_good_as_on_the_values(name: str, spec: QuantSpec) -> None:
    exact = Samples.of_weights(np.float32(DATA[name]), None)
    histogram = Histogram()
    histogram.update(np.float32(DATA[name]))
    on_histogram = error(exact, *mse(histogram.samples(), spec), spec)
    assert on_histogram <= 1.02 * error(exact, *mse(exact, spec), spec)


def test_error_of_a_bin_is_the_mean_over_it_on_grids_finer_and_coarser() -> None:
    middle, width = 0.7, 0.3
    dense = np.linspace(middle - width / 2, middle + width / 2, 200_001)
    one = np.array([1.0])
    for bits in (2, 4, 8, 16):
        for top in (0.5, 0.72, 2.0):
            params = QuantParams.from_range(np.zeros(1), np.array([top]), QuantSpec(Grid(bits, False), False), 0)
            binned = Samples(np.array([[middle]]), np.ones((1, 1)), 0 * one, one, np.array([[width]]))
            scale = float(params.scale[0])
            quantized = np.clip(np.rint(dense / scale), 0, params.grid.qmax) * scale
            assert squared_error(binned, params)[0] == pytest.approx(np.square(dense - quantized).mean(), rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_of_few_samples_less_is_clipped(bits: int) -> None:
    statistic = Histogram()
    statistic.update(np.float32(DATA["heavy-tailed"]))
    samples, spec = statistic.samples(), ASYMMETRIC[bits]
    plain = mse(samples, spec)
    widths = [float((hi - lo)[0]) for lo, hi in (mse(replace(samples, seen=n), spec) for n in (10**6, 64, 8, 1))]
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(float((plain[1] - plain[0])[0]), rel=0.01)
    assert widths[1] < widths[3] <= float((samples.hi - samples.lo)[0])
    assert bits == 4 or widths[3] > 0.95 * float((samples.hi - samples.lo)[0])


def test_channels_are_searched_independently() -> None:
    weight = np.float32(RANDOM.standard_normal((3, 500)) * [[1], [100], [0]])
    spec = QuantSpec(Grid(4, True, narrow=True), symmetric=True, per_channel=True)
    lo, hi = mse(Samples.of_weights(weight, 0), spec)
    for channel in range(3):
        one_lo, one_hi = mse(Samples.of_weights(weight[channel], None), spec)
        assert (lo[channel], hi[channel]) == (one_lo[0], one_hi[0])


def test_cross_entropy_is_no_worse_than_mse_on_its_own_objective_and_close_to_brute_force() -> None:
    logits = np.float32(RANDOM.standard_normal((200, 10)) * 3)
    logits[:, 0] -= 30  # a class that is never meant: mean squared error spends its steps on it
    spec = ASYMMETRIC[4]
    histogram = Histogram()
    histogram.update(logits)
    samples = histogram.samples()
    samples = Samples(samples.values, samples.counts, samples.lo, samples.hi, samples.widths, logits)

    def loss(lo: np.ndarray, hi: np.ndarray) -> float:
        params = QuantParams.from_range(lo[0], hi[0], spec)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        q = np.float64(params.fake(logits))
        q = q - q.max(1, keepdims=True)
        return float(-(p * (q - np.log(np.exp(q).sum(1, keepdims=True)))).sum())

    found = loss(*cross_entropy(samples, spec))
    ends = np.linspace(0.02, 1, 50)
    best = min(loss(samples.lo * a, samples.hi * b) for a in ends for b in ends)
    assert found <= loss(*mse(samples, spec))
    assert found <= 1.01 * best


def test_cross_entropy_needs_vectors() -> None:
    with pytest.raises(ValueError, match="vectors"):
        cross_entropy(Samples.of_weights(np.ones(3, np.float32), None), ASYMMETRIC[8])


def test_percentile_leaves_out_the_share_that_is_given() -> None:
    samples = Samples.of_weights(np.float32(np.arange(-500, 500)), None)
    lo, hi = percentile(samples, ASYMMETRIC[8], percent=99)
    assert lo[0] == pytest.approx(-495, abs=1)
    assert hi[0] == pytest.approx(494, abs=1)
    one_sided = percentile(Samples.of_weights(np.float32(np.arange(1000)), None), ASYMMETRIC[8], percent=99)
    assert one_sided[0][0] == 0
    assert one_sided[1][0] == pytest.approx(989, abs=1)


def test_batchnorm_range_is_its_formula() -> None:
    mean, std = np.array([0.5, -1.0, 3.0]), np.array([1.0, 2.0, 0.1])
    lo, hi = batchnorm([Moments(mean, std, (-np.inf, np.inf))], ASYMMETRIC[8], alpha=3)
    assert (lo[0], hi[0]) == (-1 - 3 * 2, max(0.5 + 3, -1 + 6, 3.3))
    assert batchnorm([Moments(mean, std, (0.0, 6.0))], ASYMMETRIC[8], alpha=6) == (0.0, 6.0)
    assert set_range("bn", [Moments(mean, std, (0.0, 6.0)), Moments(mean, std, (-1.0, 1.0))], ASYMMETRIC[8]) == (-1, 6)


@pytest.mark.parametrize("method", ["minmax", "mse", "percentile", "entropy"])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("values", [[0, 0], [5, 5, 5], [1e-45], [1e-38, 2e-38], [3e38, -3e38], [-2, -2]], ids=str)
def test_degenerate_data_gives_finite_positive_scales(method: str, values: list[float], power_of_two: bool) -> None:
    data = np.float32(values)
    histogram = Histogram()
    histogram.update(data)
    for samples in (Samples.of_weights(data, None), histogram.samples()):
        for spec in (SYMMETRIC[8], ASYMMETRIC[8]):
            spec = QuantSpec(spec.grid, spec.symmetric, power_of_two=power_of_two)
            lo, hi = set_range(method, samples, spec)
            params = QuantParams.from_range(lo, hi, spec, 0)
            assert np.isfinite(params.scale).all()
            assert (params.scale > 0).all()
            assert np.isfinite(params.fake(data.reshape(1, -1))).all()


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_power_of_two_scales_are_exact_and_cover_the_range_under_minmax(method: str) -> None:
    spec = QuantSpec(Grid(8, True, narrow=True), symmetric=True, power_of_two=True)
    for name, data in DATA.items():
        samples = Samples.of_weights(np.float32(data), None)
        lo, hi = set_range(method, samples, spec)
        scale = float(QuantParams.from_range(lo, hi, spec, 0).scale[0])
        assert np.log2(scale) == np.round(np.log2(scale)), name
        if method == "minmax":
            assert scale * 127 >= np.abs(data).max() * (1 - 1e-6)
            assert scale * 127 < 2 * np.abs(data).max() * (1 + 1e-6)


def test_entropy_clips_rare_outliers() -> None:
    data = np.float32(np.append(RANDOM.standard_normal(20_000), [60.0]))
    histogram = Histogram()
    histogram.update(data)
    lo, hi = set_range("entropy", histogram.samples(), SYMMETRIC[4])
    assert max(-lo[0], hi[0]) < 30


def test_blocks_have_a_scale_each() -> None:
    weight = np.float32(RANDOM.standard_normal((3, 10)) * np.repeat([1, 10, 100], 4)[:10])
    spec = QuantSpec(Grid(4, True, narrow=True), symmetric=True, block=4)
    lo, hi = minmax(Samples.of_weights(weight, 1, block=4), spec)
    params = QuantParams.from_range(lo.reshape(3, 3), hi.reshape(3, 3), spec, axis=1)
    expected = np.stack([np.abs(weight[:, i : i + 4]).max(1) / 7 for i in (0, 4, 8)], axis=1)
    assert params.scale == pytest.approx(expected)
    assert np.abs(params.fake(weight) - weight).max() <= params.scale.max() / 2 * (1 + 1e-5)


def test_one_tailed_tensors_get_unsigned_symmetric_grids() -> None:
    spec = QuantSpec(Grid(8, True), symmetric=True, one_tailed=True)
    positive = QuantParams.from_range(np.float64(0), np.float64(2.55), spec)
    assert (str(positive.grid), int(positive.zero_point)) == ("uint8", 0)
    assert float(positive.scale) == pytest.approx(0.01)
    assert str(QuantParams.from_range(np.float64(-1), np.float64(2.55), spec).grid) == "int8"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", [32, 700])
def test_scales_of_many_channels_are_as_good_as_a_dense_search(bits: int, length: int) -> None:
    random = np.random.default_rng(bits)
    rows = np.float32(random.standard_t(4, (40, length)) * 10.0 ** random.integers(-3, 3, (40, 1)))
    spec = QuantSpec(Grid(bits, True), symmetric=True, per_channel=True)
    samples = Samples.of_weights(rows, 0)
    found = squared_error(samples, QuantParams.from_range(*mse(samples, spec), spec, 0))
    shares = 2.0 ** (-np.arange(0, 800) / 200)
    dense = [squared_error(samples, QuantParams.from_range(r * samples.lo, r * samples.hi, spec, 0)) for r in shares]
    assert (found <= 1.0001 * dense[0]).all()
    assert found.sum() <= 1.01 * np.min(dense, axis=0).sum()
    assert (found / np.min(dense, axis=0)).mean() <= 1.01


@pytest.mark.parametrize("factor", [1e-44, 1e-30, 1e30, 0])
def test_scales_of_tiny_and_huge_weights_are_found_without_overflow(factor: float) -> None:
    rows = np.float32(np.random.default_rng(0).standard_normal((5, 32)) * factor)
    spec = QuantSpec(Grid(4, True), symmetric=True, per_channel=True)
    with np.errstate(all="raise", under="ignore"):
        lo, hi = mse(Samples.of_weights(rows, 0), spec)
    assert (np.abs(lo) <= np.abs(rows.min(axis=1))).all()
    assert (hi <= rows.max(axis=1)).all()


def test_weights_with_the_scale_of_blocks_are_independent_of_what_is_searched_with_them() -> None:
    rows = np.float32(np.random.default_rng(0).standard_normal((7, 32)))
    spec = QuantSpec(Grid(4, True), symmetric=True, per_channel=True)
    together = mse(Samples.of_weights(rows, 0), spec)
    alone = [mse(Samples.of_weights(row[None], 0), spec) for row in rows]
    np.testing.assert_allclose(together[0], [lo[0] for lo, _ in alone], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "one sign", "constant"])
def test_blocks_with_zero_points_are_as_good_as_a_search_of_both_ends(kind: str, bits: int) -> None:
    random = np.random.default_rng(bits)
    rows = {
        "normal": random.standard_normal((60, 32)), "heavy-tailed": random.standard_t(3, (60, 32)),
        "one sign": random.uniform(1, 2, (60, 32)), "constant": np.full((60, 32), 0.7),
    }[kind]  # fmt: skip
    rows = np.float32(rows * 10.0 ** random.integers(-3, 3, (60, 1)))
    spec = QuantSpec(Grid(bits, True), symmetric=False, per_channel=True)
    samples = Samples.of_weights(rows, 0)
    power = np.square(rows, dtype=np.float64).sum(axis=1)

    def noise(lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        return squared_error(samples, QuantParams.from_range(lo, hi, spec, 0)) / power

    found, whole = noise(*mse(samples, spec)), noise(*minmax(samples, spec))
    assert (found <= 1.001 * whole + 1e-12).all()
    share = 1.1 if kind == "one sign" else 1.01
    assert found.mean() <= share * noise(*range_search(squared_error_of(samples, 1.0), samples, spec)).mean() + 1e-12


@pytest.mark.parametrize("factor", [1e-44, 1e-30, 1e30, 3e38, 0])
def test_zero_points_of_tiny_and_huge_weights_are_found_without_overflow(factor: float) -> None:
    rows = np.float32(np.clip(np.random.default_rng(0).standard_normal((5, 32)), -1, 1) * factor)
    lo, hi = mse(Samples.of_weights(rows, 0), QuantSpec(Grid(4, True), symmetric=False, per_channel=True))
    assert np.isfinite([*lo, *hi]).all()
    assert (lo <= 0).all()
    assert (hi >= 0).all()
