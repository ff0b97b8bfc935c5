"""What weights of few bits may get instead, where that says something of a network, or as an exception."""

from __future__ import annotations

from dataclasses import replace

from ..numeric.quant import QuantSpec
from ..targets.contradictions import contradictions
from .task import Task


def wider_weight(task: Task) -> QuantSpec | None:
    """8 bits; None where weights have as many, or the target has nothing wider for them."""
    options, target = task.options, task.context.target
    if options.weight is None or options.weight.grid.bits >= 8:
        return None
    wider = target.weight_of(8)
    refused = any(contradictions(target, replace(options.weight, grid=wider.grid), options.activation))
    return None if refused else wider
