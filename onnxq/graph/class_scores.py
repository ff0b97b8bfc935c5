"""Which outputs of a model are class scores, one row of logits or probabilities a sample: there the top-1 class means
something.

    probabilities   what Softmax or LogSoftmax makes, however many outputs there are
    scores          what a layer with constant weights (and Sigmoid behind it) makes, where it is the only float output

Between that and the output may stand Reshape, Squeeze, a bias, a constant factor, a mean over positions. Outputs behind
other functions are none: embeddings end in an activation, a BatchNormalization or a division by their norm, and token
states in a normalization. An embedding that ends in a bare layer looks like logits; where its name says so
(`embedding`, `feature`), it is believed. Boxes and landmarks of a network with several heads are other float outputs
beside the scores, and what lies behind a selection is none either (`graph.comparable`).

The shape decides as well, when the model has run: (samples, classes), axes of length 1 behind them not counted.
"""

from __future__ import annotations

import re
from typing import Literal

from onnx import ModelProto, NodeProto

from ..operators.registry import linear_form
from .comparable import FLOATS, selected_tensors

_OTHER_NAMES = re.compile("embed|feature|descriptor|hidden|vector|state|box|landmark|keypoint|coord", re.IGNORECASE)

_PASSED = frozenset({
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout", "Cast", "QuantizeLinear",
    "DequantizeLinear", "GlobalAveragePool", "AveragePool", "ReduceMean",
})  # fmt: skip

_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div"})


def class_score_outputs(proto: ModelProto) -> frozenset[str]:
    """Names of the outputs that hold class scores, as far as the graph says."""
    floats = [v.name for v in proto.graph.output if v.type.tensor_type.elem_type in FLOATS]
    makers = {name: node for node in proto.graph.node for name in node.output}
    fixed = {t.name for t in proto.graph.initializer}
    for node in proto.graph.node:
        if all(not name or name in fixed for name in node.input) and not any(a.HasField("g") for a in node.attribute):
            fixed.update(node.output)
    selected = selected_tensors(proto)
    found = {name: _kind(name, makers, fixed) for name in floats if name not in selected}
    only = len(floats) == 1 and not any(_OTHER_NAMES.search(name) for name in floats)
    return frozenset(name for name, kind in found.items() if kind == "probabilities" or (kind == "scores" and only))


def _kind(name: str, makers: dict[str, NodeProto], fixed: set[str]) -> Literal["probabilities", "scores"] | None:
    sigmoid = False
    while (node := makers.get(name)) is not None:
        form = linear_form(node.op_type, node.domain)
        if node.op_type in ("Softmax", "LogSoftmax"):
            return "probabilities"
        if form is not None:
            return "scores" if len(node.input) > form.weight and node.input[form.weight] in fixed else None
        if node.op_type == "Sigmoid" and not sigmoid:
            sigmoid = True
        elif node.op_type in _WITH_CONSTANT:
            computed = [read for read in node.input if read not in fixed]
            if len(computed) != 1:
                return None
            name = computed[0]
            continue
        elif node.op_type not in _PASSED:
            return None
        name = node.input[0]
    return None
