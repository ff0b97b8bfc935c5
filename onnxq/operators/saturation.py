"""What activation functions tell apart of their inputs: beyond an interval [a, b] their outputs hardly change.

    Relu, Clip      [a, b], their bounds                                     exactly
    HardSigmoid     [-beta / alpha, (1 - beta) / alpha]                      exactly
    HardSwish       [-3, inf]                                                exactly
    Sigmoid         [-8, 8]     1 - sigmoid(8) = 0.0003
    Tanh            [-4, 4]     1 - tanh(4) = 0.0007
    Gelu            [-4, inf]   |gelu(-4)| = 0.0001
    Mish            [-8, inf]   |mish(-8)| = 0.003
    x g(x)          [a, inf]    of the gate g, one of Sigmoid and HardSigmoid; 8 sigmoid(-8) = 0.003

What they do change beyond is a fraction of a step of 8 bits over [0, 1], or over the smallest range that an x g(x) has
where it is of use. So a grid that only such functions read need not reach beyond: convolutions in front of HardSwish
have most of their range on the side that it makes zero.
"""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from .elementwise import clip_bounds
from .node import in_subgraph, is_op

Interval = tuple[float, float]

EVERYTHING: Interval = (-math.inf, math.inf)

_FIXED: dict[str, Interval] = {
    "HardSwish": (-3.0, math.inf),
    "Sigmoid": (-8.0, 8.0),
    "Tanh": (-4.0, 4.0),
    "Gelu": (-4.0, math.inf),
    "Mish": (-8.0, math.inf),
}


def interval_of(node: gs.Node) -> Interval:
    """[a, b] of a node that is an activation function; everything of others."""
    if (bounds := clip_bounds(node)) is not None:
        return bounds
    if is_op(node, "HardSigmoid"):
        alpha, beta = (float(node.attrs.get(name, default)) for name, default in (("alpha", 0.2), ("beta", 0.5)))
        return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else EVERYTHING
    return next((_FIXED[op] for op in _FIXED if is_op(node, op)), EVERYTHING)


def needed_interval(tensor: gs.Tensor) -> Interval:
    """What all readers of a tensor together tell apart of its values: outside of it any value does as well as the
    nearer end."""
    lo, hi = math.inf, -math.inf
    for node in tensor.outputs:
        a, b = EVERYTHING if in_subgraph(node) else _needed_by(node, tensor)
        lo, hi = min(lo, a), max(hi, b)
    return (lo, hi) if lo <= hi else EVERYTHING


def _needed_by(node: gs.Node, tensor: gs.Tensor) -> Interval:
    if not is_op(node, "Mul"):
        return interval_of(node)
    for other in node.inputs:
        gate = other.inputs[0] if other is not tensor and other.inputs else None
        if gate is not None and is_op(gate, "Sigmoid", "HardSigmoid") and gate.inputs[0] is tensor:
            return interval_of(gate)[0], math.inf
    return EVERYTHING
