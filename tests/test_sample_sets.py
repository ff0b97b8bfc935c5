"""Fit, choose, report: three sets of samples, no sample in two of them; where there are too few, the report says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import feeds, model

import onnxq
from onnxq.data import CalibrationData, InputSpec
from onnxq.pipeline.samples import Division, divide

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


@pytest.mark.parametrize("count", [16, 17, 100, 256, 1000])
def test_no_sample_is_in_two_sets_and_none_is_lost(count: int) -> None:
    division = divide(numbered(count))
    fitting, choosing, reporting = sets(division)
    assert division.is_divided
    assert fitting | choosing | reporting == set(range(count))
    assert len(fitting) + len(choosing) + len(reporting) == count
    assert len(choosing) == len(reporting) == min(count // 8, 32)
    trial = set(numbers(division.trial))
    assert trial <= fitting
    assert len(trial) == min(len(fitting), 32)
    assert sets(divide(numbered(count))) == [fitting, choosing, reporting]


def test_each_set_has_samples_from_everywhere() -> None:
    """Data is often sorted by class."""
    for part in sets(divide(numbered(1000))):
        assert min(part) < 60
        assert max(part) > 940


@pytest.mark.parametrize("count", [1, 2, 7, 15])
def test_too_few_samples_are_one_set_whose_halves_compare_trials(count: int) -> None:
    division = divide(numbered(count))
    assert not division.is_divided
    assert numbers(division.fitting) == numbers(division.reporting) == list(range(count))
    trial, choosing = set(numbers(division.trial)), set(numbers(division.choosing))
    assert len(trial) == -(-count // 2)
    assert count == 1 or not trial & choosing


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
    assert (samples.fitting, samples.choosing, samples.reporting, samples.are_unseen) == (30, 5, 5, True)
    for text in (report.to_text(), report.to_markdown(), report.to_html(), report.to_json()):
        assert "on 5 samples held out" in text
    assert "samples: 30 to calibrate, 5 to choose, 5 to report" in report.to_text()


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
    assert "on 32 random inputs" in report.to_text()
