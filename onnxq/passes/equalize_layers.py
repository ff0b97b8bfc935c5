"""Cross-layer equalization (white paper section 3.2, equations 20 to 22).

For any s > 0, with f(s x) = s f(x) between two layers,

    W2 f(W1 x + b1)  =  (W2 S) f(S^-1 W1 x + S^-1 b1)        S = diag(s), s (C,)              (20, 21)

so that the scale of each channel between layers is free to choose: such that its weights on both sides are as easy
to quantize as those of other channels. Which channels have to share a scale, `graph.scaling_groups` finds, through
pooling, reshaping, residual Add and Concat; how scales are chosen is `numeric.equalization`:

    range   both sides of a channel have the same range (22); needs no data
    noise   least quantization noise, each channel weighted by its sensitivity: by the power that it carries, and by
            how strongly the layers behind read it

Clip(a, b) commutes only away from its bounds. A channel whose largest value M, on calibration data or by BatchNorm's
statistics (beta + 3 |gamma|), stays below b may be scaled as long as M / s stays there too; others keep their scale:

    s = 1  where M >= b            s >= min(1, headroom M / b)  elsewhere                     (likewise for a < 0)

The outputs change only where a channel exceeds its known range, and in no model without Clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..calibration.channel_facts import channel_facts, why_unreliable
from ..graph import edit, large
from ..graph.model import Model
from ..graph.output_sensitivity import measured_tensors, output_sensitivities
from ..graph.scaling_groups import Bound, Scalable, ScalingGroups, find_groups
from ..numeric import equalization
from ..numeric.blas import one_blas_thread
from ..numeric.channel_statistics import ChannelFacts
from ..numeric.equalization import Activation, Keep, Ranges
from ..operators import channels
from .base import Context, Outcome, Skip

Vector = NDArray[np.float64]
Facts = Mapping[str, ChannelFacts]

LARGEST = 20 * np.log(2)
"""Of |log s|: keeps float32 weights and biases normal whatever their ranges were."""


@dataclass(frozen=True)
class EqualizeLayers:
    """Equalize every group of channels whose scale is free.

    method: `range` or `noise`, see above. headroom: how far beyond the largest value seen unseen data may go before
    a Clip cuts it; it costs freedom. deviations: how far from its mean a channel goes where there is no data.
    bits: of weights and activations, which `noise` weighs against each other. per_channel: whether weights have a scale
    for each output channel, which `noise` reckons with.
    """

    method: Literal["range", "noise"] = "range"
    headroom: float = 1.0
    deviations: float = 3.0
    bits: tuple[int, int] = (8, 8)
    per_channel: bool = False
    title: ClassVar[str] = "Cross-layer equalization"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        groups = find_groups(model)
        facts = channel_facts(model, self._needed(groups), context, "measuring channels", self.deviations)
        limits, reached = _limits(groups, facts, self.headroom)
        keep = _spilled if model.is_large else equalization.in_memory
        if self.method == "range":
            u, sweeps = equalization.equal_ranges([_ranges(s, model.is_large, keep) for s in groups.layers], *limits)
            notes = [f"converged after {sweeps} sweeps"]
        else:
            u, notes = _least_noise(groups, facts, limits, self.bits, model.is_large, keep, self.per_channel), []
        for scaled in groups.layers:
            ranges = _ranges(scaled, model.is_large)
            before, after = (equalization.spread(ranges, v) for v in (np.zeros_like(u), u))
            if before != after:
                name = scaled.layer.node.name
                notes.append(f"{name}: largest over smallest channel range {before:.3g}, then {after:.3g}")
        rescale(model, groups, u)
        return Outcome(int(np.sum(u != 0)), tuple(_skips(groups, limits, reached)), tuple(notes))

    def _needed(self, groups: ScalingGroups) -> dict[str, int]:
        """Tensors to look at, with their channel axes."""
        needed = {b.tensor: b.axis for b in groups.bounds}
        if self.method == "noise":
            needed |= measured_tensors(groups)
        return needed


def _limits(groups: ScalingGroups, facts: Facts, headroom: float) -> tuple[tuple[Vector, Vector], NDArray[np.bool_]]:
    """Bounds of log s, (G,) each, and the groups that a Clip keeps at 1, (G,)."""
    lower, upper = np.full(len(groups.reasons), -LARGEST), np.full(len(groups.reasons), LARGEST)
    reached = np.zeros(lower.size, bool)
    for bound in groups.bounds:
        least, met = _near(bound, facts.get(bound.tensor), headroom)
        np.maximum.at(lower, bound.ids, least)
        reached[bound.ids[met]] = True
    fixed = reached | ~groups.free
    return (np.where(fixed, 0.0, lower), np.where(fixed, 0.0, upper)), reached


def _near(bound: Bound, facts: ChannelFacts | None, headroom: float) -> tuple[Vector, NDArray[np.bool_]]:
    """Of each channel of a Clip's input the smallest log s, and whether it reaches a bound, or may."""
    if facts is None or why_unreliable(facts):
        return np.zeros(bound.ids.size), np.ones(bound.ids.size, bool)
    least, met = np.full(bound.ids.size, -LARGEST), np.isnan(facts.lo) | np.isnan(facts.hi)
    for extreme, limit in ((facts.hi, bound.hi), (-facts.lo, -bound.lo)):
        if limit == 0 or np.isinf(limit):  # scaling leaves these where they are
            continue
        met |= ~(extreme < limit)
        share = np.clip(headroom * np.nan_to_num(extreme) / limit, np.exp(-LARGEST), 1.0)
        least = np.maximum(least, np.log(share) if limit > 0 else 0.0)
    return least, met


