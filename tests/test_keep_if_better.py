"""Steps are kept where the quantized model does not get worse, and dropped where it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from graphs import feeds, model, wrapped
from onnx import ModelProto, TensorProto, numpy_helper

import onnxq
from onnxq.calibration import channel_facts
from onnxq.data import Feed
from onnxq.execution.layerwise import planned_layers
from onnxq.graph.model import Model
from onnxq.passes.base import Context, Outcome
from onnxq.passes.round_weights import RoundWeights
from onnxq.pipeline import correct, equalize
from onnxq.pipeline.keep_if_better import QualityMeasure, keep_if_better
from onnxq.report import Step
from onnxq.thresholds import TOLERANCE_DB


@dataclass(frozen=True)
class Perturb:
    """Adds noise to the weight."""

    noise: float
    title: ClassVar[str] = "Perturb"
    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        weight = model.graph.tensors()["w"]
        weight.values = np.asarray(np.rint(weight.values * 16) / 16 + self.noise, np.float32)
        return Outcome(1)


def rounded(copy: Model) -> object:
    weight = copy.graph.tensors()["w"]
    weight.values = np.asarray(np.rint(weight.values * 16) / 16, np.float32)
    return copy.to_proto()


def test_a_step_that_hurts_is_dropped() -> None:
    proto = model("(float[N,5] x) => (float[N,3] y) <float[5,3] w> { y = Gemm(x, w) }")
    quality = QualityMeasure(proto, [Feed(feeds(proto, seed=i), None, "") for i in range(3)])
    start = wrapped(proto)
    result, tried = keep_if_better([Perturb(0.0), Perturb(1.0)], start, Context(), rounded, quality)  # type: ignore[arg-type]
    assert [step.kept for step in tried] == [True, False]
    assert tried[0].before_db == tried[0].after_db == tried[1].before_db > tried[1].after_db  # type: ignore[operator]
    assert "dropped" in tried[1].notes[0]
    assert result is not start
    assert quality.db(proto) == np.inf


@dataclass(frozen=True)
class Rewrite:
    """Leaves the function as it is."""

    title: ClassVar[str] = "Rewrite"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        return Outcome(1)


@dataclass(frozen=True)
class Correct(Rewrite):
    """Says that it changes the function."""

    preserves: ClassVar[bool | None] = False


UNKNOWN = """(float[N,5] x) => (int64[?,N] i) <float[5,3] w, int64 n> { i = Loop(n, , ) <body = body (int64 t, bool go)
    => (bool on, int64[N] k) { on = Identity(go)  y = Gemm(x, w)  k = ArgMax<axis=1,keepdims=0>(y) }> }"""


def test_where_nothing_is_comparable_only_steps_that_preserve_the_function_are_kept() -> None:
    proto = model(UNKNOWN, n=2)
    quality = QualityMeasure(proto, [Feed(feeds(proto, seed=i), None, "") for i in range(3)])
    start = wrapped(proto)
    _, (first, second) = keep_if_better([Correct(), Rewrite()], start, Context(), Model.to_proto, quality)
    assert quality.db(proto) is None
    assert (first.before_db, first.after_db, first.kept) == (None, None, False)
    assert first.notes[0] == "no output can be compared; dropped: whether it makes the result better is unknown"
    assert (second.kept, second.notes[0]) == (True, "no output can be compared; kept: it preserves the function")


def test_steps_are_compared_in_front_of_what_selects() -> None:
    proto = model("(float[N,5] x) => (int64[N,3] i) <float[5,3] w> { y = Gemm(x, w) i = Cast<to=7>(y) }")
    quality = QualityMeasure(proto, [Feed(feeds(proto, seed=i), None, "") for i in range(3)])
    _, tried = keep_if_better([Perturb(0.0), Perturb(1.0)], wrapped(proto), Context(), rounded, quality)  # type: ignore[arg-type]
    assert [step.kept for step in tried] == [True, False]
    assert quality.db(proto) == np.inf


def test_the_share_of_a_bias_in_the_noise() -> None:
    """Errors of two channels, one constant, one that varies from sample to sample: squares 4 and 1 on average."""
    proto = model("(float[N,2,50] x) => (float[N,2,50] y) <float[2,1] c> { y = Add(x, c) }", c=[[0.0], [0.0]])
    rng = np.random.default_rng(0)
    given = [Feed({"x": np.float32(3 + rng.standard_normal((1, 2, 50)))}, None, "") for _ in range(16)]
    noisy = model(
        "(float[N,2,50] x) => (float[N,2,50] y) <float[2,1] c, float[2,1] f> { s = Mul(x, f) y = Add(s, c) }",
        c=[[2.0], [-3.0]], f=[[1.0], [2.0]],
    )  # fmt: skip
    assert QualityMeasure(proto, given).bias_share(noisy) == pytest.approx(0.8, abs=0.03)
    assert QualityMeasure(proto, given).bias_share(proto) == 0


POOLED = """(float[N,4,12] x) => (float[N,6] y) <float[8,4,3] w, float[8] b, float[6,8,3] v, float[6] d, int64[1] axes>
    { a = Conv<pads=[1,1]>(x, w, b) r = Relu(a) c = Conv<pads=[1,1]>(r, v, d) s = Relu(c)
      y = ReduceMean<keepdims=0>(s, axes) }"""


def test_empirical_bias_correction_is_tried_where_a_bias_counts_and_kept_where_it_is_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proto = model(POOLED, axes=[2], opset=18)
    x = np.concatenate([feeds(proto, seed=i, free=1)["x"] for i in range(40)])
    options: dict[str, Any] = {"preset": "w4a8", "rounding": "nearest", "force_int_kernels": True}
    monkeypatch.setattr(correct, "BIAS_SHARE", -1.0)
    found = {s.name: s for s in onnxq.quantize(proto, x, **options).report.steps}
    step = found["CorrectBiasEmpirically"]
    assert step.before_db is not None
    assert step.after_db is not None
    assert (step.status == "kept") == (step.after_db > step.before_db + TOLERANCE_DB)
    assert any("of the outputs' noise was a bias" in note for note in step.notes)
    monkeypatch.setattr(correct, "BIAS_SHARE", 1.1)
    assert "CorrectBiasEmpirically" not in {s.name for s in onnxq.quantize(proto, x, **options).report.steps}
    monkeypatch.undo()
    off = onnxq.quantize(proto, x, **options, bias_correction="off").report.steps
    assert not {"CorrectBias", "CorrectBiasEmpirically"} & {s.name for s in off}


def test_where_rounding_brings_nothing_biases_are_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoundWeights, "apply", Spoil.apply)
    found = steps(rounding="gptq", preset="w4a8")
    assert (found["RoundWeights"].status, found["CorrectBias"].status) == ("dropped", "kept")


class Spoil:
    def apply(self, model: Model, context: Context) -> Outcome:
        for layer in planned_layers(model):
            layer.weight.values = np.asarray(layer.weight.values * 0, np.float32)
        return Outcome(1)


NET = """(float[N,4,6] x) => (float[N,5,6] y) <float[8,4,3] w, float[8] b, float[5,8,3] v>
    { a = Conv<pads=[1,1]>(x, w, b) r = Relu(a) y = Conv<pads=[1,1]>(r, v) }"""


def steps(**options: Any) -> dict[str, Step]:
    proto = model(NET)
    x = np.concatenate([feeds(proto, seed=i, free=1)["x"] for i in range(12)])
    """The first step of each name."""
    return {s.name: s for s in reversed(onnxq.quantize(proto, x, force_int_kernels=True, **options).report.steps)}


@pytest.mark.parametrize(("clear", "rounded"), [(1000.0, True), (-1000.0, False)])
def test_at_8_bits_rounding_is_optimised_where_nearest_is_not_clear(
    clear: float, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for box in (equalize, correct):
        monkeypatch.setattr(box, "CLEAR_DB", clear)
    found = steps()
    assert ("RoundWeights" in found) == rounded
    assert found["CorrectBias"].kept != rounded
    assert any("dB: GPTQ instead" in note for note in found["CorrectBias"].notes) == rounded
    assert "RoundWeights" not in steps(rounding="nearest")
    few_bits = steps(preset="w8a4")
    assert any("dB: coordinate descent instead" in note for note in few_bits["CorrectBias"].notes) == rounded


def test_where_nearest_is_below_the_noise_floor_steps_are_compared_with_optimised_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    for floor in (-1000.0, 1000.0):
        monkeypatch.setattr(equalize, "NOISE_FLOOR_DB", floor)
        compared.append(steps(preset="w3a8")["EqualizeLayers"].before_db)
        assert steps(preset="w3a8", rounding="nearest")["EqualizeLayers"].before_db == compared[0]
    assert compared[1] != compared[0]


@dataclass(frozen=True)
class Fitted(Perturb):
    """Adds as much noise as it has samples."""

    title: ClassVar[str] = "Fitted"

    def apply(self, model: Model, context: Context) -> Outcome:
        count = len(list(context.feeds))
        return super().apply(model, context) if count else Outcome()


def test_a_step_is_tried_on_few_samples_first() -> None:
    proto = model("(float[N,5] x) => (float[N,3] y) <float[5,3] w> { y = Gemm(x, w) }")
    some = [Feed(feeds(proto, seed=i), None, "") for i in range(3)]
    quality, seen = QualityMeasure(proto, some), list[int]()

    @dataclass(frozen=True)
    class Watched(Fitted):
        def apply(self, model: Model, context: Context) -> Outcome:
            seen.append(len(list(context.feeds)))
            return super().apply(model, context)

    def run(noise: float, few: int) -> list[int]:
        seen.clear()
        every, first = Context(feeds=some), Context(feeds=some[:few])
        keep_if_better([Watched(noise)], wrapped(proto), every, rounded, quality, first)  # type: ignore[arg-type]
        return list(seen)

    assert run(0.0, 1) == [1, 3]  # no worse: once more on all
    assert run(1.0, 1) == [1]
    assert run(0.0, 0) == [0]  # nothing to do


def test_the_quality_of_the_start_is_asked_for_once_and_only_where_a_step_does_something() -> None:
    proto = model("(float[N,5] x) => (float[N,3] y) <float[5,3] w> { y = Gemm(x, w) }")
    quality, asked = QualityMeasure(proto, [Feed(feeds(proto), None, "")]), list[float]()

    def before() -> float:
        asked.append(50.0)
        return 50.0

    nothing = Context()
    for context, times in ((nothing, 0), (Context(feeds=quality.feeds), 1)):
        tried = [Fitted(1.0), Fitted(2.0)]
        _, found = keep_if_better(tried, wrapped(proto), context, rounded, quality, None, before)  # type: ignore[arg-type]
        assert len(asked) == times
        assert all(step.before_db == (50.0 if times else None) for step in found)


def test_default_effort_tries_equalization_per_channel_only_where_outputs_are_not_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("RemoveDeadChannels", "EqualizeLayers", "AbsorbBias")
    for clear, status in ((-1000.0, "not run"), (1000.0, "tried")):
        monkeypatch.setattr(equalize, "CLEAR_DB", clear)
        found = steps()
        assert {found[name].status == "not run" for name in names} == {status == "not run"}
        assert "not run" not in {steps(per_channel=False)[name].status for name in names}
        assert "not run" not in {steps(effort="high")[name].status for name in names}


def test_with_few_bits_it_is_8_bits_that_say_whether_outputs_are_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    names, largest, measure = ("RemoveDeadChannels", "EqualizeLayers", "AbsorbBias"), list[int](), QualityMeasure.db

    def db(self: QualityMeasure, quantized: ModelProto) -> float | None:
        weights = [t for t in quantized.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
        largest.append(max(int(np.abs(numpy_helper.to_array(weight)).max()) for weight in weights))
        return measure(self, quantized)

    monkeypatch.setattr(QualityMeasure, "db", db)
    for clear in (-1000.0, 1000.0):
        monkeypatch.setattr(equalize, "CLEAR_DB", clear)
        largest.clear()
        found = steps(preset="w3a8", exceptions=0)
        assert {found[name].status == "not run" for name in names} == {clear < 0}
        assert largest[0] == 127
        assert max(largest[1:]) <= 4
        assert ("with a scale and 8 bits for each channel" in found["EqualizeLayers"].notes[0]) == (clear < 0)


def test_effort_fast_measures_no_quality_but_that_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QualityMeasure, "db", lambda *_: pytest.fail("a trial"))
    for options in ({}, {"per_channel": False}, {"preset": "w4a8"}, {"rounding": "gptq"}, {"smoothquant": 0.5}):
        found = steps(effort="fast", **options)
        assert ("RoundWeights" in found) == ("rounding" in options)
        assert ("CorrectBias" in found) != ("rounding" in options)
        assert (found["EqualizeLayers"].status == "not run") == options.get("per_channel", True)


def test_means_for_bias_correction_come_from_the_pass_that_sets_ranges() -> None:
    proto = model(NET)
    x = np.concatenate([feeds(proto, seed=i, free=1)["x"] for i in range(24)])
    labels = list[str]()
    result = onnxq.quantize(
        proto, x, force_int_kernels=True, effort="fast", progress=lambda label, done, total: labels.append(label)
    )
    assert next(step for step in result.report.steps if step.name == "CorrectBias").changed
    assert "calibrating" in labels
    assert "measuring means" not in labels


def test_what_weights_are_weighed_by_comes_from_the_pass_that_sets_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_facts, "collect_tensors", lambda *_: pytest.fail("a pass of its own"))
    found = steps(per_channel=False, cle="off", dead_channels=False, absorb=False)
    assert found["RefineWeightRanges"].changed
