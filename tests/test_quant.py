"""Quantization arithmetic against ONNX Runtime, bit for bit, and the properties that passes rely on."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnxruntime as ort
import pytest
from graphs import model
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.numeric.metrics import Sqnr, sqnr
from onnxq.numeric.quant import SMALLEST_SCALE, Grid, QuantParams, QuantSpec

STORED = [Grid(bits, signed) for bits in (8, 16) for signed in (True, False)]
NARROWER = [Grid(bits, signed, narrow) for bits in range(2, 8) for signed in (True, False) for narrow in (True, False)]
GRIDS = STORED + NARROWER + [Grid(8, signed=True, narrow=True), Grid(32, signed=True)]
HUGE = float(np.finfo(np.float32).max)

values32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales32 = st.floats(min_value=SMALLEST_SCALE, max_value=HUGE, width=32)
params32 = st.tuples(st.sampled_from(STORED), scales32, st.floats(0, 1))


@lru_cache
def _runtime(dtype: str, axis: int | None) -> ort.InferenceSession:
    """x, scale, zero point -> q and x^, as ONNX Runtime computes them without optimisations."""
    vector, attribute = ("[C]", f"<axis={axis}>") if axis is not None else ("", "")
    proto = model(
        f"(float[A,B] x, float{vector} s, {dtype}{vector} z) => ({dtype}[A,B] q, float[A,B] y)"
        f" {{ q = QuantizeLinear{attribute}(x, s, z) y = DequantizeLinear{attribute}(q, s, z) }}",
        opset=21,
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _zero_point(grid: Grid, share: float) -> int:
    return round(grid.qmin + share * (grid.qmax - grid.qmin))


def _assert_bit_exact(params: QuantParams, x: np.ndarray) -> None:
    feed = {"x": x, "s": params.scale, "z": params.zero_point}
    q, y = _runtime(str(params.grid.dtype), params.axis).run(None, feed)
    np.testing.assert_array_equal(params.quantize(x), q, strict=True)
    mine = params.dequantize(q)
    np.testing.assert_array_equal(mine.view(np.int32), y.view(np.int32), strict=True)


def _params(grid: Grid, scale: float, zero_point: int) -> QuantParams:
    return QuantParams(grid, np.asarray(scale, np.float32), np.asarray(zero_point, grid.dtype))


@given(params32, arrays(np.float32, (3, 5), elements=values32))
@example((STORED[0], SMALLEST_SCALE, 0.0), np.full((1, 1), HUGE, np.float32))
@example((STORED[1], 1.0, 1.0), np.full((1, 1), 1e-45, np.float32))
def test_per_tensor_is_bit_exact_with_onnx_runtime(drawn: tuple[Grid, float, float], x: np.ndarray) -> None:
    grid, scale, share = drawn
    _assert_bit_exact(_params(grid, scale, _zero_point(grid, share)), x)


@given(params32, st.lists(st.integers(-140_000, 140_000), min_size=1, max_size=20))
def test_half_way_values_round_to_even_as_in_onnx_runtime(drawn: tuple[Grid, float, float], halves: list[int]) -> None:
    grid, scale, share = drawn
    power = 2.0 ** np.rint(np.log2(scale) / 2)
    x = np.asarray([halves], np.float32) / 2 * np.float32(power)
    _assert_bit_exact(_params(grid, power, _zero_point(grid, share)), x)


@given(
    st.sampled_from(STORED),
    st.sampled_from([0, 1]),
    arrays(np.float32, (3, 3), elements=values32),
    arrays(np.float32, 3, elements=scales32),
    arrays(np.float64, 3, elements=st.floats(0, 1)),
)
def test_per_channel_is_bit_exact_with_onnx_runtime(
    grid: Grid, axis: int, x: np.ndarray, scale: np.ndarray, shares: np.ndarray
) -> None:
    zero_point = np.asarray([_zero_point(grid, share) for share in shares], grid.dtype)
    _assert_bit_exact(QuantParams(grid, scale, zero_point, axis), x)


@pytest.mark.parametrize("scale", [0.1, 0.007, 3.3e-5, 1 / 3, 7.7])
def test_values_beside_half_way_ones_round_as_in_onnx_runtime(scale: float) -> None:
    half = (np.arange(-500, 500) + 0.5) * np.float64(np.float32(scale))
    x = np.float32(half)
    beside = np.stack([np.nextafter(x, np.float32(-np.inf)), x, np.nextafter(x, np.float32(np.inf))])
    for grid in STORED:
        _assert_bit_exact(_params(grid, scale, _zero_point(grid, 0.5)), beside)


def test_infinity_clips_as_in_onnx_runtime() -> None:
    _assert_bit_exact(_params(Grid(8, signed=False), 0.5, 3), np.array([[np.inf, -np.inf]], np.float32))


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not-a-number"):
        _params(Grid(8, signed=True), 1.0, 0).quantize(np.array([1.0, np.nan], np.float32))


@pytest.mark.parametrize(
    ("grid", "qmin", "qmax", "dtype"),
    [
        (Grid(8, signed=True), -128, 127, "int8"),
        (Grid(8, signed=True, narrow=True), -127, 127, "int8"),
        (Grid(8, signed=False), 0, 255, "uint8"),
        (Grid(4, signed=True), -8, 7, "int8"),
        (Grid(4, signed=False), 0, 15, "uint8"),
        (Grid(2, signed=True, narrow=True), -1, 1, "int8"),
        (Grid(9, signed=True), -256, 255, "int16"),
        (Grid(16, signed=False), 0, 65535, "uint16"),
        (Grid(32, signed=True), -(2**31), 2**31 - 1, "int32"),
    ],
    ids=str,
)
def test_grids(grid: Grid, qmin: int, qmax: int, dtype: str) -> None:
    assert (grid.qmin, grid.qmax, grid.dtype) == (qmin, qmax, np.dtype(dtype))
    assert type(grid.qmin) is int


@pytest.mark.parametrize("bits", [1, 0, 17, 31, 33])
def test_grids_of_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"got {bits}"):
        Grid(bits, signed=True)


def test_names_say_what_they_are() -> None:
    spec = QuantSpec(Grid(4, signed=True, narrow=True), symmetric=True, per_channel=True)
    assert str(spec) == "int4 narrow symmetric per channel"
    assert str(QuantSpec(Grid(8, signed=False), symmetric=False)) == "uint8 asymmetric per tensor"


ends32 = st.floats(min_value=-(2.0**126), max_value=2.0**126, width=32)
"""Beyond, the last value of a grid may be infinite in float32, in ONNX Runtime as here."""

specs = st.builds(
    QuantSpec, st.sampled_from([g for g in GRIDS if g.bits <= 16]), symmetric=st.booleans(), power_of_two=st.booleans()
)


@given(specs, ends32, ends32, arrays(np.float32, 7, elements=values32))
@example(QuantSpec(Grid(8, signed=False), symmetric=False), 0.0, 0.0, np.zeros(1, np.float32))
@example(QuantSpec(Grid(8, signed=False), symmetric=False), 1e-45, 1e-45, np.zeros(1, np.float32))
def test_params_from_any_range(spec: QuantSpec, one: float, other: float, x: np.ndarray) -> None:
    lo, hi = min(one, other), max(one, other)
    params = QuantParams.from_range(np.float64(lo), np.float64(hi), spec)
    assert params.scale.dtype == np.float32
    assert np.isfinite(params.scale)
    assert params.scale > 0
    assert spec.grid.qmin <= params.zero_point <= spec.grid.qmax
    assert params.fake(np.zeros(1, np.float32)) == 0, "zero must be exactly representable"
    q = params.quantize(x)
    assert spec.grid.qmin <= q.min() <= q.max() <= spec.grid.qmax
    np.testing.assert_array_equal(params.quantize(params.fake(x)), q)


def test_the_widest_range_has_a_scale_of_its_own() -> None:
    params = QuantParams.from_range(np.float32(-HUGE), np.float32(HUGE), QuantSpec(Grid(8, signed=False), False))
    assert params.scale == np.float32(2 * HUGE / 255)


@given(specs, ends32, ends32)
def test_a_range_covers_its_ends_to_half_a_step(spec: QuantSpec, one: float, other: float) -> None:
    assume(max(abs(one), abs(other)) > 1e-30)
    ends = np.array([min(one, other), max(one, other)], np.float32)
    params = QuantParams.from_range(ends[0], ends[1], spec)
    error = np.abs(np.float64(params.fake(ends)) - np.float64(ends))
    assert (error <= 0.5 * float(params.scale) + 1e-6 * np.abs(ends).max()).all()


@given(st.lists(st.tuples(ends32, ends32), min_size=1, max_size=5), specs)
def test_channels_do_not_influence_each_other(ends: list[tuple[float, float]], spec: QuantSpec) -> None:
    lo, hi = np.sort(np.float64(ends), axis=1).T
    together = QuantParams.from_range(lo, hi, spec, axis=0)
    for channel in range(len(ends)):
        if lo[channel] < 0 or hi[channel] > 0:
            alone = QuantParams.from_range(lo[channel], hi[channel], spec)
            assert together.scale[channel] == alone.scale
            assert together.zero_point[channel] == alone.zero_point


def test_an_empty_channel_takes_the_widest_scale() -> None:
    spec = QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, per_channel=True)
    params = QuantParams.from_range(np.zeros(3), np.array([0.0, 127.0, 254.0]), spec, axis=0)
    np.testing.assert_array_equal(params.scale, np.float32([2, 1, 2]))
    empty = QuantParams.from_range(np.zeros(3), np.zeros(3), spec, axis=0)
    np.testing.assert_array_equal(empty.scale, np.ones(3, np.float32))


def test_symmetric_signed_grids_have_zero_point_zero_and_unsigned_ones_the_middle() -> None:
    lo, hi = np.float64(-1), np.float64(3)
    signed = QuantParams.from_range(lo, hi, QuantSpec(Grid(8, signed=True), symmetric=True))
    unsigned = QuantParams.from_range(lo, hi, QuantSpec(Grid(8, signed=False), symmetric=True))
    assert (signed.zero_point, unsigned.zero_point) == (0, 128)
    assert signed.scale == np.float32(3 / 127)


@settings(max_examples=30)
@given(st.sampled_from(NARROWER), st.integers(1, 40))
def test_narrow_grids_are_simulated_inside_wider_types(grid: Grid, shift: int) -> None:
    params = _params(grid, 1.0, 0)
    x = np.arange(grid.qmin - shift, grid.qmax + shift + 1, dtype=np.float32)
    np.testing.assert_array_equal(params.fake(x), np.clip(x, grid.qmin, grid.qmax))
    assert params.quantize(x).dtype == grid.dtype


def test_negative_axis_and_higher_rank() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    scale, zero_point = np.float32([0.1, 0.2, 0.3, 0.4, 0.5]), np.zeros(5, np.int8)
    positive, negative = (QuantParams(Grid(8, signed=True), scale, zero_point, axis).fake(x) for axis in (1, -2))
    np.testing.assert_array_equal(positive, negative)
    for channel in range(5):
        alone = _params(Grid(8, signed=True), float(scale[channel]), 0)
        np.testing.assert_array_equal(positive[:, channel], alone.fake(x[:, channel]))


def test_int32_biases_survive_the_round_trip() -> None:
    grid = Grid(32, signed=True)
    params = _params(grid, 2.0**-20, 0)
    x = np.float32([-1, 0, 0.5, 7])
    np.testing.assert_array_equal(params.quantize(x), np.int32(x * 2**20))
    np.testing.assert_array_equal(params.fake(x), x)
    huge = np.float32([HUGE, -HUGE])
    np.testing.assert_array_equal(params.quantize(huge), np.int32([grid.qmax, grid.qmin]))


def test_sqnr() -> None:
    x = np.float32([3, 4])
    assert sqnr(x, x) == np.inf
    assert sqnr(x, x + np.float32([0.3, 0.4])) == pytest.approx(20, abs=1e-4)
    assert sqnr(x, np.float32([3, np.nan])) == -np.inf
    assert sqnr(x, np.float32([3, np.inf])) == -np.inf
    assert sqnr(np.float32([np.nan, 1]), np.float32([np.nan, 1])) == np.inf
    assert sqnr(np.zeros(2, np.float32), np.ones(2, np.float32)) == -np.inf


def test_sqnr_streams() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 100))
    total = Sqnr()
    for part in np.split(np.arange(100), [3, 50]):
        total.update(x[part], y[part])
    assert total.db == pytest.approx(sqnr(x, y))


@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 5), 0), ((5, 6), 1), ((5, 6), -1), ((7, 5), 0), ((2, 6, 3), 1), ((2, 6, 3), -2)]
)
def test_blocks_are_quantized_as_if_each_weight_had_its_scale(shape: tuple[int, ...], axis: int) -> None:
    random = np.random.default_rng(0)
    x, along = np.float32(random.standard_normal(shape)), axis % len(shape)
    counts = tuple(-(-n // 3) if i == along else n for i, n in enumerate(shape))
    scale, zero = np.float32(random.uniform(0.1, 0.3, counts)), random.integers(-3, 4, counts).astype(np.int8)
    params = QuantParams(Grid(4, True), scale, zero, axis, 3)
    within = np.arange(shape[along]) // 3
    s, z = scale.take(within, along), zero.take(within, along)
    q = np.clip(np.rint(x / s) + z, -8, 7)
    assert np.array_equal(params.quantize(x), q)
    assert np.array_equal(params.dequantize(params.quantize(x)), np.float32((q - z) * s))
