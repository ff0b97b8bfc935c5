"""A quantized model of any tool with all its integers made readable: what each tensor stands for, in real numbers.

QDQ          x -> QuantizeLinear -> DequantizeLinear -> y       y is x as its readers see it
QOperator    QLinearConv(...) -> integers                       a DequantizeLinear is added behind, with the scale
                                                                and zero point that the operator has for its output
QOperator    integers -> Reshape, MaxPool, ... -> integers      the same scale and zero point
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from ..operators.registry import find
from .wiring import Wiring

OUTPUT_GRID = {
    "QLinearConv": (6, 7), "QLinearMatMul": (6, 7), "QLinearAdd": (6, 7), "QLinearMul": (6, 7), "QGemm": (7, 8),
    "QLinearSigmoid": (3, 4), "QLinearLeakyRelu": (3, 4), "QLinearSoftmax": (3, 4), "QLinearAveragePool": (3, 4),
    "QLinearGlobalAveragePool": (3, 4), "QLinearReduceMean": (3, 4), "QLinearConcat": (0, 1), "QLinearWhere": (7, 8),
}  # fmt: skip
"""Where operators have the scale and zero point of their output among their inputs."""

WEIGHT_GRID = {"QLinearConv": (3, 4, 5), "QLinearMatMul": (3, 4, 5), "QGemm": (3, 4, 5)}
"""Where they have their weight, its scale and its zero point."""

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})

SUFFIXES = (
    "_DequantizeLinear_Output", "_QuantizeLinear_Output", "_QuantizeLinear_Input", "_DequantizeLinear",
    "_QuantizeLinear", "_dequantized", "_quantized", "_clipped", "_integers", "_dq", "_q", "_DQ", "_Q",
)  # fmt: skip
"""What tools append to the name of the tensor that they quantize."""


@dataclass(frozen=True)
class Readable:
    """wiring: of the quantized model, made readable. values: name of a tensor, without what its tool appended -> the
    tensor that holds it as its readers see it. weights: (node, its weight) as real numbers, by node name and output."""

    wiring: Wiring
    values: dict[str, str]

    @classmethod
    def of(cls, proto: ModelProto, known: set[str]) -> Readable:
        """known: names of the float model's tensors, which are names of no more than themselves."""
        copy = ModelProto()
        copy.CopyFrom(proto)
        _dequantize_operators(copy)
        wiring = Wiring(copy)
        values: dict[str, str] = {}
        for node in wiring.nodes:
            if node.op_type == "DequantizeLinear" and node.input[0] not in wiring.constants:
                for name in _names_of(wiring, node, known):
                    values.setdefault(name, node.output[0])
        for name in (*wiring.inputs, *wiring.producer):
            if name in known:
                values.setdefault(name, name)
        return cls(wiring, values)

    def value_of(self, name: str) -> str:
        """A tensor as its readers see it: behind QuantizeLinear and DequantizeLinear where these follow."""
        for reader in self.wiring.readers.get(name, []):
            if reader.op_type in QDQ or (reader.op_type == "Clip" and self._only_quantized(reader)):
                return self.value_of(reader.output[0])
        return name

    def _only_quantized(self, node: NodeProto) -> bool:
        return {r.op_type for r in self.wiring.readers.get(node.output[0], [])} == {"QuantizeLinear"}

    def weight_of(self, node: NodeProto) -> str | None:
        """The tensor that holds a linear node's weight as real numbers; None where it is not constant."""
        place = WEIGHT_GRID[node.op_type][0] if node.op_type in WEIGHT_GRID else 1
        if len(node.input) <= place:
            return None
        name = node.input[place]
        if node.op_type in WEIGHT_GRID:
            name = _added(name)
        return name if name in self.wiring.constants else None


def _names_of(wiring: Wiring, node: NodeProto, known: set[str]) -> list[str]:
    """What a DequantizeLinear's output may be called: itself, what was quantized, and these without suffixes."""
    through = frozenset({"QuantizeLinear", "Clip", "Cast", "Identity"})
    back = [node.output[0], *wiring.walk_back(node.input[0], through)]
    found = [name for name in back if name in known]
    stripped = (without_suffix(name, known) for name in back)
    return (found or [name for name in stripped if name is not None])[:1]


def without_suffix(name: str, known: set[str]) -> str | None:
    """The float model's tensor (or node) that a name was derived from, if any."""
    while name not in known:
        suffix = next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), None)
        if suffix is None:
            return None
        name = name.removesuffix(suffix)
    return name


def keeps_values(node: NodeProto) -> bool:
    """Whether a node moves values, so that its output is on the grid of its input."""
    operator = find(node.op_type, node.domain)
    return operator is not None and operator.kind == "movement"


def _dequantize_operators(proto: ModelProto) -> None:
    """Add a DequantizeLinear behind every integer output and weight of integer operators that has none."""
    wiring = Wiring(proto)
    by_channel = any(o.domain in ("", "ai.onnx") and o.version >= 13 for o in proto.opset_import)
    has_one = {node.input[0] for node in wiring.nodes if node.op_type == "DequantizeLinear"}
    grids: dict[str, tuple[str, str]] = {}
    axes: dict[str, int] = {}
    for node in wiring.nodes:
        if node.op_type in OUTPUT_GRID:
            scale, zero_point = (node.input[i] for i in OUTPUT_GRID[node.op_type] if i < len(node.input))
            grids[node.output[0]] = scale, zero_point
        elif keeps_values(node) and node.input[0] in grids:
            grids.update(dict.fromkeys(node.output, grids[node.input[0]]))
        elif node.op_type == "QuantizeLinear" and len(node.input) > 2:
            grids[node.output[0]] = node.input[1], node.input[2]
        if node.op_type in WEIGHT_GRID:
            weight, scale, zero_point = (node.input[i] for i in WEIGHT_GRID[node.op_type])
            if wiring.dims(scale) not in ((), (1,)) and not by_channel:
                continue  # DequantizeLinear has one scale a tensor there
            grids[weight], axes[weight] = (scale, zero_point), 0 if node.op_type == "QLinearConv" else 1
            if node.op_type == "QGemm" and any(a.name == "transB" and a.i for a in node.attribute):
                axes[weight] = 0
            has_one.discard(weight)
    for name, (scale, zero_point) in grids.items():
        if name not in has_one:
            axis: dict[str, Any] = {"axis": axes[name]} if name in axes and wiring.dims(scale) not in ((), (1,)) else {}
            inputs = [name, *_parameters(proto, wiring, name, scale, zero_point)]
            proto.graph.node.append(helper.make_node("DequantizeLinear", inputs, [_added(name)], **axis))


def _parameters(proto: ModelProto, wiring: Wiring, name: str, scale: str, zero_point: str) -> tuple[str, str]:
    """Scale and zero point as DequantizeLinear takes them: scalars where operators also take arrays of one element."""
    names = []
    for stem, parameter in (("scale", scale), ("zero_point", zero_point)):
        tensor = wiring.value(parameter)
        if tensor is not None and tuple(tensor.dims) == (1,):
            scalar = TensorProto()
            scalar.CopyFrom(tensor)
            scalar.name = f"{_added(name)}_{stem}"
            del scalar.dims[:]
            proto.graph.initializer.append(scalar)
            parameter = scalar.name
        names.append(parameter)
    return names[0], names[1]


def _added(name: str) -> str:
    return f"{name}_dequantized_to_compare"
