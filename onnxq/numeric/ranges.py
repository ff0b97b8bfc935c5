"""Range-setting methods (white paper section 3.1): `f(samples, spec) -> (lo, hi)`, both of shape (C,).

A method sees weighted values and the spec of the grid, and nothing of how they were collected. With counts n_i of
values x_i and Q the quantizer of the grid that spans [lo, hi]:

    minmax          lo = min x, hi = max x                                                 (14, 15)
    mse             argmin  sum_i n_i c_i (x_i - Q(x_i))^2                                 (16)
                    c_i = 1 inside the grid, 1 + (`CLIPPING_SAMPLES` / N)^2 beyond its ends, of N calibration samples;
                    at 8 bits the whole range where N <= `WHOLE_RANGE_SAMPLES`
    cross-entropy   argmin  - sum softmax(v) log softmax(Q(v)) over logit vectors v        (17)
    percentile      the range that leaves out (100 - p) % of the values, half on each side where there are two
    entropy         argmin  KL(distribution of x clipped to [lo, hi] || the same, quantized)
    bn              lo = min(beta - alpha gamma), hi = max(beta + alpha gamma)             (18, 19)

To add a method, write its function here and enter it in `RANGE_METHODS` at the end of this file: options, `--help` and
the statistics that are collected follow from the entry. `range_search.search` minimises any objective,
`scale_search.best_shares` the squared error of symmetric grids, `affine_search.best_ranges` that of others, for weights
by the million.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import affine_search, scale_search
from .histogram import compress
from .quant import QuantParams, QuantSpec
from .quantization_error import squared_error_of
from .range_search import Range, search
from .samples import Samples

Vector = NDArray[np.float64]

CLIPPING_SAMPLES = 64
"""Calibration samples of which clipping errors count twice. Few samples show too few large values, and a range that is
fitted to them cuts other data: with 16 and fewer, min-max ranges were better than plain mse on six networks by 0.0 to
0.9 dB at 8 bits, with 64 worse by up to 1 dB (bench/results/accuracy-samples.md)."""

WHOLE_RANGE_SAMPLES = 16
"""Calibration samples, at most, of which nothing is clipped at 8 bits and above: min-max was no worse than mse with any
weight of clipping on five of six networks then, and better by up to 0.9 dB."""

_CACHED = 2**18
"""Values that a search goes over again and again together: near what a processor's cache holds, and enough for threads
not to wait for each other."""


_GRIDS = 8
"""Grids that are tried at once on one histogram: numpy's calls take longer than their work on a thousand bins."""


def minmax(samples: Samples, spec: QuantSpec) -> Range:
    """The range of all values: no clipping error, coarsest steps."""
    return samples.lo, samples.hi


