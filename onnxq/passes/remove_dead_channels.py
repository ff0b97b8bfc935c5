"""Channels that carry a constant (white paper section 3.2 meets them as weights that blow up a layer's range).

Where training let a channel die, its variance is next to nothing; folding BatchNorm divides by it, and the weights
that come out, of no use to anyone, are the largest of their layer. With v_k the constant of channel k,

    row k of the layer that writes it:   W_k = 0, b_k = v_k, or the bound that v_k is beyond
    a layer that reads it:               b += W_.k v_k, then W_.k = 0

Reading Conv layers that pad with zeros see v_k in the middle and 0 at the border: there the column stays unless
v_k = 0. A channel is constant if

    its weights vanish (also those that are left after columns were set to zero), or
    max z - min z <= threshold * (its layer's median of that), z the output of the layer, or
    Relu or Clip behind it turns all z into its bound, also if they strayed twice as far from their mean.

Extremes are those of the calibration data, if it shows channels often enough (`thresholds.LEAST_SEEN`). Without
data they are those of BatchNorm's statistics (mean and 6 standard deviations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..calibration.channel_facts import channel_facts, why_unreliable
from ..graph import edit
from ..graph.batchnorm_statistics import propagate_batchnorm_statistics
from ..graph.model import Model, Moments
from ..graph.scaling_groups import find_groups
from ..numeric.channel_statistics import ChannelFacts
from ..operators import channels
from ..operators.channels import propagate_mean
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layers
from .base import Context, Outcome, Skip

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class RemoveDeadChannels:
    """Set the weights of constant channels to zero on both sides. threshold: see above."""

    threshold: float = 1e-5
    title: ClassVar[str] = "Remove dead channels"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        places = find_groups(model).tensors
        outputs = {t: places[t][0] for layer in _layers(model) if (t := layer.output.name) in places}
        facts = channel_facts(model, outputs, context, "measuring channels")
        changed, skips, notes = 0, [], []
        for layer in _layers(model):
            known = facts.get(layer.output.name)
            if known is not None and (reason := why_unreliable(known)):
                skips.append(Skip(layer.node.name, reason))
            elif known is not None and (count := _empty_rows(model, layer, known, self.threshold)):
                changed += count
                notes.append(f"{layer.node.name}: {count} of {layer.channels} channels are constant")

        def visit(layer: LinearLayer, inputs: ChannelFacts | None) -> None:
            nonlocal changed
            if not model.is_shared(layer) and inputs is not None:
                folded, padded = _fold_columns(model, layer, inputs)
                changed += folded
                if padded:
                    reason = f"{padded} channels that it reads are constant, but it pads with zeros"
                    skips.append(Skip(layer.node.name, reason))

        propagate_batchnorm_statistics(model, visit=visit)  # a layer may be left with channels that are constant
        return Outcome(changed, tuple(skips), tuple(notes))


def _layers(model: Model) -> list[LinearLayer]:
    """Linear layers whose weight is theirs alone."""
    return [layer for layer in linear_layers(model.graph.nodes) if not model.is_shared(layer)]


def _empty_rows(model: Model, layer: LinearLayer, facts: ChannelFacts, threshold: float) -> int:
    """Set rows of constant channels to zero; how many."""
    width, bias = facts.hi - facts.lo, layer.bias_values
    still = width <= threshold * np.nanmedian(width) if not np.isnan(width).all() else np.zeros(width.size, bool)
    value = np.where(still, facts.mean, bias)
    reader = model.sole_consumer(layer.output)
    bounds = clip_bounds(reader) if reader is not None else None
    if bounds is not None:
        below = ~still & (2 * facts.hi - facts.mean <= bounds[0])
        above = ~still & (2 * facts.lo - facts.mean >= bounds[1])
        still |= below | above
        value = np.where(still, np.clip(facts.mean, *bounds), bias)
    still &= channels.pairs(layer).any(axis=(2, 3)).reshape(-1)  # those without weights need none of this
    if still.any():
        kept = np.asarray(~still, np.float64)
        edit.set_weight(model, layer, channels.scaled(layer, kept, np.ones(layer.input_channels)))
        edit.set_bias(model, layer, value)
        known = model.moments.get(layer.output.name)
        if known is not None:
            moments = Moments(np.where(still, value, known.mean), np.where(still, 0.0, known.std))
            model.moments[layer.output.name] = moments
    return int(still.sum())


def _fold_columns(model: Model, layer: LinearLayer, inputs: ChannelFacts) -> tuple[int, int]:
    """Move what constant inputs add to the outputs into the bias, and set their columns to zero; how many, and how many
    cannot be."""
    foldable, others = _constant_inputs(layer, inputs)
    if foldable.any():
        value = np.where(foldable, inputs.mean, 0.0)
        bias = layer.bias_values + propagate_mean(layer, value)
        kept = np.asarray(~foldable, np.float64)
        edit.set_weight(model, layer, channels.scaled(layer, np.ones(layer.channels), kept))
        if value.any():
            edit.set_bias(model, layer, bias)
    return int(foldable.sum()), int(others.sum())


def _constant_inputs(layer: LinearLayer, facts: ChannelFacts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which inputs, of those with weights, are constant and can be folded, and which cannot, (Cin,) each."""
    columns = channels.pairs(layer).any(axis=(1, 3)).reshape(-1)
    if facts.mean.size != columns.size:
        return np.zeros_like(columns), np.zeros_like(columns)
    constant = columns & (facts.std == 0)
    exact = constant & ((facts.mean == 0) | (layer.varies is None))
    return exact, constant & ~exact
