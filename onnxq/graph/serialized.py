"""Serialized graphs (protobufs) walked with the bodies of their nodes: branches of an If, bodies of a Loop or Scan.

`Model` holds the main graph as graph surgeon's objects, where bodies are attributes. What must see all of a file,
bodies included, walks the protobuf instead, and does so with these.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto


def bodies_of(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that are attributes of a node; not those inside of them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all bodies in it, each in front of those inside of it."""
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_of(body)


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes of a graph, each in front of those of its bodies."""
    for node in graph.node:
        yield node
        for body in bodies_of(node):
            yield from nodes_of(body)


def constants_of(proto: ModelProto) -> Iterator[TensorProto]:
    """All constants of a model: initializers, both parts of sparse ones, attributes; of bodies and functions, too."""
    yield from _constants_in(proto.graph)
    for function in proto.functions:
        yield from _constants_in(function)


def _constants_in(holder: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    if isinstance(holder, GraphProto):
        yield from holder.initializer
        for sparse in holder.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in holder.node:
        for attribute in node.attribute:
            yield from (*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors)
            single = (attribute.sparse_tensor,) if attribute.HasField("sparse_tensor") else ()
            for sparse in (*single, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for body in bodies_of(node):
            yield from _constants_in(body)


def names_read(graph: GraphProto) -> set[str]:
    """Names of tensors that nodes read, those in bodies included, or that are outputs of a graph."""
    read = {name for node in nodes_of(graph) for name in node.input}
    return read | {output.name for each in graphs_of(graph) for output in each.output}


def names_of(graph: GraphProto) -> set[str]:
    """Names of all tensors, those in bodies included."""
    found = {name for node in nodes_of(graph) for name in (*node.input, *node.output)}
    for each in graphs_of(graph):
        found.update(tensor.name for tensor in each.initializer)
        found.update(value.name for value in (*each.input, *each.output))
    return found


def captured(node: NodeProto) -> set[str]:
    """Names that a node's bodies read; some are their own, which does no harm."""
    return {name for body in bodies_of(node) for name in names_read(body)}


def unused_name(stem: str, taken: set[str]) -> str:
    """`stem`, or `stem_1`, ...: the first that is not taken. It is taken then."""
    candidates = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
    name = next(name for name in candidates if name not in taken)
    taken.add(name)
    return name


def drop_unread_initializers(graph: GraphProto) -> None:
    """Remove the initializers, those of bodies included, that nothing reads."""
    read = names_read(graph)
    for each in graphs_of(graph):
        unread = [i for i, tensor in enumerate(each.initializer) if tensor.name not in read]
        for index in reversed(unread):
            del each.initializer[index]
