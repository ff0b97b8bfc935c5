"""Edits that keep the graph valid: replacing constants, removing nodes, inserting them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from .model import Model


def bypass(model: Model, node: gs.Node) -> bool:
    """Detach a node that passes its first input on; its other outputs must be unused. False where impossible.

    The name of a graph output is kept: where the node makes one, its input takes over that name, which needs
    the input to be computed here and not to be a graph output itself.
    """
    source, target = node.inputs[0], node.outputs[0]
    if model.is_output(target):
        if isinstance(source, gs.Constant) or not source.inputs or model.is_output(source):
            return False
        take_over(node, source.inputs[0], source)
        return True
    node.outputs.clear()
    node.inputs.clear()
    for consumer in model.consumers(target):
        for index, tensor in enumerate(consumer.inputs):
            if tensor is target:
                consumer.inputs[index] = source
    return True


def take_over(node: gs.Node, producer: gs.Node, old: gs.Tensor) -> None:
    """Let `producer` compute the first output of `node`, which is detached, instead of its own output `old`.

    Other readers of `old` follow, so that the two must be equal, or `node` the only reader.
    """
    target = node.outputs[0]
    node.outputs.clear()
    node.inputs.clear()
    for consumer in list({id(n): n for n in old.outputs}.values()):
        for index, tensor in enumerate(consumer.inputs):
            if tensor is old:
                consumer.inputs[index] = target
    producer.outputs[next(i for i, t in enumerate(producer.outputs) if t is old)] = target


def replace_input(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let `node` read `new` wherever it read `old`."""
    for index, tensor in enumerate(node.inputs):
        if tensor is old:
            node.inputs[index] = new


def constant(model: Model, stem: str, values: np.ndarray) -> gs.Constant:
    """A new constant under a name that is free."""
    return gs.Constant(model.unique_name(stem), np.asarray(values, order="C"))


def remove(model: Model, nodes: Iterable[gs.Node]) -> None:
    """Take nodes out of the graph by identity: equality of graph surgeon's nodes looks at what they hold."""
    gone = {id(node) for node in nodes}
    model.graph.nodes = [node for node in model.graph.nodes if id(node) not in gone]


def drop_dangling(model: Model) -> int:
    """Remove nodes that nothing needs. Returns how many went."""
    before = len(model.graph.nodes)
    model.graph.cleanup(remove_unused_graph_inputs=False)
    return before - len(model.graph.nodes)


def name_nodes(nodes: Iterable[gs.Node]) -> None:
    """Give every node a name of its own, so that options and reports can speak of it; names that are one stay."""
    nodes = list(nodes)
    taken = {node.name for node in nodes}
    seen = {""}
    for node in nodes:
        if not node.name or node.name in seen:
            stem = node.name or (f"{node.op}_{node.outputs[0].name}" if node.outputs else node.op)
            candidates = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
            node.name = next(name for name in candidates if name not in taken)
        taken.add(node.name)
        seen.add(node.name)
