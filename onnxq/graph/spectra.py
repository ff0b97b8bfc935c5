"""Spectra that a logarithm reads: the front ends of networks on sound.

    samples -> DFT, a Conv or MatMul -> squares, their sum -> mel filters, a MatMul -> Log

Bins of one spectrum differ by factors of 10^7, and all count the same behind the logarithm. A grid has one step for
all: the spectrum of a speech front end (bins from 2e-5 to 117, half of them below 0.08) leaves log-mel features at
-17 dB on 8 bits, 4 dB on 12 and 16 dB on 16; its DFT's output on 8 bits leaves 6 dB.

    in front of Log    what it reads, and what computes that by operators that neither bend nor bound values, back to
                       the inputs of the model or to the nearest activation function
    a spectrum         where a square is among these operators
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..operators.linear import LinearLayer, linear_layer
from ..operators.node import constant_input, in_subgraph, is_op
from ..operators.registry import preserves_grid
from .model import Model

_SQUARES = ("ReduceSumSquare", "ReduceL2")

_PASSED = (
    *_SQUARES, "Add", "Sub", "Mul", "Div", "Neg", "Sum", "Sqrt", "Pow", "Max", "Min", "Clip", "Concat", "Where",
    "Pad", "ReduceSum", "ReduceMean", "Abs", "Cast", "STFT", "DFT",
)  # fmt: skip


def in_front_of_logarithms(model: Model) -> dict[int, gs.Node]:
    """Nodes, by identity, that compute a spectrum or what a spectrum is made of, and the Log that reads it."""
    found: dict[int, gs.Node] = {}
    for node in model.graph.nodes:
        if is_op(node, "Log") and not in_subgraph(node):
            passed = _passed(node)
            if any(map(_is_square, passed)):
                found |= {id(each): node for each in passed if id(each) not in found}
    return found


def _passed(logarithm: gs.Node) -> list[gs.Node]:
    """What computes the input of a Log, back to the first operators that bend or bound values."""
    found: dict[int, gs.Node] = {}
    waiting = [logarithm.inputs[0]]
    while waiting:
        for node in waiting.pop().inputs:
            if id(node) not in found and _is_passed(node):
                found[id(node)] = node
                waiting += [t for t in node.inputs if not isinstance(t, gs.Constant)]
    return list(found.values())


def _is_passed(node: gs.Node) -> bool:
    return is_op(node, *_PASSED) or preserves_grid(node) or isinstance(linear_layer(node), LinearLayer)


def _is_square(node: gs.Node) -> bool:
    if is_op(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    if is_op(node, "Pow"):
        exponent = constant_input(node, 1)
        return exponent is not None and bool((exponent == 2).all())
    return is_op(node, *_SQUARES)
