"""A serialized graph as neighbours: who computes a tensor, who reads it. Operators may be any tool's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from onnx import ModelProto, NodeProto, TensorProto

from ..graph.model import captured


class Wiring:
    """Neighbours in the main graph of `proto`, which must not change meanwhile."""

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.initializers = {t.name: t for t in proto.graph.initializer}
        self.inputs = [v.name for v in proto.graph.input if v.name not in self.initializers]
        self.outputs = [v.name for v in proto.graph.output]
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.input, *sorted(captured(node)))):
                self.readers.setdefault(name, []).append(node)

    def source(self, name: str) -> NodeProto | None:
        """The node that computes a tensor; None for inputs and initializers."""
        return self.producer.get(name)

    @cached_property
    def constants(self) -> set[str]:
        """Names of tensors that depend on no input."""
        found = set(self.initializers)
        for node in self.nodes:
            if all(not name or name in found for name in node.input) and not captured(node):
                found.update(node.output)
        return found

    def value(self, name: str) -> TensorProto | None:
        """An initializer, or what a Constant node holds."""
        if name in self.initializers:
            return self.initializers[name]
        node = self.source(name)
        if node is not None and node.op_type == "Constant":
            return next((a.t for a in node.attribute if a.name == "value"), None)
        return None

    def dims(self, name: str) -> tuple[int, ...] | None:
        """Shape of a constant that is stored."""
        tensor = self.value(name)
        return None if tensor is None else tuple(tensor.dims)

    def walk_back(self, name: str, through: frozenset[str]) -> Iterator[str]:
        """A tensor, and the first inputs of the operators `through` that computed it, back to another operator."""
        yield name
        node = self.source(name)
        while node is not None and node.op_type in through and node.input:
            name = node.input[0]
            yield name
            node = self.source(name)

    def readers_behind(self, name: str, through: frozenset[str]) -> list[NodeProto]:
        """Nodes that read a tensor, seen through the operators `through`."""
        found: list[NodeProto] = []
        for node in self.readers.get(name, []):
            if node.op_type in through and node.output:
                found += self.readers_behind(node.output[0], through)
            else:
                found.append(node)
        return found
