"""Which tensors of a float model say how good a quantized one is: outputs, or what lies in front of a selection.

    rounded(t)    t depends on weights: quantization moves its values a little
    selected(t)   t depends on what a selecting operator made of rounded values, which the least change may exchange
    comparable    of each output: itself, where it holds floats and is not selected; else the nearest rounded float
                  tensors in front of it that are not selected

Selecting operators are those of `operators.selection`, casts of floats to integers or booleans, If and Loop where what
they branch on is selected, and those with a selection inside. What an attention mask, a length or a shape selects is
the same in both models, and selects nothing here.

A threshold (comparison, rounding, cast) keeps the shape and changes single values. Behind the next layer with weights
it is but an activation function of the network, and outputs are compared again; not so where it makes indices or
shapes.

Some outputs hide how good they are (`telling`):

    y = Softmax(z), Sigmoid(z), ...     saturates: z = (10, 0) may move by 5, and y by 0.007; other samples, whose z is
                                        smaller, have another class then. What y tells apart of z (`metrics.Front`) is
                                        compared beside y, and the worse counts
    y = Concat(boxes, scores)           holds values of different magnitudes, of which the larger make the whole SQNR:
                                        what is joined is compared instead
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from ..numeric.metrics import Front
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import Selects, find, linear_form
from ..operators.saturation import EVERYTHING, Interval
from .serialized import bodies_of, captured, nodes_of
from .shapes import infer_shapes

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})

_EXACT = FLOATS | {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}
"""Types of weights, those of quantized models included; other integers are shapes, indices and the like."""

_SMALL = 1024
"""Elements of constants that may say a shape."""

_SAME_VALUES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout"})
"""Operators whose first output holds exactly the values of the first input."""

_SATURATING: dict[str, Interval | None] = {
    "Sigmoid": (-8.0, 8.0), "HardSigmoid": (-3.0, 3.0), "Tanh": (-4.0, 4.0), "Softmax": None,
}  # fmt: skip
"""Operators whose outputs hardly change where their inputs are large, and where that begins, as in
`operators.saturation`; of Softmax that depends on the classes. LogSoftmax keeps how far they are apart."""

_PART = frozenset({"Slice", "Split", "Gather"})
"""Operators whose outputs hold some of the first input's values."""

_INDEXED = frozenset({
    "Gather", "GatherND", "GatherElements", "Scatter", "ScatterND", "ScatterElements", "Slice", "Compress", "Pad",
    "Reshape", "Expand", "Tile", "Resize", "Split", "TopK",
})  # fmt: skip
"""Operators whose inputs behind the first say which values come out, or how many."""

_COUNTED = frozenset({"Range", "ConstantOfShape", "OneHot"})
"""Those of which all inputs say so."""


@dataclass(frozen=True)
class Comparable:
    """A tensor to compare. output: of the model, which it stands for; more: further outputs that it stands for.

    selection: the operator that the tensor lies in front of; None where it is the output itself.
    front: of a tensor in front of a saturating operator, what that tells apart; its output is compared, too.
    """

    tensor: str
    output: str
    selection: str | None = None
    more: tuple[str, ...] = ()
    front: Front | None = None

    @property
    def label(self) -> str:
        """What reports call it: `boxes (in front of NonMaxSuppression)`."""
        return self.tensor if self.selection is None else f"{self.tensor} (in front of {self.selection})"


def comparables(proto: ModelProto) -> tuple[Comparable, ...]:
    """The tensors of a float model by which quantized ones are compared with it, each once; none if there are none."""
    outputs = [value.name for value in proto.graph.output]
    if all(map(_holds_floats, proto.graph.output)) and not any(map(_may_select, nodes_of(proto.graph))):
        return tuple(Comparable(name, name) for name in outputs)
    trace = _trace(proto)
    found = {trace.origin(name): Comparable(name, name) for name in outputs if trace.is_comparable(name)}
    for name in outputs:
        if trace.is_comparable(name):
            continue
        for tensor, selection in trace.in_front_of(name):
            known = found.get(tensor)
            if known is None:
                found[tensor] = Comparable(tensor, name, selection)
            elif name not in (known.output, *known.more):
                found[tensor] = replace(known, more=(*known.more, name))
    return tuple(found.values())


