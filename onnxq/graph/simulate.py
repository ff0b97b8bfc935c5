"""The model as quantized so far, in float arithmetic: what the layer-wise methods take their inputs from.

    activation x    QuantizeLinear -> DequantizeLinear, as in the final model (`qdq_writer`)
    constant W      the floats that its integers stand for
    activation that is quantized at run time    DynamicQuantizeLinear -> DequantizeLinear

Only quantizers with parameters count; biases stay as they are (32 bits lose nothing).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto

from . import large
from .dynamic_writer import dynamic_pair, readers_at_run_time
from .model import Model, Quantizer
from .qdq_writer import UniqueName, activation_nodes


def simulated(model: Model) -> ModelProto:
    """A model of its own; nodes keep their names, graph outputs are left unquantized."""
    proto = with_quantizers(model.to_proto(), model.quantizers, model.unique_name)
    return _with_dynamic_pairs(proto, readers_at_run_time(model), model.unique_name)


def with_quantizers(proto: ModelProto, quantizers: Mapping[str, Quantizer], unique_name: UniqueName) -> ModelProto:
    """`proto`, which is changed, so that its nodes read what has a quantizer as that quantizer leaves it.

    quantizers: by tensor. unique_name: stem -> a tensor name that nothing in the model has.
    """
    initializers = {t.name: t for t in proto.graph.initializer}
    renamed: dict[tuple[str, str], str] = {}  # (node, tensor it read) -> tensor it reads now; any node: ""
    behind: dict[str, list[NodeProto]] = {}
    for name, quantizer in quantizers.items():
        if quantizer.params is None:
            continue
        target = unique_name(f"{name}_dequantized")
        if name in initializers:
            weight = initializers[name]
            rounded = quantizer.params.fake(large.array(weight))
            proto.graph.initializer.append(large.tensor(rounded, target, spilled=large.is_reference(weight)))
            renamed.update({(reader, name): target for reader in quantizer.readers})
        else:
            pair = activation_nodes(gs.Variable(name), gs.Variable(target), name, quantizer.params, unique_name)
            written = gs.export_onnx(gs.Graph(pair), do_type_check=False).graph
            proto.graph.initializer.extend(written.initializer)
            behind[name] = list(written.node)
            renamed.update({(reader, name): target for reader in quantizer.readers or ("",)})
    nodes = [n for v in proto.graph.input for n in behind.get(v.name, ())]
    for node in proto.graph.node:
        inputs = [renamed.get((node.name, name), renamed.get(("", name), name)) for name in node.input]
        node.input[:] = inputs
        nodes += [node, *(n for name in node.output for n in behind.get(name, ()))]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _with_dynamic_pairs(
    proto: ModelProto, readers: Mapping[str, tuple[str, ...]], unique_name: UniqueName
) -> ModelProto:
    """Let layers read what is quantized for them at run time, in front of the first of them."""
    waiting = {reader: name for name, layers in readers.items() for reader in layers}
    targets: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        source = waiting.get(node.name)
        if source is not None:
            if source not in targets:
                targets[source] = unique_name(f"{source}_dequantized")
                nodes += dynamic_pair(source, targets[source], unique_name)
            node.input[0] = targets[source]
        nodes.append(node)
    if targets:
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    return proto
