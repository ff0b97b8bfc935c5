"""What one run of a network computes and moves: multiplications and bytes, by the shapes that a run really has.

Linear operators say themselves how many multiplications they take (`LinearForm.products`); everything else multiplies
nothing worth counting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..data import Feed
from ..operators.registry import linear_form
from .partial import parts_that_fit, tensor_values


@dataclass(frozen=True)
class Workload:
    """products: multiplications by node name, of nodes that have some.  arrays: tensor -> (elements, bytes) of what
    nodes compute and the model is fed, sequences left out.  rows: how many samples one run takes."""

    products: Mapping[str, int]
    arrays: Mapping[str, tuple[int, int]]
    rows: int

    def elements(self, name: str) -> int:
        """Number of elements of a tensor; 0 where it is no array."""
        return self.arrays.get(name, (0, 0))[0]

    def bytes(self, name: str) -> int:
        """Size of a tensor; 0 where it is no array."""
        return self.arrays.get(name, (0, 0))[1]


def workload(proto: ModelProto, feed: Feed, max_memory: int = 512 << 20) -> Workload:
    """Runs the model on one feed, more than once where its tensors take more than `max_memory` bytes together.

    Raises EngineError.
    """
    names = [name for node in proto.graph.node for name in node.output if name]
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    arrays: dict[str, tuple[int, int]] = {}

    def look_at(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                shapes[name], arrays[name] = value.shape, (value.size, value.nbytes)

    look_at(feed.arrays)
    for _, part in parts_that_fit(proto, names, feed.arrays, max_memory):
        look_at(*tensor_values(proto, part, [feed]))
    return Workload(
        {node.name: count for node in proto.graph.node if (count := _products(node, shapes))},
        arrays,
        1 if feed.rows is None else next(iter(feed.arrays.values())).shape[0],
    )


def _products(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    form = linear_form(node.op_type, node.domain)
    if form is None:
        return 0
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    elements = math.prod(shapes[node.input[0] if form.counted == "input" else node.output[0]])
    return elements * form.products(attributes, shapes[node.input[form.weight]])
