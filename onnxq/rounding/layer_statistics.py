"""What calibration samples say of one layer: its squared error, over the columns to fit and over those held out.

A sample is held out as soon as the columns of all that were held out are no more than one in `HELD_OUT_EVERY` with it:
columns count, not samples, since sequences differ in length. Where there are fewer samples than that, the last of each
sample's columns are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..thresholds import HELD_OUT_EVERY
from .dual import SampledForm
from .objective import Gram

_AT_ONCE = 1024
"""Columns that are gathered from several samples before their products are taken: adding up (K, K) takes its time."""

_ELEMENTS_AT_ONCE = 2**22
"""Or elements, where they are fewer: 1024 columns of a depthwise layer of 1152 channels, 5 x 5, take 350 MiB in all."""

Part = tuple[NDArray[Any], NDArray[Any]]
Statistic = Gram | SampledForm


@dataclass
class LayerStatistics:
    """few: keep columns themselves (`SampledForm`), not Gram matrices.  split: hold out columns of each sample.
    fit, held_out: the error on both sets of columns; None where a set is empty.  columns: some of those to fit, for
    methods that read them.  positions, of_positions: columns that were taken, and that there are.
    samples, samples_held_out: how many there were."""

    few: bool = False
    split: bool = False
    fit: Statistic | None = None
    held_out: Statistic | None = None
    columns: list[Part] = field(default_factory=list)
    positions: int = 0
    of_positions: int = 0
    samples: int = 0
    samples_held_out: int = 0
    _held: int = 0
    _waiting: dict[bool, list[Part]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def all(self) -> Statistic:
        """Of all samples; there must be some to fit."""
        assert self.fit is not None
        return self.fit if self.held_out is None else added(self.fit, self.held_out)

    def add(self, x: NDArray[Any], y: NDArray[Any], of: int) -> bool:
        """Columns x (g, K, P) and y (g, M, P) of one sample, chosen from `of`. Whether the sample was held out."""
        count = x.shape[2]
        self.positions, self.of_positions = self.positions + count, self.of_positions + of
        self.samples += 1
        if self.split:
            kept = count - count // HELD_OUT_EVERY
            self._wait(x[..., :kept], y[..., :kept], False)
            self._wait(x[..., kept:], y[..., kept:], True)
            return False
        held_out = bool(count > 0 and HELD_OUT_EVERY * (self._held + count) <= self.positions)
        if held_out:
            self._held, self.samples_held_out = self._held + count, self.samples_held_out + 1
        self._wait(x, y, held_out)
        return held_out

    def keep_columns(self, x: NDArray[Any], y: NDArray[Any], largest: int) -> None:
        """No more than `largest` of a sample's columns, evenly spread, for minibatches."""
        step = -(-x.shape[2] // max(largest, 1))
        self.columns.append((x[..., ::step].copy(), y[..., ::step].copy()))

    def finish(self) -> LayerStatistics:
        """All samples were added."""
        for held_out in (False, True):
            self._add_up(held_out)
        return self

    def _wait(self, x: NDArray[Any], y: NDArray[Any], held_out: bool) -> None:
        if not x.shape[2]:
            return
        waiting = self._waiting[held_out]
        waiting.append((x, y))
        columns, elements = sum(part.shape[2] for part, _ in waiting), sum(x.size + y.size for x, y in waiting)
        if not self.few and (columns >= _AT_ONCE or elements >= _ELEMENTS_AT_ONCE):
            self._add_up(held_out)

    def _add_up(self, held_out: bool) -> None:
        if not self._waiting[held_out]:
            return
        x, y = (np.concatenate(parts, axis=2) for parts in zip(*self._waiting[held_out], strict=True))
        self._waiting[held_out].clear()
        form: Statistic = SampledForm.of(x, y) if self.few else Gram.of(x, y)
        known = self.held_out if held_out else self.fit
        form = form if known is None else added(known, form)
        if held_out:
            self.held_out = form
        else:
            self.fit = form


def added(one: Statistic, other: Statistic) -> Statistic:
    """Both over one set of columns; they are of one kind."""
    if isinstance(one, Gram) and isinstance(other, Gram):
        return one + other
    assert isinstance(one, SampledForm)
    assert isinstance(other, SampledForm)
    return one + other
