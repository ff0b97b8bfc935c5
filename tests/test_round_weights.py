"""Weights on their grids that keep what layers compute; biases that take the mean error."""

from dataclasses import dataclass, replace
from typing import ClassVar

import graphs
import numpy as np
import pytest
from quantized import context, with_ranges

from onnxq.errors import UsageError
from onnxq.execution.layerwise import isolate, planned_layers
from onnxq.graph.model import Quantizer
from onnxq.graph.simulate import simulated
from onnxq.numeric import blas
from onnxq.numeric.metrics import sqnr
from onnxq.numeric.quant import Grid, QuantSpec
from onnxq.operators.linear import linear_layer
from onnxq.passes.correct_bias_empirically import CorrectBiasEmpirically
from onnxq.passes.round_weights import RoundWeights
from onnxq.passes.set_bias_scales import SetBiasScales
from onnxq.passes.set_weight_ranges import SetWeightRanges
from onnxq.rounding import choice
from onnxq.rounding.choice import EFFORTS, WeightChooser
from onnxq.rounding.layer_statistics import LayerStatistics
from onnxq.rounding.methods import ROUNDINGS, Nearest
from onnxq.rounding.objective import Gram

LAYERS = {
    "conv": "(float[N,3,9,9] x) => (float[N,8,?,?] y) <float[8,3,3,3] w, float[8] b> "
    "{ h = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)  y = Relu(h) }",
    "depthwise": "(float[N,7,9,9] x) => (float[N,7,?,?] y) <float[7,1,3,3] w> "
    '{ h = Conv<group=7, auto_pad="SAME_UPPER">(x, w)  y = Relu(h) }',
    "transposed": "(float[N,6,5,5] x) => (float[N,8,?,?] y) <float[6,4,3,3] w> "
    "{ y = ConvTranspose<group=2, strides=[2,2]>(x, w) }",
    "gemm": "(float[N,12] x) => (float[N,5] y) <float[5,12] w> { y = Gemm<transB=1>(x, w) }",
    "matmul": "(float[N,9,12] x) => (float[N,9,5] y) <float[12,5] w, float[5] b> { h = MatMul(x, w)  y = Add(h, b) }",
}
TIED = """(float[N,6] x) => (float[N,6] y) <float[6,6] w, float[6,6] v>
          { a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  d = Relu(c)  y = MatMul(d, w) }"""


def spec(bits=3, per_channel=True, **fields):
    return QuantSpec(Grid(bits, True, True), symmetric=True, per_channel=per_channel, **fields)


def correlated(proto, count):
    """Random walks: neighbours are alike, as in images, which is what makes rounding errors add up."""
    feeds = []
    for seed in range(count):
        feed = graphs.feeds(proto, seed=seed, free=1)
        feeds.append({name: np.float32(np.cumsum(x, axis=-1) / 3 + 0.3) for name, x in feed.items()})
    return feeds


def prepared(proto, feeds, **fields):
    """A model whose weights are quantized, those of ConvTranspose too, which the target leaves in float."""
    model = with_ranges(proto, feeds, weight=spec(**fields))
    layer = linear_layer(model.graph.nodes[0])
    if layer.weight.name not in model.quantizers:
        axis = layer.axis if spec(**fields).per_channel else None
        quantizer = Quantizer(layer.weight.name, spec(**fields), axis, readers=(layer.node.name,))
        model.quantizers[layer.weight.name] = quantizer
        SetWeightRanges("minmax").apply(model, context(proto, feeds))
    return model


