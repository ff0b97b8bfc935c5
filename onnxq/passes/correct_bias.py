"""Bias correction (white paper section 3.3): what rounding the weights adds to a layer's mean output is taken back.

    E[W x + b] - E[W~ x + b]  =  E[W x] - E[W~ x]  =  (W - W~) E[x]          W~: the quantized weights      (25, 26)

    b  <-  b + (W - W~) E[x]                                                                                (27)

E[x], the mean of each input channel, (Cin,), comes from calibration data; or, without any, from BatchNorm: behind a
Relu or Clip that of the clipped normal distribution (28), added up over Add, unchanged by average pooling
(`graph.batchnorm_statistics`). Zero padding is counted in (`LinearForm.coverage`).

This is the analytic correction: it sees the error that a layer's own weights make. The empirical one also sees the
errors that come in from layers before, E[x~] instead of E[x], and needs the network run layer after layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from ..calibration.channel_facts import channel_facts
from ..graph import edit
from ..graph.model import Model
from ..graph.scaling_groups import find_groups
from ..numeric.channel_statistics import ChannelFacts
from ..operators.channels import propagate_mean
from ..operators.linear import LinearLayer, linear_layers
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class CorrectBias:
    """Correct the bias of every layer whose weight is quantized; one is created where there was none.

    means: where E[x] comes from. `data`: calibration data where there is some; `moments`: BatchNorm in any case.
    """

    means: Literal["data", "moments"] = "data"
    title: ClassVar[str] = "Bias correction"
    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        layers = _quantized_layers(model)
        source = context if self.means == "data" else replace(context, feeds=())
        facts = channel_facts(model, input_axes(model), source, "measuring means")
        changed, skips, largest = 0, [], 0.0
        for layer in layers:
            known = facts.get(layer.input.name)
            size = layer.input_channels
            if known is None or known.mean.size != size or np.isnan(known.mean).all():
                skips.append(Skip(layer.node.name, f"the mean of its input {layer.input.name!r} is not known"))
                continue
            blind = int(np.isnan(known.mean).sum())
            if blind:
                skips.append(Skip(layer.node.name, f"the means of {blind} of its {size} input channels are not known"))
            shift = _shift(model, layer, known)
            bias = layer.bias_values
            edit.set_bias(model, layer, bias + shift)
            largest = max(largest, float(np.abs(shift).max(initial=0.0)))
            changed += 1
        return Outcome(changed, tuple(skips), (f"largest correction {largest:.3g}",))


def _quantized_layers(model: Model) -> list[LinearLayer]:
    quantizers = ((layer, model.weight_quantizer(layer)) for layer in linear_layers(model.graph.nodes))
    return [layer for layer, quantizer in quantizers if quantizer is not None and quantizer.params is not None]


def input_axes(model: Model) -> dict[str, int]:
    """Inputs of the layers whose weights have scales, the tensors whose means are needed, and their channel axes."""
    places = find_groups(model).tensors
    axes = {}
    for layer in _quantized_layers(model):
        axis, name = layer.output_axis, layer.input.name
        axes[name] = axis if axis == 1 or name not in places else places[name][0]
    return axes


def _shift(model: Model, layer: LinearLayer, known: ChannelFacts) -> np.ndarray:
    """(W - W~) E[x], (Cout,)."""
    params = model.quantizers[layer.weight.name].params
    assert params is not None
    weight = np.asarray(layer.weight.values)
    return propagate_mean(layer, np.nan_to_num(known.mean), weight, params.fake(weight), of=np.subtract)
