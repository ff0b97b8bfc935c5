"""Edits that keep the graph valid: replacing constants, removing nodes, inserting them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from ..operators.linear import LinearLayer
from . import large
from .model import Model
from .serialized import unused_name

Vector = NDArray[np.float64]


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
    """Take nodes out of the graph by identity: equality of graph surgeon's nodes looks at what they hold. They read
    nothing any more, so that they are no consumers of what they read."""
    nodes = list(nodes)
    gone = {id(node) for node in nodes}
    for node in nodes:
        node.inputs.clear()
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
            node.name = unused_name(stem, taken)
        seen.add(node.name)


def set_weight(model: Model, layer: LinearLayer, values: NDArray[np.floating]) -> None:
    """A new weight for this layer only, under the old name where no one else reads the old one."""
    old = weight = layer.weight
    new = np.asarray(values, old.dtype)
    if model.sole_consumer(old) is layer.node:
        weight.values = new
    else:
        weight = constant(model, old.name, new)
        replace_input(layer.node, old, weight)
    if model.is_large:
        large.spill((weight,))


def set_bias(model: Model, layer: LinearLayer, values: Vector) -> None:
    """A new bias, (Cout,), for this layer only; created where the layer has none."""
    dtype = layer.weight.dtype
    stem = layer.bias.name if layer.bias is not None else f"{layer.weight.name}_bias"
    bias = constant(model, stem, np.asarray(values, dtype))
    if layer.bias_node is not None and layer.bias is not None:
        replace_input(layer.bias_node, layer.bias, bias)
    elif (place := layer.form.bias) is None:
        _add_bias(model, layer, bias)
    elif len(layer.node.inputs) > place:  # an empty name stands for the missing bias
        layer.node.inputs[place] = bias
    else:
        for _ in range(len(layer.node.inputs), place):
            layer.node.inputs.append(gs.Variable.empty())
        layer.node.inputs.append(bias)


def _add_bias(model: Model, layer: LinearLayer, bias: gs.Constant) -> None:
    """Without a bias input, an Add behind the node makes its output, which keeps its name."""
    output = layer.node.outputs[0]
    product = gs.Variable(model.unique_name(f"{output.name}_product"), output.dtype, output.shape)
    layer.node.outputs[0] = product
    add = gs.Node("Add", f"{layer.node.name}_bias", inputs=[product, bias], outputs=[output])
    model.graph.nodes.insert(1 + next(i for i, n in enumerate(model.graph.nodes) if n is layer.node), add)
