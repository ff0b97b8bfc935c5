"""Which samples are for what: ranges and roundings are fitted to some, steps are kept or dropped by others, and the
quality that is printed comes from those that nothing was fitted to.

    n feeds of calibration data, n >= `LEAST_DIVIDED` with at least `LEAST_ROWS` rows:

    choosing     n / `CHOOSING_SHARE` of them, from `LEAST_CHOOSING` to `TRIAL_SAMPLES`, of the others
    reporting    these, and before them n / `REPORTING_SHARE`, `QUALITY_SAMPLES` at most; all one from each of as many
                 equal stretches
    fitting      the rest
    limiting     of the rest, what makes `COMPARED_SAMPLES` of the reporting ones: they may lower the quality

That steps were chosen on them hardly makes samples look better: a choice is among a handful of models, which all see
the same samples. MobileNets at w4a8 and w8a8: the choosing samples were at 27.4 and 22.8 dB on average over draws, the
others at 27.4 and 21.9, unseen images at 27.5 and 22.2.

With fewer there is one set: everything is fitted on all of it, of two halves one sets the ranges of trials and the
other compares them, and what is printed says that it comes from the samples that were calibrated with.

Evaluation data, where a user gives some, is divided into choosing and reporting samples likewise, and all calibration
data is fitted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..data import CalibrationData, spread
from ..thresholds import (
    CHOOSING_SHARE,
    COMPARED_SAMPLES,
    COUNTED_SAMPLES,
    LEAST_CHOOSING,
    LEAST_DIVIDED,
    LEAST_ROWS,
    QUALITY_SAMPLES,
    REPORTING_SHARE,
    TRIAL_SAMPLES,
)


@dataclass(frozen=True)
class Division:
    """The sets of one run. Each can be read again and again, always in the same order.

    fitting: what ranges, roundings, biases and statistics are fitted on.
    trial: of these, or beside the choosing ones, at most `TRIAL_SAMPLES`: on them a step is tried.
    choosing: what decides whether a step is kept; none of `trial` is among them, unless there is but one feed.
    reporting: what the quality is measured on, the choosing ones among them.
    limiting: of the fitting ones, those that the quality is measured on as well: it is no better than that of all.
    is_divided: whether nothing was fitted to the reporting samples; else all sets are made of the same samples.
    is_evaluated: whether choosing and reporting samples are the user's evaluation data.
    """

    fitting: CalibrationData
    trial: CalibrationData
    choosing: CalibrationData
    reporting: CalibrationData
    is_divided: bool
    is_evaluated: bool = False
    limiting: CalibrationData | None = None


def divide(data: CalibrationData) -> Division:
    """The sets that calibration data makes; the same ones for the same data."""
    total = len(data)
    if total < LEAST_DIVIDED or data.rows() < LEAST_ROWS:
        halves = data.few(2 * TRIAL_SAMPLES)
        one, other = (halves.part(range(i, len(halves), 2)) for i in (0, 1)) if total > 1 else (halves, halves)
        return Division(data, one, other, data.few(QUALITY_SAMPLES), is_divided=False)
    every = range(total)
    reporting = _drawn(every, total // REPORTING_SHARE, QUALITY_SAMPLES, data.seed)
    rest = _without(every, reporting)
    choosing = _drawn(rest, max(total // CHOOSING_SHARE, LEAST_CHOOSING), TRIAL_SAMPLES, data.seed)
    held_out = (*reporting, *choosing)
    fitting = data.part(_without(rest, choosing))
    return Division(
        fitting, fitting.few(TRIAL_SAMPLES), data.part(choosing), data.part(held_out), is_divided=True,
        limiting=fitting.few(max(COMPARED_SAMPLES - len(held_out), 0)),
    )  # fmt: skip


def undivided(data: CalibrationData) -> Division:
    """All of the data in every set: where nothing is learnt from it, so that each sample may be reported on."""
    return Division(data, data.few(TRIAL_SAMPLES), data.few(TRIAL_SAMPLES), data.few(QUALITY_SAMPLES), False)


def evaluated(data: CalibrationData, evaluation: CalibrationData, most: int | None) -> Division:
    """All calibration data to fit, and evaluation data to choose and to report. most: samples that are reported on;
    None: `COUNTED_SAMPLES`."""
    total, every = len(evaluation), range(len(evaluation))
    choosing = _drawn(every, min(max(total // CHOOSING_SHARE, LEAST_CHOOSING), total), TRIAL_SAMPLES, evaluation.seed)
    if total < LEAST_DIVIDED:
        choosing, rest = list(every), list(every)
    else:
        rest = _without(every, choosing)
    reporting = evaluation.part(rest).few(most or COUNTED_SAMPLES)
    divided = total >= LEAST_DIVIDED
    return Division(data, data.few(TRIAL_SAMPLES), evaluation.part(choosing), reporting, divided, is_evaluated=True)


def _drawn(places: Collection[int], wanted: int, most: int, seed: int | None) -> list[int]:
    listed = list(places)
    return [listed[i] for i in spread(len(listed), min(wanted, most), seed)]


def _without(places: Collection[int], taken: Collection[int]) -> list[int]:
    left_out = set(taken)
    return [place for place in places if place not in left_out]
