"""Three sets of samples: ranges and roundings are fitted to one, steps are kept or dropped by a second, and the quality
that is printed comes from a third, which neither saw.

    n feeds of calibration data, n >= 2 * `HELD_OUT_SHARE`:

    reporting    n / `HELD_OUT_SHARE` of them, `QUALITY_SAMPLES` at most, one from each of as many equal stretches
    choosing     as many of the others, `TRIAL_SAMPLES` at most, drawn likewise
    fitting      the rest

With fewer there is one set: everything is fitted on all of it, of two halves one sets the ranges of trials and the
other compares them, and what is printed says that it comes from the samples that were calibrated with.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..data import CalibrationData, Feed, spread
from ..thresholds import HELD_OUT_SHARE, QUALITY_SAMPLES, TRIAL_SAMPLES


@dataclass(frozen=True)
class Division:
    """The sets of one run. Each can be read again and again, always in the same order.

    fitting: what ranges, roundings, biases and statistics are fitted on.
    trial: of these, or beside the choosing ones, at most `TRIAL_SAMPLES`: on them a step is tried.
    choosing: what decides whether a step is kept; none of `trial` is among them, unless there is but one feed.
    reporting: what the quality is measured on.
    is_divided: whether no sample is in two sets; else all sets are made of the same samples.
    """

    fitting: CalibrationData
    trial: CalibrationData
    choosing: CalibrationData
    reporting: CalibrationData
    is_divided: bool


def divide(data: CalibrationData) -> Division:
    """The sets that calibration data makes; the same ones for the same data."""
    total = len(data)
    if total < 2 * HELD_OUT_SHARE:
        halves = data.few(2 * TRIAL_SAMPLES)
        one, other = (halves.part(range(i, len(halves), 2)) for i in (0, 1)) if total > 1 else (halves, halves)
        return Division(data, one, other, data.few(QUALITY_SAMPLES), is_divided=False)
    every = range(total)
    reporting = _drawn(every, total // HELD_OUT_SHARE, QUALITY_SAMPLES, data.seed)
    rest = _without(every, reporting)
    choosing = _drawn(rest, total // HELD_OUT_SHARE, TRIAL_SAMPLES, data.seed)
    fitting = data.part(_without(rest, choosing))
    return Division(fitting, fitting.few(TRIAL_SAMPLES), data.part(choosing), data.part(reporting), is_divided=True)


def undivided(data: CalibrationData) -> Division:
    """All of the data in every set: where nothing is learnt from it, so that each sample may be reported on."""
    return Division(data, data.few(TRIAL_SAMPLES), data.few(TRIAL_SAMPLES), data.few(QUALITY_SAMPLES), False)


def samples_in(feeds: Collection[Feed] | CalibrationData) -> int:
    """How many samples feeds hold: rows that fill up a fixed batch are none."""
    return sum(feed.rows or 1 for feed in feeds)


def _drawn(places: Collection[int], wanted: int, most: int, seed: int | None) -> list[int]:
    listed = list(places)
    return [listed[i] for i in spread(len(listed), min(wanted, most), seed)]


def _without(places: Collection[int], taken: Collection[int]) -> list[int]:
    left_out = set(taken)
    return [place for place in places if place not in left_out]
