from dataclasses import replace

import numpy as np
import pytest
from graphs import model, wrapped
from quantized import context, planned, quantized, reasons, samples, with_ranges

from onnxq.calibration import collect
from onnxq.data import CalibrationData
from onnxq.errors import DataError, ModelError
from onnxq.execution.services import Services
from onnxq.numeric.quant import Grid, QuantSpec
from onnxq.numeric.ranges import set_range
from onnxq.numeric.samples import MinMax, Samples
from onnxq.passes import set_weight_ranges
from onnxq.passes.base import Context
from onnxq.passes.set_activation_ranges import SetActivationRanges
from onnxq.passes.set_bias_scales import SetBiasScales
from onnxq.passes.set_weight_ranges import SetWeightRanges
from onnxq.pipeline.open_inputs import input_specs

TWO_LAYERS = """(float[N,3] x) => (float[N,?] y) <float[3,5] w, float[5] b, float[5,7] v>
    { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v) }"""
WEIGHT = QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True)


def rows(values, width=3):
    """Feeds of one row each, filled with one value."""
    return [{"x": np.full((1, width), value, np.float32)} for value in values]


# --- weights ----------------------------------------------------------------------------------------------------


def test_scales_of_weights_per_channel():
    weight = np.float32([[1, -2, 0], [4, 0.5, 0]])
    proto = model("(float[1,2] x) => (float[1,3] y) <float[2,3] w> { y = MatMul(x, w) }", w=weight)
    params = with_ranges(proto).quantizers["w"].params
    np.testing.assert_array_equal(params.scale, np.float32([4 / 127, 2 / 127, 4 / 127]))  # nothing in channel 2
    assert (params.axis, params.zero_point.tolist()) == (1, [0, 0, 0])


def test_scale_of_weights_per_tensor():
    weight = np.float32([[1, -2, 0], [4, 0.5, 0]])
    proto = model("(float[1,2] x) => (float[1,3] y) <float[2,3] w> { y = MatMul(x, w) }", w=weight)
    params = with_ranges(proto, weight=WEIGHT).quantizers["w"].params
    assert (params.axis, params.scale) == (None, np.float32(4 / 127))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("method", ["mse", "minmax", "percentile:90"])
def test_ranges_of_large_weights_are_set_part_by_part(axis, block, method, monkeypatch):
    values = np.random.default_rng(0).standard_normal((10, 14)).astype(np.float32)
    spec = replace(WEIGHT, per_channel=True, block=block)
    whole = set_range(method, Samples.of_weights(values, axis, block), spec)
    monkeypatch.setattr(set_weight_ranges, "AT_ONCE", 70)
    calls, of_weights = [], Samples.of_weights
    monkeypatch.setattr(Samples, "of_weights", lambda *a: calls.append(a) or of_weights(*a))
    parts = set_weight_ranges._range_of(values, axis, spec, method)
    assert len(calls) > 1
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    proto = model("(float[1,2] x) => (float[1,3] y) <float[2,3] w> { y = MatMul(x, w) }", w=value)
    model_, _ = planned(proto)
    with pytest.raises(ModelError, match="weight 'w' of node 'MatMul_y' holds not-a-number or infinity"):
        SetWeightRanges().apply(model_, Context())


def test_constants_of_elementwise_operators_are_not_symmetric():
    proto = model(
        "(float[1,3] x) => (float[?,?] y) <float[3,3] w, float[3] k>"
        " { a = Gemm(x, w) s = Sigmoid(a) b = Mul(s, k) y = Gemm(b, w) }",
        k=np.float32([1, 2, 3]),
    )
    params = with_ranges(proto).quantizers["k"].params
    assert (params.zero_point, params.scale) == (0, np.float32(3 / 255))


# --- activations ------------------------------------------------------------------------------------------------


def test_ranges_are_the_extremes_over_all_data_with_zero_among_them():
    params = with_ranges(model(TWO_LAYERS), rows([2, -1, 3])).quantizers["x"].params
    assert (params.scale, params.zero_point) == (np.float32(4 / 255), 64)
    positive = with_ranges(model(TWO_LAYERS), rows([2, 3])).quantizers["x"].params
    assert (positive.scale, positive.zero_point) == (np.float32(3 / 255), 0)


def test_a_tensor_that_is_always_zero_gets_a_scale():
    assert with_ranges(model(TWO_LAYERS), rows([0])).quantizers["x"].params.scale == 1


def test_the_grid_of_another_tensor_is_the_very_same():
    proto = model(
        "(float[1,3,4,4] x) => (float[?,?,?,?] y) <float[3,3,1,1] w> { a = Conv(x, w)"
        " b = MaxPool<kernel_shape=[2,2]>(a) c = Transpose(b) y = Conv(c, w) }",
        check=False,
    )
    found = with_ranges(proto).quantizers
    assert found["a"].params is found["b"].params is found["c"].params


def test_known_ranges_are_not_measured():
    proto = model("(float[1,3] x) => (float[?,?] y) <float[3,3] w> { a = Gemm(x, w) s = Sigmoid(a) y = Gemm(s, w) }")
    params = with_ranges(proto).quantizers["s"].params
    assert (params.scale, params.zero_point) == (np.float32(1 / 255), 0)


