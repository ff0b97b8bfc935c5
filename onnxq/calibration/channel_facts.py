"""Facts about channels for passes that need them: measured where there is calibration data, else from BatchNorm."""

from __future__ import annotations

from collections.abc import Mapping

from ..calibration.context import Context
from ..graph.batchnorm_statistics import propagate_batchnorm_statistics
from ..graph.model import Model
from ..numeric.channel_statistics import ChannelFacts, ChannelStatistics
from ..thresholds import LEAST_SEEN
from .collect import collect_tensors


def channel_facts(
    model: Model, tensors: Mapping[str, int], context: Context, label: str, deviations: float = 6.0
) -> dict[str, ChannelFacts]:
    """What is known of `tensors` (name -> channel axis); those of which nothing is known are left out.

    deviations: how many standard deviations around its mean a channel is expected to stay within, where there is no
    data. What this context has measured in this very graph is not measured again.
    """
    if not has_data(context):
        known = propagate_batchnorm_statistics(model, deviations)
        return {name: known[name] for name in tensors if name in known}
    measured = context.channel_facts.setdefault(model.fingerprint(), {})
    missing = [name for name, axis in tensors.items() if (name, axis) not in measured]
    if missing:
        found = collect_tensors(model, missing, context, lambda name: ChannelStatistics(tensors[name]), label)
        measured |= {(name, tensors[name]): s.facts() for name, s in found.items() if isinstance(s, ChannelStatistics)}
    return {name: measured[name, axis] for name, axis in tensors.items() if (name, axis) in measured}


def why_unreliable(facts: ChannelFacts) -> str:
    """Why what was measured says nothing about where a channel stays; empty where it does."""
    if facts.seen >= LEAST_SEEN:
        return ""
    return (
        f"each of its channels was seen {facts.seen:.0f} times only, and its extremes mean nothing below {LEAST_SEEN}:"
        " calibrate with more samples"
    )


def has_data(context: Context) -> bool:
    """Whether there is a calibration sample to look at."""
    return next(iter(context.feeds), None) is not None
