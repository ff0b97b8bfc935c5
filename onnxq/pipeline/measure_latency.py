"""How long the quantized model takes beside the float one, and which operators cost most where it is no faster.

Both run in default sessions of ONNX Runtime, on the same samples, by turns (`execution.latency`). What single nodes
take is read off ONNX Runtime's profiles of the quantized model, and of the float model that it was lowered from, whose
nodes have the same names. A float kernel in ONNX Runtime's own layout is called after its output instead.

Nothing of it enters the model.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..errors import EngineError
from ..execution.latency import NodeTime, compare_times, node_times
from ..execution.session import Arrays, session_provider
from ..graph import large
from ..graph.model import Model
from ..graph.serialized import nodes_of
from ..graph.stored_weights import RECURRENT
from ..report import Latency, OperatorTime
from ..thresholds import LATENCY_SAMPLES, LATENCY_SECONDS, LATENCY_SHARE, LOST_SHARE, SLOW_OPERATORS
from .lower import float_model_of
from .node_states import node_of_kernel
from .task import Task

CONVERSIONS = "QuantizeLinear, DequantizeLinear"
LAYOUT = "Transpose, Reorder"

_OPERATORS = {
    "QuantizeLinear": CONVERSIONS, "DequantizeLinear": CONVERSIONS, "Transpose": LAYOUT, "ReorderInput": LAYOUT,
    "ReorderOutput": LAYOUT, "MatMulIntegerToFloat": "MatMul", "DynamicQuantizeMatMul": "MatMul", "QGemm": "Gemm",
    "MatMulNBits": "MatMul", "MatMulInteger": "MatMul", "BiasGelu": "Gelu", "BiasSoftmax": "Softmax",
}  # fmt: skip
"""What ONNX Runtime's operators are in the model."""

_STEPS_BACK = 4
"""Nodes that ONNX Runtime fuses behind a layer, at most: bias, addition, activation."""


def measure_latency(task: Task, written: Path, quantized: ModelProto, planned: Model, seconds: float) -> Latency:
    """The written model beside the float one. seconds: what quantization took, of which this takes a share."""
    provider, target = session_provider(), task.context.target
    why = ""
    if not target.runs_here:
        why = f"{target.name} is run by another tool-chain, of whose time ONNX Runtime's says nothing"
    elif large.references(task.proto):
        why = "two models of this size do not run by turns"
    elif not len(task.feeds):
        why = "the model runs on none of the random inputs that were tried"
    if why:
        return Latency(provider, not_measured=why)
    feeds = [feed.arrays for feed in task.feeds.take(LATENCY_SAMPLES)]
    threads = sorted({1, task.context.services.threads})
    budget = min(LATENCY_SECONDS, LATENCY_SHARE * seconds) / len(threads)
    try:
        timings = tuple(compare_times((task.proto, written), feeds, count, budget) for count in threads)
        if folds_weights(quantized):
            timings += (compare_times((task.proto, written), feeds, 1, budget, folded=True),)
    except EngineError as error:
        return Latency(provider, not_measured=str(error))
    found = Latency(provider, len(feeds), timings)
    if not found.is_slower:
        return found
    try:
        return replace(found, slow=_slow_operators(task, written, planned, feeds[0]))
    except EngineError as error:
        return replace(found, notes=(f"what costs is unknown: {error}",))


def folds_weights(quantized: ModelProto) -> bool:
    """Whether ONNX Runtime dequantizes weights of recurrent operators in each run, which `FOLDED_WEIGHTS` avoids, and
    no layer would lose its integers by that option."""
    operators = {node.op_type for node in nodes_of(quantized.graph)}
    return bool(operators & set(RECURRENT)) and "DequantizeLinear" in operators and not operators & _IN_INTEGERS


_IN_INTEGERS = {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}


def _slow_operators(task: Task, written: Path, planned: Model, feed: Arrays) -> tuple[OperatorTime, ...]:
    """Those that take longest beyond what they take in the float model."""
    float_model, _ = float_model_of(planned, task.context)
    before, after = node_times(float_model, feed), node_times(written, feed)
    lost = lost_seconds(planned, before, after)
    took, takes, nodes = _by_operator(before), _by_operator(after), Counter(_operator(n.op) for n in after)
    least = LOST_SHARE * sum(takes.values())
    worst = sorted((op for op in takes if takes[op] - took[op] > least), key=lambda op: took[op] - takes[op])
    operators = {node.name: node.op for node in planned.graph.nodes}
    return tuple(
        OperatorTime(
            op, nodes[op], 1e3 * takes[op], 1e3 * took[op],
            tuple([name for name in lost if operators[name] == op and lost[name] > 0][:SLOW_OPERATORS]),
        )
        for op in worst[:SLOW_OPERATORS]
    )  # fmt: skip


def lost_seconds(planned: Model, before: Sequence[NodeTime], after: Sequence[NodeTime]) -> dict[str, float]:
    """By node in integers: what it takes longer there than in float, conversions not counted; the one that loses most
    first. before, after: nodes of the float and of the quantized model."""
    in_integers = {name for name, placed in planned.placement.nodes.items() if placed.reason is None}
    float_seconds: defaultdict[str, float] = defaultdict(float)
    for kernel in before:
        node = _float_node(planned, kernel)
        if node is not None:
            float_seconds[node] += kernel.seconds
    seconds: defaultdict[str, float] = defaultdict(float)
    for kernel in after:
        if (node := node_of_kernel(kernel.name)) in in_integers:
            seconds[node] += kernel.seconds
    lost = {node: taken - float_seconds[node] for node, taken in seconds.items() if node in float_seconds}
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def _float_node(planned: Model, kernel: NodeTime) -> str | None:
    """The node of the float model that a kernel computes."""
    name = re.sub(r"_nchwc(_token_\d+)?$", "", node_of_kernel(kernel.name))
    tensors = planned.graph.tensors()
    if name not in tensors:
        return name
    op = _operator(kernel.op)
    nodes: list[gs.Node] = list(tensors[name].inputs)
    for _ in range(_STEPS_BACK):
        found = next((node for node in nodes if node.op == op), None)
        if found is not None:
            return str(found.name)
        nodes = [before for node in nodes for tensor in node.inputs for before in tensor.inputs]
    return None


def _by_operator(kernels: Sequence[NodeTime]) -> defaultdict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for kernel in kernels:
        found[_operator(kernel.op)] += kernel.seconds
    return found


def _operator(op: str) -> str:
    """The operator of the model that one of ONNX Runtime's computes."""
    return _OPERATORS.get(op) or re.sub(r"^(QLinear|Nhwc|Fused)+", "", op)
