"""What verification compares: the outputs of four sessions, one after another.

    float          the float model, which is kept
    as written     the quantized model with optimisations off, which is kept
    default        with them on
    exact          with them on, and products as written (`EXACT_PRODUCTS`), where a default session has others

SQNR is measured of each sample alone; sums over samples are figures of several.

The quality is the lower of two figures: of the samples held out, and of all samples, to some of which something was
fitted. The former are few, and noise differs much between samples, so that they alone may look far better than other
data will; a fit makes samples look better, and never worse, so that a figure above that of all samples is chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..data import Feed
from ..execution.compare_outputs import KeptOutputs, Outputs
from ..execution.session import EXACT_PRODUCTS, Session
from ..graph.comparable import Comparable
from ..numeric.metrics import Sqnr, class_scores, comparable, finite, same_class, standard_error, total
from ..numeric.quant import FloatArray
from ..report import OutputQuality
from ..thresholds import RUNTIME_ENOUGH_DB, RUNTIME_MARGIN_DB


@dataclass
class Distances:
    """Of single samples, how far a session's output is from the float model's: of those held out, and of those that
    something was fitted to."""

    held_out: list[Sqnr] = field(default_factory=list)
    fitted: list[Sqnr] = field(default_factory=list)

    @property
    def all(self) -> list[Sqnr]:
        return [*self.held_out, *self.fitted]

    @property
    def db(self) -> float:
        """SQNR in dB of the samples held out, or of all where it is lower there."""
        return min(total(self.held_out).db, total(self.all).db)


@dataclass
class TensorComparison:
    """One tensor. written, default, exact: of each session, against the float model. runtime, exact_kernels: the model
    as written against a default session, and against an exact one, of the samples held out."""

    place: Comparable
    has_classes: bool
    written: Distances = field(default_factory=Distances)
    default: Distances = field(default_factory=Distances)
    exact: Distances = field(default_factory=Distances)
    runtime: Sqnr = field(default_factory=Sqnr)
    exact_kernels: Sqnr = field(default_factory=Sqnr)
    same_class: int = 0
    rows: int = 0
    is_finite: bool = True
    classes: set[int] = field(default_factory=set)

    def is_known(self, *, default: bool) -> bool:
        """Whether anything could be compared. default: whether a default session is what counts."""
        return bool((self.default if default else self.written).held_out)

    def count_classes(self, feed: Feed, reference: np.ndarray, runs: np.ndarray) -> None:
        same = same_class(reference, runs, feed.rows or feed.batch) if self.has_classes else None
        if same is not None:
            self.same_class += int(same.sum())
            self.rows += same.size
            scores = class_scores(reference)
            assert scores is not None
            self.classes.update(np.argmax(scores, axis=1).tolist())

    def agrees(self, distance: Sqnr) -> bool:
        """Whether a session differs from the model as written by no more than quantization did."""
        return distance.db >= min(total(self.written.held_out).db, RUNTIME_ENOUGH_DB) - RUNTIME_MARGIN_DB

    def record(self, *, has_runtime: bool, has_exact: bool) -> OutputQuality:
        runs = self.default if has_runtime else self.written
        agreement = self.same_class / self.rows if self.rows else None
        runtime = finite(self.runtime.db) if has_runtime else None
        record = OutputQuality(
            self.place.output, finite(runs.db), runtime, agreement, runs_in_default_session=has_runtime,
            standard_error_db=standard_error(runs.all, len(runs.held_out)),
        )  # fmt: skip
        if self.place.selection is not None:
            record = replace(record, compared_at=self.place.tensor, in_front_of=self.place.selection)
        if has_exact and round(self.exact.db, 1) != round(runs.db, 1):
            record = replace(record, option=f"{EXACT_PRODUCTS} = 1", option_sqnr_db=finite(self.exact.db))
        return replace(record, more_outputs=self.place.more, classes=len(self.classes) or None)


class SessionComparison:
    """samples: with the float model's outputs. held_out: how many of them, the first ones, nothing was fitted to."""

    def __init__(self, samples: KeptOutputs, held_out: int, comparisons: Mapping[str, TensorComparison]) -> None:
        self._samples, self._held_out, self._comparisons = samples, held_out, comparisons

    def as_written(self, session: Session, *, is_last: bool) -> None:
        """is_last: whether it is what counts, so that those samples are asked, too, that are not held out."""
        count = None if is_last else self._held_out
        for sample, outputs in self._samples.beside(session, count, keep=True):
            reference = sample.outputs(0)
            for label, comparison in self._comparisons.items():
                x, y = reference.get(label), outputs.get(label)
                if x is not None and y is not None and comparable(x, y):
                    comparison.is_finite &= bool(np.isfinite(x).all())
                    self._add(comparison.written, sample.number, x, y)
                    if sample.number < self._held_out:
                        comparison.count_classes(sample.feed, x, y)

    def default(self, session: Session) -> None:
        for comparison in self._comparisons.values():
            comparison.same_class = comparison.rows = 0
        for number, feed, label, x, y in self._pairs(session):
            comparison = self._comparisons[label]
            self._add(comparison.default, number, x, y)
            if number < self._held_out:
                comparison.runtime.update(self._written(number, label), y)
                comparison.count_classes(feed, x, y)

    def attempt(self, session: Session) -> None:
        """Run it once. Raises EngineError."""
        for _ in self._samples.beside(session, 1):
            pass

    def exactly(self, session: Session) -> None:
        for number, _, label, x, y in self._pairs(session):
            comparison = self._comparisons[label]
            self._add(comparison.exact, number, x, y)
            if number < self._held_out:
                comparison.exact_kernels.update(self._written(number, label), y)

    def of_float_model(self, session: Session) -> Iterator[tuple[Outputs, Outputs]]:
        """What the float model computes of the samples held out as it is written, and in another session."""
        for sample, outputs in self._samples.beside(session, self._held_out):
            yield sample.outputs(0), outputs

    def _written(self, number: int, label: str) -> FloatArray:
        return np.asarray(self._samples.all[number].kept[1][label].array(), np.float64)

    def _add(self, distances: Distances, number: int, x: FloatArray, y: FloatArray) -> None:
        one = Sqnr()
        one.update(x, y)
        (distances.held_out if number < self._held_out else distances.fitted).append(one)

    def _pairs(self, session: Session) -> Iterator[tuple[int, Feed, str, np.ndarray, np.ndarray]]:
        """(number, feed, label, float, session) of what can be compared, in the model as written, too."""
        for sample, outputs in self._samples.beside(session):
            reference = sample.outputs(0)
            for label in self._comparisons:
                x, y = reference.get(label), outputs.get(label)
                written = x if sample.number >= self._held_out else sample.kept[1].get(label)
                if x is not None and y is not None and written is not None and comparable(x, y):
                    yield sample.number, sample.feed, label, x, y
