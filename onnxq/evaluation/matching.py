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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..checking.qdq_reader import QdqGraph, producer, readers_behind, walk_back, without_suffix
from ..checking.tensor_grid import is_qdq
from ..graph.model import Model
from ..graph.shapes import infer_shapes
from ..operators.node import in_subgraph
from ..operators.registry import linear_form

ARITHMETIC = ("Mul", "Add", "Sub", "Div")

ABSORBABLE = frozenset({"BatchNormalization", "Relu", "Clip", "Identity", "Dropout", *ARITHMETIC})
"""What may happen inside a quantized layer; arithmetic with a constant only."""

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
    floats: names of the float model's tensors that may be matched.
    named: the quantized model's tensors that one of these names stands for.
    stands_for: tensor of the quantized model -> its match's tensor.
    inside: those that the quantized model has no more -> the tensor whose match has them in it.
    unmatched: the others -> why.
    """

    reference: QdqGraph
    quantized: QdqGraph
    floats: set[str]
    named: dict[str, gs.Tensor]
    matches: dict[str, Match] = field(default_factory=dict)
    layers: list[tuple[gs.Node, gs.Node, str]] = field(default_factory=list)
    stands_for: dict[str, str] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)

    def maker(self, name: str) -> gs.Node | None:
        """The node of the float model that computes a tensor; None for inputs."""
        return producer(self.reference.tensors[name])

    def result_of(self, node: gs.Node) -> str | None:
        """The matched tensor that a float node computes, or that has its output in it."""
        name = node.outputs[0].name
        name = self.inside.get(name, name)
        return name if name in self.matches else None


def match(reference: ModelProto, quantized: ModelProto) -> Matching:
    """Pairs of tensors, and why what is left has none.

    quantized: with its integer operators made readable (`check.integer_operators`).
    """
    graph = QdqGraph(Model.from_proto(infer_shapes(reference), read_only=True))
    other = QdqGraph(Model.from_proto(quantized, read_only=True))
    floats = _float_tensors(graph)
    found = Matching(graph, other, set(floats), other.named(set(floats)))
    for name in floats:
        if name in found.named:
            _add(found, name, found.named[name], "name")
    _match_nodes(found)
    _match_positions(found)
    for name in floats:
        if name not in found.matches and name not in found.inside:
            found.unmatched[name] = "nothing in the quantized model stands for it"
    order = {name: place for place, name in enumerate(floats)}
    found.matches = dict(sorted(found.matches.items(), key=lambda item: order[item[0]]))
    return found


def _float_tensors(graph: QdqGraph) -> list[str]:
    """Inputs, and what nodes compute from them, in order; those known to be something else than floats left out."""
    tensors = [*graph.model.graph.inputs, *(tensor for node in graph.model.graph.nodes for tensor in node.outputs)]
    computed = (tensor for tensor in tensors if tensor.name and tensor.name not in graph.fixed)
    return [t.name for t in computed if t.dtype is None or t.dtype in (np.float32, np.float16, np.float64)]


def _add(found: Matching, name: str, value: gs.Tensor, by: str) -> None:
    """Let `value` stand for `name`, or for what it becomes in the nodes that the quantized model lacks."""
    if value.name in found.stands_for:
        return
    absorbed, passed = [], []
    while (node := _absorbed(found, name, value)) is not None:
        absorbed.append(_label(node))
        passed.append(name)
        name = node.outputs[0].name
    if name in found.matches:
        return
    found.matches[name] = Match(name, value.name, by, tuple(absorbed))
    found.stands_for[value.name] = name
    found.inside.update(dict.fromkeys(passed, name))


def _absorbed(found: Matching, name: str, value: gs.Tensor) -> gs.Node | None:
    """The float node that alone reads `name`, where the quantized model does what it does without a node."""
    graph, other = found.reference, found.quantized
    node, maker = _sole_reader(graph, name), found.maker(name)
    if node is None or maker is None or name in graph.outputs:
        return None
    if node.op not in ABSORBABLE or not _may_absorb(maker, node, graph) or node.outputs[0].name in found.named:
        return None
    *_, start = walk_back(value, is_qdq)
    if any(_does(reader, node, other) for reader in readers_behind(start, _is_transparent)):
        return None
    if value.name in other.outputs and node.outputs[0].name not in graph.outputs:
        return None
    return node


def _sole_reader(graph: QdqGraph, name: str) -> gs.Node | None:
    """The one node that reads a tensor, as often as it may; None where there are others, or it lies in a subgraph."""
    readers = graph.model.consumers(graph.tensors[name])
    return readers[0] if len(readers) == 1 and readers[0].outputs and not in_subgraph(readers[0]) else None


def _may_absorb(maker: gs.Node, node: gs.Node, graph: QdqGraph) -> bool:
    """Whether `node` can be folded into what computes its input: arithmetic into linear layers only."""
    if node.op not in ("BatchNormalization", *ARITHMETIC):
        return True
    linear = _is_linear(maker) or maker.op in ("BatchNormalization", *ARITHMETIC)
    return linear and (node.op not in ARITHMETIC or any(tensor.name in graph.fixed for tensor in node.inputs))


def _does(reader: gs.Node, node: gs.Node, graph: QdqGraph) -> bool:
    """Whether a node of the quantized model does what a float node does, as the same operator or as a similar one."""
    if reader.name and reader.name == node.name:
        return True
    kind = _kind(reader)
    if node.op in ("Relu", "Clip"):
        return kind in ("Relu", "Clip")
    if node.op in ("BatchNormalization", *ARITHMETIC):
        operands = reader.inputs[0:4:3] if reader.op.startswith("QLinear") else reader.inputs[:2]
        constant = any(tensor.name in graph.fixed for tensor in operands)
        return kind == "BatchNormalization" or (kind in ARITHMETIC and constant)
    return bool(kind == node.op)


def _match_nodes(found: Matching) -> None:
    """Nodes of the same name: linear ones are layers; outputs that have no match yet get one."""
    nodes = {node.name: node for node in found.reference.model.graph.nodes if node.name}
    for other in found.quantized.model.graph.nodes:
        name = without_suffix(other.name.removesuffix("_quant"), nodes) if other.name else None
        if name is None or is_qdq(other) or not other.outputs:
            continue
        node = nodes[name]
        if _kind(node) != _kind(other):
            continue
        if (key := _key(found.reference, node)) is not None and key == _key(found.quantized, other):
            found.layers.append((node, other, "node"))
        _add_outputs(found, node, other, "node")


def _match_positions(found: Matching) -> None:
    """Linear layers that are left, aligned in order by operator and shape of the weight."""
    known = {id(n) for pair in found.layers for n in pair[:2]}
    ours, theirs = (_keys(graph, known) for graph in (found.reference, found.quantized))
    keys = [key for _, key in ours], [key for _, key in theirs]
    for block in difflib.SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            node, other = ours[block.a + step][0], theirs[block.b + step][0]
            found.layers.append((node, other, "position"))
            _add_outputs(found, node, other, "position")


def _add_outputs(found: Matching, node: gs.Node, other: gs.Node, by: str) -> None:
    """Match what two nodes compute, unless the quantized tensor stands for a later one already, as its name says."""
    start, value = node.outputs[0].name, found.quantized.as_read(other.outputs[0])
    if start not in found.floats or start in found.matches or start in found.inside:
        return
    later = found.stands_for.get(value.name)
    if later is None:
        _add(found, start, value, by)
        return
    passed, absorbed = [start], []
    while passed[-1] != later:
        reader = _sole_reader(found.reference, passed[-1])
        if reader is None or reader.op not in ABSORBABLE:
            return
        absorbed.append(_label(reader))
        passed.append(reader.outputs[0].name)
    found.matches[later] = replace(found.matches[later], absorbed=tuple(absorbed))
    found.inside.update(dict.fromkeys(passed[:-1], later))


def _label(node: gs.Node) -> str:
    return node.name or node.outputs[0].name


def _kind(node: gs.Node) -> str:
    return KINDS.get(node.op, node.op.removeprefix("QLinear"))


def _is_linear(node: gs.Node) -> bool:
    """Whether a node is a linear operator, or the integer form of one."""
    return linear_form(_kind(node)) is not None or linear_form(node.op, node.domain) is not None


def _is_transparent(node: gs.Node) -> bool:
    return is_qdq(node) or node.op in ("Identity", "Cast", "Dropout")


def _keys(graph: QdqGraph, known: set[int]) -> Sequence[tuple[gs.Node, tuple[object, ...]]]:
    """Linear nodes that are not `known`, with what must agree."""
    nodes = (node for node in graph.model.graph.nodes if id(node) not in known)
    return [(node, key) for node in nodes if (key := _key(graph, node)) is not None]


def _key(graph: QdqGraph, node: gs.Node) -> tuple[object, ...] | None:
    """What two linear nodes must have in common; None for other nodes. A matrix may have been transposed."""
    weight = graph.stored_weight(node) if _is_linear(node) else None
    if weight is None:
        return None
    sources = walk_back(weight, lambda n: _is_transparent(n) or n.op == "Transpose")
    dims = next((tuple(t.shape) for t in sources if isinstance(t, gs.Constant)), ())
    return _kind(node), tuple(sorted(dims)) if _kind(node) == "Gemm" else dims
