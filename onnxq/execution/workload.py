"""What one run of a network computes and moves: products and bytes, counted from the shapes that a run really has.

Linear operators say themselves how many multiplications they take (`LinearForm.products`); everything else multiplies
nothing worth counting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..data import Feed
from ..operators.registry import linear_form
from .partial import extract
from .session import Session


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


def workload(proto: ModelProto, feed: Feed) -> Workload:
    """Runs the model once and holds all its tensors while it does. Raises EngineError."""
    names = [name for node in proto.graph.node for name in node.output if name]
    found = {**feed.arrays, **Session(extract(proto, names)).run(feed.arrays)}
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    shapes = {name: value.shape for name, value in arrays.items()}
    shapes |= {t.name: tuple(t.dims) for t in proto.graph.initializer}
    return Workload(
        {node.name: count for node in proto.graph.node if (count := _products(node, shapes))},
        {name: (value.size, value.nbytes) for name, value in arrays.items()},
        1 if feed.rows is None else next(iter(feed.arrays.values())).shape[0],
    )


def _products(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    form = linear_form(node.op_type, node.domain)
    if form is None:
        return 0
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    elements = math.prod(shapes[node.input[0] if form.counted == "input" else node.output[0]])
    return elements * form.products(attributes, shapes[node.input[form.weight]])
