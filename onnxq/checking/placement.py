"""Checks on what is quantized: before and behind which operators, and which tensors share a grid."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from ..operators.elementwise import clip_bounds
from ..operators.registry import is_convolution, operands, preserves_grid
from ..targets import OpRule, Target
from ..targets.requirements import readers, reads_integers
from .qdq_reader import Pair, QdqGraph, label
from .tensor_grid import is_dequantize, is_quantize
from .violation import Violation


def fused_activation(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for pair in graph.pairs:
        producer = pair.tensor.inputs[0] if pair.tensor.inputs else None
        if producer is None or target.rule_of(producer) is None or pair.is_output or len(pair.tensor.outputs) > 1:
            continue
        behind = pair.readers[0].op if len(pair.readers) == 1 else ""
        if behind in target.fused and (behind != "Clip" or clip_bounds(pair.readers[0]) is not None):
            yield Violation(
                label(producer), pair.tensor.name, f"{behind} directly behind {producer.op}", "a pair between"
            )


def same_grid(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, rule in _ruled(graph, target):
        if rule.grid != "same" or (rule.kind == "movement" and not preserves_grid(node)):
            continue
        source = graph.read(node, 0) if graph.constant(node, 0) is None else None  # rows of a table have their own grid
        for output in node.outputs:
            pair = graph.pair_of(output)
            if source is not None and pair is not None and not pair.grid.same_grid(source):
                yield Violation(label(node), output.name, f"the grid of its input, {source}", str(pair.grid))


def shared_grid(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    tied = any(rule.tie != "none" for rule in target.rules.values())
    for node, rule in graph.chosen(target) if tied else ():
        if rule.tie == "none":
            continue
        grids = [(t.name, e) for i, t in graph.activations(node) if (e := graph.read(node, i)) is not None]
        pair = graph.written(node)
        if rule.tie == "all" and rule.output == "grid" and pair is None:
            continue  # it runs in float
        if rule.tie == "all" and grids and pair is not None:
            grids.append((pair.tensor.name, pair.grid))
        for name, grid in grids[1:]:
            if not grid.same_grid(grids[0][1]):
                yield Violation(label(node), name, f"the grid of {grids[0][0]!r}, {grids[0][1]}", str(grid))


def fixed_encoding(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, rule in _ruled(graph, target):
        pair = graph.pair_of(node.outputs[0])
        for spec in rule.encodings:
            if pair is None or pair.grid.type != spec.type:
                continue
            scale, zero_point = float(pair.grid.scale.reshape(-1)[0]), int(pair.grid.zero_point.reshape(-1)[0])
            if (scale, zero_point) != (spec.scale, spec.zero_point):
                expected = f"{spec.type} with scale {spec.scale:g} and zero point {spec.zero_point}"
                yield Violation(label(node), pair.tensor.name, expected, str(pair.grid))


def integer_readers(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for pair in graph.pairs:
        rule = target.rule_of(pair.tensor.inputs[0]) if pair.tensor.inputs else None
        if rule is not None and rule.output == "grid":
            continue
        if not any(is_quantize(node) or reads_integers(target.rule_of(node)) for node in pair.readers):
            found = ", ".join(dict.fromkeys(node.op for node in pair.readers)) or "the output of the model"
            yield Violation(
                label(pair.quantize), pair.tensor.name, f"a reader among {', '.join(readers(target))}", found
            )


def float_outputs(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for pair in graph.pairs:
        if pair.is_output:
            yield Violation(label(pair.quantize), pair.tensor.name, "an output of the model in float", str(pair.grid))


def residual_add(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, rule in _ruled(graph, target):
        if rule.kind != "residual" or len(list(graph.activations(node))) != 2:
            continue
        ends = [tensor for tensor in node.inputs if _ends_convolution(graph, tensor)]
        quantized = [graph.read(node, index) is not None for index in (0, 1)]
        names = " and ".join(repr(graph.root(t).name) for t in node.inputs)
        if len(ends) == 2 and sum(quantized) != 1:
            yield Violation(label(node), names, "one of two convolutions' outputs quantized", f"{sum(quantized)} are")
        elif len(ends) == 1:
            index = next(i for i, tensor in enumerate(node.inputs) if tensor is ends[0])
            if quantized[index]:
                name = graph.root(ends[0]).name
                yield Violation(label(node), name, "the convolution's output unquantized", "quantized")
            if not quantized[1 - index]:
                name = node.inputs[1 - index].name
                yield Violation(label(node), name, "the residual input quantized", "in float")


def whole_operators(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, rule in graph.chosen(target):
        if rule.kind == "residual" or (target.added_bias == "layer" and graph.adds_bias(node)):
            continue
        output = node.outputs[0]
        pair = _written_through_bias(graph, target, node) if rule.kind == "linear" else graph.written(node)
        weighted = rule.kind == "linear" and any(graph.constant(node, i) is not None for i in operands(node)[1:])
        last = target.outputs == "float" and graph.ends_model(node)
        if weighted and pair is None and rule.output == "grid" and not last:
            yield Violation(label(node), output.name, "its output quantized, as its weight is", "in float")
        if weighted or pair is not None:
            yield from _float_inputs(graph, node, rule)


def one_width(graph: QdqGraph, target: Target) -> Iterator[Violation]:
    for node, _ in _ruled(graph, target):
        grids = [(t, e) for i, t in graph.activations(node) if (e := graph.read(node, i)) is not None]
        for tensor, grid in grids[1:]:
            if grid.type != grids[0][1].type:
                name = graph.root(tensor).name
                yield Violation(label(node), name, f"{grids[0][1].type}, as its first input", grid.type)


def _ruled(graph: QdqGraph, target: Target) -> Iterator[tuple[gs.Node, OpRule]]:
    for node in graph.nodes:
        rule = target.rule_of(node)
        if rule is not None and id(node) not in graph.composites:
            yield node, rule


def _written_through_bias(graph: QdqGraph, target: Target, node: gs.Node) -> Pair | None:
    """The pair behind a linear operator, and behind the Add of its bias that exporters of MatMul write."""
    pair = graph.written(node)
    behind = node.outputs[0].outputs if target.added_bias == "layer" else []
    if pair is None and len(behind) == 1 and behind[0].op == "Add":
        return graph.written(behind[0])
    return pair


def _float_inputs(graph: QdqGraph, node: gs.Node, rule: OpRule) -> Iterator[Violation]:
    """Inputs that a quantized operator reads in float, where it should not."""
    first = rule.kind == "movement" or rule.data == "first" or rule.grid != "own"
    everything = tuple(range(len(node.inputs)))
    for index in everything[:1] if first else operands(node) or everything:
        tensor = node.inputs[index]
        if not tensor.name or graph.read(node, index) is not None:
            continue
        moved = rule.kind == "movement" and isinstance(tensor, gs.Constant)
        if not moved and (tensor.dtype is None or str(tensor.dtype).endswith("float32")):
            yield Violation(label(node), tensor.name, "quantized, as the rest of the operator", "in float")


def _ends_convolution(graph: QdqGraph, tensor: gs.Tensor) -> bool:
    """Whether a tensor, or what its pair quantizes, comes straight from a quantized convolution."""
    source = graph.root(tensor)
    producer = source.inputs[0] if source.inputs else None
    if producer is None or is_dequantize(producer) or not is_convolution(producer):
        return False
    alone = len(source.outputs) == 1 and len(tensor.outputs) == 1 and not graph.model.is_output(source)
    in_integers = graph.read(producer, 0) is not None and graph.constant(producer, operands(producer)[1]) is not None
    return alone and in_integers