def mse(samples: Samples, spec: QuantSpec) -> Range:
    """The range whose quantization error, clipping and rounding together, is least. Of few samples clipping counts for
    more, and of very few nothing is clipped at 8 bits."""
    if samples.seen is not None and samples.seen <= WHOLE_RANGE_SAMPLES and spec.grid.bits >= 8:
        return samples.lo, samples.hi
    samples = compress(samples)
    if samples.are_weights and scale_search.serves(spec):
        shares = scale_search.best_shares(samples.values, spec)
        return shares * samples.lo, shares * samples.hi
    if samples.are_weights and affine_search.serves(spec, samples.values.shape[1]):
        return affine_search.best_ranges(samples.values, spec)
    clipping = 1.0 if samples.seen is None else 1 + (CLIPPING_SAMPLES / max(samples.seen, 1)) ** 2
    at_once = max(_CACHED // max(samples.values.shape[1], 1), 1)
    parts = [samples.channels(slice(i, i + at_once)) for i in range(0, max(samples.lo.size, 1), at_once)]
    together = samples.widths is not None and samples.lo.size == 1
    found = [search(squared_error_of(part, clipping), part, spec, at_once=_GRIDS if together else 1) for part in parts]
    return np.concatenate([lo for lo, _ in found]), np.concatenate([hi for _, hi in found])


def cross_entropy(samples: Samples, spec: QuantSpec) -> Range:
    """The range that least disturbs the classes' probabilities; `samples` holds vectors of logits (m, classes)."""
    if samples.vectors is None:
        raise ValueError("cross-entropy ranges need vectors of logits")
    logits = np.asarray(samples.vectors, np.float32)
    probabilities = np.asarray(np.exp(_log_softmax(np.asarray(logits, np.float64))), np.float32)

    def objective(params: QuantParams) -> Vector:
        """sum p = 1 turns the objective into sum log sum exp v' - sum p v'."""
        rounded = params.fake(logits)
        rounded -= rounded.max(axis=1, keepdims=True)
        expected = np.vdot(probabilities, rounded)
        total = np.exp(rounded, out=rounded).sum(axis=1, dtype=np.float64)
        return np.array([np.log(total).sum() - float(expected)])

    return search(objective, samples, spec)


def percentile(samples: Samples, spec: QuantSpec, percent: float) -> Range:
    """The range that holds `percent` % of the values; one-sided where all have one sign."""
    lows, highs = [], []
    for values, counts, lo, hi in zip(samples.values, samples.counts, samples.lo, samples.hi, strict=True):
        order = np.argsort(values)
        share = np.cumsum(counts[order]) / max(counts.sum(), 1)
        tail = (1 - percent / 100) / (2 if lo < 0 < hi else 1)
        first, last = np.searchsorted(share, (tail, 1 - tail))
        lows.append(max(values[order][first], lo) if lo < 0 else lo)
        highs.append(min(values[order][min(last, values.size - 1)], hi) if hi > 0 else hi)
    return np.array(lows), np.array(highs)


def entropy(samples: Samples, spec: QuantSpec) -> Range:
    """The range with the least Kullback-Leibler divergence, as TensorRT made known; on 2048 bins of equal width."""
    samples = compress(samples)
    ranges = []
    for channel in range(samples.lo.size):
        one = samples.channel(channel)
        centers, mass = _equal_bins(one, 2048)
        ranges.append(search(lambda p, c=centers, m=mass: _divergence(c, m, p), one, spec))  # type: ignore[misc]
    return np.concatenate([lo for lo, _ in ranges]), np.concatenate([hi for _, hi in ranges])


@dataclass(frozen=True)
class Moments:
    """What BatchNorm says of a tensor: mean and standard deviation of its channels, (C,) each, in front of an
    activation with these `bounds`, (-inf, inf) where there is none."""

    mean: Vector
    std: Vector
    bounds: tuple[float, float]


def batchnorm(tensors: Sequence[Moments], spec: QuantSpec, alpha: float) -> Range:
    """The range of all channels of some tensors that share a grid, from BatchNorm's statistics alone (18, 19)."""
    ends = []
    for tensor in tensors:
        mean, std = tensor.mean, alpha * tensor.std
        ends.append(np.clip([(mean - std).min(), (mean + std).max()], *tensor.bounds))
    return np.min(ends, axis=0)[:1], np.max(ends, axis=0)[1:]


def _log_softmax(x: Vector) -> Vector:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _equal_bins(samples: Samples, count: int) -> tuple[Vector, Vector]:
    """One channel as `count` bins of equal width over [lo, hi]: their middles and what they hold."""
    lo, hi = float(samples.lo[0]), float(samples.hi[0])
    edges = np.linspace(lo, hi if hi > lo else lo + 1, count + 1)
    mass, _ = np.histogram(samples.values[0], edges, weights=samples.counts[0])
    return (edges[:-1] + edges[1:]) / 2, mass


def _divergence(centers: Vector, mass: Vector, params: QuantParams) -> Vector:
    """KL(P || Q): P the bins inside the range, what lies outside added to its ends; Q spreads each step's share
    evenly over the bins of P that are not empty, outliers not counted."""
    scale, zero_point = float(np.ravel(params.scale)[0]), float(np.ravel(params.zero_point)[0])
    level = np.rint(centers / scale) + zero_point
    inside = np.flatnonzero((level >= params.grid.qmin) & (level <= params.grid.qmax))
    if inside.size < params.grid.qmax - params.grid.qmin or not mass[inside].any():
        return np.array([np.inf])  # with no more bins than steps each bin has its own, and the divergence says nothing
    first, last = inside[0], inside[-1]
    reference = mass[inside].copy()
    reference[0] += mass[:first].sum()
    reference[-1] += mass[last + 1 :].sum()
    steps = (level[inside] - params.grid.qmin).astype(np.int64)
    filled = reference > 0
    share = np.bincount(steps, weights=mass[inside]) / np.maximum(np.bincount(steps, weights=filled), 1)
    spread = np.where(filled, share[steps], 0.0)
    p, q = reference / reference.sum(), spread / spread.sum()
    if (q[filled] == 0).any():
        return np.array([np.inf])
    return np.array([(p[filled] * np.log(p[filled] / q[filled])).sum()])


MASKED = -1000.0
"""Scores below it are masks, -10000 and the like: what Softmax makes of them is 0 in float32."""

MASK_MARGIN = 8.0
"""How far below the smallest score masks end up: Softmax gives them at most exp(-8), 0.03 %, of its share."""


def unmasked_range(samples: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The range of scores of attention, scalars: without masks, but for room to separate these from scores."""
    real = samples.values[0][samples.values[0] >= MASKED]
    lo, hi = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    return np.asarray(lo - MASK_MARGIN), np.asarray(max(hi, float(samples.hi[0])))


Part = Literal["weights", "activations", "logits"]


@dataclass(frozen=True)
class Value:
    """The number that may follow a method's name, as in `percentile:99.9`: 0 < value <= highest."""

    letter: str
    default: float
    highest: float = math.inf

    def __str__(self) -> str:
        return f"0 < {self.letter}" + (f" <= {self.highest:g}" if math.isfinite(self.highest) else "")


@dataclass(frozen=True)
class RangeMethod:
    """An entry of `RANGE_METHODS`.

    find: `f(data, spec)`, or `f(data, spec, value)` where the method takes a value.  help: what the range is, in a few
    words.  needs: what `data` is made of: the values' extremes, their histogram, vectors of logits beside it (all
    three are `Samples`), or a list of `Moments`.  parts: what the method can range.
    """

    find: Callable[..., Range]
    help: str
    needs: Literal["extremes", "histogram", "logits", "moments"] = "histogram"
    parts: tuple[Part, ...] = ("weights", "activations", "logits")
    value: Value | None = None


RANGE_METHODS: Mapping[str, RangeMethod] = {
    "minmax": RangeMethod(minmax, "all values", needs="extremes"),
    "mse": RangeMethod(mse, "the least squared error"),
    "percentile": RangeMethod(percentile, "P % of the values", value=Value("P", 99.99, highest=100.0)),
    "entropy": RangeMethod(entropy, "the least KL divergence of the distribution"),
    "cross-entropy": RangeMethod(
        cross_entropy, "the least change of class probabilities", needs="logits", parts=("logits",)
    ),
    "bn": RangeMethod(
        batchnorm,
        "ALPHA standard deviations, by BatchNorm's statistics",
        needs="moments",
        parts=("activations", "logits"),
        value=Value("ALPHA", 6.0),
    ),
}

_UNFIT: Mapping[Part, str] = {
    "weights": "is for activations; try mse or minmax",
    "activations": "is for logits; give it as `logits_range`",
}


OTHER_NAMES = {
    "min-max": "minmax", "max": "minmax", "abs-max": "minmax", "absmax": "minmax", "tf": "minmax", "naive": "minmax",
    "tf-enhanced": "mse", "minmse": "mse", "l2": "mse", "kl": "entropy", "kld": "entropy", "kl-divergence": "entropy",
    "percentiles": "percentile",
}  # fmt: skip
"""Range methods as ONNX Runtime, AIMET, ModelOpt, Quark, RKNN and TensorRT call them -> ours."""


def parse_method(text: str) -> tuple[RangeMethod, float | None]:
    """`name` or `name:value` -> the method, and its value; any case, other tools' names. Raises UsageError."""
    name, colon, number = text.partition(":")
    name = name.lower().replace("_", "-")
    name = OTHER_NAMES.get(name, name)
    method = RANGE_METHODS.get(name)
    if method is None:
        close = difflib.get_close_matches(name, RANGE_METHODS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(RANGE_METHODS)}"
        raise UsageError(f"range method {text!r} is unknown{hint}")
    if not colon:
        return method, None if method.value is None else method.value.default
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if method.value is None or not 0 < value <= method.value.highest:
        known = (f"{n}:{m.value.letter} with {m.value}" for n, m in RANGE_METHODS.items() if m.value is not None)
        raise UsageError(f"range method {text!r}: expected {', or '.join(known)}")
    return method, value


def check_method(text: str, part: Part, place: str) -> None:
    """Raises UsageError, which opens with `place`, where a method is unknown, or is not for this part of a model."""
    if part not in parse_method(text)[0].parts:
        raise UsageError(f"{place} {text!r} {_UNFIT[part]}")


def usage(part: Part) -> str:
    """The methods for a part of a model, as help texts list them: `minmax (all values), percentile[:P] (...)`."""
    return ", ".join(
        f"{name} ({m.help})" if m.value is None else f"{name}[:{m.value.letter}] ({m.help}; {m.value.default:g})"
        for name, m in RANGE_METHODS.items()
        if part in m.parts
    )


def set_range(text: str, data: Any, spec: QuantSpec) -> Range:
    """The range by the method that `text` names, from the data that it needs (`RangeMethod.needs`)."""
    method, value = parse_method(text)
    return method.find(data, spec) if value is None else method.find(data, spec, value)
