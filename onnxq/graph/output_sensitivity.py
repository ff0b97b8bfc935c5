"""Output sensitivity: how much an error in a channel changes what the network computes behind it.

An error of variance v in channel i of a layer's input adds v sum_o ||W_oi||^2 to the variance of the error of its
output. Relative to the variance sigma^2 of that output, and added up over the layers that read it, this is the
sensitivity of a channel:

    sensitivity_i = sum over layers that read i  sum_o ||W_oi||^2 / sigma^2

Clip and Relu let through what they do not cut, P of it. A rounding error e of weight W_oi, of zero mean, then costs

    E[x_i^2] e^2 sensitivity_o P_o        x_i the layer's input
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..numeric import clipped_normal
from ..numeric.channel_statistics import ChannelFacts
from ..numeric.equalization import LayerSensitivity
from ..operators import channels
from ..operators.linear import LinearLayer
from .scaling_groups import ScalingGroups

Vector = NDArray[np.float64]
Facts = Mapping[str, ChannelFacts]


def measured_tensors(groups: ScalingGroups) -> dict[str, int]:
    """The tensors that `output_sensitivities` reads: inputs and outputs of the layers, with their channel axes."""
    names = [t.name for s in groups.layers for t in (s.layer.input, s.layer.output)]
    return {name: groups.tensors[name][0] for name in names if name in groups.tensors}


def output_sensitivities(groups: ScalingGroups, facts: Facts) -> tuple[list[LayerSensitivity], Vector]:
    """Of each layer, sensitivity_o P_o of its outputs; and of each group of channels the sensitivity, (G,)."""
    sensitivities = np.zeros(len(groups.reasons))
    carried = []
    for scaled in groups.layers:
        squares = _squares(scaled.layer)
        power = _power(facts.get(scaled.layer.input.name), scaled.layer.input_channels)
        variance = _variance(scaled.layer, facts, squares, power)
        carried.append((power, variance))
        if scaled.inputs is not None:
            np.add.at(sensitivities, scaled.inputs, squares / variance)
    passing = _passing(groups, facts)
    of_layers = []
    for scaled, (power, variance) in zip(groups.layers, carried, strict=True):
        sensitivity = (sensitivities * passing)[scaled.outputs]
        if not sensitivity.any():  # no layer reads them: outputs of the model count as they are
            sensitivity = np.full(scaled.outputs.size, 1 / variance)
        of_layers.append(LayerSensitivity(power, sensitivity, channels.pairs(scaled.layer).shape[3]))
    return of_layers, sensitivities


def _power(facts: ChannelFacts | None, size: int) -> Vector:
    """E[x^2] of a layer's inputs; 1 where nothing is known."""
    power = np.full(size, np.nan) if facts is None or facts.mean.size != size else facts.power
    return np.where(np.isnan(power), 1.0, power)


def _squares(layer: LinearLayer) -> Vector:
    """sum_o ||W_oi||^2, (Cin,)."""
    groups, _, inputs, _ = channels.pairs(layer).shape
    total = np.zeros((groups, inputs))
    for _, (weight,) in channels.blocks(layer):
        total += np.square(weight).sum(axis=3).sum(axis=1)
    return total.reshape(-1)


def _variance(layer: LinearLayer, facts: Facts, squares: Vector, power: Vector) -> float:
    """Variance of a layer's output, channels added up; estimated from its inputs' where it is not known. Above 0."""
    known = facts.get(layer.output.name)
    variance = 0.0 if known is None else float(np.nansum(known.std**2))
    return variance or float((squares * power).sum()) or 1.0


def _passing(groups: ScalingGroups, facts: Facts) -> Vector:
    """Per group, the share of values that no Clip cuts."""
    passing = np.ones(len(groups.reasons))
    for bound in groups.bounds:
        known = facts.get(bound.tensor)
        if known is not None:
            share = clipped_normal.passing(known.mean, known.std, bound.lo, bound.hi)
            np.minimum.at(passing, bound.ids, np.where(np.isnan(share), 1.0, share))
    return passing
