"""How each node computes: said from the plan that is lowered, and from the graph that ONNX Runtime makes of it.

    integers        its data and its weights are quantized, and it has an integer kernel
    simulated       the same, but ONNX Runtime has no such kernel, and computes on dequantized tensors
    dynamic         in integers, its data being quantized at run time
    weights only    its weights are quantized, its data are not
    float           neither

What passes decided (`Model.placement`) says why a node was left in float, never that it computes in integers: a tensor
may have lost its quantizer since, and ONNX Runtime quantizes some float layers between quantized tensors by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs
from onnx import GraphProto, NodeProto

from ..graph.model import Model
from ..report import Reason

_SUFFIXES = re.compile(r"(_token_\d+|/MatMulAddFusion)+$")
"""What ONNX Runtime 1.32 adds to the name of a node whose layout it changes, or which it fuses with its bias."""

State = Literal["integers", "simulated", "dynamic", "weights only", "float"]


@dataclass(frozen=True)
class NodeState:
    """How a node computes; reason: why in float, where it does."""

    node: str
    op: str
    state: State
    reason: Reason | None = None


def node_states(plan: Model, runtime: GraphProto | None = None) -> tuple[NodeState, ...]:
    """Of every node of the plan that counts: those that run as a part of another one do not.

    runtime: the graph that ONNX Runtime runs, for targets that are run by it; without it the plan alone says.
    """
    kernels = None if runtime is None else integer_kernels(runtime)
    nodes = (node for node in plan.graph.nodes if node.name in plan.placement.nodes)
    return tuple(_state(plan, node, kernels) for node in nodes)


def _state(plan: Model, node: gs.Node, kernels: frozenset[str] | None) -> NodeState:
    state, reason = _planned_state(plan, node.name)
    if kernels is not None and node.name in kernels:
        return NodeState(node.name, node.op, "integers")
    if kernels is not None and state == "integers":
        reason = Reason("runtime", "ONNX Runtime has no integer kernel for these tensors")
        return NodeState(node.name, node.op, "simulated", reason)
    return NodeState(node.name, node.op, state, reason)


def _planned_state(plan: Model, node: str) -> tuple[State, Reason | None]:
    placed = plan.placement.nodes[node]
    if placed.reason is not None:
        return "float", placed.reason
    if placed.weight is not None and not _is_quantized(plan, placed.weight, node):
        return "float", _not_quantized(plan, "weight", placed.weight)
    if placed.dynamic:
        return "dynamic", None
    missing = next((name for name in placed.data if not _is_quantized(plan, name, node)), None)
    if missing is None and placed.weight is not None and not placed.data:
        return "weights only", None  # rows of a table: nothing is computed
    if missing is None:
        return "integers", None
    return "weights only" if placed.weight is not None else "float", _not_quantized(plan, "input", missing)


def _is_quantized(plan: Model, tensor: str, reader: str) -> bool:
    quantizer = plan.quantizers.get(tensor)
    return quantizer is not None and (not quantizer.readers or reader in quantizer.readers)


def _not_quantized(plan: Model, what: str, tensor: str) -> Reason:
    """Why a tensor that a node needs is in float."""
    reason = plan.placement.tensors.get(tensor)
    if reason is None:
        return Reason("preset", f"its {what} {tensor!r} is not quantized")
    if reason.kind == "range":
        return Reason("range", f"its {what} {tensor!r} has no range: {reason.text}", tensor)
    return Reason(reason.kind, f"its {what} {tensor!r} is in float: {reason.text}", tensor)


def integer_kernels(runtime: GraphProto) -> frozenset[str]:
    """Names of the nodes that compute in integers in the graph that ONNX Runtime runs.

    A kernel keeps the name of the node that it replaces, at times with a suffix. It computes in integers if it reads
    what QuantizeLinear, or another such kernel, writes.
    """
    integers: set[str] = set()
    found: set[str] = set()
    for node in runtime.node:
        if node.op_type == "QuantizeLinear":
            integers.update(node.output)
        elif node.op_type != "DequantizeLinear" and any(name in integers for name in node.input):
            found |= {node.name, node_of_kernel(node.name)}
            if not _writes_float(node):
                integers.update(node.output)
    return frozenset(found)


def node_of_kernel(name: str) -> str:
    """The node that a kernel of ONNX Runtime's graph takes its name from."""
    return _SUFFIXES.sub("", name)


def _writes_float(node: NodeProto) -> bool:
    if node.op_type == "QGemm":  # its last two inputs are the scale and zero point of an output in integers
        return len(node.input) < 8 or not node.input[7]
    return node.op_type == "MatMulIntegerToFloat"