def _ranges(scaled: Scalable, is_large: bool, keep: Keep = equalization.in_memory) -> Ranges:
    """Those of a large model in float32, which says enough. keep: where they stay."""
    layer = scaled.layer
    largest = np.empty(channels.pairs(layer).shape[:3], np.float32 if is_large else np.float64)
    for part, (weight,) in channels.blocks(layer):
        largest[:, part] = np.abs(weight).max(axis=3, initial=0.0)
    return Ranges(keep(largest), scaled.outputs, scaled.inputs)


def _least_noise(
    groups: ScalingGroups,
    facts: Facts,
    limits: tuple[Vector, Vector],
    bits: tuple[int, int],
    is_large: bool,
    keep: Keep,
    per_channel: bool,
) -> Vector:
    of_layers, sensitivities = output_sensitivities(groups, facts)
    activations = {}
    for scaled in groups.layers:
        known = facts.get(scaled.layer.input.name)
        if scaled.inputs is not None and known is not None:
            largest = np.nan_to_num(np.maximum(np.abs(known.lo), np.abs(known.hi)))
            activations[scaled.layer.input.name] = Activation(scaled.inputs, largest, sensitivities[scaled.inputs])
    layers = ((_ranges(scaled, is_large), own) for scaled, own in zip(groups.layers, of_layers, strict=True))
    steps = 2.0 ** (bits[0] - 1) - 1, 2.0 ** bits[1] - 1
    with one_blas_thread():  # many products of a matrix and a vector
        return equalization.least_noise(
            layers, list(activations.values()), *limits, steps, keep=keep, per_row=per_channel
        )


def _spilled(values: NDArray[np.floating]) -> Callable[[], NDArray[np.floating]]:
    kept = large.tensor(values, "values", spilled=True)
    return lambda: large.array(kept)


def rescale(model: Model, groups: ScalingGroups, u: Vector) -> None:
    """Divide each channel by exp(u) where it is written, multiply it where it is read."""
    for scaled in groups.layers:
        layer = scaled.layer
        down = np.exp(-u[scaled.outputs])
        up = np.ones(layer.input_channels) if scaled.inputs is None else np.exp(u[scaled.inputs])
        if (down != 1).any() or (up != 1).any():
            edit.set_weight(model, layer, channels.scaled(layer, down, up))
        if layer.bias is not None and (down != 1).any():
            edit.set_bias(model, layer, np.asarray(layer.bias.values, np.float64) * down)
    for name, moments in model.moments.items():
        if name in groups.tensors:
            model.moments[name] = moments.affine(np.exp(-u[groups.tensors[name][1]]), np.float64(0.0))


def _skips(groups: ScalingGroups, limits: tuple[Vector, Vector], reached: NDArray[np.bool_]) -> list[Skip]:
    """Layers whose output channels keep their scale, some or all, and why."""
    skips = []
    for scaled in groups.layers:
        kept = scaled.outputs[limits[0][scaled.outputs] == limits[1][scaled.outputs]]
        reasons = Counter(
            groups.reasons[i] or "it reaches a bound of Clip, or may" for i in kept if reached[i] or groups.reasons[i]
        )
        for reason, count in reasons.items():
            skips.append(Skip(scaled.layer.node.name, f"{count} of {scaled.outputs.size} channels kept: {reason}"))
    return skips
