"""Channel statistics without data (white paper sections 3.1 and 3.3.1): moments and ranges from BatchNorm.

Behind a folded BatchNorm a layer's output has a known mean and standard deviation in each channel, z ~ N(mu, sigma^2),
and hardly leaves mu - alpha sigma ... mu + alpha sigma (18, 19). From there on:

    Relu, Clip      moments of the clipped normal distribution (28), the range clipped
    Add             means and variances add up, as if the terms were independent
    Concat          one after the other
    pooling         the mean of average pooling stays, max pooling keeps the range only
    linear layers   without BatchNorm: mean W mu + b, variance sum of W^2 sigma^2, as if inputs were independent
    Reshape, ...    the same channels

A channel whose weights are all zero is constant: its bias. What nothing is known of is not-a-number, by channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from ..numeric import clipped_normal
from ..numeric.channel_statistics import ChannelFacts
from ..operators import channels
from ..operators.channels import propagate_mean
from ..operators.conv import pads
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layer
from ..operators.registry import Statistics, operator_of
from .model import Model
from .scaling_groups import find_groups

Known = dict[str, ChannelFacts]
Visit = Callable[[LinearLayer, "ChannelFacts | None"], None]
_Follow = Callable[[gs.Node, list[ChannelFacts], int], "ChannelFacts | None"]


def propagate_batchnorm_statistics(
    model: Model, alpha: float = 6.0, visit: Visit = lambda layer, inputs: None
) -> Known:
    """By tensor name, what is known of its channels: those along the axis that `find_groups` names.

    visit: is shown each layer, in graph order, and what is known of its input; it may change the layer's parameters.
    """
    places = find_groups(model).tensors
    known: Known = {}
    for node in model.graph.nodes:
        layer = linear_layer(node)
        if isinstance(layer, LinearLayer):
            visit(layer, known.get(layer.input.name))
            layer = linear_layer(node)
            assert isinstance(layer, LinearLayer)
            known[layer.output.name] = _behind_layer(model, layer, known, alpha)
            continue
        name = node.outputs[0].name if node.outputs else ""
        inputs = [known.get(t.name) for t in node.inputs if not isinstance(t, gs.Constant) and t.name]
        operator = operator_of(node)
        how = None if operator is None else operator.statistics
        if name not in known and name in places and how and inputs and None not in inputs:
            facts = _FOLLOW[how](node, [x for x in inputs if x is not None], places[name][1].size)
            if facts is not None:
                known[name] = facts
    return known


def _behind_layer(model: Model, layer: LinearLayer, known: Known, alpha: float) -> ChannelFacts:
    bias = layer.bias_values
    moments = model.moments.get(layer.output.name)
    still = ~channels.pairs(layer).any(axis=(2, 3)).reshape(-1)
    if moments is not None:
        mean, std = moments.mean, moments.std
    elif (x := known.get(layer.input.name)) is None:
        mean = std = np.full(still.size, np.nan)
    else:
        mean, std = _through(layer, x, bias)
    mean, std = np.where(still, bias, mean), np.where(still, 0.0, std)
    return ChannelFacts(mean, std, mean - alpha * std, mean + alpha * std)


def _through(layer: LinearLayer, x: ChannelFacts, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of W x + b; not-a-number in outputs that see an input of which nothing is known."""
    size = layer.input_channels
    blind = np.ones(size, bool) if x.mean.size != size else np.isnan(x.mean) | np.isnan(x.std)
    mean, std = (np.zeros(size), np.zeros(size)) if blind.all() else (x.mean, x.std)
    unseen = propagate_mean(layer, np.asarray(blind, np.float64), of=np.abs) > 0
    out = bias + propagate_mean(layer, np.where(blind, 0.0, mean))
    variance = channels.sum_over_inputs(layer, np.where(blind, 0.0, std) ** 2, of=np.square)
    return np.where(unseen, np.nan, out), np.where(unseen, np.nan, np.sqrt(variance))


def _clipped(node: gs.Node, inputs: list[ChannelFacts], size: int) -> ChannelFacts | None:
    bounds = clip_bounds(node)
    if bounds is None:
        return None
    x = inputs[0]
    mean, std = clipped_normal.moments(x.mean, x.std, *bounds)
    return ChannelFacts(mean, std, np.clip(x.lo, *bounds), np.clip(x.hi, *bounds))


def _sum(node: gs.Node, inputs: list[ChannelFacts], size: int) -> ChannelFacts | None:
    if len(inputs) < len(node.inputs) or any(x.mean.size != size for x in inputs):
        return None
    mean, lo, hi = (np.sum([getattr(x, f) for x in inputs], axis=0) for f in ("mean", "lo", "hi"))
    return ChannelFacts(mean, np.sqrt(np.sum([x.std**2 for x in inputs], axis=0)), lo, hi)


def _concatenated(node: gs.Node, inputs: list[ChannelFacts], size: int) -> ChannelFacts | None:
    joined = ChannelFacts(*(np.concatenate([getattr(x, f) for x in inputs]) for f in ("mean", "std", "lo", "hi")))
    return joined if joined.mean.size == size and len(inputs) == len(node.inputs) else None


def _averaged(node: gs.Node, inputs: list[ChannelFacts], size: int) -> ChannelFacts | None:
    """The standard deviation stays as an upper bound: neighbours are not independent."""
    return None if pads(node) else inputs[0]


def _largest(node: gs.Node, inputs: list[ChannelFacts], size: int) -> ChannelFacts | None:
    x = inputs[0]
    return replace(x, mean=np.where(x.std == 0, x.mean, np.nan), std=np.where(x.std == 0, 0.0, np.nan))


def _same(node: gs.Node, inputs: list[ChannelFacts], size: int) -> ChannelFacts | None:
    """Flatten turns a channel into several in a row."""
    x = inputs[0]
    if size % x.mean.size:
        return None
    return ChannelFacts(*(np.repeat(getattr(x, f), size // x.mean.size) for f in ("mean", "std", "lo", "hi")))


_FOLLOW: Mapping[Statistics, _Follow] = {
    "clip": _clipped, "add": _sum, "concat": _concatenated, "average": _averaged, "largest": _largest, "same": _same,
}  # fmt: skip
