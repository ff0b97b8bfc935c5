"""How far one tensor is from another, and what vectors of class scores say.

SQNR        10 log10(sum x^2 / sum (x - y)^2), in dB, streamed; x the reference, y the other tensor
KL(p, q)    sum_c p_c ln(p_c / q_c), in nats; p, q over classes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quant import FloatArray

SMALLEST_PROBABILITY = 1e-7
"""What a probability of 0 on an 8-bit grid counts as in a logarithm: about float32's resolution."""


@dataclass
class Sqnr:
    """Signal to quantization noise ratio, streamed: 10 log10(sum x^2 / sum (x - x^)^2), in dB."""

    signal: float = 0.0
    noise: float = 0.0

    def update(self, reference: FloatArray, other: FloatArray) -> None:
        """Two arrays of one shape. Where both are the same infinity or both not-a-number they agree."""
        x, y = np.asarray(reference, np.float64), np.asarray(other, np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        self.signal += float(np.square(x[np.isfinite(x)]).sum())
        with np.errstate(invalid="ignore", over="ignore"):
            self.noise += float(np.square(x - y, where=~same, out=np.zeros_like(x)).sum())

    def merge(self, other: Sqnr) -> None:
        """Add the sums of another one."""
        self.signal += other.signal
        self.noise += other.noise

    @property
    def db(self) -> float:
        """Infinite for identical tensors; minus infinity where the other is infinite or not-a-number."""
        if self.noise == 0:
            return np.inf
        if not np.isfinite(self.noise) or self.signal == 0:
            return -np.inf
        return 10 * float(np.log10(self.signal / self.noise))


def sqnr(reference: FloatArray, other: FloatArray) -> float:
    """SQNR of two arrays of one shape, in dB."""
    total = Sqnr()
    total.update(reference, other)
    return total.db


def total(single: Iterable[Sqnr]) -> Sqnr:
    """The SQNR of several samples together."""
    result = Sqnr()
    for one in single:
        result.merge(one)
    return result


def standard_error(single: Sequence[Sqnr], count: int | None = None) -> float | None:
    """How far the SQNR of R of some samples together is from that of all data, one standard deviation in dB; None where
    that cannot be said: of one sample, or where the SQNR is infinite.

        SQNR = 10 log10(S / N), S and N the means of s_i and n_i:   10 / ln 10 * sqrt(var(s_i / S - n_i / N) / R)

    single: samples that show how much s_i and n_i vary. count: R; None: all of them.
    """
    signal, noise = (np.array([getattr(one, name) for one in single]) for name in ("signal", "noise"))
    if len(single) < 2 or count == 0 or not (0 < signal.sum() < np.inf and 0 < noise.sum() < np.inf):
        return None
    relative = signal / signal.mean() - noise / noise.mean()
    return float(10 / np.log(10) * np.sqrt(relative.var(ddof=1) / (count or len(single))))


@dataclass(frozen=True)
class Front:
    """What a saturating operator reads, of which it shows little where the values are large; what it tells apart of it:

        Sigmoid, Tanh, ...    the values within the interval beyond which it hardly changes
        Softmax               how far the two best classes of the reference are apart

    behind: name of the operator's output.  interval: of the former.  axis: of the classes; None for the former.
    """

    behind: str
    interval: tuple[float, float] = (-np.inf, np.inf)
    axis: int | None = None

    def seen(self, reference: FloatArray, other: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What the operator tells apart of two arrays of one shape."""
        x, y = np.asarray(reference), np.asarray(other)
        if self.axis is None:
            return np.clip(x, *self.interval), np.clip(y, *self.interval)
        if x.shape[self.axis] < 2:
            return x[..., :0], y[..., :0]
        best = np.argpartition(x, -2, axis=self.axis).take((-1, -2), axis=self.axis)
        margins = (np.diff(np.take_along_axis(z, best, self.axis), axis=self.axis) for z in (x, y))
        return next(margins), next(margins)


@dataclass
class OutputSqnr:
    """SQNR over all float outputs of a model together, each in units of its own power: the mean of the noise shares.

    fronts: tensors in front of a saturating operator, by name; of them and what lies behind, the larger share counts.
    """

    fronts: Mapping[str, Front] = field(default_factory=dict)
    totals: dict[str, Sqnr] = field(default_factory=dict)

    def update(self, reference: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Outputs of one feed, padding removed. Other types, and shapes that differ (detections), do not count."""
        for name, x in reference.items():
            y = outputs.get(name)
            if y is not None and comparable(x, y):
                front = self.fronts.get(name)
                self.totals.setdefault(name, Sqnr()).update(*((x, y) if front is None else front.seen(x, y)))

    @property
    def db(self) -> float | None:
        """Infinite where all outputs are identical; None where none was comparable."""
        if not self.totals:
            return None
        shares: dict[str, float] = {}
        for name, total in self.totals.items():
            place = self.fronts[name].behind if name in self.fronts else name
            shares[place] = max(shares.get(place, 0.0), 10 ** (-total.db / 10) if total.noise else 0.0)
        noise = float(np.mean(list(shares.values())))
        return float(-10 * np.log10(noise)) if noise > 0 else np.inf


def losses(reference: Mapping[str, Any], outputs: Mapping[str, Any], fronts: Mapping[str, Front]) -> dict[str, float]:
    """What a quantized model has lost of the outputs of one feed: of each its squared error, of what a Softmax makes
    the KL divergence of the classes. fronts: as in `OutputSqnr`.

    A squared error of probabilities is that of the few samples of which the network is sure. MobileNetV1 at w4a8, 25
    samples, 2.9 % of the weights in 8 bits, by which unseen images lose a third of their divergence: the noise falls by
    -3 +- 36 %, the divergence by 24 +- 12 %.
    """
    classes = {front.behind for front in fronts.values() if front.axis is not None}
    found = {}
    for name, x in reference.items():
        y, front = outputs.get(name), fronts.get(name)
        if y is None or name in classes or not comparable(x, y):
            continue
        if front is not None and front.axis is not None:
            rows = (np.moveaxis(z, front.axis, -1) for z in (x, y))
            found[name] = float(kl_divergence(*(z.reshape(-1, z.shape[-1]) for z in rows)).sum())
        else:
            one = Sqnr()
            one.update(*((x, y) if front is None else front.seen(x, y)))
            found[name] = one.noise
    return found


def gain(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """The share of what one model has lost that another has not, and its standard error, from the losses l_io of both
    for the outputs o of the same n samples i; None where there are fewer than two, or nothing can be compared.

        d_i = mean over o of (l_io - l'_io) / mean over i of l_io        gain = mean d        error = std d / sqrt(n)

    Both models see the same samples, so that what makes these hard cancels.
    """
    names = set.intersection(*(set(each) for each in (*before, *after))) if before else set()
    was, now = (np.array([[each[name] for name in sorted(names)] for each in side]) for side in (before, after))
    if len(before) < 2 or not names or not (np.isfinite(was).all() and np.isfinite(now).all()):
        return None
    lost = was.mean(axis=0)
    if not lost.any():
        return None
    found = ((was - now)[:, lost > 0] / lost[lost > 0]).mean(axis=1)
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found)))