def quality(proto, quantized, feeds):
    """SQNR of the simulated model's output."""
    both = [[graphs.run(p, feed)["y"] for feed in feeds] for p in (proto, simulated(quantized))]
    return sqnr(*(np.concatenate(outputs) for outputs in both))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_outputs_come_nearer(text, per_channel, rounding):
    proto = graphs.model(text)
    feeds = correlated(proto, 60 if "MatMul" in text or "Gemm" in text else 10)
    unseen = correlated(proto, 80)[60:]
    model = prepared(proto, feeds, per_channel=per_channel)
    before = quality(proto, model, unseen)
    outcome = RoundWeights(rounding, effort="fast").apply(model, context(proto, feeds))
    gain = quality(proto, model, unseen) - before
    # With one scale for all channels, faint ones may gain at the cost of the others.
    assert gain > (-2.0 if rounding == "nearest" else 1.0)
    assert outcome.changed == 1
    (record,) = outcome.rounded
    assert record.objective < record.nearest
    assert (record.method, record.held_out) == (rounding, len(feeds) // 5)


@pytest.mark.parametrize(
    ("rounding", "title"),
    [
        ("nearest", "Rounding to nearest"),
        ("gptq", "GPTQ"),
        ("coordinate-descent", "Coordinate descent"),
        ("adaround", "AdaRound"),
    ],
)
def test_the_pass_carries_the_name_of_its_method(rounding, title):
    assert RoundWeights(rounding).title == title


def test_a_new_method_is_one_class_and_one_entry(monkeypatch):
    """Its integers, not the nearest, are those of the result, under its own name."""

    @dataclass(frozen=True)
    class Down(Nearest):
        title: ClassVar[str] = "rounding down"

        def round(self, objective, grid):
            return np.clip(np.floor(objective.W / grid.scale), grid.low, grid.high)

    monkeypatch.setitem(ROUNDINGS, "down", Down)
    proto = graphs.model(LAYERS["gemm"])
    feeds = correlated(proto, 60)
    model = with_ranges(proto, feeds, activation=None, weight=spec())
    monkeypatch.setattr(choice.WeightChooser, "_nearest_errors", lambda self: (np.inf, np.inf))
    pass_ = RoundWeights("down")
    before = linear_layer(model.graph.nodes[0]).weight.values
    (record,) = pass_.apply(model, context(proto, feeds)).rounded
    (layer,) = planned_layers(model)
    assert (pass_.title, record.method) == ("rounding down", "down")
    scale = model.quantizers["w"].params.scale[:, None]
    np.testing.assert_allclose(layer.weight.values, np.clip(np.floor(before / scale), -3, 3) * scale, atol=1e-6)


def test_weights_lie_on_their_grid_and_scales_go_along():
    proto = graphs.model(LAYERS["conv"])
    feeds = correlated(proto, 10)
    model = prepared(proto, feeds)
    RoundWeights().apply(model, context(proto, feeds))
    (layer,) = planned_layers(model)
    params = model.quantizers[layer.weight.name].params
    np.testing.assert_array_equal(params.fake(layer.weight.values), layer.weight.values)
    assert params.scale.dtype == np.float32


def test_powers_of_two_stay_powers_of_two():
    proto = graphs.model(LAYERS["conv"])
    feeds = correlated(proto, 10)
    model = prepared(proto, feeds, power_of_two=True)
    RoundWeights().apply(model, context(proto, feeds))
    (layer,) = planned_layers(model)
    mantissa, _ = np.frexp(model.quantizers[layer.weight.name].params.scale)
    assert (mantissa == 0.5).all()


@pytest.mark.parametrize("effort", EFFORTS)
def test_the_same_whatever_the_threads(effort):
    proto = graphs.model(LAYERS["conv"])
    feeds = correlated(proto, 11)
    results = []
    for threads in (1, 3):
        model = prepared(proto, feeds)
        RoundWeights(effort=effort).apply(model, context(proto, feeds, threads=threads))
        results.append(model.to_proto().SerializeToString())
    assert results[0] == results[1]


def test_nearest_stays_where_nothing_is_better():
    weight = np.float32(np.eye(4))
    proto = graphs.model("(float[N,4] x) => (float[N,4] y) <float[4,4] w> { y = MatMul(x, w) }", w=weight)
    feeds = correlated(proto, 20)
    model = with_ranges(proto, feeds, activation=None, weight=spec())
    outcome = RoundWeights().apply(model, context(proto, feeds))
    assert outcome.changed == 0
    (record,) = outcome.rounded
    assert record.kept_nearest_because.startswith("rounding adds 0.1% to the error")
    assert (record.flipped, record.objective) == (0, record.nearest)
    graphs.assert_same_function(proto, model.to_proto(), 1e-6)


def test_samples_held_out_join_the_fit_once_lambda_is_chosen():
    proto = graphs.model(LAYERS["gemm"])
    feeds = correlated(proto, 20)
    model = with_ranges(proto, feeds, activation=None, weight=spec())
    RoundWeights().apply(model, context(proto, feeds))
    outputs = [np.mean([graphs.run(p, feed)["y"] for feed in feeds], axis=0) for p in (proto, simulated(model))]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)  # the bias takes the mean error of all samples


