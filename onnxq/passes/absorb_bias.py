"""High-bias absorption (white paper section 3.2, equations 23 and 24).

A channel z of a layer that hardly ever goes below c > 0 passes Relu as it is; c can as well be added behind it:

    f(z) = f(z - c) + c          for z >= c, f = Relu; for all z without an activation               (23)

    b1 <- b1 - c                 b2 <- b2 + W2 c                                                     (24)

which makes the range of the activation smaller by c. From BatchNorm's moments c = max(0, beta - 3 gamma); with
calibration data c is at most the smallest value seen, so that nothing changes on it. For Clip(0, b) also z <= b must
hold: a channel that reaches b keeps its bias. What a reader makes of c is one value a channel only where it pads
nothing: Conv with zero padding would miss c at the border, and is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from ..calibration.channel_facts import channel_facts, has_data, why_unreliable
from ..graph import edit
from ..graph.model import Model
from ..graph.scaling_groups import find_groups
from ..numeric.channel_statistics import ChannelFacts
from ..operators.channels import propagate_mean
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layer, linear_layers
from .base import Context, Outcome, Skip

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class AbsorbBias:
    """Move high biases over the activation into the layers behind it. deviations: how far below the mean c lies."""

    deviations: float = 3.0
    title: ClassVar[str] = "Absorb high biases"
    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        places = find_groups(model).tensors
        layers = linear_layers(model.graph.nodes)
        outputs = {x.output.name: places[x.output.name][0] for x in layers if x.output.name in places}
        facts = channel_facts(model, outputs, context, "measuring channels")
        measured = has_data(context)
        changed, skips, notes = 0, [], []
        for layer in layers:
            readers = _readers(model, layer)
            known = facts.get(layer.output.name)
            if isinstance(readers, str):
                skips.append(Skip(layer.node.name, readers))
            elif known is None:
                skips.append(Skip(layer.node.name, f"nothing is known of its output {layer.output.name!r}"))
            elif reason := why_unreliable(known):
                skips.append(Skip(layer.node.name, reason))
            else:
                c = self._absorbed(model, layer, known, measured)
                if c.any():
                    _move(model, layer, readers, c)
                    changed += int(np.sum(c > 0))
                    notes.append(f"{layer.node.name}: {np.sum(c > 0)} of {c.size} channels, {c.max():.3g} at most")
        return Outcome(changed, tuple(skips), tuple(notes))

    def _absorbed(self, model: Model, layer: LinearLayer, known: ChannelFacts, measured: bool) -> Vector:
        """c, (Cout,)."""
        moments = model.moments.get(layer.output.name)
        mean, std = (known.mean, known.std) if moments is None else (moments.mean, moments.std)
        c = np.maximum(np.nan_to_num(mean - self.deviations * std), 0.0)
        if measured:
            c = np.minimum(c, np.maximum(known.lo, 0.0))
        bounds = clip_bounds(layer.output.outputs[0]) or (-np.inf, np.inf)
        stays = (known.hi < bounds[1]) & (known.std > 0)  # constant channels are left to RemoveDeadChannels
        return np.where(stays & (bounds[0] in (0.0, -np.inf)), c, 0.0)


def _readers(model: Model, layer: LinearLayer) -> list[LinearLayer] | str:
    """The linear layers behind the activation, if nothing else reads it; or why nothing can be absorbed."""
    tensor = layer.output
    activation = model.sole_consumer(tensor)
    if activation is not None and clip_bounds(activation) is not None:
        tensor = activation.outputs[0]
    consumers = model.consumers(tensor)
    if model.is_output(tensor) or not consumers:
        return "its output is one of the model"
    readers = []
    for node in consumers:
        reader = _reader(node, tensor)
        if isinstance(reader, str):
            return f"{node.name}: {reader}"
        if reader.input_channels != layer.channels:
            return f"{node.name}: it reads the channels along another axis"
        readers.append(reader)
    return readers


def _reader(node: gs.Node, tensor: gs.Tensor) -> LinearLayer | str:
    reader = linear_layer(node)
    if isinstance(reader, str):
        return reader
    if reader.varies is not None:
        return f"{reader.varies}, so that an absorbed bias would not be one value a channel behind it"
    return reader


def _move(model: Model, layer: LinearLayer, readers: list[LinearLayer], c: Vector) -> None:
    bias = layer.bias_values
    edit.set_bias(model, layer, bias - c)
    moments = model.moments.get(layer.output.name)
    if moments is not None:
        model.moments[layer.output.name] = moments.affine(np.float64(1.0), -c)
    for reader in readers:
        edit.set_bias(model, reader, reader.bias_values + propagate_mean(reader, c))