def test_tied_tensors_have_a_grid_wide_enough_for_all():
    proto = model(
        "(float[1,1] x) => (float[?,?] y) <float[1,1] w, float[1,1] v, float[1,1] u>"
        " { a = Gemm(x, w) b = Gemm(x, v) c = Add(a, b) y = Gemm(c, u) }",
        w=1,
        v=-2,
    )
    found = with_ranges(proto, rows([1, 2], 1), tie=("Add",)).quantizers
    assert found["a"].params is found["b"].params is found["c"].params
    assert (found["a"].params.scale, found["a"].params.zero_point) == (np.float32(6 / 255), 170)  # [-4, 2]


@pytest.mark.parametrize(
    ("function", "values"), [("Log", [0, 1, 2]), ("Sqrt", [-1, 1, 2]), ("Reciprocal", [0, 1, 2])], ids=str
)
def test_a_tensor_without_a_finite_range_stays_in_float(function, values):
    """Minus infinity, not-a-number, and infinity, among other values."""
    proto = model(
        f"(float[1,3] x) => (float[?,?] y) <float[3,3] w> {{ a = Gemm(x, w) l = {function}(x)"
        " c = Concat<axis=0>(a, l) t = Transpose(c) u = Transpose(t) y = MatMul(u, w) }"
    )
    feeds = [{"x": np.float32([values])}]
    model_, _ = planned(proto)
    outcome = SetActivationRanges().apply(model_, context(proto, feeds))
    assert not {"l", "c", "t", "u"} & set(model_.quantizers)
    assert {"x", "a"} <= set(model_.quantizers)
    assert reasons(outcome) == dict.fromkeys("lc", "takes infinite values or not-a-number on the calibration data")


def test_an_attention_mask_of_infinities_goes_through():
    proto = model(
        """(float[1,4,3] x, bool[1,4,4] m) => (float[?,?,?] y) <float[3,3] w, float[3,3] v, float low> {
        q = MatMul(x, w)  k = Transpose<perm=[0,2,1]>(q)  s = MatMul(q, k)  t = Where(m, s, low)
        p = Softmax<axis=-1>(t)  o = MatMul(p, q)  y = MatMul(o, v) }""",
        low=-np.inf,
    )
    feeds = [{**feed, "m": np.tril(np.ones((1, 4, 4), bool))} for feed in samples(proto)]
    assert "p" in with_ranges(proto, feeds).quantizers
    quantized(proto, feeds)


def test_memory_for_a_single_tensor_gives_the_same_ranges():
    proto = model(TWO_LAYERS)
    whole, parts = planned(proto)[0], planned(proto)[0]
    SetActivationRanges().apply(whole, context(proto))
    labels = []
    tiny = context(proto, max_memory=1, progress=lambda label, done, total: labels.append(label))
    SetActivationRanges().apply(parts, tiny)
    assert labels[-1] == "calibrating, part 2 of 2"
    assert {n: str(q) for n, q in parts.quantizers.items()} == {n: str(q) for n, q in whole.quantizers.items()}


def test_tensors_share_a_pass_as_far_as_the_memory_of_all_threads_allows_in_the_order_of_the_network(monkeypatch):
    proto = model("(float[N,8] x) => (float[N,8] c) { a = Relu(x)  b = Neg(a)  c = Relu(b) }")
    feeds, parts, extract = [{"x": np.ones((1, 8), np.float32)}] * 4, [], collect.extract
    monkeypatch.setattr(collect, "extract", lambda whole, part: parts.append(part) or extract(whole, part))
    for tensors, expected in ((3, [["a", "b", "c"]]), (2, [["a", "b"], ["c"]])):
        parts.clear()
        services = Services(threads=2, in_flight=4, max_memory=2 * tensors * 8 * 4)
        found = collect.collect_tensors(
            wrapped(proto), ["c", "a", "b"], replace(context(proto, feeds), services=services), lambda _: MinMax()
        )
        assert parts == expected
        assert {name: (each.lo, each.hi) for name, each in found.items()} == {"a": (1, 1), "b": (-1, -1), "c": (0, 0)}


def test_rows_that_fill_up_a_fixed_batch_do_not_count():
    """Ten samples in batches of four: two rows of the last one repeat a sample, and are cut off all the same."""
    proto = model("(float[4,3] x, float[4,3] z) => (float[?,?] y) <float[3,3] w> { a = Sub(x, z) y = MatMul(a, w) }")
    arrays = {"x": np.arange(30, dtype=np.float32).reshape(10, 3), "z": np.zeros((10, 3), np.float32)}
    data = CalibrationData(arrays, input_specs(proto))
    assert [feed.rows for feed in data] == [4, 4, 2]
    model_, _ = planned(proto)
    feeds = list(data)
    for feed in feeds:
        feed.arrays["x"][feed.rows :] = 1000
    SetActivationRanges().apply(model_, Context(feeds=feeds))
    assert model_.quantizers["a"].params.scale == np.float32(29 / 255)


def test_no_data_is_refused():
    model_, _ = planned(model(TWO_LAYERS))
    with pytest.raises(DataError, match="no calibration data"):
        SetActivationRanges().apply(model_, Context())


def test_passes_that_only_plan_leave_the_graph_alone():
    before = wrapped(model(TWO_LAYERS)).to_proto().graph
    after = with_ranges(model(TWO_LAYERS)).to_proto().graph
    assert [n.op_type for n in before.node] == [n.op_type for n in after.node]
    assert [t.raw_data for t in before.initializer] == [t.raw_data for t in after.initializer]
    for step in (SetWeightRanges, SetActivationRanges, SetBiasScales):
        assert step.preserves is None
