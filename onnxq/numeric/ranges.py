"""Range-setting methods (white paper section 3.1): `f(samples, spec) -> (lo, hi)`, both of shape (C,).

A method sees weighted values and the wished grid, nothing of how they were collected. With counts n_i of values x_i
and Q the quantizer of the grid that spans [lo, hi]:

    minmax          lo = min x, hi = max x                                                 (14, 15)
    mse             argmin  sum_i n_i (x_i - Q(x_i))^2                                     (16)
    cross-entropy   argmin  - sum softmax(v) log softmax(Q(v)) over logit vectors v        (17)
    percentile      the range that leaves out (100 - p) % of the values, half on each side where there are two
    entropy         argmin  KL(distribution of x clipped to [lo, hi] || the same, quantized)

Where a value x_i stands for a bin of width w, its squared error is the mean over the bin. With t = x / s and k the
nearest integer of the grid, the primitive of (t - k)^2 that is continuous at the steps is

    G(t) = k / 12 + (t - k)^3 / 3        k = clip(round(t), qmin - z, qmax - z)

so that the mean over [a, b] is s^2 (G(b/s) - G(a/s)) / (b/s - a/s): exact for uniform density inside a bin, on grids
coarser and finer than the bins alike.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .histogram import compress
from .quant import QuantParams, QuantSpec
from .samples import Samples

Vector = NDArray[np.float64]
Range = tuple[Vector, Vector]
RangeMethod = Callable[[Samples, QuantSpec], Range]
Objective = Callable[[QuantParams], Vector]
Share = Vector | float | None

_COARSE = 2.0 ** (-np.arange(0, 96) / 8)
"""Shares of the full range that a search tries first, 9 % apart, down to 1/4096."""

_HOPELESS = 100.0

_CACHED = 2**18
"""Values that a search goes over again and again together: near what a processor's cache holds, and enough for threads
not to wait for each other."""


def minmax(samples: Samples, spec: QuantSpec) -> Range:
    """The whole range of what was seen: no clipping error, coarsest steps."""
    return samples.lo, samples.hi


def mse(samples: Samples, spec: QuantSpec) -> Range:
    """The range whose quantization error, clipping and rounding together, is least."""
    samples = compress(samples)
    at_once = max(_CACHED // max(samples.values.shape[1], 1), 1)
    parts = [samples.channels(slice(i, i + at_once)) for i in range(0, max(samples.lo.size, 1), at_once)]
    found = [_search(_squared_error_of(part), part, spec) for part in parts]
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

    return _search(objective, samples, spec)


def percentile(samples: Samples, spec: QuantSpec, percent: float = 99.99) -> Range:
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
        ranges.append(_search(lambda p, c=centers, m=mass: _divergence(c, m, p), one, spec))  # type: ignore[misc]
    return np.concatenate([lo for lo, _ in ranges]), np.concatenate([hi for _, hi in ranges])


METHODS: Mapping[str, RangeMethod] = {
    "minmax": minmax,
    "mse": mse,
    "cross-entropy": cross_entropy,
    "percentile": percentile,
    "entropy": entropy,
}


DEFAULTS: Mapping[str, float | None] = {**dict.fromkeys(METHODS), "percentile": 99.99, "bn": 6.0}
"""Names of all methods, with the default of the value that may follow a colon: `percentile:99.9`, `bn:4`."""


def parse_method(text: str) -> tuple[str, float | None]:
    """`name` or `name:value` -> name and value. Raises UsageError."""
    name, colon, value = text.partition(":")
    if name not in DEFAULTS:
        close = difflib.get_close_matches(name, DEFAULTS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(DEFAULTS)}"
        raise UsageError(f"range method {text!r} is unknown{hint}")
    if not colon:
        return name, DEFAULTS[name]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    upper = 100.0 if name == "percentile" else math.inf
    if DEFAULTS[name] is None or not 0 < number <= upper:
        raise UsageError(f"range method {text!r}: expected percentile:P with 0 < P <= 100, or bn:ALPHA with ALPHA > 0")
    return name, number


def set_range(text: str, samples: Samples, spec: QuantSpec) -> Range:
    """The range by the method that `text` names; `bn` needs moments, and is `batchnorm` below."""
    name, value = parse_method(text)
    if name == "percentile":
        return percentile(samples, spec, value or 100.0)
    return METHODS[name](samples, spec)


def batchnorm(mean: Vector, std: Vector, bounds: tuple[float, float], alpha: float = 6.0) -> Range:
    """The range that BatchNorm's moments foretell, without data (18, 19), for the whole tensor, (1,) each.

    lo = min(beta - alpha gamma), hi = max(beta + alpha gamma) over channels, within the `bounds` of the activation
    behind it ((-inf, inf) if there is none).
    """
    lo, hi = np.clip([(mean - alpha * std).min(), (mean + alpha * std).max()], *bounds)
    return np.array([lo]), np.array([hi])


def squared_error(samples: Samples, params: QuantParams) -> Vector:
    """Total squared quantization error per channel, (C,), float64."""
    return _squared_error_of(samples)(params)


def _squared_error_of(samples: Samples) -> Objective:
    return _of_bins(samples) if samples.widths is not None else _of_values(samples)


def _of_values(samples: Samples) -> Objective:
    """For weights, by the million: nothing is computed twice, and always in the same memory."""
    values, counts = samples.values, samples.counts
    once = counts.size > 0 and not any(counts.strides) and counts.flat[0] == 1
    t, distance = np.empty_like(values), np.empty_like(values)

    def error(params: QuantParams) -> Vector:
        scale, lowest, highest = _steps(params)
        if lowest.size and (lowest == lowest[0]).all():  # numpy clips to numbers five times as fast as to arrays
            lowest, highest = lowest[0, 0], highest[0, 0]
        np.multiply(values, 1 / scale, out=t)
        np.rint(t, out=distance)
        np.clip(distance, lowest, highest, out=distance)
        np.subtract(distance, t, out=distance)
        weighed = distance if once else np.multiply(distance, counts, out=t)
        return np.asarray(np.einsum("ij,ij->i", distance, weighed) * scale[:, 0] ** 2)

    return error


def _of_bins(samples: Samples) -> Objective:
    """For histograms: the mean over each bin."""
    assert samples.widths is not None
    values, counts, widths = samples.values, samples.counts, samples.widths

    def error(params: QuantParams) -> Vector:
        scale, lowest, highest = _steps(params)
        t, half = values / scale, widths / (2 * scale)
        rise = _primitive(t + half, lowest, highest) - _primitive(t - half, lowest, highest)
        mean = np.divide(rise, 2 * half, out=np.zeros_like(rise), where=half > 0)
        return np.asarray(np.einsum("ij,ij->i", mean, counts) * scale[:, 0] ** 2)

    return error


def _steps(params: QuantParams) -> tuple[Vector, Vector, Vector]:
    """Scale, and the lowest and highest number of steps from zero, (C, 1)."""
    scale = np.asarray(params.scale, np.float64).reshape(-1, 1)
    zero_point = np.asarray(params.zero_point, np.float64).reshape(-1, 1)
    return scale, params.grid.qmin - zero_point, params.grid.qmax - zero_point


def _primitive(t: Vector, lowest: Vector, highest: Vector) -> Vector:
    k = np.clip(np.rint(t), lowest, highest)
    distance = t - k
    return np.asarray(k / 12 + distance * distance * distance / 3)  # numpy's third power takes ten times as long


def _search(objective: Objective, samples: Samples, spec: QuantSpec) -> Range:
    """The range inside [lo, hi] of least objective, each channel by itself; never worse than the whole range.

    The objective has many local minima, one for every value that crosses a step: first shares of the range that
    are evenly spaced in their logarithm, then each end by itself, then finer and finer around what was found.
    """
    best = _Best(objective, samples, spec)
    best.sweep((share, share) for share in _COARSE)
    two_ended = not spec.symmetric and bool((samples.lo < 0).any() and (samples.hi > 0).any())
    if two_ended:
        for low in _COARSE[::6]:
            best.sweep((low, high) for high in _COARSE[::6])
        for _ in range(2):
            best.sweep((share, None) for share in _COARSE)
            best.sweep((None, share) for share in _COARSE)
    for spread in (0.09, 0.015, 0.003):
        factors = 1 - np.linspace(-spread, spread, 13)
        lo, hi = best.lo, best.hi
        if two_ended:
            best.sweep((factor * lo, None) for factor in factors)
            best.sweep((None, factor * hi) for factor in factors)
        else:
            best.sweep((factor * lo, factor * hi) for factor in factors)
    return best.lo * samples.lo, best.hi * samples.hi


class _Best:
    """Per channel, the shares of the lower and upper end that were best so far."""

    def __init__(self, objective: Objective, samples: Samples, spec: QuantSpec) -> None:
        self.objective, self.samples, self.spec = objective, samples, spec
        self.lo, self.hi = np.ones_like(samples.lo), np.ones_like(samples.hi)
        self.error = self._error(self.lo, self.hi)

    def _error(self, lo: Vector, hi: Vector) -> Vector:
        params = QuantParams.from_range(lo * self.samples.lo, hi * self.samples.hi, self.spec, axis=0)
        return self.objective(params)

    def sweep(self, shares: Iterable[tuple[Share, Share]]) -> None:
        """Try pairs of shares, of the lower and upper end; None leaves an end where it is best so far.

        Gives up once the error is hopeless in every channel: shares come in descending order, and clipping only
        gets worse.
        """
        for low, high in shares:
            lo = self.lo if low is None else np.broadcast_to(np.minimum(low, 1), self.lo.shape)
            hi = self.hi if high is None else np.broadcast_to(np.minimum(high, 1), self.hi.shape)
            error = self._error(lo, hi)
            better = error < self.error
            self.lo, self.hi = np.where(better, lo, self.lo), np.where(better, hi, self.hi)
            self.error = np.where(better, error, self.error)
            if (error > _HOPELESS * self.error).all():
                break


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
    """The range of scores of attention, scalars: without masks, but for room to tell these from scores."""
    real = samples.values[0][samples.values[0] >= MASKED]
    lo, hi = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    return np.asarray(lo - MASK_MARGIN), np.asarray(max(hi, float(samples.hi[0])))
