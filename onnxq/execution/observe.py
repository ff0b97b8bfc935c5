"""Models made to show what is comparable of them (`graph.comparable`): copies for comparison, never written.

An output that lies behind a selection is replaced by the tensors in front of it, each as its readers see it, behind its
QuantizeLinear and DequantizeLinear where there are any. They bear the same names in the float and the quantized model.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ModelProto, NodeProto, helper

from ..graph.comparable import Comparable
from .partial import Network


def observed(proto: ModelProto, wanted: Sequence[Comparable], *, keep_outputs: bool = False) -> ModelProto:
    """The model with the outputs that `wanted` names, as far as it has them; itself where these are its own outputs.

    proto: the float model that they were found in, or one made of it, quantized or not. An output that shows an inner
    tensor is called by its label. keep_outputs: whether the other outputs stay, too.
    """
    inner = [each for each in wanted if each.selection is not None]
    if not inner:
        return proto
    network = Network(proto)
    places = {each.label: place for each in inner if (place := as_read(network, each.tensor)) is not None}
    own = {each.tensor for each in wanted if each.selection is None}
    kept = [value for value in proto.graph.output if keep_outputs or value.name in own]
    if not places and not kept:
        return proto
    part = network.part([*(value.name for value in kept), *places.values()])
    del part.graph.output[len(kept) :]
    for label, place in places.items():
        part.graph.node.append(helper.make_node("Identity", [place], [label], name=label))
        part.graph.output.append(onnx.ValueInfoProto(name=label))
    return part


def as_read(network: Network, tensor: str) -> str | None:
    """What a model calls a tensor as its readers see it; None where it has none of that name."""
    if tensor not in network.variables:
        return None
    return _dequantized(network, tensor) or tensor


def _dequantized(network: Network, tensor: str) -> str | None:
    """The output of a DequantizeLinear that `tensor` passes on the way to its readers."""
    for node in network.readers.get(tensor, ()):
        if node.op_type == "DequantizeLinear" and node.input[0] == tensor:
            return node.output[0]
        if _leads_to_grid(node, tensor) and (found := _dequantized(network, node.output[0])) is not None:
            return found
    return None


def _leads_to_grid(node: NodeProto, tensor: str) -> bool:
    """Whether a node is one of those that `graph.qdq_writer` puts in front of DequantizeLinear."""
    if node.op_type == "Clip":
        return node.output[0].startswith(f"{tensor.removesuffix('_shielded')}_clipped")
    return node.op_type == "QuantizeLinear" or (node.op_type == "Sum" and len(node.input) == 1)
