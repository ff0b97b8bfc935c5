"""Decomposed operators, which exporters write as several nodes: LayerNormalization, Gelu, Softmax, HardSwish, ...

What such nodes compute between them (a variance, an error function) is meant for no 8-bit grid, so that a matched
group is treated as the one operator that it stands for. Patterns are expressions, read backwards from the last node:

    Mul(x, Sigmoid(x))      nodes by operator, standard domain. Add, Mul, Min and Max take their inputs in any order,
                            and three terms or more in any bracketing; inputs not mentioned (axes) must be constants
    x                       a name of one letter: any tensor, the same one wherever the name occurs
    gamma                   a longer name: a constant
    0.5                     a constant with this one value, to three digits
    a | b                   either of them, the first that fits
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from threading import Lock
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from ..operators.linear import LinearLayer, linear_layer
from ..operators.node import is_op
from ..operators.registry import preserves_grid
from ..operators.saturation import EVERYTHING, Interval, needed_interval
from .model import Model, Quantizer

_CENTRED = "Sub(x, ReduceMean(x))"
_DEVIATION = f"Sqrt(Add(ReduceMean(Pow({_CENTRED}, 2) | Mul({_CENTRED}, {_CENTRED})), epsilon))"
_NORMAL = f"(Div({_CENTRED}, {_DEVIATION}) | Mul({_CENTRED}, Reciprocal({_DEVIATION}) | Div(1, {_DEVIATION})))"
_SCALE = f"Mul(gamma, Reciprocal({_DEVIATION}))"
_ROOT = "Sqrt(Add(ReduceMean(Pow(x, 2) | Mul(x, x)), epsilon))"
_UNIT = f"(Div(x, {_ROOT}) | Mul(x, Reciprocal({_ROOT}) | Div(1, {_ROOT})))"
_CUBE = "Pow(x, 3) | Mul(x, x, x)"
_GATES = (
    "Add(1, Erf(Div(x, 1.41421) | Mul(x, 0.707107)))",
    f"Add(1, Tanh(Mul(0.797885, Add(x, Mul(0.044715, {_CUBE})))))",
    "Add(1, Tanh(Mul(0.797885, x, Add(1, Mul(0.044715, Pow(x, 2) | Mul(x, x))))))",
)
_EXPONENTIAL = "Exp(Sub(x, ReduceMax(x)) | x)"

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "LayerNormalization": (
        f"Add(Mul({_NORMAL}, gamma), beta)",
        f"Add(Mul(x, {_SCALE}), Sub(beta, Mul(ReduceMean(x), {_SCALE})))",
        f"Mul({_NORMAL}, gamma)",
        _NORMAL,
    ),
    "RMSNormalization": (f"Mul({_UNIT}, gamma)", _UNIT),
    "Gelu": (
        *(f"Mul(0.5, x, {gate})" for gate in _GATES),
        *(f"Mul(x, {gate})" for gate in _GATES),  # the half is folded into the weights behind
        "Mul(x, Sigmoid(Mul(x, 1.702)))",
    ),
    "Softmax": (f"Div({_EXPONENTIAL}, ReduceSum({_EXPONENTIAL}))",),
}
"""Operator -> its forms, larger ones first. What has no operator of its own in every operator set stays decomposed."""

_RELU6 = "(Clip(Add(x, 3), 0, 6) | Min(Relu(Add(x, 3)), 6) | Min(Max(Add(x, 3), 0), 6))"

DECOMPOSED: Mapping[str, tuple[str, ...]] = {
    "HardSwish": (
        f"Div(Mul(x, {_RELU6}), 6)",
        f"Mul(x, 0.166667, {_RELU6})",
        f"Mul(x, HardSigmoid(x) | Div({_RELU6}, 6))",
    ),
    "HardSigmoid": (f"Div({_RELU6}, 6)", f"Mul(0.166667, {_RELU6})"),
}
"""Operators that `FuseDecomposedOperators` writes instead."""

GELU: Mapping[str, tuple[str, ...]] = {"Gelu": tuple(f"Mul(0.5, x, {gate})" for gate in _GATES)}
"""What `FuseDecomposedOperators` writes as Gelu for targets that take it whole only: the forms that it computes."""

ACTIVATIONS: Mapping[str, tuple[str, ...]] = {"Swish": ("Mul(x, Sigmoid(x))",)}
"""Activations that only some targets fuse; to the others the nodes are operators of their own."""

_COMMUTATIVE = ("Add", "Mul", "Min", "Max")

Bound: TypeAlias = Mapping[str, gs.Tensor]


@dataclass(frozen=True, eq=False)
class Composite:
    """Nodes that together are one operator. nodes: in no order, the last one first.  bound: the tensors behind the
    names of the pattern, `x` its input."""

    operator: str
    nodes: tuple[gs.Node, ...]
    bound: Bound

    @property
    def input(self) -> gs.Tensor:
        return self.bound["x"]

    @property
    def output(self) -> gs.Tensor:
        return self.nodes[0].outputs[0]


def find_composites(model: Model, patterns: Mapping[str, tuple[str, ...]] = PATTERNS) -> list[Composite]:
    """All composites of the main graph whose inner tensors no other node reads, in graph order; they do not overlap."""
    terms = [(operator, [_parse(text) for text in texts]) for operator, texts in patterns.items()]
    found: list[Composite] = []
    claimed: set[int] = set()
    for node in reversed(model.graph.nodes):
        for operator, forms in terms:
            match = None if id(node) in claimed else _match(model, node, operator, forms)
            if match is not None and claimed.isdisjoint(map(id, match.nodes)):
                found.append(match)
                claimed.update(map(id, match.nodes))
    return found[::-1]


def _match(model: Model, node: gs.Node, operator: str, forms: list[_Term]) -> Composite | None:
    for form in forms:
        if len(node.outputs) == 1 and node.op in form.roots:
            for bound, nodes in form.matches(node.outputs[0], {}, ()):
                composite = Composite(operator, tuple({id(n): n for n in nodes}.values()), bound)
                if _is_closed(model, composite):
                    return composite
    return None


def _is_closed(model: Model, composite: Composite) -> bool:
    inside = set(map(id, composite.nodes))
    return all(
        not model.is_output(tensor) and all(id(reader) in inside for reader in tensor.outputs)
        for node in composite.nodes[1:]
        for tensor in node.outputs
    )


def feeds_softmax(tensor: gs.Tensor, within: int = 8) -> bool:
    """Whether a tensor holds scores of attention, masks (-10000, -inf) perhaps among them: all that reads it, behind
    scaling, masking and reshaping, are Softmax operators, one at least. within: nodes to look at in a row."""
    readers = [node for node in tensor.outputs if not is_op(node, "Shape")]
    return bool(readers) and all(
        is_op(node, "Softmax")
        or (
            within > 0
            and (is_op(node, *_ON_SCORES) or preserves_grid(node))
            and all(feeds_softmax(output, within - 1) for output in node.outputs)
        )
        for node in readers
    )


_ON_SCORES = ("Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Cast", "QuantizeLinear", "DequantizeLinear")


def needed_range(model: Model, quantizer: Quantizer) -> Interval:
    """What the readers of a grid tell apart; everything where other tensors have it, too, or the user reads it."""
    tensor = model.graph.tensors()[quantizer.tensor]
    shared = bool(quantizer.widened_by) or any(q.grid_of == quantizer.tensor for q in model.quantizers.values())
    return EVERYTHING if shared or model.is_output(tensor) else needed_interval(tensor)


def class_logits(model: Model) -> set[str]:
    """Names of tensors that hold the logits of a whole sample: they reach a model output through a Softmax, on the way
    only being reshaped. Logits that are an output themselves are none: their reader may take more than probabilities
    from them, which a range that is cut for these would spoil."""
    names: set[str] = set()
    for output in model.graph.outputs:
        *_, first = _before_reshaping(output)
        node = first.inputs[0] if first.inputs else None
        if node is not None and is_op(node, "Softmax", "LogSoftmax"):
            names |= {tensor.name for tensor in _before_reshaping(node.inputs[0])}
    return names - {tensor.name for output in model.graph.outputs for tensor in _before_reshaping(output)}


def _before_reshaping(tensor: gs.Tensor) -> list[gs.Tensor]:
    """The tensor and what it was before being reshaped, from the last to the first."""
    tensors = [tensor]
    while tensor.inputs and is_op(tensor.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
        tensor = tensor.inputs[0].inputs[0]
        tensors.append(tensor)
    return tensors


def residual_input(model: Model, node: gs.Node, in_integers: Callable[[gs.Tensor], bool]) -> gs.Tensor | str:
    """The input of an Add that does not come straight from the convolution that the Add ends; the reason if none.

    Straight: nothing else reads what the convolution writes. Of two convolutions the one that runs last takes the
    Add, so that the other one's output is the residual. in_integers: whether a tensor is computed so; a convolution in
    float does not count.
    """
    if any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
        return "it adds a constant"
    ends = [t for t in node.inputs if model.sole_consumer(t) is node and _is_convolution(t) and in_integers(t)]
    if not ends:
        return "neither input comes straight from a convolution in integers"
    if len(ends) == 2:
        order = {id(n): index for index, n in enumerate(model.graph.nodes)}
        ends.sort(key=lambda tensor: order[id(tensor.inputs[0])])
    return next(tensor for tensor in node.inputs if tensor is not ends[-1])


def _is_convolution(tensor: gs.Tensor) -> bool:
    layer = linear_layer(tensor.inputs[0]) if tensor.inputs else ""
    return isinstance(layer, LinearLayer) and layer.form.is_convolution


_Nodes: TypeAlias = tuple[gs.Node, ...]


@dataclass(frozen=True)
class _Term:
    """A pattern, parsed. Of its fields one kind is filled: `options`, or `op` and `terms`, or `name`, or `value`."""

    options: tuple[_Term, ...] = ()
    op: str = ""
    terms: tuple[_Term, ...] = ()
    name: str = ""
    value: float | None = None

    @classmethod
    def of(cls, tree: ast.expr) -> _Term:
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
            return cls(options=(cls.of(tree.left), cls.of(tree.right)))
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
            return cls(op=tree.func.id, terms=tuple(cls.of(argument) for argument in tree.args))
        if isinstance(tree, ast.Name):
            return cls(name=tree.id)
        if isinstance(tree, ast.Constant) and isinstance(tree.value, (int, float)):
            return cls(value=float(tree.value))
        raise ValueError(f"not a pattern: {ast.unparse(tree)}")

    @cached_property
    def roots(self) -> frozenset[str]:
        """Operators that its last node may have."""
        return frozenset({self.op} if self.op else set()).union(*(option.roots for option in self.options))

    def matches(self, tensor: gs.Tensor, bound: Bound, nodes: _Nodes) -> Iterator[tuple[Bound, _Nodes]]:
        """Every way in which `tensor` is what the term says: names bound, and nodes passed, each the last first."""
        if self.options:
            for option in self.options:
                yield from option.matches(tensor, bound, nodes)
        elif self.op:
            node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
            if node is not None and is_op(node, self.op):
                for pairs in self._pairings(node):
                    yield from _all_match(pairs, bound, (*nodes, node))
        elif self.value is not None:
            number = _scalar(tensor)
            if number is not None and np.isclose(number, self.value, rtol=1e-3):
                yield bound, nodes
        elif self.name not in bound:
            if len(self.name) == 1 or _values(tensor) is not None:
                yield {**bound, self.name: tensor}, nodes
        elif bound[self.name] is tensor or _equal(bound[self.name], tensor):
            yield bound, nodes

    def _pairings(self, node: gs.Node) -> Iterator[list[tuple[_Term, gs.Tensor]]]:
        """Which term stands for which input."""
        inputs = list(node.inputs)
        if self.op not in _COMMUTATIVE:
            rest = [t for t in inputs[len(self.terms) :] if t.name]
            if len(inputs) >= len(self.terms) and all(_values(t) is not None for t in rest):
                yield list(zip(self.terms, inputs, strict=False))
            return
        if len(inputs) != 2:
            return
        everything = range(len(self.terms))
        for size in range(1, len(self.terms)):
            for left in combinations(everything, size):
                right = [i for i in everything if i not in left]
                yield list(zip((self._part(left), self._part(right)), inputs, strict=True))

    def _part(self, indices: tuple[int, ...] | list[int]) -> _Term:
        """Some of the terms, under the same operator."""
        terms = tuple(self.terms[i] for i in indices)
        return terms[0] if len(terms) == 1 else _Term(op=self.op, terms=terms)


_PARSING = Lock()
"""Of Python's own parser: in two threads at a time that of 3.11 fails, with a SystemError on its recursion depth."""


