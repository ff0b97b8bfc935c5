"""What calibration samples say of one layer: its Gram matrices, over the samples to fit and over those held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .objective import Gram

_AT_ONCE = 1024
"""Columns that are gathered from several samples before their products are taken: adding up (K, K) takes its time."""

Part = tuple[NDArray[Any], NDArray[Any]]


@dataclass
class LayerStatistics:
    """fit, held_out: Gram matrices of the two sets of samples; None where a set is empty.  columns: some of those to
    fit, for methods that read them.  positions, of_positions: columns that were taken, and that there are.
    samples, samples_held_out: how many there were."""

    fit: Gram | None = None
    held_out: Gram | None = None
    columns: list[Part] = field(default_factory=list)
    positions: int = 0
    of_positions: int = 0
    samples: int = 0
    samples_held_out: int = 0
    _waiting: dict[bool, list[Part]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def all(self) -> Gram:
        """Of all samples; there must be some to fit."""
        assert self.fit is not None
        return self.fit if self.held_out is None else self.fit + self.held_out

    def add(self, x: NDArray[Any], y: NDArray[Any], of: int, held_out: bool) -> None:
        """Columns x (g, K, P) and y (g, M, P) of one sample, chosen from `of`."""
        self.positions, self.of_positions = self.positions + x.shape[2], self.of_positions + of
        self.samples, self.samples_held_out = self.samples + 1, self.samples_held_out + held_out
        self._waiting[held_out].append((x, y))
        if sum(part.shape[2] for part, _ in self._waiting[held_out]) >= _AT_ONCE:
            self._add_up(held_out)

    def keep_columns(self, x: NDArray[Any], y: NDArray[Any], largest: int) -> None:
        """No more than `largest` of a sample's columns, evenly spread, for minibatches."""
        step = -(-x.shape[2] // max(largest, 1))
        self.columns.append((x[..., ::step].copy(), y[..., ::step].copy()))

    def finish(self) -> LayerStatistics:
        """All samples were added."""
        for held_out in (False, True):
            self._add_up(held_out)
        return self

    def _add_up(self, held_out: bool) -> None:
        if not self._waiting[held_out]:
            return
        x, y = (np.concatenate(parts, axis=2) for parts in zip(*self._waiting[held_out], strict=True))
        self._waiting[held_out].clear()
        gram, known = Gram.of(x, y), self.held_out if held_out else self.fit
        gram = gram if known is None else known + gram
        if held_out:
            self.held_out = gram
        else:
            self.fit = gram
