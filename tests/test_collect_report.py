"""What a detailed report says of layers and activations, beside the same computed by hand."""

import itertools

import numpy as np
import onnx
import pytest
from graphs import model, wrapped

import onnxq
from onnxq.options import Options
from onnxq.pipeline.collect_report import ReportCollector

NET = """(float[N,4,9,8] x) => (float[N,?] y)
    <float[6,4,3,3] w, float[6] b, float[6,1,3,3] u, float[6,6,1,1] v, float[10,7] m, float[7] c,
     int64[1] zero, int64[1] four, int64[1] one> {
    a = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(a)  d = Conv<group=6, strides=[2,2]>(r, u)  e = Relu(d)
    k = Conv(e, v)  i = Relu(k)  p = GlobalAveragePool(i)  f = Flatten(p)
    q = Slice(f, zero, four, one)  s = Concat<axis=1>(f, q)  g = MatMul(s, m)  y = Add(g, c) }"""


@pytest.fixture(scope="module")
def net():
    w = np.random.default_rng(1).standard_normal((6, 4, 3, 3)) * np.array([1, 1, 50, 1, 1, 1])[:, None, None, None]
    return model(NET, w=w, zero=0, four=4, one=1)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).standard_normal((10, 4, 9, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def report(net, data):
    return onnxq.quantize(net, data, details=True, per_channel=False).report


def test_every_linear_layer_in_the_networks_order(report):
    assert [(x.op, x.shape) for x in report.layers] == [
        ("Conv", (6, 4, 3, 3)), ("Conv", (6, 1, 3, 3)), ("Conv", (6, 6, 1, 1)), ("MatMul", (10, 7)),
    ]  # fmt: skip
    assert [x.macs for x in report.layers] == [9 * 8 * 6 * 36, 4 * 3 * 6 * 9, 4 * 3 * 36, 70]


def test_transposed_convolutions_count_products_by_input():
    proto = model("""(float[N,4,5,6] x) => (float[N,6,?,?] y) <float[4,3,3,3] t, float[6,6,1,1] v> {
        a = ConvTranspose<group=2, strides=[2,2]>(x, t)  y = Conv(a, v) }""")
    samples = np.random.default_rng(0).standard_normal((4, 4, 5, 6)).astype(np.float32)
    report = onnxq.quantize(proto, samples, details=True).report
    assert [x.macs for x in report.layers] == [4 * 5 * 6 * 3 * 9, 6 * 11 * 13 * 6]
    assert report.layers[0].ranges.channels == 6
    assert (report.layers[0].weight_grid, report.layers[0].input_grid) == (None, None)


def test_products_of_stacked_matrices_count_once():
    proto = model("(float[N,3,4,5] x) => (float[N,3,4,7] y) <float[3,5,7] w> { y = MatMul(x, w) }")
    samples = np.random.default_rng(0).standard_normal((4, 3, 4, 5)).astype(np.float32)
    assert [x.macs for x in onnxq.quantize(proto, samples, details=True).report.layers] == [3 * 4 * 5 * 7]


def test_the_last_layers_noise_is_the_outputs(report):
    """Almost: biases, which the report's simulation leaves in float, tip a few values over to the next step."""
    assert report.layers[-1].sqnr_db == pytest.approx(report.quality[0].sqnr_db, abs=2)


def test_weights_on_their_grid(report, net, data):
    alone = onnxq.quantize(net, data, details=True, preset="w4", rounding="nearest", cle="off").report
    assert all(0 < x.weight_sqnr_db < 30 for x in alone.layers)
    assert all(a.weight_sqnr_db < b.weight_sqnr_db for a, b in zip(alone.layers, report.layers, strict=True))
    assert {x.weight_grid for x in report.layers} == {"int8 narrow per tensor"}
    assert {x.weight_grid for x in alone.layers} == {"int4 per channel"}
    assert all(x.scale[0] <= x.scale[1] <= x.scale[2] for x in alone.layers)


def test_noise_of_weights_is_that_of_the_rounding_that_was_chosen(net, data):
    """Layer-wise rounding serves the output: single weights may go the farther way."""
    nearest, descent = (
        onnxq.quantize(net, data, details=True, preset="w3", cle="off", rounding=r).report.layers[1].weight_sqnr_db
        for r in ("nearest", "coordinate-descent")
    )
    assert nearest > descent + 0.1


def test_float_layers_have_no_grid(net, data):
    found = onnxq.quantize(net, data, details=True, exclude=["MatMul"]).report.layers[-1]
    assert (found.weight_grid, found.scale, found.weight_sqnr_db) == (None, None, None)
    assert found.sqnr_db is not None


def test_boxes_show_what_equalization_did(report, net):
    first = report.layers[0].ranges
    weight = weight_of(net, "w").reshape(6, -1)
    np.testing.assert_allclose(first.before, np.quantile(weight, (0, 0.25, 0.5, 0.75, 1), axis=1).T, rtol=1e-5)
    assert first.shown == (0, 1, 2, 3, 4, 5)
    spread = [
        max(b[4] - b[0] for b in boxes) / min(b[4] - b[0] for b in boxes) for boxes in (first.before, first.after)
    ]
    assert spread[0] > 3 * spread[1]


def test_boxes_of_many_channels_include_the_widest_and_the_narrowest():
    v = np.random.default_rng(2).standard_normal((200, 3))
    v[17], v[150] = v[17] * 100, v[150] / 100
    proto = model("(float[N,3] x) => (float[N,200] y) <float[200,3] v> { y = Gemm<transB=1>(x, v) }", v=v)
    samples = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    found = onnxq.quantize(proto, samples, details=True).report.layers[0].ranges
    assert (found.channels, len(found.shown), len(found.before), found.after) == (200, 64, 64, ())
    assert {17, 150} <= set(found.shown)


def test_activations_are_counted_as_they_were_seen(report, data):
    found = next(d for d in report.distributions if d.tensor == "x")
    assert (found.lowest, found.highest) == pytest.approx((data.min(), data.max()), rel=1e-5)
    assert sum(found.counts) == data.size
    assert len(found.counts) == 64
    assert found.clipped == pytest.approx(((data < found.lo) | (data > found.hi)).mean(), abs=2e-3)
    grids = {t.tensor: t for t in report.tensors}
    assert found.grid == grids["x"].grid == "uint8"
    assert found.hi - found.lo == pytest.approx(255 * grids["x"].scale[0], rel=1e-5)
    assert report.layers[0].clipped == found.clipped


def test_an_extreme_value_does_not_hide_the_others(net, data):
    wild = data.copy()
    wild[0, 0, 0, 0] = 1e4
    found = onnxq.quantize(net, wild, details=True, activation_range="percentile:99").report.distributions[0]
    assert found.highest == pytest.approx(1e4)
    assert found.last < 20
    assert sum(found.counts) == data.size
    assert sum(n > 0 for n in found.counts) > 20


@pytest.mark.parametrize(
    "options", [{}, {"activation_range": "minmax"}, {"max_memory": 1}, {"preset": "w4a8"}], ids=str
)
def test_details_change_nothing(net, data, options):
    plain, detailed = (onnxq.quantize(net, data, details=d, **options) for d in (False, True))
    assert plain.model.SerializeToString() == detailed.model.SerializeToString()
    assert (plain.report.layers, plain.report.distributions) == ((), ())
    assert len(detailed.report.layers) == 4
    assert len(detailed.report.distributions) >= 4
    assert sum(next(d for d in detailed.report.distributions if d.tensor == "x").counts) == data.size


def test_details_do_not_depend_on_threads_or_memory(net, data):
    one, two = (
        onnxq.quantize(net, data, details=True, **o).report for o in ({"threads": 1}, {"threads": 3, "max_memory": 1})
    )
    assert one.layers == two.layers
    assert one.distributions == two.distributions


def test_without_data_there_are_layers_but_no_activations_to_show(net):
    found = onnxq.quantize(net, details=True, data_free=True, input_ranges=(("x", -4, 4),)).report
    assert len(found.layers) == 4
    assert found.distributions == ()
    assert "Activations" not in found.to_html()


def test_statistics_collected_before_are_shown(net, data, tmp_path, report):
    onnxq.calibrate(net, data, tmp_path / "stats.npz", options=Options(per_channel=False))
    found = onnxq.quantize(net, statistics=[tmp_path / "stats.npz"], details=True, per_channel=False).report
    shown = {d.tensor: d for d in found.distributions}
    assert shown["x"] == next(d for d in report.distributions if d.tensor == "x")


def test_a_compared_step_says_what_it_was_worth(report):
    compared = {s.name: s for s in report.steps if s.before_db is not None}
    assert {"EqualizeLayers", "CorrectBias"} <= compared.keys()
    assert all(s.kept for s in compared.values())
    assert compared["EqualizeLayers"].after_db > compared["EqualizeLayers"].before_db + 1


def test_a_step_that_is_dropped_says_so(net, data, monkeypatch):
    worse = itertools.count(-100, -1)
    monkeypatch.setattr("onnxq.pipeline.keep_if_better.QualityMeasure.db", lambda measure, model: float(next(worse)))
    steps = {s.name: s for s in onnxq.quantize(net, data).report.steps}
    assert not steps["EqualizeLayers"].kept
    assert steps["EqualizeLayers"].after_db < steps["EqualizeLayers"].before_db
    assert steps["SetActivationRanges"].kept


def test_the_reference_stays_as_it_was(net):
    adjusted, collector = wrapped(net), ReportCollector()
    collector.adjusted(adjusted)
    adjusted.graph.nodes.clear()
    assert len(collector.reference.graph.nodes) == len(net.graph.node)


def weight_of(proto, name):
    return onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))