def finite(db: float) -> float | None:
    """A figure as records hold it: None where the two are identical (infinite), and never below -200."""
    return None if np.isposinf(db) else max(db, -200.0)


def comparable(x: Any, y: Any) -> bool:
    """Whether both are float arrays of one shape."""
    both = isinstance(x, np.ndarray) and isinstance(y, np.ndarray)
    return both and x.dtype.kind == "f" and y.dtype.kind == "f" and x.shape == y.shape


def class_scores(output: Any) -> FloatArray | None:
    """An output (N, C) or (N, C, 1, ...) as (N, C), where it looks like scores of C > 1 classes; else None."""
    if not isinstance(output, np.ndarray) or output.dtype.kind != "f" or output.ndim < 2:
        return None
    if output.shape[1] < 2 or any(n != 1 for n in output.shape[2:]):
        return None
    return np.reshape(output, output.shape[:2])


def ranks(scores: FloatArray, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the right one, (N,): 0 where `argmax` finds it. scores: (N, C). labels: (N,).

    C in rows that hold not-a-number, which say nothing.
    """
    own = np.take_along_axis(scores, labels[:, None], 1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & earlier)
    return np.asarray(np.where(np.isnan(scores).any(axis=1), scores.shape[1], before.sum(axis=1)), np.int64)


def same_class(reference: Any, other: Any, samples: int | None = None) -> NDArray[np.bool_] | None:
    """Of each sample whether two outputs have the same best class, (N,); None where they are no class scores.

    samples: how many rows class scores have; None: any number.
    """
    x, y = class_scores(reference), class_scores(other)
    if x is None or y is None or x.shape != y.shape or (samples is not None and len(x) != samples):
        return None
    return np.asarray(ranks(y, x.argmax(axis=1)) == 0)


def kl_divergence(reference: FloatArray, other: FloatArray) -> NDArray[np.float64]:
    """KL of the classes' probabilities, (N,), from scores (N, C) both.

    Scores are logits, of which softmax is taken, unless the reference's row is a distribution already: not negative,
    with a sum of 1.
    """
    x, y = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    ready = (x >= 0).all(axis=1) & (np.abs(x.sum(axis=1) - 1) < 1e-3)
    p, q = (np.where(ready[:, None], _normalized(s), _softmax(s)) for s in (x, y))
    return np.asarray(np.maximum((p * (np.log(p) - np.log(q))).sum(axis=1), 0.0))  # sums may end below it


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return _normalized(np.exp(logits - logits.max(axis=1, keepdims=True)))


def _normalized(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    floored = np.maximum(scores, SMALLEST_PROBABILITY * np.maximum(scores.max(axis=1, keepdims=True), 1e-300))
    return np.asarray(floored / floored.sum(axis=1, keepdims=True))
