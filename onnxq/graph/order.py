"""Nodes in an order in which they can be computed: ONNX demands it, ONNX Runtime does not, and some exporters and
converters leave it out (onnxruntime.transformers.float16 puts its Casts at the end)."""

from __future__ import annotations

import heapq

from onnx import ModelProto

from .model import captured


def in_order(proto: ModelProto) -> ModelProto:
    """The model with the main graph's nodes sorted, those that may stand anywhere as near their place as can be.

    The given one, unchanged, where they are in order, and where none exists: the checker will say so.
    """
    nodes = proto.graph.node
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[n] for n in (*node.input, *captured(node)) if n in maker} for node in nodes]
    if all(max(before, default=-1) < index for index, before in enumerate(needs)):
        return proto
    readers: dict[int, list[int]] = {}
    for index, before in enumerate(needs):
        for source in before:
            readers.setdefault(source, []).append(index)
    missing = [len(before) for before in needs]
    ready = [index for index, count in enumerate(missing) if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes[index] for index in order)
    return copy
