"""The debugging workflow names planted faults, and repairs each with as little as it takes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import graphs
import numpy as np
import pytest
from onnx import ModelProto
from quantized import samples

import onnxq
from onnxq import Override
from onnxq.debugging import sanity_check as sanity
from onnxq.debugging.remedies import NAMES
from onnxq.debugging.root_cause import CauseKind
from onnxq.debugging.workflow import AccuracyTarget, DebugResult, changes, debug
from onnxq.errors import DataError, UsageError, VerificationError
from onnxq.options import Options

NET = """(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[5,3,3,3] a, float[5] ab, float[5,1,3,3] d, float[5] db,
         float[6,5,1,1] p, float[6] pb, float[4,6,1,1] c, float[1,5,1,1] zero> {
         t = Conv<pads=[1,1,1,1]>(x, a, ab)  nothing = Mul(t, zero)  gate = Sigmoid(t)  s = Add(gate, nothing)
         e = Conv<group=5, pads=[1,1,1,1]>(s, d, db)  r = Relu(e)
         u = Conv(r, p, pb)  q = Relu(u)  y = Conv(q, c) }"""
"""Sigmoid is not the only reader of `t`, whose grid would hold no more than it tells apart."""

BARE = Options(
    force_int_kernels=True, per_channel=False, cle="off", dead_channels=False, absorb=False, weight_range="minmax",
    bias_correction="off", rounding="nearest", activation_range="minmax",
)  # fmt: skip
"""W8A8 per tensor, with nothing done for accuracy."""

TARGET = AccuracyTarget(score=30.0)


def net(*faults: str) -> ModelProto:
    """Weights and biases of ordinary size; channel 2 of `s` is zero in any case.

    weights: channel 2 of `d`, which reads it, is a thousand times larger than the others.
    range: channel 4 of `t` lies at 1000, where Sigmoid makes 1 of it, as BERT has dimensions that no one needs.
    bias: channel 1 of `p` has a bias of -1e8, which Relu makes 0 of.
    """
    rng = np.random.default_rng(3)
    shapes = {"a": (5, 3, 3, 3), "ab": (5,), "d": (5, 1, 3, 3), "db": (5,), "p": (6, 5, 1, 1), "pb": (6,)}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    values["a"] /= 5
    values["a"][2] /= 100
    values["ab"][2] = -90.0
    if "weights" in faults:
        values["d"][2] *= 1000
    if "range" in faults:
        values["ab"][4] = 1000.0
    if "bias" in faults:
        values["pb"][1] = -1e8
    return graphs.model(NET, zero=0.0, **values)


@cache
def debugged(
    *faults: str, options: Options = BARE, without: tuple[str, ...] = (), closest: bool = False
) -> DebugResult:
    proto = net(*faults)
    return debug(proto, samples(proto, 8), goal=TARGET, options=options, without=without, closest=closest)


def named(found: DebugResult) -> dict[str, set[CauseKind]]:
    """The sensitive quantizers and their causes."""
    return {sensitive.name: {cause.kind for cause in sensitive.causes} for sensitive in found.sensitive_quantizers}


def score(proto: ModelProto, options: Options) -> float:
    """SQNR that the options give, in dB."""
    quality = onnxq.quantize(proto, samples(proto, 8), options=options).report.quality
    assert quality[0].sqnr_db is not None
    return quality[0].sqnr_db


def titles(found: DebugResult) -> list[str]:
    return [entry.title for entry in found.log]


def text_of(found: DebugResult, title: str) -> str:
    return next(entry.text for entry in found.log if entry.title == title)


# --- planted faults ---------------------------------------------------------------------------------------------


def test_a_sound_model_is_left_alone() -> None:
    found = debugged()
    assert found.reached
    assert found.options == BARE
    assert found.sensitive_quantizers == ()
    assert found.ranking is None
    assert "nothing to repair" in text_of(found, "Quantized with the given options")


def test_a_layer_with_an_outlier_channel() -> None:
    found = debugged("weights")
    assert named(found) == {"d": {"uneven channels"}}
    assert "channel 2 reaches" in found.sensitive_quantizers[0].causes[0].text
    assert "What misses the target alone: weights." in text_of(found, "Weights or activations")
    assert found.sensitive_quantizers[0].repaired_by == "empty channels that carry a constant"
    assert found.options == replace(BARE, dead_channels=True)


def test_an_activation_with_an_extreme_range() -> None:
    found = debugged("range")
    assert named(found) == {"t": {"extreme range"}}
    assert "What misses the target alone: activations." in text_of(found, "Weights or activations")
    assert found.sensitive_quantizers[0].repaired_by == "16 bits"
    assert found.options == replace(BARE, overrides=(Override("t", bits=16),))


def test_a_broken_bias() -> None:
    found = debugged("bias")
    assert named(found) == {"p": {"bias beyond 32 bits"}}
    assert "-1e+08 in channel 1" in found.sensitive_quantizers[0].causes[0].text
    assert found.sensitive_quantizers[0].repaired_by == "empty channels that carry a constant"
    assert found.options == replace(BARE, dead_channels=True)


def test_all_of_them_at_once() -> None:
    found = debugged("weights", "range", "bias")
    assert named(found) == {"p": {"bias beyond 32 bits"}, "d": {"uneven channels"}, "t": {"extreme range"}}
    assert "What misses the target alone: weights and activations." in text_of(found, "Weights or activations")
    assert all(sensitive.repaired_by for sensitive in found.sensitive_quantizers)
    assert found.options == replace(BARE, dead_channels=True, overrides=(Override("t", bits=16),))


@pytest.mark.parametrize("fault", ["weights", "range", "bias"])
def test_the_result_is_what_quantize_makes_of_the_options(fault: str) -> None:
    found, proto = debugged(fault), net(fault)
    assert score(proto, BARE) < TARGET.needed(np.inf)
    assert score(proto, found.options) == pytest.approx(found.score, abs=0.2)
    assert found.score >= 30


# --- other ways, where some are barred --------------------------------------------------------------------------


def test_a_broken_bias_without_the_first_remedy_gets_a_scale_for_each_channel_where_it_is_needed() -> None:
    found = debugged("bias", without=("dead-channels",))
    assert found.reached
    assert not found.options.per_channel
    assert found.options.overrides == (Override("p", per_channel=True),)
    assert any(title.startswith("Take back: one weight scale for each channel only for p") for title in titles(found))


def test_what_16_bits_do_not_help_becomes_float() -> None:
    found = debugged("bias", without=("dead-channels", "per-channel", "tensor-per-channel", "cle"))
    assert found.reached
    assert found.options.overrides == (Override("p", keep_float=True),)


def test_where_nothing_is_allowed_the_target_is_not_reached() -> None:
    barred = ("tensor-16-bit", "float")
    with pytest.raises(VerificationError, match="not reached; the closest: SQNR 2"):
        debugged("range", without=barred)
    found = debugged("range", without=barred, closest=True)
    assert not found.reached
    assert found.score < 30
    assert "this is the closest" in titles(found)[-1]


def test_a_remedy_that_does_not_help_is_not_kept() -> None:
    assert "not kept" in text_of(debugged("range"), "Remedy: cross-layer equalization, with absorption of high biases")


def test_a_range_method_is_tried_before_bits() -> None:
    """A fifth of the values is cut off: a wider range repairs that."""
    options = replace(BARE, overrides=(Override("q", method="percentile:80"),))
    found = debugged(options=options)
    assert named(found) == {"q": {"clipped values"}}
    assert [o.bits for o in found.options.overrides] == [None, None]
    assert found.options.overrides[-1].method in ("mse", "minmax")
    assert "range by" in found.sensitive_quantizers[0].repaired_by


# --- what it is measured by -------------------------------------------------------------------------------------

LOGITS = NET.replace("(float[N,4,8,8] y)", "(float[N,4] y)").replace("float[4,6,1,1] c", "float[4,6,1,1] c, float[4] m")
LOGITS = LOGITS.replace("y = Conv(q, c)", "z = Conv(q, c)  g = GlobalAveragePool(z)  v = Flatten(g)  y = Sub(v, m)")


def classifier(*faults: str) -> tuple[ModelProto, list[dict[str, np.ndarray]], list[int]]:
    """A model, samples that it takes for different classes, and its own best classes as labels."""
    weights = {**graphs.weights(net(*faults)), "m": np.zeros(4)}
    proto = graphs.model(LOGITS, **weights)
    data = [{"x": feed["x"] + shift} for feed, shift in zip(samples(proto, 60), np.linspace(-2, 2, 60), strict=True)]
    data = [{"x": feed["x"].astype(np.float32)} for feed in data]
    scores = np.concatenate([graphs.run(proto, feed)["y"] for feed in data])
    proto = graphs.model(LOGITS, **{**weights, "m": scores.mean(axis=0)})
    return proto, data, [int(k) for k in (scores - scores.mean(axis=0)).argmax(axis=1)]


ALLOWED = AccuracyTarget(drop=15.0)


def test_labels_decide_where_there_are_some() -> None:
    proto, data, labels = classifier("weights")
    found = debug(proto, data, labels=labels, options=BARE, goal=ALLOWED)
    assert (found.metric, found.float_score) == ("top-1 accuracy", 100.0)
    assert [sensitive.name for sensitive in found.sensitive_quantizers] == ["d"]
    assert 85.0 <= found.score <= 100.0
    assert (found.measures[0].reference, found.measures[0].result) == (100.0, found.score)
    assert "measured on the samples that chose the remedies" in found.text


def test_held_out_data_must_agree() -> None:
    proto, data, labels = classifier("weights")
    given: dict[str, Any] = {"options": BARE, "goal": ALLOWED, "labels": labels}
    found = debug(proto, data, evaluation=data, evaluation_labels=labels, **given)
    assert found.reached
    assert "On 60 held-out samples: top-1 accuracy" in found.text
    assert "no other model was measured on them" in found.text
    assert [measure.name for measure in found.measures] == ["top-1 accuracy", "top-1 accuracy, held-out data"]
    quantized = onnxq.quantize(proto, data, options=found.options).model
    wrong = [i for i, feed in enumerate(data) if graphs.run(quantized, feed)["y"].argmax() != labels[i]]
    few, few_labels = [data[i] for i in wrong], [labels[i] for i in wrong]
    given |= {"evaluation": few, "evaluation_labels": few_labels}
    allowed = {"dead-channels", "tensor-16-bit"}
    longer = debug(proto, data, without=set(NAMES) - allowed, **given)
    assert longer.measures[1].result >= 85.0 > 0.0 == score_of_first(longer)
    assert "models were measured on them, so that they had some influence on the choice" in longer.text
    barred = tuple(name for name in NAMES if name != "dead-channels")
    with pytest.raises(VerificationError, match=r"held-out samples: top-1 accuracy 0\.00 %, float 100\.00 %"):
        debug(proto, data, without=barred, **given)


def score_of_first(found: DebugResult) -> float:
    """The score on held-out data of the first model that reached the target on the calibration data."""
    text = next(e.text for e in found.log if "but not on held-out samples" in e.text)
    return float(text.split("but not on held-out samples: ")[1].split(" %")[0])


def test_labels_of_held_out_data_must_fit_too() -> None:
    proto, data, labels = classifier("weights")
    given: dict[str, Any] = {"options": BARE, "goal": ALLOWED, "labels": labels}
    with pytest.raises(DataError, match=r"0\.00 % top-1 accuracy on 60 samples"):
        debug(proto, data, evaluation=data, evaluation_labels=[(label + 1) % 4 for label in labels], **given)
    with pytest.raises(UsageError, match="`evaluation` has none"):
        debug(proto, data, evaluation=data, **given)


def test_agreement_is_the_measure_of_classifiers_without_labels() -> None:
    proto, data, _ = classifier()
    found = debug(proto, data, options=BARE, goal=AccuracyTarget(drop=10.0))
    assert (found.metric, found.float_score) == ("top-1 agreement", 100.0)


# --- sanity -----------------------------------------------------------------------------------------------------


def test_a_float_model_that_computes_no_numbers_is_reported_with_the_node() -> None:
    proto = graphs.model("(float[N,3] x) => (float[N,2] y) <float[3,2] w> { h = Log(x)  g = Neg(h)  y = MatMul(g, w) }")
    with pytest.raises(DataError, match=r"not-a-number in 'y' for sample \d, first in node 'h' \(Log\)"):
        debug(proto, samples(proto), options=BARE)


def test_labels_that_do_not_fit_are_reported() -> None:
    proto, data, labels = classifier()
    with pytest.raises(DataError, match="labels or preprocessing do not fit"):
        debug(proto, data, labels=[(label + 1) % 4 for label in labels], options=BARE)


def test_a_bypassed_network_that_is_not_the_float_model_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanity, "PRESERVED_DB", np.inf)
    proto = net()
    with pytest.raises(VerificationError, match="a step that prepares the network"):
        debug(proto, samples(proto), options=Options(per_channel=False, force_int_kernels=True), goal=TARGET)


def test_unknown_remedies_are_refused() -> None:
    with pytest.raises(UsageError, match="'magic' is unknown; expected one of dead-channels, cle"):
        debugged(without=("magic",))


def test_changes_are_listed_by_option() -> None:
    after = replace(BARE, cle="noise", overrides=(Override("t", bits=16),))
    assert changes(BARE, after) == "Changed: cle noise; tensor 't': bits 16."


def test_one_file_has_one_quality_figure() -> None:
    """`debug` and the report of the model that it leads to measure on the same samples."""
    proto = net()
    x = np.concatenate([feed["x"] for feed in samples(proto, 48)])
    found = debug(proto, x, metric="sqnr", options=BARE, closest=True)
    assert found.samples == 48
    report = onnxq.quantize(proto, x, options=found.options, evaluation_samples=found.samples).report
    # the report's is of a default session, that of debug of the arithmetic as written: accumulators round otherwise
    assert (report.samples.reporting, report.quality[0].sqnr_db) == (48, pytest.approx(found.score, abs=0.01))
    fewer = onnxq.quantize(proto, x, options=found.options).report
    assert (fewer.samples.reporting, fewer.quality[0].sqnr_db) != (48, report.quality[0].sqnr_db)
    assert "on 48 samples, among them those it was calibrated with" in report.to_text()