@pytest.mark.parametrize(("bits", "two_candidates"), [(8, True), (4, False), (None, True)])
def test_behind_inputs_of_few_bits_weights_may_move_further_than_floor_and_ceil(bits, two_candidates):
    proto = graphs.model(LAYERS["gemm"], seed=3)
    feeds = correlated(proto, 60)
    activation = None if bits is None else QuantSpec(Grid(bits, False), symmetric=False)
    model = with_ranges(proto, feeds, activation=activation, weight=spec(8), narrow="all")
    (before,) = planned_layers(model)
    W, scale = np.asarray(before.weight.values).copy(), model.quantizers[before.weight.name].params.scale[:, None]
    RoundWeights("gptq").apply(model, context(proto, feeds))
    (after,) = planned_layers(model)
    moved = np.abs(np.asarray(after.weight.values) - W) / scale
    assert (moved.max() < 1.001) == two_candidates


def test_a_shared_weight_stays_one():
    proto = graphs.model(TIED, seed=2)
    feeds = correlated(proto, 60)
    model = with_ranges(proto, feeds, weight=spec())
    before = quality(proto, model, feeds)
    outcome = RoundWeights().apply(model, context(proto, feeds))
    first, _, last = planned_layers(model)
    assert first.weight is last.weight
    assert first.bias is not last.bias
    assert [len(record.uses) for record in outcome.rounded] == [1, 2]
    assert quality(proto, model, feeds) > before + 1


def test_a_weight_that_is_read_in_two_ways_keeps_nearest():
    text = "(float[N,4] x) => (float[N,4] y) <float[4,4] w> { a = Gemm(x, w)  b = Relu(a)  y = Gemm<transB=1>(b, w) }"
    proto = graphs.model(text)
    feeds = correlated(proto, 20)
    model = with_ranges(proto, feeds, weight=spec())
    outcome = RoundWeights().apply(model, context(proto, feeds))
    assert outcome.changed == 0
    assert "different ways" in outcome.skips[0].reason
    graphs.assert_same_function(proto, model.to_proto(), 1e-6)


@pytest.mark.parametrize("field", ["rounding", "effort"])
def test_unknown_options(field):
    with pytest.raises(UsageError, match=f"`{field}` 'best' is unknown"):
        RoundWeights(**{field: "best"})


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_bias_correction_takes_the_mean_error(text):
    proto = graphs.model(text.replace("y = Relu(h)", "y = Identity(h)"))
    feeds = correlated(proto, 10)
    model = prepared(proto, feeds)
    CorrectBiasEmpirically().apply(model, context(proto, feeds))

    def mean(p):
        y = np.float64([graphs.run(p, feed)["y"] for feed in feeds])
        axis = 2 if "Conv" in text else y.ndim - 1
        return y.mean(tuple(i for i in range(y.ndim) if i != axis))

    model.quantizers.pop("y", None)  # the output's own grid adds noise that has a mean, too
    np.testing.assert_allclose(mean(simulated(model)), mean(proto), atol=1e-4)