@cache
def _parse(text: str) -> _Term:
    """Raises ValueError."""
    with _PARSING:
        return _Term.of(ast.parse(text, mode="eval").body)


def _all_match(pairs: list[tuple[_Term, gs.Tensor]], bound: Bound, nodes: _Nodes) -> Iterator[tuple[Bound, _Nodes]]:
    if not pairs:
        yield bound, nodes
        return
    (term, tensor), *rest = pairs
    for further in term.matches(tensor, bound, nodes):
        yield from _all_match(rest, *further)


def _values(tensor: gs.Tensor) -> np.ndarray | None:
    """What a constant holds, whether it is an initializer or written by a Constant node; None for other tensors."""
    if tensor.inputs and is_op(tensor.inputs[0], "Constant"):
        value = tensor.inputs[0].attrs.get("value")
        return np.asarray(value.values) if isinstance(value, gs.Constant) else None
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def _scalar(tensor: gs.Tensor) -> float | None:
    """The value of a constant that has but one."""
    values = _values(tensor)
    return float(values.reshape(())) if values is not None and values.size == 1 else None


def _equal(one: gs.Tensor, other: gs.Tensor) -> bool:
    """Whether two scalars are the same number: exporters write an epsilon once for each use."""
    return _scalar(one) is not None and _scalar(one) == _scalar(other)
