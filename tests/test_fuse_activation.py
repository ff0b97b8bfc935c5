import numpy as np
import pytest
from graphs import model, ops, run
from quantized import planned, with_ranges

from onnxq.numeric.quant import Grid, QuantParams, QuantSpec
from onnxq.passes.base import Context
from onnxq.passes.fuse_activation import FuseActivation

SYMMETRIC = QuantSpec(Grid(8, signed=True), symmetric=True)


def layer(activation, **values):
    return model(
        f"(float[1,3] x) => (float[1,3] y) <float[3,3] w, float[3,3] v, float lo, float hi>"
        f" {{ a = Gemm(x, w) b = {activation} y = Gemm(b, v) }}",
        **values,
    )


def fused(proto, **options):
    model_ = with_ranges(proto, **options)
    return model_, FuseActivation().apply(model_, Context())


def test_relu_falls_away_on_a_grid_that_starts_at_zero():
    model_, outcome = fused(layer("Relu(a)"))
    assert (ops(model_), outcome.changed, outcome.skips) == (["Gemm", "Gemm"], 1, ())
    assert model_.graph.nodes[0].outputs[0].name == "b"
    assert "b" in model_.quantizers


def test_relu_stays_on_a_symmetric_grid():
    model_, outcome = fused(layer("Relu(a)"), activation=SYMMETRIC)
    assert ops(model_) == ["Gemm", "Relu", "Gemm"]
    assert outcome.skips[0].reason == "its grid int8 reaches beyond [0, inf]"


def test_clip_falls_away_where_calibration_stayed_inside():
    model_, _ = fused(layer("Clip(a, lo, hi)", lo=0, hi=6))
    assert ops(model_) == ["Gemm", "Gemm"]


def test_clip_stays_where_its_grid_reaches_beyond():
    model_ = with_ranges(layer("Clip(a, lo, hi)", lo=0, hi=6))
    wide = QuantParams.from_range(np.float64(0), np.float64(7), QuantSpec(Grid(8, signed=False), symmetric=False))
    model_.quantizers["b"] = model_.quantizers["b"].with_params(wide)
    assert FuseActivation().apply(model_, Context()).changed == 0


@pytest.mark.parametrize("bounds", [(-1, 4), (-2, 0)])
def test_a_clip_with_a_negative_bound(bounds):
    """Its own range is the whole grid, zero point inside, if the data reached both bounds."""
    proto = layer("Clip(a, lo, hi)", lo=bounds[0], hi=bounds[1])
    feeds = [{"x": np.full((1, 3), value, np.float32)} for value in (-100, 100)]
    model_ = with_ranges(proto, feeds)
    assert FuseActivation().apply(model_, Context()).changed == 1


def test_an_activation_whose_input_is_needed_too_stays():
    proto = model(
        "(float[1,3] x) => (float[1,3] y, float[1,3] z) <float[3,3] w, float[3,3] v>"
        " { a = Gemm(x, w) b = Relu(a) y = Gemm(b, v) z = Tanh(a) }"
    )
    model_, outcome = fused(proto)
    assert "Relu" in ops(model_)
    assert "needed without the activation" in outcome.skips[0].reason


def test_the_activation_of_a_model_input_stays():
    model_, _ = fused(model("(float[1,3] x) => (float[1,3] y) <float[3,3] w> { a = Relu(x) y = Gemm(a, w) }"))
    assert ops(model_) == ["Relu", "Gemm"]


def test_an_activation_without_a_quantizer_stays():
    model_, _ = planned(layer("Relu(a)"))
    model_.quantizers.pop("b")
    assert FuseActivation().apply(model_, Context()).changed == 0
    assert "Relu" in ops(model_)


def test_the_activation_that_makes_an_output_keeps_its_name():
    proto = model("(float[1,3,4,4] x) => (float[?,?,?,?] y) <float[5,3,1,1] w> { a = Conv(x, w) y = Relu(a) }")
    model_, outcome = fused(proto)
    assert outcome.changed == 1
    assert [t.name for t in model_.graph.outputs] == ["y"]


SPEC = QuantSpec(Grid(8, signed=False), symmetric=False)
GRIDS = [
    SPEC,
    QuantSpec(Grid(8, signed=True), symmetric=False),
    QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True),
    QuantSpec(Grid(8, signed=False), symmetric=True),
]


@pytest.mark.parametrize("spec", GRIDS, ids=str)
@pytest.mark.parametrize("bounds", [(0, None), (0, 6), (0, 5.9), (-1, 1), (-0.01, 6.02), (1, 2)])
def test_an_activation_falls_away_exactly_where_no_float_tells(bounds, spec):
    """Brute force in ONNX Runtime: Q(activation(x)) = Q(x) for every float around every step of the grid."""
    lo, hi = bounds
    activation = "Relu(x)" if hi is None else "Clip(x, lo, hi)"
    for span in ((0, 6), (0, 5.99), (-1, 1), (-0.5, 2), (1, 2)):
        params = QuantParams.from_range(np.float64(span[0]), np.float64(span[1]), spec)
        borders = (np.arange(-300, 300) + 0.5 - float(params.zero_point)) * float(params.scale)
        near = np.float32(borders)
        x = np.unique(
            np.concatenate(
                [
                    near,
                    np.nextafter(near, np.float32(9)),
                    np.nextafter(near, np.float32(-9)),
                    np.float32([lo, hi or 0, -1e9, 1e9, -0.0]),
                ]
            )
        )
        kind = params.grid.dtype.name
        proto = model(
            f"(float[N] x) => (float[N] b, {kind}[N] p, {kind}[N] q) <float lo, float hi, float s, {kind} z>"
            f" {{ b = {activation} p = QuantizeLinear(x, s, z) q = QuantizeLinear(b, s, z) }}",
            lo=lo,
            hi=hi or 0,
            s=params.scale,
            z=params.zero_point,
        )
        found = run(proto, {"x": x})
        low, high = params.grid.qmin, params.grid.qmax  # a narrow grid clips before its type does
        same = np.array_equal(np.clip(found["p"], low, high), np.clip(found["q"], low, high))

        chosen = layer("Relu(a)" if hi is None else "Clip(a, lo, hi)", lo=lo, hi=hi or 0)
        model_ = with_ranges(chosen)
        model_.quantizers["b"] = model_.quantizers["b"].with_params(params)
        assert (FuseActivation().apply(model_, Context()).changed == 1) == same, (bounds, span)
