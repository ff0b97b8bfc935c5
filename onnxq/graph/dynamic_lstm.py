"""LSTMs whose activations are quantized at run time: ONNX Runtime's DynamicQuantizeLSTM (com.microsoft).

    W (D 4H, I), R (D 4H, H) integers, a scale a row -> DequantizeLinear -> Reshape -> LSTM        (`stored_weights`)
    W' (D, I, 4H), R' (D, H, 4H) integers, scales (D, 4H) -> DynamicQuantizeLSTM

It computes x W' and h R' in integers, x and h with a range of their own in each step, and all else as LSTM does. There
is no such operator for GRU and RNN, nor for weights of other than 8 bits: these keep float activations. Source:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftdynamicquantizelstm
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..operators.node import ONNX_DOMAINS
from . import large
from .serialized import drop_unread_initializers, graphs_of, names_of, names_read, nodes_of, unused_name

DYNAMIC_LSTM = "DynamicQuantizeLSTM"

INPUTS = 8
"""X, W, R, B, sequence_lens, initial_h, initial_c and P; behind them stand scales and zero points of W and R."""


def with_dynamic_lstms(proto: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """The model with such LSTMs, and their names; the given one, unchanged, where there are none."""
    if large.references(proto) or not any(_is_lstm(node) for node in nodes_of(proto.graph)):
        return proto, ()
    copy = ModelProto()
    copy.CopyFrom(proto)
    taken = names_of(copy.graph)
    initializers = {t.name: t for graph in graphs_of(copy.graph) for t in graph.initializer}
    done = []
    for graph in graphs_of(copy.graph):
        makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if not _is_lstm(node):
                continue
            weights = [_dequantized(node.input[place], makers, initializers) for place in (1, 2)]
            if all(weights):
                _rewrite(node, copy.graph, [w for w in weights if w is not None], initializers, taken)
                done.append(node.name)
    if not done:
        return proto, ()
    _drop_dequantizers(copy)
    if not any(o.domain == "com.microsoft" for o in copy.opset_import):
        copy.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return copy, tuple(done)


def _is_lstm(node: NodeProto) -> bool:
    layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
    return node.op_type == "LSTM" and node.domain in ONNX_DOMAINS and layout == 0


def _dequantized(
    name: str, makers: Mapping[str, NodeProto], initializers: Mapping[str, TensorProto]
) -> tuple[str, str] | None:
    """Integers and scales, by name, of a weight with a scale for each row of 8-bit integers around zero."""
    reshape = makers.get(name)
    node = makers.get(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, zero_point = initializers.get(node.input[0]), initializers.get(node.input[2])
    if integers is None or zero_point is None or integers.data_type != TensorProto.INT8:
        return None
    return None if np.any(numpy_helper.to_array(zero_point)) else (node.input[0], node.input[1])


def _rewrite(
    node: NodeProto,
    main: GraphProto,
    weights: list[tuple[str, str]],
    initializers: Mapping[str, TensorProto],
    taken: set[str],
) -> None:
    hidden = next(a.i for a in node.attribute if a.name == "hidden_size")
    inputs = list(node.input) + [""] * (INPUTS - len(node.input))
    behind = []
    for place, (integers, scales) in zip((1, 2), weights, strict=True):
        values = numpy_helper.to_array(initializers[integers]).reshape(-1, 4 * hidden, initializers[integers].dims[1])
        scale = numpy_helper.to_array(initializers[scales]).reshape(-1, 4 * hidden)
        inputs[place] = _put(main, f"{integers}_by_input", values.transpose(0, 2, 1), taken)
        behind += [
            _put(main, f"{scales}_by_direction", scale, taken),
            _put(main, f"{integers}_zero_points", np.zeros_like(scale, np.int8), taken),
        ]
    kept = [a for a in node.attribute if a.name != "layout"]
    attributes = [helper.make_attribute(a.name, helper.get_attribute_value(a)) for a in kept]
    del node.attribute[:]
    node.attribute.extend(attributes)
    node.op_type, node.domain = DYNAMIC_LSTM, "com.microsoft"
    node.input[:] = [*inputs, *behind]


def _put(graph: GraphProto, stem: str, values: np.ndarray, taken: set[str]) -> str:
    name = unused_name(stem, taken)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def _drop_dequantizers(proto: ModelProto) -> None:
    """What dequantized the weights goes, with its integers where no other node reads them."""
    gone = True
    while gone:
        read, gone = names_read(proto.graph), False
        for graph in graphs_of(proto.graph):
            for index, node in reversed(list(enumerate(graph.node))):
                if node.op_type in ("Reshape", "DequantizeLinear") and not read.intersection(node.output):
                    del graph.node[index]
                    gone = True
    drop_unread_initializers(proto.graph)
