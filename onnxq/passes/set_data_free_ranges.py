"""Activation ranges without data (white paper equations 18 and 19).

    lo = min over channels (mean - alpha std)          hi = max over channels (mean + alpha std)

of the moments that `graph.batchnorm_statistics` carries from BatchNorm through Relu, Clip, Add, Concat, pooling and
linear layers, clipped where an activation clips. A tensor of which some channel is not known cannot be ranged; it stays
in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.batchnorm_statistics import propagate_batchnorm_statistics
from ..graph.model import Model, drop_quantizer, grid_root
from ..graph.patterns import needed_range
from ..numeric.channel_statistics import ChannelFacts
from ..numeric.quant import QuantParams
from ..operators.saturation import EVERYTHING
from ..report import Reason
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class SetDataFreeRanges:
    """Set the ranges of activations from moments.

    alpha: standard deviations that a range spans on each side. inputs: (name, lo, hi) of the model's inputs, of which
    no moments are known. A tensor that cannot be ranged keeps parameters that it has; without any it stays in float.
    """

    alpha: float = 6.0
    inputs: tuple[tuple[str, float, float], ...] = ()
    title: ClassVar[str] = "Set data-free ranges"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        known = propagate_batchnorm_statistics(model, self.alpha)
        given = {name: (lo, hi) for name, lo, hi in self.inputs}
        tensors = model.graph.tensors()
        activations = {n: q for n, q in model.quantizers.items() if isinstance(tensors[n], gs.Variable)}
        ranges: dict[str, tuple[float, float] | None] = {}
        for name, quantizer in activations.items():
            if quantizer.grid_of is None and not quantizer.given:
                parts = [given.get(n) or _range(known.get(n)) for n in (name, *quantizer.widened_by)]
                ranges[name] = quantizer.fixed or _union(parts)
        skips = []
        planned = dict(model.quantizers)
        for name, quantizer in activations.items():
            root = grid_root(planned, name)
            known_params = planned[root].params
            if known_params is not None and (planned[root].given or root not in activations):  # a table's, for one
                model.quantizers[name] = quantizer.with_params(known_params)
                continue
            span = ranges[root]
            if span is None:
                if root == name:
                    skips.append(Skip(name, _unknown(model, name, known.get(name))))
                if quantizer.params is None:
                    reason = Reason("range", _unknown(model, root, known.get(root)))
                    drop_quantizer(model, root if root in model.quantizers else name, reason)
            else:
                low, high = np.clip(span, *(EVERYTHING if root in given else needed_range(model, planned[root])))
                params = QuantParams.from_range(low, high, activations[root].spec)
                model.quantizers[name] = quantizer.with_params(params)
        return Outcome(len(activations) - len(skips), tuple(skips))


def _range(facts: ChannelFacts | None) -> tuple[float, float] | None:
    if facts is None or not (np.isfinite(facts.lo).all() and np.isfinite(facts.hi).all()):
        return None
    return float(facts.lo.min(initial=0.0)), float(facts.hi.max(initial=0.0))


def _union(parts: list[tuple[float, float] | None]) -> tuple[float, float] | None:
    spans = [part for part in parts if part is not None]
    if len(spans) < len(parts):
        return None
    return min(lo for lo, _ in spans), max(hi for _, hi in spans)


def _unknown(model: Model, name: str, facts: ChannelFacts | None) -> str:
    if any(name == tensor.name for tensor in model.graph.inputs):
        return "no range is known of this input: give it, or calibration data"
    if facts is None:
        return "no BatchNorm moments lead here: give calibration data"
    blind = int(np.isnan(facts.lo).sum())
    return f"no moments are known of {blind} of its {facts.lo.size} channels: give calibration data"
