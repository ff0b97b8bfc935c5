"""Which operators are left in float, since their integer kernels do not pay on this machine: by measurement.

    1. Quantize quickly, on few samples; profiles of it and of the float model say what each node loses in integers.
    2. Candidates are sets of nodes, that which loses most first: the nodes of one operator that lose; the first nodes
       of the graph, or the last ones, as many as lose most together; and the neighbours of operators in float, which
       need conversions, as layers do in front of a HardSwish that float kernels have fused.
    3. The first is left in float, with those that were kept, and runs by turns with the model before. It is kept where
       the upper quartile of the ratio is below 1, conversions and all, and the outputs are no worse. And so on, on the
       model as it is then, `TUNED_SETS` times at most.

What is found are overrides, and the model that is made with them depends on the machine that they were measured on.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..errors import UsageError
from ..execution.latency import compare_times, node_times
from ..execution.session import Arrays
from ..graph.model import Model
from ..operators.linear import LinearLayer, is_depthwise, linear_layer
from ..options import Override
from ..thresholds import LATENCY_SAMPLES, LATENCY_SECONDS, LOST_SHARE, TOLERANCE_DB, TUNED_SETS
from .choose_hard_swish import choose_hard_swish
from .lower import float_model_of
from .measure_latency import lost_seconds
from .prepare import prepare
from .quantize_quickly import plan_quickly, quantized_quickly
from .task import Task


@dataclass(frozen=True)
class Tuned:
    """task: the one to go on with, with overrides.  nodes: that they leave in float.  notes: what was tried."""

    task: Task
    nodes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    label: str
    nodes: tuple[str, ...]
    lost: float


def tune_latency(task: Task) -> Tuned:
    """Leave in float what is faster so. Raises EngineError, and UsageError where there is no calibration data."""
    if task.has_random_inputs:
        raise UsageError("`latency` tune needs calibration data: it measures what leaving operators in float is worth")
    model, _ = prepare(task.proto, task.origin, task.options, task.context)
    task, _ = choose_hard_swish(model, task)
    feeds = [feed.arrays for feed in task.feeds.take(LATENCY_SAMPLES)]
    planned, best = plan_quickly(model.clone(), task), quantized_quickly(model.clone(), task)
    db = task.quality.db(best)
    found, notes, tried = Tuned(task), list[str](), set[frozenset[str]]()
    for number in range(TUNED_SETS):
        task.context.services.progress("measuring latency", number, TUNED_SETS)
        candidates = _candidates(planned, *_lost(task, planned, best, feeds[0]))
        candidate = next((each for each in candidates if frozenset(each.nodes) not in tried), None)
        if candidate is None:
            break
        tried.add(frozenset(candidate.nodes))
        nodes = (*found.nodes, *(node for node in candidate.nodes if node not in found.nodes))
        trial = _leaving_in_float(task, nodes)
        plan = plan_quickly(model.clone(), trial)
        if not plan.quantizers:
            notes.append(f"{candidate.label} in float: nothing would be left in integers, not kept")
            continue
        proto = quantized_quickly(model.clone(), trial)
        timing = compare_times((best, proto), feeds, 1, LATENCY_SECONDS / TUNED_SETS)
        after = task.quality.db(proto)
        is_worse = db is not None and (after is None or after < db - TOLERANCE_DB)
        text = f"{candidate.label} in float: {timing.ratio:.2f} of the time ({timing.low:.2f} to {timing.high:.2f})"
        if timing.high < 1 and not is_worse:
            found, planned, best, db = Tuned(trial, nodes), plan, proto, after
            notes.append(f"{text}, left in float")
        else:
            notes.append(f"{text}, {'outputs worse, ' * is_worse}not kept")
    return replace(found, notes=tuple(notes) or ("no operator loses in integers what conversions would not cost",))


def _leaving_in_float(task: Task, nodes: Sequence[str]) -> Task:
    overrides = tuple(Override(node=glob.escape(node), keep_float=True) for node in nodes)
    return replace(task, options=replace(task.options, overrides=(*task.options.overrides, *overrides)))


def _lost(task: Task, planned: Model, quantized: ModelProto, feed: Arrays) -> tuple[dict[str, float], float, float]:
    """What each node loses in integers, what conversions take, and what all nodes do."""
    float_model, _ = float_model_of(planned, task.context)
    after = node_times(quantized, feed)
    conversions = sum(node.seconds for node in after if node.op in ("QuantizeLinear", "DequantizeLinear"))
    total = sum(node.seconds for node in after)
    return lost_seconds(planned, node_times(float_model, feed), after), conversions, total


def _candidates(planned: Model, lost: Mapping[str, float], conversions: float, total: float) -> list[_Candidate]:
    """Sets of nodes that lose together what is worth a trial, that which loses most first."""
    found = [*_kinds(planned, lost), *_ends(planned, lost), *_neighbours(planned, lost, conversions)]
    worth = [each for each in found if each.lost > LOST_SHARE * total]
    distinct = {frozenset(each.nodes): each for each in reversed(worth)}
    return sorted(distinct.values(), key=lambda each: -each.lost)


def _kinds(planned: Model, lost: Mapping[str, float]) -> Iterator[_Candidate]:
    kinds: dict[str, list[str]] = {}
    for node in planned.graph.nodes:
        if lost.get(node.name, 0.0) > 0:
            layer = linear_layer(node)
            depthwise = isinstance(layer, LinearLayer) and is_depthwise(layer)
            kinds.setdefault("depthwise " * depthwise + node.op, []).append(node.name)
    for kind, nodes in kinds.items():
        yield _Candidate(f"{len(nodes)} {kind}", tuple(nodes), sum(lost[node] for node in nodes))


def _neighbours(planned: Model, lost: Mapping[str, float], conversions: float) -> Iterator[_Candidate]:
    """Nodes in integers beside those in float, behind activations that run as their ends."""
    in_float = {name for name, placed in planned.placement.nodes.items() if placed.reason is not None}

    def reads_float(node: gs.Node) -> bool:
        return any(before.name in in_float for tensor in node.inputs for before in tensor.inputs)

    def is_read_in_float(node: gs.Node) -> bool:
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        fused = [r for r in readers if r.name not in planned.placement.nodes]
        return any(r.name in in_float for r in readers) or any(map(is_read_in_float, fused))

    nodes = [n.name for n in planned.graph.nodes if n.name in lost and (reads_float(n) or is_read_in_float(n))]
    if nodes and in_float:
        yield _Candidate(f"{len(nodes)} layers beside operators", tuple(nodes), conversions)


def _ends(planned: Model, lost: Mapping[str, float]) -> Iterator[_Candidate]:
    order = [node.name for node in planned.graph.nodes if node.name in lost]
    for label, names in (("first", order), ("last", order[::-1])):
        sums = list(accumulate(lost[name] for name in names))
        if sums and max(sums) > 0:
            count = sums.index(max(sums)) + 1
            yield _Candidate(f"the {label} {count} layers", tuple(names[:count]), max(sums))
