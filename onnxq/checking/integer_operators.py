"""Integer operators (QLinearConv, QGemm, ...) made readable as QDQ: each of their tensors gets a DequantizeLinear.

QLinearConv(...) -> integers                       with the scale and zero point that the operator has for its output
integers -> Reshape, MaxPool, ... -> integers      with those of the first input
weights of QLinearConv, QLinearMatMul, QGemm       with the scales and zero points that the operator has for them

The nodes are added, nothing that was there is changed: whoever reads QDQ reads these models, too.
"""

from __future__ import annotations

from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from ..operators.registry import find

OUTPUT_GRID = {
    "QLinearConv": (6, 7), "QLinearMatMul": (6, 7), "QLinearAdd": (6, 7), "QLinearMul": (6, 7), "QGemm": (7, 8),
    "QLinearSigmoid": (3, 4), "QLinearLeakyRelu": (3, 4), "QLinearSoftmax": (3, 4), "QLinearAveragePool": (3, 4),
    "QLinearGlobalAveragePool": (3, 4), "QLinearReduceMean": (3, 4), "QLinearConcat": (0, 1), "QLinearWhere": (7, 8),
}  # fmt: skip
"""Where operators have the scale and zero point of their output among their inputs."""

WEIGHT_GRID = {"QLinearConv": (3, 4, 5), "QLinearMatMul": (3, 4, 5), "QGemm": (3, 4, 5)}
"""Where they have their weight, its scale and its zero point."""

SUFFIX = "_dequantized_to_compare"
"""What the name of a tensor gets behind the DequantizeLinear that is added."""


def with_dequantizers(proto: ModelProto) -> ModelProto:
    """A copy with a DequantizeLinear behind every integer output and weight of integer operators that has none."""
    result = ModelProto()
    result.CopyFrom(proto)
    values = _constants(proto)
    by_channel = any(o.domain in ("", "ai.onnx") and o.version >= 13 for o in proto.opset_import)
    has_one = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    grids: dict[str, tuple[str, str]] = {}
    axes: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type in OUTPUT_GRID:
            scale, zero_point = (node.input[i] for i in OUTPUT_GRID[node.op_type] if i < len(node.input))
            grids[node.output[0]] = scale, zero_point
        elif _moves(node) and node.input[0] in grids:
            grids.update(dict.fromkeys(node.output, grids[node.input[0]]))
        elif node.op_type == "QuantizeLinear" and len(node.input) > 2:
            grids[node.output[0]] = node.input[1], node.input[2]
        if node.op_type in WEIGHT_GRID:
            weight, scale, zero_point = (node.input[i] for i in WEIGHT_GRID[node.op_type])
            if _has_channels(values.get(scale)):
                if not by_channel:
                    continue  # DequantizeLinear has one scale a tensor there
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                axes[weight] = 0 if node.op_type == "QLinearConv" or transposed else 1
            grids[weight] = scale, zero_point
            has_one.discard(weight)
    for name, (scale, zero_point) in grids.items():
        if name not in has_one:
            axis: dict[str, Any] = {"axis": axes[name]} if name in axes else {}
            inputs = [name]
            for stem, parameter in (("scale", scale), ("zero_point", zero_point)):
                inputs.append(_scalar(result, values.get(parameter), f"{name}{SUFFIX}_{stem}") or parameter)
            result.graph.node.append(helper.make_node("DequantizeLinear", inputs, [f"{name}{SUFFIX}"], **axis))
    return result


def _moves(node: NodeProto) -> bool:
    """Whether a node moves values, so that the grid of its input is that of its output."""
    operator = find(node.op_type, node.domain)
    return operator is not None and operator.kind == "movement"


def _constants(proto: ModelProto) -> dict[str, TensorProto]:
    """Initializers, and what Constant nodes hold, by name."""
    values = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            values.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return values


def _has_channels(scale: TensorProto | None) -> bool:
    return scale is None or tuple(scale.dims) not in ((), (1,))


def _scalar(proto: ModelProto, value: TensorProto | None, name: str) -> str | None:
    """The name of a scalar, added to `proto`, where a parameter is an array of one element: operators take these,
    DequantizeLinear does not."""
    if value is None or tuple(value.dims) != (1,):
        return None
    scalar = TensorProto()
    scalar.CopyFrom(value)
    scalar.name = name
    del scalar.dims[:]
    proto.graph.initializer.append(scalar)
    return name
