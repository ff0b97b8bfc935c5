"""Which tensor of a quantized model, of any tool, stands for which of the float model.

Tried in this order, each tensor once:

    name        the same name, after what tools append to it (`_quantized`, `_DequantizeLinear`, ...) is taken off
    node        the output of the node of the same name
    position    linear layers that are left, in order, where operator and shape of the weight agree

A tensor is taken as its readers see it, on its grid. Like is compared with like: where the quantized model lacks the
BatchNormalization, Relu, Clip or addition of a constant that alone reads a tensor in the float model, it computes that
within (folded, or done by the ends of the grid), and its tensor stands for what comes out of that node.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace

import onnx
from onnx import ModelProto, NodeProto

from ..graph.shapes import infer_shapes
from ..operators.registry import linear_form
from .dequantized import QDQ, Readable, without_suffix
from .wiring import Wiring

ARITHMETIC = ("Mul", "Add", "Sub", "Div")

ABSORBABLE = frozenset({"BatchNormalization", "Relu", "Clip", "Identity", "Dropout", *ARITHMETIC})
"""What may happen inside a quantized layer; arithmetic with a constant only."""

TRANSPARENT = QDQ | {"Identity", "Cast", "Dropout"}

KINDS = {"MatMul": "Gemm", "QLinearMatMul": "Gemm", "QGemm": "Gemm", "QLinearConv": "Conv"}


@dataclass(frozen=True)
class Match:
    """by: name, node or position. absorbed: names of the float nodes that the quantized tensor has in it as well."""

    tensor: str
    quantized: str
    by: str
    absorbed: tuple[str, ...] = ()


@dataclass
class Matching:
    """matches: by the float model's tensor, in the order in which it computes them.
    layers: linear nodes with constant weights, (of the float model, of the quantized model, matched by).
    floats: the float model's tensors that may be matched.
    stands_for: tensor of the quantized model -> its match's tensor.
    inside: those that the quantized model has no more -> the tensor whose match has them in it.
    unmatched: the others -> why.
    """

    reference: Wiring
    quantized: Readable
    floats: set[str]
    matches: dict[str, Match] = field(default_factory=dict)
    layers: list[tuple[NodeProto, NodeProto, str]] = field(default_factory=list)
    stands_for: dict[str, str] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)

    def result_of(self, node: NodeProto) -> str | None:
        """The matched tensor that a float node computes, or that has its output in it."""
        name = node.output[0]
        name = self.inside.get(name, name)
        return name if name in self.matches else None


def match(reference: ModelProto, quantized: ModelProto) -> Matching:
    """Pairs of tensors, and why what is left has none."""
    wiring = Wiring(infer_shapes(reference))
    floats = [name for name in _float_tensors(wiring) if name not in wiring.constants]
    found = Matching(wiring, Readable.of(quantized, set(floats)), set(floats))
    for name in floats:
        if name in found.quantized.values:
            _add(found, name, found.quantized.values[name], "name")
    _match_nodes(found)
    _match_positions(found)
    for name in floats:
        if name not in found.matches and name not in found.inside:
            found.unmatched[name] = "nothing in the quantized model stands for it"
    order = {name: place for place, name in enumerate(floats)}
    found.matches = dict(sorted(found.matches.items(), key=lambda item: order[item[0]]))
    return found


def _float_tensors(wiring: Wiring) -> list[str]:
    """Inputs, and what nodes compute, in order; those known to be something else than floats left out."""
    graph = wiring.proto.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    floats = (0, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    names = [*wiring.inputs, *(name for node in wiring.nodes for name in node.output if name)]
    return [name for name in names if types.get(name, 0) in floats]


def _add(found: Matching, name: str, value: str, by: str) -> None:
    """Let `value` stand for `name`, or for what it becomes in the nodes that the quantized model lacks."""
    if value in found.stands_for:
        return
    absorbed, passed = [], []
    while (node := _absorbed(found, name, value)) is not None:
        absorbed.append(node.name or node.output[0])
        passed.append(name)
        name = node.output[0]
    if name in found.matches:
        return
    found.matches[name] = Match(name, value, by, tuple(absorbed))
    found.stands_for[value] = name
    found.inside.update(dict.fromkeys(passed, name))


def _absorbed(found: Matching, name: str, value: str) -> NodeProto | None:
    """The float node that alone reads `name`, where the quantized model does what it does without a node."""
    wiring, other = found.reference, found.quantized
    readers, producer = wiring.readers.get(name, []), wiring.source(name)
    if len(readers) != 1 or name in wiring.outputs or producer is None or not readers[0].output:
        return None
    node = readers[0]
    if node.op_type not in ABSORBABLE or not _may_absorb(producer, node, wiring) or node.output[0] in other.values:
        return None
    *_, start = other.wiring.walk_back(value, QDQ)
    behind = other.wiring.readers_behind(start, TRANSPARENT)
    if any(_does(reader, node, other.wiring) for reader in behind):
        return None
    if value in other.wiring.outputs and node.output[0] not in wiring.outputs:
        return None
    return node


def _may_absorb(producer: NodeProto, node: NodeProto, wiring: Wiring) -> bool:
    """Whether `node` can be folded into what computes its input: arithmetic into linear layers only."""
    if node.op_type not in ("BatchNormalization", *ARITHMETIC):
        return True
    linear = _is_linear(producer) or producer.op_type in ("BatchNormalization", *ARITHMETIC)
    return linear and (node.op_type not in ARITHMETIC or any(name in wiring.constants for name in node.input))


def _does(reader: NodeProto, node: NodeProto, wiring: Wiring) -> bool:
    """Whether a node of the quantized model does what a float node does, as the same operator or as a similar one."""
    if reader.name and reader.name == node.name:
        return True
    kind = _kind(reader)
    if node.op_type in ("Relu", "Clip"):
        return kind in ("Relu", "Clip")
    if node.op_type in ("BatchNormalization", *ARITHMETIC):
        operands = reader.input[0:4:3] if reader.op_type.startswith("QLinear") else reader.input[:2]
        constant = any(name in wiring.constants for name in operands)
        return kind == "BatchNormalization" or (kind in ARITHMETIC and constant)
    return bool(kind == node.op_type)


def _match_nodes(found: Matching) -> None:
    """Nodes of the same name: linear ones are layers; outputs that have no match yet get one."""
    nodes = {node.name: node for node in found.reference.nodes if node.name}
    for other in found.quantized.wiring.nodes:
        name = without_suffix(other.name.removesuffix("_quant"), set(nodes)) if other.name else None
        if name is None or other.op_type in QDQ or not other.output:
            continue
        node = nodes[name]
        if _kind(node) != _kind(other):
            continue
        if _is_layer(found, node, other):
            found.layers.append((node, other, "node"))
        _add_outputs(found, node, other, "node")


def _match_positions(found: Matching) -> None:
    """Linear layers that are left, aligned in order by operator and shape of the weight."""
    known = {id(n) for pair in found.layers for n in pair[:2]}
    ours = [n for n in found.reference.nodes if id(n) not in known and _key(found.reference, n, n.input[1:2])]
    theirs = [n for n in found.quantized.wiring.nodes if id(n) not in known and _quantized_key(found, n)]
    keys = [_key(found.reference, n, n.input[1:2]) for n in ours], [_quantized_key(found, n) for n in theirs]
    for block in difflib.SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            node, other = ours[block.a + step], theirs[block.b + step]
            found.layers.append((node, other, "position"))
            _add_outputs(found, node, other, "position")


def _add_outputs(found: Matching, node: NodeProto, other: NodeProto, by: str) -> None:
    """Match what two nodes compute, unless the quantized tensor stands for a later one already, as its name says."""
    start, value = node.output[0], found.quantized.value_of(other.output[0])
    if start not in found.floats or start in found.matches or start in found.inside:
        return
    later = found.stands_for.get(value)
    if later is None:
        _add(found, start, value, by)
        return
    passed = [start]
    while passed[-1] != later:
        readers = found.reference.readers.get(passed[-1], [])
        if len(readers) != 1 or readers[0].op_type not in ABSORBABLE:
            return
        passed.append(readers[0].output[0])
    absorbed = tuple(found.reference.producer[name].name or name for name in passed[1:])
    found.matches[later] = replace(found.matches[later], absorbed=absorbed)
    found.inside.update(dict.fromkeys(passed[:-1], later))


def _kind(node: NodeProto) -> str:
    return KINDS.get(node.op_type, str(node.op_type).removeprefix("QLinear"))


def _is_linear(node: NodeProto) -> bool:
    """Whether a node is a linear operator, or the integer form of one."""
    return linear_form(_kind(node)) is not None or linear_form(node.op_type, node.domain) is not None


def _is_layer(found: Matching, node: NodeProto, other: NodeProto) -> bool:
    key = _key(found.reference, node, node.input[1:2])
    return key is not None and key == _quantized_key(found, other)


def _key(wiring: Wiring, node: NodeProto, weight: list[str]) -> tuple[object, ...] | None:
    """What two linear nodes must have in common; None for other nodes. A matrix may have been transposed."""
    if not _is_linear(node) or not weight or weight[0] not in wiring.constants:
        return None
    through = TRANSPARENT | {"Transpose"}
    dims = next((d for name in wiring.walk_back(weight[0], through) if (d := wiring.dims(name)) is not None), ())
    return _kind(node), tuple(sorted(dims)) if _kind(node) == "Gemm" else dims


def _quantized_key(found: Matching, node: NodeProto) -> tuple[object, ...] | None:
    weight = found.quantized.weight_of(node) if _is_linear(node) else None
    return None if weight is None else _key(found.quantized.wiring, node, [weight])