def telling(proto: ModelProto) -> tuple[Comparable, ...]:
    """The same, for decisions between quantized models: of joined outputs the parts, and beside what saturates what
    lies in front of it."""
    outputs = comparables(proto)
    makers = {name: node for node in proto.graph.node for name in node.output if name}
    if not any(_is(makers[each.tensor], "Concat", *_SATURATING, *_PART, *_SAME_VALUES) for each in outputs
               if each.tensor in makers):  # fmt: skip
        return outputs
    trace = _trace(proto)
    parts = {trace.origin(part.tensor): part for each in outputs for part in trace.parts_of(each)}
    found = {part.tensor: part for part in parts.values()}
    for part in parts.values():
        node = trace.saturating(part.tensor)
        if node is not None and node.input[0] not in found:
            front = Front(part.label, _SATURATING[node.op_type] or EVERYTHING, _class_axis(node, proto))
            found[node.input[0]] = Comparable(node.input[0], part.output, node.op_type, front=front)
    return tuple(found.values())


def selected_tensors(proto: ModelProto) -> frozenset[str]:
    """Names of the tensors behind a selection, which are not compared."""
    if not any(map(_may_select, nodes_of(proto.graph))):
        return frozenset()
    return frozenset(_trace(proto).selected)


@dataclass(frozen=True)
class _Selected:
    """by: the operator. lasting: whether layers behind it do not make up for it."""

    by: str
    lasting: bool


@dataclass
class _Trace:
    """weights: constants that layers read. fixed: all tensors that depend on no input. rounded, selected: see above."""

    graph: GraphProto
    types: dict[str, int] = field(default_factory=dict)
    makers: dict[str, NodeProto] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)
    rounded: set[str] = field(default_factory=set)
    selected: dict[str, _Selected] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.HasField("tensor_type"):
                self.types[value.name] = value.type.tensor_type.elem_type
            elif value.type.WhichOneof("value") is not None:
                self.types[value.name] = TensorProto.UNDEFINED  # a sequence: it is not compared itself
        for tensor in graph.initializer:
            self.constant(tensor.name, tensor)
        self.fixed.update(t.values.name for t in graph.sparse_initializer)
        self.weights.update(t.values.name for t in graph.sparse_initializer)

    def run(self) -> _Trace:
        """Itself, with all nodes visited."""
        for node in self.graph.node:
            self._visit(node)
        return self

    def constant(self, name: str, tensor: TensorProto) -> None:
        """Of one element it is a factor or a bound, which no quantization moves."""
        self.fixed.add(name)
        if tensor.data_type in _EXACT and any(length != 1 for length in tensor.dims):
            self.weights.add(name)

    def _visit(self, node: NodeProto) -> None:
        reads, inner = _reads(node), [self._inside(node, graph) for graph in bodies_of(node)]
        self.makers.update((name, node) for name in node.output if name)
        if not inner and all(name in self.fixed for name in reads):
            self._visit_fixed(node, reads)
            return
        if inner:
            rounded = any(value.name in trace.rounded for trace in inner for value in trace.graph.output)
        else:
            rounded = any(name in self.weights or name in self.rounded for name in reads)
        selected = self._selected(node, reads, self._selects_inside(inner) if inner else self._selects(node, rounded))
        if selected is not None and not selected.lasting and self._is_layer(node):
            selected = None
        if _is(node, "Shape", "Size"):
            rounded, selected = False, selected if selected is not None and selected.lasting else None
        for name in node.output:
            if name and rounded:
                self.rounded.add(name)
            if name and selected is not None:
                self.selected[name] = selected

    def _visit_fixed(self, node: NodeProto, reads: list[str]) -> None:
        self.fixed.update(node.output)
        if any(name in self.weights for name in reads):
            self.weights.update(node.output)
        for attribute in node.attribute:
            if _is(node, "Constant") and attribute.HasField("t"):
                self.constant(node.output[0], attribute.t)

    def _is_layer(self, node: NodeProto) -> bool:
        form = linear_form(node.op_type, node.domain)
        return form is not None and len(node.input) > form.weight and node.input[form.weight] in self.weights

    def _selected(self, node: NodeProto, reads: list[str], own: Selects | None) -> _Selected | None:
        """What the outputs of a node are behind, that which lasts first. own: how the node selects by itself."""
        decides = next((self.selected[n] for n in _deciding(node) if n in self.selected), None)
        if decides is not None:
            return _Selected(decides.by, True)
        incoming = [self.selected[name] for name in reads if name in self.selected]
        behind = next((each for each in incoming if each.lasting), incoming[0] if incoming else None)
        if own is None or (behind is not None and (behind.lasting or own == "threshold")):
            return behind
        return _Selected(node.op_type, own == "positions")

    def _selects(self, node: NodeProto, rounded: bool) -> Selects | None:
        """How a node selects by itself. What is selected by exact values is the same in both models."""
        if not (rounded and _may_select(node)):
            return None
        if not any(name in self.rounded and self._may_be_float(name) for name in node.input):
            return None
        operator = find(node.op_type, node.domain)
        return "threshold" if operator is None else operator.selects

    def _inside(self, node: NodeProto, graph: GraphProto) -> _Trace:
        """A branch or a body, which sees the tensors around it. What a body is given from outside may be rounded."""
        is_rounded = any(name in self.rounded for name in node.input)
        given = {value.name for value in graph.input if is_rounded}
        return _Trace(graph, dict(self.types), {}, set(self.fixed), set(self.weights), self.rounded | given).run()

    def _selects_inside(self, inner: Sequence[_Trace]) -> Selects | None:
        found = [trace.selected[v.name] for trace in inner for v in trace.graph.output if v.name in trace.selected]
        loops = any(trace.graph.input and trace.graph.output[0].name in trace.selected for trace in inner)
        if not found:
            return None
        return "positions" if loops or any(each.lasting for each in found) else "threshold"

    def _may_be_float(self, name: str) -> bool:
        return self.types.get(name, TensorProto.FLOAT) in FLOATS

    def is_comparable(self, name: str) -> bool:
        """Whether a tensor is compared itself."""
        return name not in self.selected and self._may_be_float(name)

    def origin(self, name: str) -> str:
        """The tensor with the same values that comes first: movement in between would be compared twice."""
        while (node := self.makers.get(name)) is not None and node.output[0] == name and _is(node, *_SAME_VALUES):
            if not self.is_comparable(node.input[0]) or node.input[0] not in self.rounded:
                break
            name = node.input[0]
        return name

    def in_front_of(self, output: str) -> Iterator[tuple[str, str]]:
        """The nearest comparable tensors that an output depends on, and the operator that each lies in front of."""
        seen, waiting = {output}, [output]
        while waiting:
            name = waiting.pop(0)
            node = self.makers.get(name)
            if node is None:
                continue
            by = self.selected[name].by if name in self.selected else node.op_type
            for read in _reads(node):
                if read in seen or read not in self.rounded:
                    continue
                seen.add(read)
                if self.is_comparable(read):
                    yield self.origin(read), by
                else:
                    waiting.append(read)

    def parts_of(self, place: Comparable) -> list[Comparable]:
        """What a tensor joins, each with values that rounding can change; the tensor itself where that is all."""
        name = place.tensor
        while (node := self.makers.get(name)) is not None and _is(node, *_SAME_VALUES) and node.output[0] == name:
            name = node.input[0]
        if node is None or not _is(node, "Concat"):
            return [place]
        read = [part for part in dict.fromkeys(node.input) if part in self.rounded and self.is_comparable(part)]
        parts = [Comparable(part, place.output, "Concat", place.more) for part in read]
        return [part for each in parts for part in self.parts_of(each)] or [place]

    def saturating(self, name: str) -> NodeProto | None:
        """The saturating operator that made these values of what rounding can change."""
        while (node := self.makers.get(name)) is not None:
            if _is(node, *_SATURATING):
                return node if node.input[0] in self.rounded and self.is_comparable(node.input[0]) else None
            if not _is(node, *_SAME_VALUES, *_PART):
                return None
            name = node.input[0]
        return None


