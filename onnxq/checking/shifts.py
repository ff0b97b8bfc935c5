"""Checks on positions p = -log2(scale): how far an accelerator that rescales by shifts has to shift."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from ..operators.registry import linear_form
from ..targets import Shifts, Target
from .qdq_reader import QdqGraph, label
from .tensor_grid import TensorGrid
from .violation import Violation


def shifts(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    bounds = target.shifts or Shifts()
    for node in graph.nodes:
        pair = graph.written(node)
        p_y = None if pair is None else _position(pair.grid)
        inputs = [graph.read(node, index) for index in range(len(node.inputs))]
        positions = [_position(grid) for grid in inputs if grid is not None]
        if linear_form(node.op, node.domain) is not None and len(positions) > 1:
            yield from _linear(node, positions, p_y, bounds)
        elif node.op in ("Add", "Sub", "Mul") and len(positions) == len(inputs):
            yield from _elementwise(node, positions, p_y, bounds)


def _linear(node: gs.Node, positions: list[int], p_y: int | None, bounds: Shifts) -> Iterator[Violation]:
    if p_y is None:
        return
    total = positions[0] + positions[1]
    cut = total - p_y
    yield from _outside(node, "p_w + p_x - p_y", cut, *bounds.cut)
    if len(positions) > 2:
        yield from _outside(
            node, "p_w + p_x - p_b", total - positions[2], min(0, cut - bounds.accumulator), bounds.bias
        )


def _elementwise(node: gs.Node, positions: list[int], p_y: int | None, bounds: Shifts) -> Iterator[Violation]:
    if node.op in ("Add", "Sub"):
        yield from _outside(node, "max p_x - min p_x", max(positions) - min(positions), 0, bounds.read)
    if node.op == "Add" and p_y is not None:
        yield from _outside(node, "min p_x - p_y", min(positions) - p_y, *bounds.add)
    if node.op == "Mul" and p_y is not None:
        yield from _outside(node, "sum p_x - p_y", sum(positions) - p_y, *bounds.mul)


def _outside(node: gs.Node, name: str, value: int, lo: int, hi: int) -> Iterator[Violation]:
    if not lo <= value <= hi:
        yield Violation(label(node), node.outputs[0].name, f"{lo} <= {name} <= {hi}", f"{value}")


def _position(grid: TensorGrid) -> int:
    return int(-np.rint(np.log2(grid.scale.min())))
