"""How small a weight's scale may be for its layer's bias, an integer at s_x s_w, to fit (section 2.1).

|b| / (s_x s_w) <= 2^30    a quarter of the int32 range, which leaves the accumulator its room
s_x s_w >= 2 m             m: the smallest normal float32
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..graph.model import Model, Quantizer
from ..numeric.quant import SMALLEST_SCALE
from ..operators.linear import LinearLayer

Vector = NDArray[np.float64]

LARGEST_BIAS = 2.0**30


def input_scale(model: Model, layer: LinearLayer) -> Vector | None:
    """s_x of a layer whose bias becomes integers; None where it stays in float: no grid on the input, or blocks."""
    x, weight = model.quantizers.get(layer.input.name), model.weight_quantizer(layer)
    if x is None or weight is None or x.params is None or weight.params is None or weight.spec.block is not None:
        return None
    return np.asarray(x.params.scale, np.float64)


def lowest_scales(bias: NDArray[np.floating], input_scale: Vector) -> Vector:
    """s_w at least, for each output channel, (Cout,)."""
    lowest = np.maximum(np.abs(np.asarray(bias, np.float64)) / LARGEST_BIAS, 2 * SMALLEST_SCALE)
    return np.asarray(lowest / input_scale)


def raised_scale(weight: Quantizer, groups: int, lowest: Vector) -> NDArray[np.float32]:
    """The planned scale, as large as `lowest` (Cout,) asks for."""
    assert weight.params is not None
    scale = np.asarray(weight.params.scale, np.float64)
    if weight.axis is None:
        lowest = np.asarray(lowest.max(initial=0.0))
    elif scale.size != lowest.size:  # grouped ConvTranspose: one scale serves a channel of every group
        lowest = lowest.reshape(groups, -1).max(axis=0)
    raised = np.maximum(scale, lowest)
    if weight.spec.power_of_two:
        raised = 2.0 ** np.ceil(np.log2(raised))
    return np.asarray(raised, np.float32)