def _class_axis(node: NodeProto, proto: ModelProto) -> int | None:
    """The axis of a Softmax; before operator set 13 it flattens what is behind it, which is of length 1 mostly."""
    if not _is(node, "Softmax"):
        return None
    version = next((o.version for o in proto.opset_import if o.domain in ONNX_DOMAINS), 13)
    return next((int(a.i) for a in node.attribute if a.name == "axis"), -1 if version >= 13 else 1)


def _trace(proto: ModelProto) -> _Trace:
    """Types are inferred on a copy without the large weights, which would only be copied to and fro."""
    source, copy = proto.graph, ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    graph = copy.graph
    graph.name = source.name or "types"
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    known = {value.name for value in source.input}
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    trace = _Trace(infer_shapes(copy).graph)
    for tensor in source.initializer:
        trace.constant(tensor.name, tensor)
    return trace.run()


def _deciding(node: NodeProto) -> Iterable[str]:
    """The inputs that say which values come out of a node, or how many."""
    if _is(node, *_INDEXED):
        return node.input[1:]
    if _is(node, *_COUNTED):
        return node.input
    return node.input[: {"If": 1, "Loop": 2}.get(node.op_type, 0)]


def _may_select(node: NodeProto) -> bool:
    """Whether a node would select by values that are rounded."""
    if _is(node, "Cast"):
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), TensorProto.FLOAT)
        return to not in FLOATS
    operator = find(node.op_type, node.domain)
    return operator is not None and operator.selects is not None


def _reads(node: NodeProto) -> list[str]:
    return [name for name in dict.fromkeys((*node.input, *sorted(captured(node)))) if name]


def _holds_floats(value: ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in FLOATS


def _is(node: NodeProto, *ops: str) -> bool:
    return node.op_type in ops and node.domain in ONNX_DOMAINS
