"""Metrics: one number for a model, higher is better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import model
from quantized import quantized, samples

from onnxq import OnnxqError
from onnxq.data import CalibrationData
from onnxq.evaluation.custom_metric import parse_metric
from onnxq.evaluation.metric import (
    AccuracyMetric,
    AgreementMetric,
    KlMetric,
    SqnrMetric,
    float_outputs,
    measure,
)
from onnxq.numeric.metrics import class_scores, finite, kl_divergence, ranks
from onnxq.pipeline.keep_if_better import QualityMeasure
from onnxq.pipeline.open_inputs import input_specs

MLP = """(float[N,3] x) => (float[N,7] y) <float[3,5] w, float[5] b, float[5,7] v>
    { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v) }"""
FIXED = MLP.replace("N,", "4,")


def feeds(proto, count=6):
    return list(CalibrationData(samples(proto, count), input_specs(proto)))


def classes(proto, given):
    return tuple(int(c) for outputs in float_outputs(proto, given, 1) for c in outputs["y"].argmax(1))


def test_sqnr_is_what_steps_are_compared_by():
    proto = model(MLP)
    given, other = feeds(proto), quantized(proto, samples(proto, 6))
    value = measure(other, given, SqnrMetric(), float_outputs(proto, given, 1), 2)
    assert value == QualityMeasure(proto, given).db(other)
    assert 20 < value < 70


@pytest.mark.parametrize("metric", [SqnrMetric(), AgreementMetric(), KlMetric()])
def test_the_float_model_is_the_best(metric):
    proto = model(MLP)
    given = feeds(proto)
    references = float_outputs(proto, given, 1)
    best = measure(proto, given, metric, references, 1)
    assert best == {"SQNR": np.inf, "top-1 agreement": 100.0, "-KL": 0.0}[metric.name]
    assert measure(quantized(proto, preset="w2a8"), given, metric, references, 1) < best
    with pytest.raises(OnnxqError, match="compares with the float model"):
        measure(proto, given, metric, None, 1)


def test_accuracy_counts_labels_among_the_best():
    proto = model(MLP)
    given = feeds(proto)
    right = classes(proto, given)
    wrong = (*right[:-1], (right[-1] + 1) % 7)
    assert measure(proto, given, AccuracyMetric(right), None, 2) == 100
    assert measure(proto, given, AccuracyMetric(wrong), None, 1) == pytest.approx(500 / 6)
    assert measure(proto, given, AccuracyMetric(wrong, 6), None, 1) >= 500 / 6
    with pytest.raises(OnnxqError, match="cannot be measured"):
        measure(proto, given, AccuracyMetric(right, 7), None, 1)


def test_rows_that_fill_up_a_batch_do_not_count():
    proto = model(FIXED)
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    given = list(CalibrationData(x, input_specs(proto)))
    assert [feed.rows for feed in given] == [4, 2]
    right = classes(proto, given)
    assert len(right) == 6
    assert len(set(right)) > 1
    assert measure(proto, given, AccuracyMetric(right), None, 1) == 100
    assert measure(proto, given, AccuracyMetric((*right[:5], (right[5] + 1) % 7)), None, 1) == pytest.approx(500 / 6)


def test_labels_that_do_not_fit_are_refused():
    proto = model(MLP)
    given = feeds(proto)
    with pytest.raises(OnnxqError, match="one for each sample, got 5"):
        measure(proto, given, AccuracyMetric((0,) * 5), None, 1)
    with pytest.raises(OnnxqError, match="class 7 does not exist: output 'y' has scores of 7 classes, 0 to 6"):
        measure(proto, given, AccuracyMetric((7,) * 6), None, 1)


def test_several_outputs_of_scores_must_be_named():
    proto = model("(float[N,3] x) => (float[N,5] y, float[N,7] z) <float[3,5] w, float[3,7] v> "
                  "{ y = MatMul(x, w) z = MatMul(x, v) }")  # fmt: skip
    given = feeds(proto)
    with pytest.raises(OnnxqError, match="y, z do; name the right one"):
        measure(proto, given, AccuracyMetric((0,) * 6), None, 1)
    assert measure(proto, given, AccuracyMetric((6,) * 6, output="z"), None, 1) >= 0
    with pytest.raises(OnnxqError, match="no output 'q'"):
        measure(proto, given, AccuracyMetric((0,) * 6, output="q"), None, 1)


def test_outputs_without_class_scores():
    proto = model("(float[N,3,4,4] x) => (float[N,2,?,?] y) <float[2,3,3,3] w> { y = Conv(x, w) }")
    given = feeds(proto)
    references = float_outputs(proto, given, 1)
    with pytest.raises(OnnxqError, match="KL cannot be measured"):
        measure(proto, given, KlMetric(), references, 1)
    with pytest.raises(OnnxqError, match="and none does"):
        measure(proto, given, AccuracyMetric((0,) * 6), None, 1)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "my_metric.py").write_text(
        "def mean(outputs, labels):\n    assert labels is None\n    assert outputs['y'].shape == (6, 7)\n"
        "    return outputs['y'].mean()\n"
        "def hits(outputs, labels):\n    return (outputs['y'].argmax(1) == labels).mean()\n"
        "def bad(outputs, labels):\n    return outputs['z']\n"
        "def nan(outputs, labels):\n    return float('nan')\n"
    )
    return "my_metric"


def test_a_metric_of_the_users_own(module):
    proto = model(MLP)
    given = feeds(proto)
    stacked = np.concatenate([outputs["y"] for outputs in float_outputs(proto, given, 1)])
    assert measure(proto, given, parse_metric(f"{module}:mean"), None, 2) == pytest.approx(stacked.mean())
    right = classes(proto, given)
    assert measure(proto, given, parse_metric(f"{module}:hits", right), None, 1) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my_metric:bad", r"my_metric:bad failed: KeyError: 'z' \(my_metric.py, line 8\)"),
        ("my_metric:nan", "returned nan"),
        ("my_metric:nothing", "has no function 'nothing'"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("cosine", "expected sqnr, agreement, kl, top1, top5, a function"),
        ("top1", "needs `labels`"),
    ],
)
def test_a_metric_that_fails_says_so_in_one_line(module, text, message):
    proto = model(MLP)
    with pytest.raises(OnnxqError, match=message) as error:
        measure(proto, feeds(proto), parse_metric(text), None, 1)
    assert "\n" not in str(error.value)


def test_the_metric_that_is_meant_where_none_is_named():
    assert parse_metric(None) == SqnrMetric()
    assert parse_metric(None, (1, 2)) == AccuracyMetric((1, 2))
    assert parse_metric("top5", (1, 2)).name == "top-5 accuracy"


def test_ranks_follow_argmax():
    scores = np.array([[1, 3, 3, 0], [np.nan, 1, 2, 3], [0, 0, 0, 0]])
    assert ranks(scores, np.array([2, 3, 0])).tolist() == [1, 4, 0]
    assert ranks(scores, np.array([1, 0, 3])).tolist() == [0, 4, 3]


def test_kl_takes_logits_and_probabilities():
    logits = np.array([[1.0, 2.0, 4.0], [0.0, -3.0, 2.0]])
    others = logits + np.array([[0.5, 0, 0], [0, 0, -1]])
    p, q = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (logits, others))
    expected = (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(kl_divergence(logits, others), expected, rtol=1e-6)
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-6)
    assert np.isfinite(kl_divergence(p, np.eye(3)[:2])).all()  # zeros of an 8-bit grid


def test_kl_divergence_is_never_negative():
    """Of nearly equal distributions it is 0 but for rounding, which ends below 0 about as often as above."""
    logits = np.random.default_rng(0).standard_normal((200, 10))
    assert (kl_divergence(logits, logits * (1 + 1e-12)) >= 0).all()


def test_what_looks_like_class_scores():
    assert class_scores(np.zeros((2, 5, 1, 1), np.float32)).shape == (2, 5)
    for other in (np.zeros((2, 1), np.float32), np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), int), [1.0]):
        assert class_scores(other) is None


def test_figures_for_records():
    assert [finite(v) for v in (np.inf, -np.inf, 3.5)] == [None, -200.0, 3.5]
