"""Which method sets which range: logits are found, BatchNorm's moments used, overrides obeyed, statistics cheap."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import model, wrapped
from quantized import PLAIN, context, samples

import onnxq
from onnxq import Override
from onnxq.errors import UsageError
from onnxq.graph.patterns import class_logits
from onnxq.numeric import ranges
from onnxq.numeric.histogram import Histogram
from onnxq.numeric.logits import Logits
from onnxq.numeric.quant import QuantParams
from onnxq.numeric.samples import MinMax
from onnxq.options import Options
from onnxq.passes import set_activation_ranges
from onnxq.passes.base import Context
from onnxq.passes.fold_batchnorm import FoldBatchNorm
from onnxq.passes.normalize import Normalize
from onnxq.passes.set_activation_ranges import SetActivationRanges
from onnxq.pipeline.run_passes import run_passes
from onnxq.pipeline.set_ranges import placement

# --- logits -----------------------------------------------------------------------------------------------------

BODY = "(float[N,3] x) => ({out} y) <float[3,12] w, float[3,4] v, int64[2] s> {{ {body} }}"
FOUND = {
    "Softmax": ("z = Gemm(x, v) y = Softmax(z)", "float[N,4]", {"z"}),
    "LogSoftmax": ("z = Gemm(x, v) y = LogSoftmax<axis=1>(z)", "float[N,4]", {"z"}),
    "Reshape before": ("z = Gemm(x, v) f = Reshape(z, s) y = Softmax(f)", "float[N,4]", {"z", "f"}),
    "Flatten before": ("z = Gemm(x, v) f = Flatten(z) y = Softmax(f)", "float[N,4]", {"z", "f"}),
    "Reshape behind": ("z = Gemm(x, v) f = Softmax(z) y = Reshape(f, s)", "float[N,4]", {"z"}),
    "read by the user": ("y = Gemm(x, w)", "float[N,12]", set()),
    "reshaped for the user": ("z = Gemm(x, w) y = Flatten(z)", "float[N,12]", set()),
    "Softmax inside": ("z = Gemm(x, w) p = Softmax(z) q = Mul(p, p) y = Sigmoid(q)", "float[N,K]", set()),
    "Sigmoid": ("z = Gemm(x, v) y = Sigmoid(z)", "float[N,4]", set()),
}


@pytest.mark.parametrize("case", FOUND)
def test_logits_are_found(case):
    body, out, names = FOUND[case]
    assert class_logits(wrapped(model(BODY.format(out=out, body=body), s=[-1, 4]))) == names


def test_logits_that_are_an_output_as_well_are_the_users():
    proto = model(
        "(float[N,3] x) => (float[N,4] y, float[N,4] f) <float[3,4] v> { z = Gemm(x, v) f = Flatten(z) y = Softmax(f) }"
    )
    assert class_logits(wrapped(proto)) == set()


def test_the_report_says_how_logits_were_ranged():
    for proto, said in (
        (model(CLASSIFIER), True),
        (model(CLASSIFIER.replace("f = Flatten(z) y = Softmax(f)", "y = Flatten(z)")), False),
    ):
        notes = [note for step in quantize(proto, images()).report.steps for note in step.notes]
        assert any("which Softmax reads: cross-entropy" in note for note in notes) == said


def test_attention_is_not_taken_for_a_classifier():
    proto = model(
        "(float[N,4,3] x) => (float[N,4,3] y) { k = Transpose<perm=[0,2,1]>(x) s = MatMul(x, k)"
        " p = Softmax<axis=-1>(s) y = MatMul(p, x) }"
    )
    assert class_logits(wrapped(proto)) == set()


# --- which method is used ---------------------------------------------------------------------------------------

CLASSIFIER = """(float[N,3,2,2] x) => (float[N,?] y) <float[4,3,1,1] u, float[6,4,2,2] w>
    { a = Conv(x, u) r = Relu(a) z = Conv(r, w) f = Flatten(z) y = Softmax(f) }"""


@pytest.fixture
def used(monkeypatch):
    """Names of methods in the order in which ranges are set with them."""
    names = []

    def spy(text, samples, spec):
        names.append(text)
        return ranges.set_range(text, samples, spec)

    monkeypatch.setattr(set_activation_ranges, "set_range", spy)
    return names


def quantize(proto, data, **options):
    return onnxq.quantize(proto, data, **{**PLAIN, **options})


def images(count=20, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 2, 2)).astype(np.float32)


def params_of(proto, data, **options):
    result = quantize(proto, data, **options)
    return {t.tensor: (t.grid, t.scale, t.zero_point) for t in result.report.tensors}


def test_the_default_is_mse_and_cross_entropy_for_logits(used):
    assert (Options().activation_range, Options().logits_range) == ("mse", "cross-entropy")
    quantize(model(CLASSIFIER), images())
    assert used == ["mse", "mse", "cross-entropy"]  # x, r, z


def test_each_method_is_a_choice(used):
    quantize(model(CLASSIFIER), images(), activation_range="percentile:99", logits_range="entropy")
    assert used == ["percentile:99", "percentile:99", "entropy"]


def test_cross_entropy_is_better_on_its_own_objective():
    """It is what the report says: probabilities of the classes are less disturbed than by mse, at 3 bits."""
    proto, data = model(CLASSIFIER), images(200) * 3
    prepared = quantize(proto, data, preset="a16").model
    losses = {}
    for method in ("cross-entropy", "mse"):
        overrides = (Override(tensor="z", bits=3),)
        result = quantize(proto, data, preset="a16", overrides=overrides, logits_range=method).model
        p, q = (onnxq.execution.session.Session(m).run({"x": data})["y"].astype(np.float64) for m in (prepared, result))
        losses[method] = -(p * np.log(q)).sum()
    assert losses["cross-entropy"] < losses["mse"]


def test_vectors_of_changing_length_fall_back_to_mse(used):
    proto = model(
        "(float[N,3,L] x) => (float[N,?] y) <float[4,3,1] u, float[6,4,1] w>"
        " { a = Conv(x, u) z = Conv(a, w) f = Flatten(z) y = Softmax(f) }"
    )
    feeds = [{"x": images(1, seed).reshape(1, 3, 4)[:, :, : 2 + seed % 2]} for seed in range(6)]
    quantize(proto, feeds)
    assert used[-1] == "mse"
    used.clear()
    quantize(proto, [{"x": f["x"][:, :, :2]} for f in feeds])
    assert used[-1] == "cross-entropy"


def test_cross_entropy_by_override(used):
    overrides = (Override(tensor="r", method="cross-entropy"),)
    quantize(model(CLASSIFIER), images(), overrides=overrides)
    assert used == ["mse", "cross-entropy", "cross-entropy"]
    lengths = model("(float[N,3,L] x) => (float[N,4,M] y) <float[4,3,1] w> { y = Conv(x, w) }")
    feeds = [{"x": images(1, seed).reshape(1, 3, 4)[:, :, : 2 + seed % 2]} for seed in range(6)]
    with pytest.raises(UsageError, match="cross-entropy needs vectors of logits, which 'x' does not hold"):
        quantize(lengths, feeds, overrides=(Override(tensor="x", method="cross-entropy"),))


def test_a_method_of_one_tensor_is_used_there_alone(used):
    quantize(model(CLASSIFIER), images(), overrides=(Override(tensor="r", method="percentile:90"),))
    assert used == ["mse", "percentile:90", "cross-entropy"]
    used.clear()
    quantize(model(CLASSIFIER), images(), overrides=(Override(tensor="z", method="minmax"),))
    assert used == ["mse", "mse", "minmax"]


@pytest.mark.parametrize(
    ("method", "kind"), [("minmax", MinMax), ("mse", Histogram), ("percentile", Histogram), ("entropy", Histogram)]
)
def test_statistics_are_no_dearer_than_the_method_asks_for(method, kind, monkeypatch):
    made = {}
    collect = set_activation_ranges.collect_tensors

    def spy(model_, names, context_, make, *rest):
        found = collect(model_, names, context_, make, *rest)
        made.update({name: type(s.parts[0]) for name, s in found.items()})  # beside it: channels, for bias correction
        return found

    monkeypatch.setattr(set_activation_ranges, "collect_tensors", spy)
    quantize(model(CLASSIFIER), images(), activation_range=method)
    assert made == {"x": kind, "r": kind, "z": Logits}


def test_a_new_method_is_one_function_and_one_entry(monkeypatch):
    """Options take its name and its value, --help lists it, its statistics are collected, and ranges follow it."""

    def part_of_all(samples_, spec, share):
        return share * samples_.lo, share * samples_.hi

    method = ranges.RangeMethod(part_of_all, "a part of all values", needs="extremes", value=ranges.Value("SHARE", 0.5))
    monkeypatch.setitem(ranges.RANGE_METHODS, "part", method)
    proto = model(CLASSIFIER)
    settings = {"logits_range": "minmax", "weight_range": "minmax", "preset": "w4a16"}
    whole = params_of(proto, images(), activation_range="minmax", **settings)
    for text, share in (("part", 0.5), ("part:0.25", 0.25)):
        found = params_of(proto, images(), activation_range=text, **settings)
        assert found["x"][1] == pytest.approx(share * np.array(whole["x"][1]))
    assert "part[:SHARE]" in ranges.usage("activations")
    with pytest.raises(UsageError, match="part:SHARE with 0 < SHARE"):
        Options(activation_range="part:-1")


# --- ranges from BatchNorm --------------------------------------------------------------------------------------

BATCHNORM = """(float[1,3,4,4] x) => (float[?,?,?,?] y) <float[5,3,1,1] w, float[5] g, float[5] h, float[5] m,
    float[5] var, float[2,5,1,1] v, float lo, float hi> {{ a = Conv(x, w) n = BatchNormalization(a, g, h, m, var)
    {body} }}"""
BEHIND = {
    "nothing": ("y = Conv(n, v)", (-np.inf, np.inf)),
    "Relu": ("r = Relu(n) y = Conv(r, v)", (0, np.inf)),
    "Clip": ("r = Clip(n, lo, hi) y = Conv(r, v)", (-0.5, 2)),
}


def batchnorm(case, **values):
    return model(BATCHNORM.format(body=BEHIND[case][0]), check=False, lo=-0.5, hi=2, **values)


@pytest.mark.parametrize("alpha", [6, 2.5])
@pytest.mark.parametrize("case", BEHIND)
def test_ranges_from_batchnorm_are_the_formula(case, alpha):
    rng = np.random.default_rng(0)
    gamma, beta = rng.uniform(-1, 1, 5), rng.uniform(-1, 1, 5)
    proto = batchnorm(case, g=gamma, h=beta, var=1)
    bounds = BEHIND[case][1]
    lo = np.clip((beta - alpha * np.abs(gamma)).min(), *bounds)
    hi = np.clip((beta + alpha * np.abs(gamma)).max(), *bounds)
    expected = QuantParams.from_range(lo, hi, Options().activation)
    text = "bn" if alpha == 6 else f"bn:{alpha}"
    tensors = params_of(proto, samples(proto), activation_range=text)
    _, scale, zero_point = tensors.get("r") or tensors.get("n") or tensors["a"]
    assert scale == pytest.approx([float(expected.scale)], rel=1e-4)
    assert zero_point == (int(expected.zero_point),)


def prepared(proto):
    model_ = wrapped(proto)
    Normalize().apply(model_, Context())
    FoldBatchNorm().apply(model_, Context())
    plan = Options(force_int_kernels=True)
    return run_passes(placement(plan), model_, Context())[0]


def test_tensors_with_moments_need_no_data(monkeypatch):
    proto = batchnorm("Relu")
    measured = []
    collect = set_activation_ranges.collect_tensors
    monkeypatch.setattr(
        set_activation_ranges, "collect_tensors", lambda m, names, *a: measured.extend(names) or collect(m, names, *a)
    )
    model_ = prepared(proto)
    outcome = SetActivationRanges("bn").apply(model_, context(proto))
    assert measured == ["x", "y"]  # not r
    assert [(s.where, s.reason) for s in outcome.skips] == [
        (name, "no BatchNorm moments are known for it: its range comes from data") for name in ("x", "y")
    ]
    assert outcome.notes == ("tensors measured: 2",)
    assert not SetActivationRanges("mse").apply(prepared(proto), context(proto)).skips


def test_batchnorm_for_all_that_has_it_works_without_any_data():
    """The input's range by override, the output's from the Softmax behind it: nothing is left to measure."""
    proto = batchnorm("Relu")
    model_ = prepared(proto)
    for name in ("x", "y"):
        model_.quantizers[name] = replace(model_.quantizers[name], fixed=(-1.0, 1.0))
    SetActivationRanges("bn").apply(model_, Context())  # no feeds
    assert all(q.params is not None for n, q in model_.quantizers.items() if n in "xry")


def test_batchnorm_for_one_tensor_by_override():
    proto = batchnorm("Relu")
    every = params_of(proto, samples(proto), activation_range="bn:3")
    one = params_of(proto, samples(proto), overrides=(Override(tensor="r", method="bn:3"),))
    none = params_of(proto, samples(proto))
    assert one["r"] == every["r"] != none["r"]
    assert one["x"] == every["x"] == none["x"]


def test_alpha_for_logits():
    """`bn:ALPHA` as the method of logits is obeyed as it stands."""
    proto = model(
        "(float[N,3,1,1] x) => (float[N,?] y) <float[5,3,1,1] w, float[5] g, float[5] h, float[5] m, float[5] var>"
        " { a = Conv(x, w) n = BatchNormalization(a, g, h, m, var) f = Flatten(n) y = Softmax(f) }",
        g=1,
        h=0,
        var=1,
    )
    data = images(8)[:, :, :1, :1]
    for alpha in (2, 5):
        found = params_of(proto, data, logits_range=f"bn:{alpha}")
        _, scale, _ = found.get("n") or found["a"]
        assert scale == pytest.approx([2 * alpha / 255], rel=1e-4)
