"""Detectors and the like from end to end: quantized, measured and debugged by what lies in front of a selection."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from detectors import detector, images
from graphs import model
from quantized import samples

import onnxq
from onnxq.options import Options
from onnxq.report import text
from onnxq.report.html import to_html
from onnxq.report.markdown import to_markdown


@pytest.fixture(scope="module")
def result() -> Any:
    return onnxq.quantize(detector("NonMaxSuppression"), images(16))


def test_quality_is_that_of_boxes_and_scores(result: Any) -> None:
    quality = json.loads(result.report.to_json())["quality"]
    found = {(q["output"], q["compared_at"], q["in_front_of"]) for q in quality}
    assert found == {("y", "b", "NonMaxSuppression"), ("y", "ks", "NonMaxSuppression")}
    assert all(q["sqnr_db"] > 20 and q["top1_agreement"] is None for q in quality)
    assert not any("not compared" in warning or "far from" in warning for warning in result.report.warnings)


def test_reports_say_where_outputs_were_compared(result: Any) -> None:
    for words in (text.to_text(result.report), to_html(result.report), to_markdown(result.report).replace("`", "")):
        assert "b (in front of NonMaxSuppression)" in words
        assert "top-1" not in words


def test_steps_are_chosen_in_front_of_the_selection(result: Any) -> None:
    compared = [step for step in result.report.steps if step.status in ("kept", "dropped")]
    assert compared
    assert all(step.before_db > 20 for step in compared)


def test_a_destroyed_network_is_warned_of() -> None:
    destroyed = onnxq.quantize(
        detector("NonMaxSuppression"), images(16), preset="w2a2", rounding="nearest", cle="off"
    ).report
    warnings = [w for w in destroyed.warnings if w.startswith("output 'y' is far from the float model's (SQNR ")]
    assert any("at 'b', in front of NonMaxSuppression)" in warning for warning in warnings)


def test_what_is_unknown_is_said_everywhere() -> None:
    proto = model(
        "(float[N,3] x) => (float[N,5] y, int64[N,3] i) <float[3,5] w> { y = MatMul(x, w) i = Cast<to=7>(x) }"
    )
    report = onnxq.quantize(proto, samples(proto, 8)).report
    quality = {q["output"]: q for q in json.loads(report.to_json())["quality"]}
    assert (quality["i"]["sqnr_db"], quality["i"]["is_unknown"], quality["y"]["is_unknown"]) == (None, True, False)
    assert "output i: quality unknown" in text.to_text(report)
    assert "output `i`: unknown" in to_markdown(report)
    assert "nothing of output i could be compared" in to_html(report)
    assert any("its quality is unknown" in warning for warning in report.warnings)


@pytest.mark.parametrize("end", ["NonMaxSuppression", "TopK", "GatherND"])
def test_evaluate_and_compare_look_in_front_of_the_selection(end: str) -> None:
    proto, fresh = detector(end), images(6, first=100)
    quantized = onnxq.quantize(proto, images(16)).model
    found = onnxq.evaluate(quantized, fresh, reference=proto)
    assert [figure.name for figure in found.figures] == ["SQNR"]
    assert found.figures[0].value is not None
    assert found.figures[0].value > 20
    comparison = onnxq.compare(proto, quantized, fresh)
    assert {"b", "ks"} & {t.tensor for t in comparison.tensors}
    assert not {"y", "g", "v"} & {t.tensor for t in comparison.tensors}
    assert "selects" in comparison.unmatched["y"]


def test_sensitivity_and_debug_measure_in_front_of_the_selection() -> None:
    proto, feeds = detector("NonMaxSuppression"), images(8)
    analysis = onnxq.sensitivity(proto, feeds, options=Options(rounding="nearest"))
    assert (analysis.metric, analysis.float_score, analysis.off) == ("SQNR", np.inf, np.inf)
    assert 20 < analysis.on < 80
    assert all(effect.only > 20 for effect in analysis.measured)
    assert any(effect.only < 80 for effect in analysis.measured)
    found = onnxq.debug(proto, feeds, options=Options(rounding="nearest"), goal=onnxq.AccuracyTarget(score=20.0))
    assert found.reached
    assert 20 < found.score < 80


def test_activations_that_spoil_what_is_selected_from_get_16_bits() -> None:
    proto = model("""(float[N,8] x) => (int64[N,2] i) <float[8,8] w, float[8,8] v, int64[1] k, float[8] big>
        { a = Gemm(x, w)  b = Mul(a, big)  c = Relu(b)  d = Gemm(c, v)  u, i = TopK(d, k) }""",
        k=2, big=np.float32([1, 1, 1, 1, 1, 1, 1, 400]))  # fmt: skip
    report = onnxq.quantize(proto, samples(proto, 16), fallback="a16", rounding="nearest").report
    (step,) = [step for step in report.steps if step.name == "Fallback"]
    assert any("outputs at" in note and "inf" not in note for note in step.notes)


def test_no_top_1_is_printed_for_embeddings_boxes_and_token_states() -> None:
    texts = {
        "(float[N,5] x) => (float[N,9] embedding) <float[5,9] w> { embedding = Gemm(x, w) }": False,
        "(float[N,5] x) => (float[N,9] y) <float[5,9] w> { a = Gemm(x, w)  y = Tanh(a) }": False,
        "(float[N,5] x) => (float[N,4] a, float[N,9] b) <float[5,4] w, float[5,9] v> { a = Gemm(x, w) b = Gemm(x, v) }":
        False,
        "(float[1,7,5] x) => (float[7,9] y) <float[5,9] w, int64[1] zero> { s = Squeeze(x, zero)  y = MatMul(s, w) }":
        False,
        "(float[N,5] x) => (float[N,9] y) <float[5,9] w> { y = Gemm(x, w) }": True,
    }  # fmt: skip
    for graph, printed in texts.items():
        proto = model(graph, **({"zero": 0} if "zero" in graph else {}))
        quality = onnxq.quantize(proto, samples(proto, 8)).report.quality
        assert any(q.top1_agreement is not None for q in quality) == printed, graph
        figures = onnxq.evaluate(proto, samples(proto, 8), reference=proto).figures
        assert any(figure.name == "top-1 agreement" for figure in figures) == printed, graph


def test_layers_behind_a_selection_of_another_size_each_time_are_left_out_of_the_details() -> None:
    proto = model("""(float[N,5] x) => (float[?,3] y) <float[5,9] w, float[1,3] v, int64[1] one, float bound>
        { a = Gemm(x, w)  m = Greater(a, bound)  i = NonZero(m)  t = Transpose(i)  g = GatherND(a, t)
          u = Unsqueeze(g, one)  y = MatMul(u, v) }""", check=False, one=1, bound=0.05)  # fmt: skip
    report = onnxq.quantize(proto, samples(proto, 4, 60), details=True, force_int_kernels=True).report
    assert report.layers[0].node == "Gemm_a"
    assert [(q.output, q.compared_at) for q in report.quality] == [("y", "a")]


def test_a_rewrite_that_moves_ties_of_a_selection_is_no_damage() -> None:
    """Two channels are equal but for the last bit, which folding BatchNormalization changes."""
    once, std = np.random.default_rng(0).standard_normal((1, 4, 1)), np.float64([0.37, 0.11])
    proto = model("""(float[N,4,64] x) => (float[N,1,64] y) <float[2,4,1] w, float[2,4,1] v, float[2] gamma,
        float[2] beta, float[2] mean, float[2] var, int64[1] k>
        { c = Conv(x, w)  s = BatchNormalization<epsilon=0.0>(c, gamma, beta, mean, var)  m, i = TopK<axis=1>(s, k)
          d = Conv(x, v)  y = GatherElements<axis=1>(d, i) }""",
        check=False, w=np.repeat(once, 2, 0), gamma=std, var=std**2, mean=0.7, beta=0, k=1)  # fmt: skip
    report = onnxq.quantize(proto, samples(proto, 16), rounding="nearest").report
    assert [step.status for step in report.steps if step.name == "FoldBatchNorm"] == ["done"]
    assert [q.compared_at for q in report.quality] == ["d", "s"]
