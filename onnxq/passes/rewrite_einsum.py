"""Einsum of activations x and a constant W is a product of matrices in disguise, as JAX and TensorFlow write layers.

    y = sum over c of x[b, f, c] W[b, c, m]

Each index is one of four kinds, by where it occurs:    x  W  y
    b   a stack of matrices                             *  *  *
    c   summed over                                     *  *
    f   free in x                                       *     *
    m   output channels                                    *  *

    y = Transpose(Reshape(MatMul(Reshape(Transpose(x)), W')))

W' (b, c, m) is a constant, x is brought into the order (b, f, c), with all c in one axis (and, in a stack, all f), what
comes out has the order (b, f, m). Each Transpose and Reshape that changes nothing is left out. ONNX Runtime itself
multiplies so, in float; the MatMul is a layer like any other, and its weight can be quantized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import edit
from ..graph.model import Model
from ..operators.node import is_float, is_op
from .base import Context, Outcome, Skip

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class RewriteEinsum:
    """Write Einsum of activations and one constant as MatMul."""

    title: ClassVar[str] = "Rewrite Einsum"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        changed, skips = 0, []
        for node in [n for n in model.graph.nodes if is_op(n, "Einsum")]:
            if not any(isinstance(t, gs.Constant) for t in node.inputs):
                continue  # two activations: there is no weight
            product = _product(node)
            if isinstance(product, str):
                skips.append(Skip(node.name, product))
                continue
            _write(model, node, product)
            changed += 1
        return Outcome(changed, tuple(skips))


@dataclass(frozen=True)
class _Product:
    """x, weight: the operands.  b, f, c, m: indices of each kind, in the order of W', of x and of y.
    given, wanted: indices of x and of y as they are.  sizes: of the indices of the weight."""

    x: gs.Tensor
    weight: gs.Constant
    stored: str
    given: str
    wanted: str
    b: str
    f: str
    c: str
    m: str
    sizes: dict[str, int]

    def shape(self, groups: list[str]) -> list[int | str | None] | None:
        """Of a tensor each axis of which runs over the indices of one group."""
        if self.x.shape is None:
            return None
        known = {**dict(zip(self.given, self.x.shape, strict=True)), **self.sizes}
        lengths = [[known[i] for i in group] for group in groups]
        return [
            group[0] if len(group) == 1 else math.prod(n for n in group if isinstance(n, int))
            if all(isinstance(n, int) for n in group) else None
            for group in lengths
        ]  # fmt: skip


def _product(node: gs.Node) -> _Product | str:
    """The product that an Einsum is, or why it is none."""
    if len(node.inputs) != 2:
        return f"Einsum of {len(node.inputs)} operands is no product of two matrices"
    equation = str(node.attrs["equation"]).replace(" ", "")
    if "->" not in equation:
        return "its equation does not say the order of the output"
    left, wanted = equation.split("->")
    terms = left.split(",")
    first = 1 if isinstance(node.inputs[0], gs.Constant) else 0
    x, weight, given, stored = node.inputs[first], node.inputs[1 - first], terms[first], terms[1 - first]
    if not isinstance(weight, gs.Constant) or isinstance(x, gs.Constant) or not is_float(weight):
        return "it multiplies no activations with float32 weights"
    if "..." in stored:
        return "its weight has an ellipsis"
    if "..." in given:
        if x.shape is None:
            return f"the rank of {x.name!r} is not known"
        free = [letter for letter in LETTERS if letter not in equation]
        filled = "".join(free[: len(x.shape) - len(given.replace("...", ""))])
        given, wanted = given.replace("...", filled), wanted.replace("...", filled)
    if any(len(set(term)) < len(term) for term in (given, stored, wanted)):
        return "an index occurs twice in one operand"
    b = "".join(i for i in stored if i in given and i in wanted)
    c = "".join(i for i in given if i in stored and i not in wanted)
    f = "".join(i for i in given if i not in stored)
    m = "".join(i for i in wanted if i in stored and i not in b)
    if not set(f) <= set(wanted) or set(stored) != set(b + c + m):
        return "it sums over an index of one operand alone"
    if not c:
        return "it sums over nothing"
    if not b and not f:
        return "its input is a vector, without a batch"
    sizes = dict(zip(stored, map(int, weight.shape), strict=True))
    product = _Product(x, weight, stored, given, wanted, b, f, c, m, sizes)
    if b and len(f) != 1 and _free_sizes(product).count(-1) > 1:
        return "several lengths of its input are not known beside a stack of matrices"
    return product


def _write(model: Model, node: gs.Node, product: _Product) -> None:
    """The nodes in the place of the Einsum, whose name the MatMul takes."""
    p, output, nodes = product, node.outputs[0], list[gs.Node]()

    def then(op: str, groups: list[str], *inputs: gs.Tensor, **attributes: object) -> gs.Variable:
        """groups: the indices that each axis of the output runs over."""
        made = gs.Variable(model.unique_name(f"{output.name}_{op.lower()}"), output.dtype, p.shape(groups))
        nodes.append(gs.Node(op, attrs=dict(attributes), inputs=list(inputs), outputs=[made]))
        return made

    def reshaped(tensor: gs.Tensor, groups: list[str], shape: list[int]) -> gs.Variable:
        target = edit.constant(model, f"{output.name}_shape", np.asarray(shape, np.int64))
        return then("Reshape", groups, tensor, target)

    def size(indices: str) -> int:
        return math.prod(p.sizes[i] for i in indices)

    stack = [p.sizes[i] for i in p.b]
    order = [p.stored.index(i) for i in p.b + p.c + p.m]
    matrix = np.transpose(p.weight.values, order).reshape(*stack, size(p.c), size(p.m))
    weight = edit.constant(model, f"{p.weight.name}_matrix", matrix)
    x: gs.Tensor = p.x
    if p.given != p.b + p.f + p.c:
        x = then("Transpose", [*p.b, *p.f, *p.c], x, perm=[p.given.index(i) for i in p.b + p.f + p.c])
    rows, kept = ([-1], [p.f]) if p.b else ([0] * len(p.f), [*p.f])
    if len(p.c) > 1 or (p.b and len(p.f) != 1):
        x = reshaped(x, [*p.b, *kept, p.c], [*stack, *rows, size(p.c)])
    y = then("MatMul", [*p.b, *kept, p.m], x, weight)
    nodes[-1].name = node.name
    free = _free_sizes(p) if p.b and len(p.f) != 1 else [0] * len(p.f)
    if len(p.m) != 1 or (p.b and len(p.f) != 1):
        y = reshaped(y, [*p.b, *p.f, *p.m], [*stack, *free, *(p.sizes[i] for i in p.m)])
    if p.b + p.f + p.m != p.wanted:
        y = then("Transpose", [*p.wanted], y, perm=[(p.b + p.f + p.m).index(i) for i in p.wanted])
    place = next(index for index, other in enumerate(model.graph.nodes) if other is node)
    node.inputs.clear()
    node.outputs.clear()
    nodes[-1].outputs[0] = output
    model.graph.nodes[place : place + 1] = nodes


def _free_sizes(p: _Product) -> list[int]:
    """Of the free indices of x behind a stack, where at most one is unknown."""
    known = [p.x.shape[p.given.index(i)] if p.x.shape is not None else None for i in p.f]
    return [n if isinstance(n, int) else -1 for n in known]
