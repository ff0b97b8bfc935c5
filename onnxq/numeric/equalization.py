"""Scales that make the channels of a network's layers equally easy to quantize, on arrays (white paper section 3.2).

A network is a list of layers and G groups of channels; group k is divided by s_k > 0, and u = log s. With w_oi the
largest magnitude of the weights of a layer between its output o and its input i, what they become is

    w'_oi = w_oi exp(u_i - u_o)                                                              (20, 21)

and each u_k stays within bounds [lower_k, upper_k] (both 0 where a group must not be scaled).

`equal_ranges` is the paper's choice, for any number of layers that write a group and that read it:

    r1_k = max w'_ki over the layers that write k      r2_k = max w'_ok over those that read it

    s_k <- s_k sqrt(r1_k / r2_k)      so that then both are sqrt(r1_k r2_k)                  (22)

group after group, until no scale changes by more than `tolerance` (relative).

`least_noise` weighs channels by the sensitivity of the output to them. A layer quantized per tensor has steps
proportional to its largest weight R, the activation that holds a group steps proportional to its largest value
T = max_k h_k / s_k.
With x_i = E[x_i^2] and g_o, how much an error in output o counts behind it, both in the units of the unscaled network,

    J(u) = sum over layers  R^2 / n_w^2 sum_o g_o s_o^2 sum_(i joined with o) x_i / s_i^2
         + sum over tensors T^2 / n_x^2 sum_k g_k s_k^2

n_w, n_x: steps in [0, R] and [0, T]. Each term is the product of maxima and sums of exponentials of linear functions:
log J is convex in u, the minimum is global. Maxima are smoothed, max_j m_j ~ (sum_j m_j^P)^(1/P).

Where each output o has a scale, R_o = max_i w_oi s_i / s_o takes the place of R, and its term is

    sum over layers  1 / n_w^2 sum_o g_o (max_i w_oi s_i)^2 sum_(i joined with o) x_i / s_i^2

in which s_o has no part: a layer with one input for each output, as depthwise ones are, sets no price on its scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Ids = NDArray[np.int64]

_SMOOTH = 12
_SWEEPS = 1000


Keep = Callable[[NDArray[np.floating]], Callable[[], NDArray[np.floating]]]
"""Stores an array, in memory or in a file; the function that it returns reads it."""

_AT_ONCE = 2**20


def in_memory(values: NDArray[np.floating]) -> Callable[[], NDArray[np.floating]]:
    """Where there is room for all of them."""
    return lambda: values


@dataclass(frozen=True)
class Ranges:
    """A layer, of g convolution groups: weight (g, Cout/g, Cin/g), largest magnitude of each pair of channels.

    outputs: groups of its output channels (Cout,). inputs: of its input channels (Cin,); None where they are fixed.
    """

    weight: Callable[[], NDArray[np.floating]]
    outputs: Ids
    inputs: Ids | None

    def largest(self, u: Vector, axis: int) -> Vector:
        """The largest w' of each output channel (axis 2), (Cout,), or of each input channel (axis 1), (Cin,)."""
        weight = self.weight()
        g, rows, columns = weight.shape
        down = np.exp(-u[self.outputs]).reshape(g, rows, 1)
        up = np.ones((g, 1, columns)) if self.inputs is None else np.exp(u[self.inputs]).reshape(g, 1, columns)
        step = max(_AT_ONCE // max(g * columns, 1), 1)
        parts = [slice(i, i + step) for i in range(0, max(rows, 1), step)]
        found = [(weight[:, part] * down[:, part] * up).max(axis=axis, initial=0.0) for part in parts]
        return (np.concatenate(found, axis=1) if axis == 2 else np.max(found, axis=0)).reshape(-1)


BEYOND = float(np.finfo(np.float32).max)
"""The largest float32: expected magnitudes beyond it say nothing."""


@dataclass(frozen=True)
class LayerSensitivity:
    """How much errors in a layer count: power (Cin,) is E[x^2] of its inputs; sensitivity (Cout,), how much an error
    in an output counts. taps: weights between a pair of channels.
    """

    power: Vector
    sensitivity: Vector
    taps: int


@dataclass(frozen=True)
class Activation:
    """A tensor with one grid: its groups (C,), largest magnitudes (C,), and how much an error in a channel counts."""

    ids: Ids
    largest: Vector
    sensitivity: Vector


def equal_ranges(layers: Sequence[Ranges], lower: Vector, upper: Vector, tolerance: float = 1e-3) -> tuple[Vector, int]:
    """Log scales u (G,) by equation 22, and the number of sweeps over the layers until nothing moved any more."""
    u = np.clip(np.zeros_like(lower), lower, upper)
    free = lower < upper
    neighbours = [_neighbours(layers, layer.outputs) for layer in layers]
    for sweep in range(1, _SWEEPS + 1):
        before, done = u.copy(), ~free
        for layer, (writers, readers) in zip(layers, neighbours, strict=True):
            todo = np.unique(layer.outputs[~done[layer.outputs]])
            if todo.size:
                written, read = _largest(writers, u, True), _largest(readers, u, False)
                todo = todo[(written[todo] > 0) & (read[todo] > 0)]
                u[todo] = np.clip(u[todo] + np.log(written[todo] / read[todo]) / 2, lower[todo], upper[todo])
                done[todo] = True
        if np.abs(u - before).max(initial=0.0) < tolerance:
            return u, sweep
    return u, _SWEEPS


def _neighbours(layers: Sequence[Ranges], ids: Ids) -> tuple[list[Ranges], list[Ranges]]:
    """The layers that write any of these groups, and those that read any."""
    writers = [layer for layer in layers if np.isin(layer.outputs, ids).any()]
    readers = [layer for layer in layers if layer.inputs is not None and np.isin(layer.inputs, ids).any()]
    return writers, readers


def _largest(layers: Sequence[Ranges], u: Vector, written: bool) -> Vector:
    """Per group, (G,), the largest scaled weight with which these layers write it, or read it."""
    largest = np.zeros_like(u)
    for layer in layers:
        ids = layer.outputs if written else layer.inputs
        if ids is not None:
            np.maximum.at(largest, ids, layer.largest(u, 2 if written else 1))
    return largest


def least_noise(
    layers: Iterable[tuple[Ranges, LayerSensitivity]],
    activations: Sequence[Activation],
    lower: Vector,
    upper: Vector,
    steps: tuple[float, float],
    iterations: int = 150,
    keep: Keep = in_memory,
    per_row: bool = False,
) -> Vector:
    """Log scales u (G,) that minimize J. steps: (n_w, n_x). Adam with a step that falls from 0.05 to 0.

    layers are read once, one after the other. keep: where the powers of each, as large as its weight, stay.
    per_row: whether each output of a layer has a scale of its own.
    """
    u = np.clip(np.zeros_like(lower), lower, upper)
    free = lower < upper
    if not free.any():
        return u
    first, second = np.zeros_like(u), np.zeros_like(u)
    weight_noise = _RowNoise if per_row else _WeightNoise
    terms: list[_WeightNoise | _RowNoise | _ActivationNoise] = []
    terms += [weight_noise(ranges, layer, steps[0], keep) for ranges, layer in layers if ranges.weight().any()]
    terms += [_ActivationNoise(a, steps[1]) for a in activations if 0 < a.largest.max(initial=0.0) < BEYOND]
    for i in range(iterations):
        gradient = np.zeros_like(u)
        total = sum(term.add(u, gradient) for term in terms)
        if total <= 0:
            break
        gradient = np.where(free, gradient / total, 0.0)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        rate = 0.025 * (1 + np.cos(np.pi * i / iterations))
        step = first / (1 - 0.9 ** (i + 1)) / (np.sqrt(second / (1 - 0.99 ** (i + 1))) + 1e-8)
        u = np.clip(u - rate * step, lower, upper)
    return u


class _WeightNoise:
    """One layer's term of J and its gradient."""

    def __init__(self, ranges: Ranges, layer: LayerSensitivity, steps: float, keep: Keep) -> None:
        weight = ranges.weight()
        largest = float(weight.max())
        powers = weight / weight.dtype.type(largest)
        self.powers = keep(np.power(powers, _SMOOTH, out=powers))
        self.outputs, self.inputs = ranges.outputs, ranges.inputs
        g, rows, columns = weight.shape
        self.power, self.sensitivity = layer.power.reshape(g, columns), layer.sensitivity.reshape(g, rows)
        self.factor = layer.taps * (largest / steps) ** 2 / 12

    def add(self, u: Vector, gradient: Vector) -> float:
        """The term at u; its gradient is added to `gradient`."""
        outputs, inputs, powers = self.outputs, self.inputs, self.powers()
        up = u[outputs].reshape(self.sensitivity.shape)
        down = np.zeros_like(self.power) if inputs is None else u[inputs].reshape(self.power.shape)
        a, b = np.exp(_SMOOTH * down)[:, :, None], np.exp(-_SMOOTH * up)[:, :, None]
        rows = b[:, :, 0] * (powers @ np.asarray(a, powers.dtype))[:, :, 0]
        columns = a[:, :, 0] * (powers.transpose(0, 2, 1) @ np.asarray(b, powers.dtype))[:, :, 0]
        total = rows.sum()
        largest = self.factor * total ** (2 / _SMOOTH)
        power, sensitivity = self.power * np.exp(-2 * down), self.sensitivity * np.exp(2 * up)
        arriving, counting = power.sum(axis=1, keepdims=True), sensitivity.sum(axis=1, keepdims=True)
        noise = float(largest * (arriving * counting).sum())
        np.add.at(gradient, outputs, 2 * (largest * sensitivity * arriving - noise * rows / total).reshape(-1))
        if inputs is not None:
            np.add.at(gradient, inputs, 2 * (noise * columns / total - largest * power * counting).reshape(-1))
        return noise


class _RowNoise:
    """The same where each output has a scale: what it is divided by cancels."""

    def __init__(self, ranges: Ranges, layer: LayerSensitivity, steps: float, keep: Keep) -> None:
        weight = ranges.weight()
        largest = weight.max(axis=2, keepdims=True)
        powers = weight / np.where(largest > 0, largest, 1)
        self.powers, self.inputs = keep(np.power(powers, _SMOOTH, out=powers)), ranges.inputs
        g, rows, columns = weight.shape
        self.power = layer.power.reshape(g, columns)
        scales = np.square(largest[:, :, 0].astype(np.float64) / steps)
        self.counting = layer.taps / 12 * scales * layer.sensitivity.reshape(g, rows)

    def add(self, u: Vector, gradient: Vector) -> float:
        """The term at u; its gradient is added to `gradient`."""
        inputs, powers = self.inputs, self.powers()
        down = np.zeros_like(self.power) if inputs is None else u[inputs].reshape(self.power.shape)
        a = np.exp(_SMOOTH * down)[:, :, None]
        rows = (powers @ np.asarray(a, powers.dtype))[:, :, 0]
        largest = self.counting * rows ** (2 / _SMOOTH)
        power = self.power * np.exp(-2 * down)
        arriving, counting = power.sum(axis=1, keepdims=True), largest.sum(axis=1, keepdims=True)
        if inputs is not None:
            shares = (largest / np.where(rows > 0, rows, 1))[:, :, None]
            columns = a[:, :, 0] * (powers.transpose(0, 2, 1) @ np.asarray(shares, powers.dtype))[:, :, 0]
            np.add.at(gradient, inputs, 2 * (arriving * columns - counting * power).reshape(-1))
        return float((arriving * counting).sum())


class _ActivationNoise:
    """One tensor's term of J and its gradient."""

    def __init__(self, activation: Activation, steps: float) -> None:
        self.activation, self.top = activation, float(activation.largest.max())
        self.powers = (activation.largest / self.top) ** _SMOOTH
        self.factor = (self.top / steps) ** 2 / 12

    def add(self, u: Vector, gradient: Vector) -> float:
        """The term at u; its gradient is added to `gradient`."""
        scale = u[self.activation.ids]
        reach, sensitivity = self.powers * np.exp(-_SMOOTH * scale), self.activation.sensitivity * np.exp(2 * scale)
        largest = self.factor * reach.sum() ** (2 / _SMOOTH)
        noise = float(largest * sensitivity.sum())
        np.add.at(gradient, self.activation.ids, 2 * (largest * sensitivity - noise * reach / reach.sum()))
        return noise


def spread(layer: Ranges, u: Vector) -> float:
    """Largest over smallest range of the output channels, those that are all zero left out."""
    ranges = layer.largest(u, 2)
    ranges = ranges[ranges > 0]
    return float(ranges.max() / ranges.min()) if ranges.size else 1.0