def test_an_interrupted_run_goes_on(tmp_path):
    proto = graphs.model(TIED, seed=2)
    feeds = correlated(proto, 30)
    expected, model = with_ranges(proto, feeds, weight=spec()), with_ranges(proto, feeds, weight=spec())
    reference = RoundWeights().apply(expected, context(proto, feeds))

    def interrupt(label, done, total):
        if label.startswith("rounding weights: MatMul_c"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RoundWeights(checkpoint=tmp_path).apply(model, context(proto, feeds, progress=interrupt))
    assert len(list(tmp_path.iterdir())) == 1
    model = with_ranges(proto, feeds, weight=spec())
    outcome = RoundWeights(checkpoint=tmp_path).apply(model, context(proto, feeds))
    assert outcome.rounded == reference.rounded
    assert model.to_proto() == expected.to_proto()
    other = with_ranges(proto, feeds, weight=spec())
    RoundWeights(checkpoint=tmp_path, effort="fast").apply(other, context(proto, feeds))
    assert len(list(tmp_path.iterdir())) == 4  # results of another effort are of no use


def test_no_scale_is_raised_after_its_weights_were_rounded():
    """The second channel's weights are so small beside its bias that the best scale for them would overflow it."""
    weight = np.float32(np.random.default_rng(0).standard_normal((12, 2)) * [1, 1e-5])
    text = "(float[N,12] x) => (float[N,2] y) <float[12,2] w, float[2] b> { y = Gemm(x, w, b) }"
    proto = graphs.model(text, w=weight, b=np.float32([0.5, 100]))
    feeds = correlated(proto, 60)
    for power_of_two in (False, True):
        model = with_ranges(proto, feeds, weight=spec(power_of_two=power_of_two))
        RoundWeights().apply(model, context(proto, feeds))
        (layer,) = planned_layers(model)
        before = quality(proto, model, feeds)
        rounded = layer.weight.values
        assert SetBiasScales().apply(model, context(proto, feeds)).changed == 0
        np.testing.assert_array_equal(model.quantizers["w"].params.fake(rounded), rounded)
        assert quality(proto, model, feeds) == before


@pytest.mark.parametrize("rounding", ["gptq", "coordinate-descent"])
@pytest.mark.parametrize(("name", "block"), [("conv", 2), ("gemm", 5), ("matmul", 4)])  # the last blocks are shorter
def test_blocks_keep_their_own_scales(name, block, rounding):
    proto = graphs.model(LAYERS[name])
    feeds = correlated(proto, 10 if name == "conv" else 60)
    model = prepared(proto, feeds, block=block)
    before, planned = quality(proto, model, feeds), model.quantizers["w"].params.scale
    assert RoundWeights(rounding, effort="fast").apply(model, context(proto, feeds)).changed == 1
    params, (layer,) = model.quantizers["w"].params, planned_layers(model)
    assert params.scale.shape == planned.shape
    np.testing.assert_array_equal(params.fake(layer.weight.values), layer.weight.values)
    assert quality(proto, model, feeds) > before + 0.5


WIDE = "(float[N,300] x) => (float[N,6] y) <float[6,300] w> { y = Gemm<transB=1>(x, w) }"


@pytest.mark.parametrize("rounding", ["gptq", "coordinate-descent", "adaround"])
@pytest.mark.parametrize("text", [LAYERS["conv"], WIDE])
def test_at_8_bits_weights_stay_at_floor_or_ceil_of_their_planned_scale(text, rounding):
    proto = graphs.model(text)
    feeds = correlated(proto, 20)
    model = prepared(proto, feeds, bits=8)
    (layer,) = planned_layers(model)
    before, params = layer.weight.values.copy(), model.quantizers[layer.weight.name].params
    (record,) = RoundWeights(rounding, effort="fast").apply(model, context(proto, feeds)).rounded
    assert record.kept_nearest_because is None or text == WIDE
    after = model.quantizers[layer.weight.name].params
    np.testing.assert_array_equal(after.scale, params.scale)
    scale = params.scale.reshape(-1, *[1] * (before.ndim - 1))
    assert (np.abs(planned_layers(model)[0].weight.values - before) < scale * 1.0001).all()


def test_few_columns_are_not_overfitted():
    """24 rows for 300 unknowns: unseen data decides."""
    proto = graphs.model(WIDE)
    rng = np.random.default_rng(3)
    feeds, unseen = ([{"x": np.float32(rng.standard_normal((1, 300)) + 0.3)} for _ in range(n)] for n in (24, 60))
    nearest = prepared(proto, feeds, bits=4)
    model = prepared(proto, feeds, bits=4)
    RoundWeights().apply(model, context(proto, feeds))
    assert quality(proto, model, unseen) > quality(proto, nearest, unseen) - 0.3


def test_lambda_grows_as_long_as_the_largest_is_the_best(monkeypatch):
    """30 columns of 64 inputs with noise, as of a classifier: a regression on them learns the noise."""
    proto = graphs.model("(float[N,64] x) => (float[N,20] y) <float[20,64] w> { y = Gemm<transB=1>(x, w) }")
    rng = np.random.default_rng(0)
    model = prepared(proto, graphs.feeds(proto, seed=0, free=4), bits=4)
    isolate(model)
    layer, quantizer = planned_layers(model)[0], model.quantizers["w"]
    W = layer.weight.values

    def drawn(count):
        x = np.maximum(rng.standard_normal((64, count)), 0)
        return x + 0.05 * rng.standard_normal(x.shape), W @ x

    statistics = LayerStatistics()
    for _ in range(30):
        x, y = drawn(1)
        statistics.add(x[None], y[None], 1)
    statistics.finish()
    unseen, wanted = drawn(500)
    method, effort, errors = ROUNDINGS["coordinate-descent"].of_effort("default", 0), EFFORTS["default"], {}
    for most in (1.0, choice.MOST_DAMPING):
        monkeypatch.setattr(choice, "MOST_DAMPING", most)
        made = WeightChooser([layer], [statistics], [None], 8, quantizer.params, quantizer.spec, method, effort)
        chosen = made.choose()
        errors[most] = np.square(chosen.weight @ unseen + chosen.biases[0][:, None] - wanted).mean()
    assert errors[100.0] < 0.9 * errors[1.0]


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_fewer_than_five_samples_hold_out_columns(samples):
    proto = graphs.model(LAYERS["conv"])
    feeds, unseen = correlated(proto, samples), correlated(proto, 40)[20:]
    model, nearest = prepared(proto, feeds), prepared(proto, feeds)
    (record,) = RoundWeights().apply(model, context(proto, feeds)).rounded
    assert quality(proto, model, unseen) >= quality(proto, nearest, unseen)
    assert samples < 4 or record.kept_nearest_because is None
    assert record.objective > 1e-3  # not the error of the columns that were fitted


def test_a_sample_of_one_column_is_too_few():
    proto = graphs.model(LAYERS["gemm"])
    feeds = correlated(proto, 1)
    model = prepared(proto, feeds)
    (record,) = RoundWeights().apply(model, context(proto, feeds)).rounded
    assert record.kept_nearest_because == "there are too few columns of data to hold any out"


def test_rounding_that_cannot_matter_is_left_out(monkeypatch):
    """Inputs at 3 bits, weights at 8: the weights' noise is far below what the inputs bring, and nothing is solved."""
    monkeypatch.setattr(WeightChooser, "_rounded", None)
    proto = graphs.model(WIDE)
    feeds = correlated(proto, 40)
    coarse = QuantSpec(Grid(3, False), symmetric=False, per_channel=False)
    model = with_ranges(proto, feeds, activation=coarse, weight=spec(8), narrow="all")
    (record,) = RoundWeights("gptq").apply(model, context(proto, feeds)).rounded
    assert record.kept_nearest_because.startswith("rounding adds ")
    assert record.flipped == 0


def test_statistics_of_a_layer_fit_the_memory(monkeypatch):
    """However many positions there are, no matrix of K x K is made where that would be too large."""
    text = "(float[N,40,300] x) => (float[N,40,6] y) <float[300,6] w> { y = MatMul(x, w) }"
    proto, shapes = graphs.model(text), []
    feeds = correlated(proto, 20)
    services = replace(context(proto, feeds).services, max_memory=2**20)
    made = Gram.of
    monkeypatch.setattr(Gram, "of", lambda x, y: shapes.append(x.shape) or made(x, y))
    for limit, few in ((services, True), (replace(services, max_memory=2**28), False)):
        shapes.clear()
        model = prepared(proto, feeds, bits=4)
        (record,) = RoundWeights("gptq").apply(model, replace(context(proto, feeds), services=limit)).rounded
        assert (shapes == []) == few
        assert (record.positions < 150) == few


def test_one_thread_multiplies_while_weights_are_rounded(monkeypatch):
    found = blas._openblas()
    if found is None:
        pytest.skip("NumPy has no OpenBLAS")
    read, write = found
    threads, before = [], read()
    write(2)
    monkeypatch.setattr(Gram, "of", lambda x, y, made=Gram.of: threads.append(read()) or made(x, y))
    try:
        proto = graphs.model(LAYERS["conv"])
        feeds = correlated(proto, 5)
        RoundWeights("gptq").apply(prepared(proto, feeds), context(proto, feeds))
        assert set(threads) == {1}
        assert read() == 2
    finally:
        write(before)


def test_one_search_of_the_scale_serves_every_lambda_but_with_effort_high(monkeypatch):
    proto = graphs.model(LAYERS["conv"])
    feeds, searches = correlated(proto, 10), []
    search = choice.search_scale
    monkeypatch.setattr(choice, "search_scale", lambda *given: searches.append(1) or search(*given))
    for effort, expected in (("fast", 1), ("default", 1), ("high", 1 + len(EFFORTS["high"].dampings))):
        searches.clear()
        model = prepared(proto, feeds)
        outcome = RoundWeights(effort=effort).apply(model, context(proto, feeds))
        layers = len(outcome.rounded)
        assert outcome.changed == layers
        assert len(searches) == expected * layers
