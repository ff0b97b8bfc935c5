"""Weights of branches and loop bodies that exporters write as nodes, as initializers of the body.

    Constant -> w                                    w an initializer
    Constant, Slice, Concat, Unsqueeze, ... -> w     w an initializer, which holds what the nodes would compute

PyTorch writes what is scripted so: a decoder's or a voice detector's weights are Constant nodes inside of an If, and
those of an LSTM are put together from slices of them. In the main graph constants are folded by `passes.normalize`; the
library that edits graphs does not look into bodies, whose weights `stored_weights` stores. What is small, or an output
of the body, stays a node: ONNX Runtime wants a body's outputs computed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ..operators.node import ONNX_DOMAINS
from ..thresholds import SMALLEST_STORED
from . import large
from .serialized import bodies_of, drop_unread_initializers

MOVEMENT = ("Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Slice", "Concat", "Gather")
"""What exporters put weights together with. None of these computes a value that was not there."""


def with_inner_constants(proto: ModelProto) -> ModelProto:
    """The model with such weights as initializers; the given one, unchanged, where there are none."""
    if large.references(proto) or not any(True for node in proto.graph.node for _ in bodies_of(node)):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    known = {tensor.name: tensor for tensor in copy.graph.initializer}
    lifted = 0
    for node in copy.graph.node:
        if is_constant(node):
            known[node.output[0]] = _value(node)
        for body in bodies_of(node):
            lifted += _lift(body, known, copy)
    return copy if lifted else proto


def is_constant(node: NodeProto) -> bool:
    """Whether a node is a Constant that holds numbers in one tensor."""
    return node.op_type == "Constant" and node.domain in ONNX_DOMAINS and any(a.name == "value" for a in node.attribute)


def _lift(graph: GraphProto, outer: Mapping[str, TensorProto], model: ModelProto) -> int:
    """Make initializers in one body, and in those inside of it; how many. outer: constants that it sees, by name."""
    known = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    outputs = {value.name for value in graph.output}
    nodes, lifted = [], 0
    for node in graph.node:
        value = _value(node) if is_constant(node) else _folded(node, known, model)
        if value is not None:
            known[node.output[0]] = value
        if value is None or node.output[0] in outputs or not _is_weight(value):
            nodes.append(node)
        else:
            graph.initializer.append(value)
            lifted += 1
        for body in bodies_of(node):
            lifted += _lift(body, known, model)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread_initializers(graph)  # those that only folded nodes have read
    return lifted


def _folded(node: NodeProto, known: Mapping[str, TensorProto], model: ModelProto) -> TensorProto | None:
    """What a node that moves constants computes; None where it is another one."""
    if node.op_type not in MOVEMENT or node.domain not in ONNX_DOMAINS or len(node.output) != 1:
        return None
    names = [name for name in node.input if name]
    if not names or any(name not in known for name in names):
        return None
    inputs = [helper.make_tensor_value_info(name, known[name].data_type, None) for name in dict.fromkeys(names)]
    output = helper.make_tensor_value_info(node.output[0], known[names[0]].data_type, None)
    graph = helper.make_graph([node], "constants", inputs, [output])
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    feeds = {name: numpy_helper.to_array(known[name]) for name in names}
    (found,) = ReferenceEvaluator(alone).run([node.output[0]], feeds)
    return numpy_helper.from_array(np.ascontiguousarray(np.asarray(found)), node.output[0])


def _is_weight(tensor: TensorProto) -> bool:
    return len(tensor.dims) >= 2 and int(np.prod(tensor.dims)) >= SMALLEST_STORED


def _value(node: NodeProto) -> TensorProto:
    """What a Constant holds, under the name of its output."""
    value = TensorProto()
    value.CopyFrom(next(a.t for a in node.attribute if a.name == "value"))
    value.name = node.output[0]
    return value
