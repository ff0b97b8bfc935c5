"""What is reported on was not fitted to; where there are too few samples for that, the report says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import feeds, model, run

import onnxq
from onnxq import cli
from onnxq.data import CalibrationData, InputSpec
from onnxq.graph import storage
from onnxq.numeric.metrics import Front, Sqnr, gain, kl_divergence, losses, standard_error
from onnxq.pipeline import pipeline
from onnxq.pipeline.samples import Division, divide, evaluated

X12 = InputSpec("x", np.dtype(np.float32), ("N", 12))
X = InputSpec("x", np.dtype(np.float32), ("N", 5))

NET = """(float[N,4,6] x) => (float[N,5,6] y) <float[8,4,3] w, float[8] b, float[5,8,3] v>
    { a = Conv<pads=[1,1]>(x, w, b) r = Relu(a) y = Conv<pads=[1,1]>(r, v) }"""


def numbered(count: int) -> CalibrationData:
    """Samples whose values say which they are."""
    return CalibrationData(np.float32(np.arange(5 * count)).reshape(count, 5), [X])


def numbers(data: CalibrationData) -> list[int]:
    return [int(feed.arrays["x"][0, 0]) // 5 for feed in data]


def sets(division: Division) -> list[set[int]]:
    return [set(numbers(part)) for part in (division.fitting, division.choosing, division.reporting)]


@pytest.mark.parametrize("count", [32, 33, 100, 256, 1000])
def test_no_sample_that_is_fitted_is_reported_on_and_none_is_lost(count: int) -> None:
    division = divide(numbered(count))
    fitting, choosing, reporting = sets(division)
    assert division.is_divided
    assert fitting | reporting == set(range(count))
    assert len(fitting) + len(reporting) == count
    assert choosing < reporting
    assert (len(choosing), len(reporting - choosing)) == (min(max(count // 8, 4), 32), min(count // 5, 64))
    assert division.limiting is not None
    limiting = set(numbers(division.limiting))
    assert limiting <= fitting
    assert len(limiting) == min(128 - len(reporting), len(fitting))
    trial = set(numbers(division.trial))
    assert trial <= fitting
    assert len(trial) == min(len(fitting), 32)
    assert sets(divide(numbered(count))) == [fitting, choosing, reporting]


def test_each_set_has_samples_from_everywhere() -> None:
    """Data is often sorted by class."""
    for part in sets(divide(numbered(1000))):
        assert min(part) < 60
        assert max(part) > 940


@pytest.mark.parametrize("count", [1, 2, 7, 31])
def test_too_few_samples_are_one_set_whose_halves_compare_trials(count: int) -> None:
    division = divide(numbered(count))
    assert not division.is_divided
    assert numbers(division.fitting) == numbers(division.reporting) == list(range(count))
    trial, choosing = set(numbers(division.trial)), set(numbers(division.choosing))
    assert len(trial) == -(-count // 2)
    assert count == 1 or not trial & choosing


def test_rows_of_sequences_make_them_many_enough() -> None:
    vectors = InputSpec("x", np.dtype(np.float32), ("N", "T", 5))
    for count, length, divided in ((20, 10, True), (20, 1, False), (4, 16, False)):
        data = CalibrationData([np.zeros((1, length, 5), np.float32)] * count, [vectors])
        assert divide(data).is_divided == divided


def test_a_part_of_the_data_is_read_again_and_again_and_drawn_from() -> None:
    part = numbered(100).part([3, 97, 3, 50])
    assert numbers(part) == numbers(part) == [3, 50, 97]
    assert len(part) == 3
    assert set(numbers(part.few(2))) < {3, 50, 97}
    assert part.numbers() == [3, 50, 97]


def quantized(count: int, **settings: Any) -> onnxq.report.Report:
    proto = model(NET)
    x = np.concatenate([feeds(proto, seed=i, free=1)["x"] for i in range(count)])
    return onnxq.quantize(proto, x, **settings).report


def test_the_report_says_which_samples_its_figures_are_from() -> None:
    report = quantized(40)
    samples = report.samples
    assert (samples.fitting, samples.choosing, samples.reporting, samples.are_unseen) == (27, 5, 13, True)
    for text in (report.to_text(), report.to_markdown(), report.to_html(), report.to_json()):
        assert "on 13 samples held out, or on all 40 where it is lower there" in text
    assert "samples: 27 to calibrate, 13 to report, 5 of them to choose" in report.to_text()


def test_samples_that_were_fitted_lower_the_figure_and_never_raise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model(NET)
    x = np.concatenate([feeds(proto, seed=i, free=1)["x"] for i in range(40)])
    settings = {"cle": "off", "absorb": False, "dead_channels": False, "rounding": "nearest", "bias_correction": "off"}
    (plain,) = onnxq.quantize(proto, x, **settings, evaluation_samples=40).report.quality
    (held_out,) = onnxq.quantize(proto, x, **settings, effort="high").report.quality
    assert held_out.sqnr_db is not None
    assert plain.sqnr_db is not None
    monkeypatch.setattr("onnxq.pipeline.build_report._limiting", lambda task, reporting: None)
    (alone,) = onnxq.quantize(proto, x, **settings).report.quality
    assert alone.sqnr_db is not None
    assert held_out.sqnr_db == pytest.approx(min(alone.sqnr_db, plain.sqnr_db))


def test_of_few_samples_the_report_says_that_the_result_was_calibrated_with_them() -> None:
    report = quantized(9)
    assert not report.samples.are_unseen
    for text in (report.to_text(), report.to_markdown(), report.to_html(), report.to_json()):
        assert "on the 9 samples it was calibrated with" in text
    assert "on the sample it was calibrated with" in quantized(1).to_text()


def test_what_was_held_out_sets_no_range() -> None:
    """Held-out samples a hundred times as large do not widen the ranges."""
    proto = model(NET)
    x = np.concatenate([feeds(proto, seed=i, free=1)["x"] for i in range(40)])
    data = CalibrationData(x, [InputSpec("x", np.dtype(np.float32), ("N", 4, 6))], seed=0)
    division = divide(data)
    before = onnxq.quantize(proto, x, cle="off", absorb=False, dead_channels=False, rounding="nearest").report.tensors
    for part in (division.choosing, division.reporting):
        x[part.numbers()] *= 100
    after = onnxq.quantize(proto, x, cle="off", absorb=False, dead_channels=False, rounding="nearest").report.tensors
    assert [t.scale for t in before] == [t.scale for t in after]


def test_without_calibration_data_nothing_is_said_to_be_held_out() -> None:
    proto = model(NET)
    report = onnxq.quantize(proto, data_free=True, synthetic=True, input_ranges=(("x", -1.0, 1.0),)).report
    assert (report.samples.fitting, report.samples.are_unseen) == (0, False)
    assert "on 8 random inputs" in report.to_text()


# --- evaluation data ------------------------------------------------------------------------------------------------

CLASSIFIER = """(float[N,12] x) => (float[N,10] y) <float[12,16] w, float[16] b, float[16,10] v>
    { a = Gemm(x, w, b) r = Relu(a) s = MatMul(r, v) y = Softmax(s) }"""


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A classifier with calibration data, and evaluation data whose labels the float model gets right but for ten."""
    proto = model(CLASSIFIER)
    storage.write(proto, tmp_path / "in.onnx")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "calib.npy", rng.standard_normal((40, 12)).astype(np.float32))
    x = rng.standard_normal((60, 12)).astype(np.float32)
    labels = run(proto, {"x": x})["y"].argmax(1)
    labels[::6] = (labels[::6] + 1) % 10
    np.save(tmp_path / "eval.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path


def command(place: Path, *options: object) -> Any:
    base = ["quantize", place / "in.onnx", place / "out.onnx", "--calib", place / "calib.npy", *options]
    return CliRunner().invoke(cli.main, [str(each) for each in base])


def test_evaluation_data_chooses_and_reports_with_accuracy_of_both_models(labelled: Path) -> None:
    options = ("--eval-data", labelled / "eval.npy", "--labels", labelled / "labels.npy")
    result = command(labelled, *options, "--report", labelled / "report.json")
    assert result.exit_code == 0, result.output
    found = json.loads((labelled / "report.json").read_text())
    assert (found["samples"]["fitting"], found["samples"]["choosing"], found["samples"]["reporting"]) == (40, 7, 53)
    assert "on 53 samples of the evaluation data" in result.output
    figures = {figure["name"]: figure for figure in found["measures"]}
    division = evaluated(
        CalibrationData(labelled / "calib.npy", [X12]), CalibrationData(labelled / "eval.npy", [X12], seed=0), None
    )
    right = [n % 6 != 0 for n in division.reporting.numbers()]
    assert figures["top-1 accuracy"]["reference"] == pytest.approx(100 * np.mean(right))
    assert f"top-1 accuracy: float {100 * np.mean(right):.5g} %, quantized" in result.output


def test_a_metric_needs_no_labels(labelled: Path) -> None:
    result = command(labelled, "--eval-data", labelled / "eval.npy", "--metric", "agreement")
    assert "top-1 agreement:" in result.output
    assert "float" not in result.output.split("top-1 agreement:")[1].splitlines()[0]


def test_few_evaluation_samples_choose_and_report_alike_and_the_report_says_so(labelled: Path) -> None:
    np.save(labelled / "few.npy", np.load(labelled / "eval.npy")[:9])
    result = command(labelled, "--eval-data", labelled / "few.npy")
    assert "on 9 samples of the evaluation data, which chose the steps as well" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "labels.npy"], "--labels goes with --eval-data or --auto-mixed"),
        (["--metric", "kl"], "--metric goes with --eval-data or --auto-mixed"),
        (["--eval-data", "eval.npy", "--labels", "calib.npy"], "expected integers"),
        (["--eval-data", "eval.npy", "--labels", "wrong.npy"], "expected 60 labels"),
        (["--eval-data", "eval.npy", "--labels", "outside.npy"], "class 10 does not exist"),
        (["--eval-data", "eval.npy", "--metric", "top1"], "--metric top1 needs --labels"),
        (["--eval-data", "missing"], "missing"),
    ],
)
def test_evaluation_data_that_does_not_fit_is_refused(
    labelled: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything long: the pipeline is not reached."""
    np.save(labelled / "wrong.npy", np.load(labelled / "labels.npy")[:59])
    np.save(labelled / "outside.npy", np.where(np.arange(60) == 7, 10, np.load(labelled / "labels.npy")))
    monkeypatch.chdir(labelled)
    monkeypatch.setattr(pipeline, "quantize", None)
    result = command(labelled, *options)
    assert result.exit_code not in (0, 1)
    assert message in result.output
    assert not (labelled / "out.onnx").exists()


def test_the_standard_error_is_that_of_other_draws() -> None:
    """Against the spread of the SQNR over many draws of as many samples."""
    rng = np.random.default_rng(0)
    every = [Sqnr(float(s), float(n)) for s, n in zip(rng.gamma(4, size=4000), rng.gamma(2, size=4000), strict=True)]

    def db(some: list[Sqnr]) -> float:
        return 10 * float(np.log10(sum(one.signal for one in some) / sum(one.noise for one in some)))

    draws = [every[i : i + 40] for i in range(0, 4000, 40)]
    spread = np.std([db(draw) for draw in draws])
    assert np.mean([standard_error(draw) for draw in draws]) == pytest.approx(spread, rel=0.15)
    assert standard_error(every[:1]) is None
    assert standard_error([Sqnr(1.0, 0.0)] * 3) is None


def test_rows_of_sequences_count() -> None:
    vectors = InputSpec("x", np.dtype(np.float32), ("N", "T", 5))
    lengths = [3, 4, 5, 8]
    assert CalibrationData([np.zeros((1, n, 5), np.float32) for n in lengths], [vectors]).rows() == 20
    ids = InputSpec("x", np.dtype(np.int64), ("N", "T"))
    assert CalibrationData([np.zeros((1, n), np.int64) for n in lengths], [ids]).rows() == 20
    assert numbered(7).rows() == 7


def test_the_standard_error_of_a_gain_is_that_of_other_draws_and_leaves_out_what_both_models_share() -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(500):
        hard = np.exp(random.normal(0, 0.5, 32))
        own = (share * np.exp(random.normal(0, 0.2, 32)) for share in (0.1, 0.08))
        before, after = ([{"y": float(n), "z": 0.0} for n in hard * each] for each in own)
        known = gain(before, after)
        assert known is not None
        found.append(known)
    gains, errors = np.array(found).T
    assert gains.mean() == pytest.approx(0.2, abs=0.01)
    assert errors.mean() == pytest.approx(gains.std(), rel=0.15)
    assert errors.mean() < 0.06, "hard samples are hard for both: alone, each loss is known to 0.09 of itself"


def test_a_gain_that_cannot_be_known() -> None:
    one = [{"y": 1.0}] * 3
    assert gain([], []) is None
    assert gain(one[:1], one[:1]) is None
    assert gain([{}, {}], one[:2]) is None
    assert gain([{"y": 0.0}] * 3, one) is None
    assert gain(one, [{"y": np.inf}] * 3) is None
    assert gain(one, one) == (0.0, 0.0)
    assert gain(one, [{"y": 0.0}] * 3) == (1.0, 0.0)


def test_classes_lose_by_their_divergence_and_other_outputs_by_their_squared_error() -> None:
    logits, other = np.array([[2.0, 1.0, 0.0]]), np.array([[2.0, 0.0, 1.0]])
    fronts = {"z": Front("p", axis=-1), "s": Front("t", interval=(-1.0, 1.0))}
    reference = {"z": logits, "p": logits, "s": np.array([3.0, 0.5]), "y": np.ones(2), "i": np.ones(1, int)}
    moved = {"z": other, "p": logits, "s": np.array([5.0, 0.0]), "y": np.zeros(2), "i": np.ones(1, int)}
    found = losses(reference, moved, fronts)
    assert found == {"z": pytest.approx(float(kl_divergence(logits, other)[0])), "s": 0.25, "y": 2.0}
    nchw = [np.moveaxis(z[None], -1, 1) for z in (logits, other)]  # 1 x 3 x 1
    assert losses({"z": nchw[0]}, {"z": nchw[1]}, {"z": Front("p", axis=1)})["z"] == pytest.approx(found["z"])
