"""Transposes move behind operators that work in any order of axes, until one meets its inverse and both go.

Exporters of TensorFlow and TFLite keep images as N x H x W x C and put a Transpose in front of each convolution and
another behind it. Between these, means over axes 1 and 2, padding and activations are written for the last axis as that
of channels, where neither fusion nor integer kernels look for them. With y = T_p(x), y.shape[i] = x.shape[p[i]]:

    f(T_p(x), T_p(z), c) = T_p(f(x, z, T_p^-1(c)))    f elementwise, c constant
    f(T_p(x); axes a)    = T_p(f(x; axes p[a]))       reductions that keep their axes, Concat, Split, Softmax, Pad, ...
    reduce(T_p(x); a)    = reduce(x; p[a])            reductions that drop them, and Squeeze, where the other axes stay
                                                      in order; Reshape and Flatten where all longer than 1 do
    T_q(T_p(x))          = T_r(x), r[i] = p[q[i]]     nothing at all where r[i] = i
    Reshape(x)           = T_p(x)                     where it moves axes of length 1 only, as in front of a gate

The other way, a Transpose moves in front of a Pad where that brings the Pad to a convolution. Where the model is left
with no fewer Transposes than before, nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import edit
from ..graph.model import Model
from ..graph.shapes import order_of_axes
from ..operators.node import constant_input, in_subgraph, is_op
from .base import Context, Outcome

Permutation = tuple[int, ...]

_ELEMENTWISE = frozenset({
    "Abs", "Acos", "Add", "And", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf",
    "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip

_REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip

_ONE_AXIS = frozenset({"Concat", "Split", "Softmax", "LogSoftmax"})
"""Operators with an attribute `axis`. Below operator set 13 the two last flatten all axes from there on."""


@dataclass(frozen=True)
class MoveTransposes:
    """Move Transposes behind what works in any order of axes, so that those of opposite order cancel."""

    title: ClassVar[str] = "Move Transposes"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        if not any(is_op(node, "Transpose") for node in model.graph.nodes):
            return Outcome()
        trial = model.clone()
        _move(trial)
        before, after = _count(model), _count(trial)
        if after >= before:
            return Outcome(notes=("no Transpose would cancel another",))
        _move(model)
        edit.name_nodes(model.graph.nodes)
        return Outcome(max(before[1] - after[1], 1), notes=(f"Transposes and Reshapes: {before[1]}, then {after[1]}",))


def _count(model: Model) -> tuple[int, int]:
    """Transposes that move values in memory; all Transposes and Reshapes."""
    moves = [node for node in model.graph.nodes if is_op(node, "Transpose", "Reshape")]
    return sum(is_op(node, "Transpose") and not _keeps_order(node) for node in moves), len(moves)


def _keeps_order(transpose: gs.Node) -> bool:
    """Whether a Transpose is known to move axes of length 1 only, so that elements keep their order."""
    shape, perm = transpose.inputs[0].shape, transpose.attrs.get("perm")
    if shape is None or perm is None or sorted(perm) != list(range(len(shape))):
        return False
    long = [axis for axis in perm if shape[axis] != 1]
    return long == sorted(long)


def _transpose_reshapes(model: Model) -> None:
    """Write a Reshape that moves axes of length 1 only as a Transpose, which others may cancel."""
    for node in model.graph.nodes:
        if is_op(node, "Reshape") and not in_subgraph(node):
            perm = order_of_axes(node.inputs[0].shape, node.outputs[0].shape)
            if perm is not None:
                node.op, node.attrs, node.inputs = "Transpose", {"perm": list(perm)}, node.inputs[:1]


def _move(model: Model) -> None:
    """Down as far as they go, then up to Pads."""
    _transpose_reshapes(model)
    changed = True
    while changed:
        changed = False
        for node in list(model.graph.nodes):
            changed |= _cancel(model, node) or _push(model, node)
        edit.drop_dangling(model)
        model.graph.toposort()
    for node in list(model.graph.nodes):
        _pull(model, node)
    edit.drop_dangling(model)
    model.graph.toposort()


def _permutation(tensor: gs.Tensor) -> Permutation | None:
    """Of the Transpose that makes a tensor."""
    if len(tensor.inputs) != 1 or not is_op(tensor.inputs[0], "Transpose") or isinstance(tensor, gs.Constant):
        return None
    perm = tensor.inputs[0].attrs.get("perm")
    return None if perm is None or in_subgraph(tensor.inputs[0]) else tuple(int(axis) for axis in perm)


def _inverse(perm: Sequence[int]) -> Permutation:
    return tuple(int(axis) for axis in np.argsort(perm))


# --- T_q(T_p(x)) --------------------------------------------------------------------------------------------------


def _cancel(model: Model, node: gs.Node) -> bool:
    """Let a Transpose behind another read what that one reads; take it out where it does nothing."""
    if not is_op(node, "Transpose") or not node.inputs or "perm" not in node.attrs:
        return False
    merged = False
    first = _permutation(node.inputs[0])
    if first is not None:
        node.attrs["perm"] = [first[axis] for axis in node.attrs["perm"]]
        node.inputs[0] = node.inputs[0].inputs[0].inputs[0]
        merged = True
    if list(node.attrs["perm"]) == list(range(len(node.attrs["perm"]))) and edit.bypass(model, node):
        edit.remove(model, [node])
        return True
    return merged


# --- f(T_p(x)) ----------------------------------------------------------------------------------------------------


def _push(model: Model, node: gs.Node) -> bool:
    """Let an operator work in front of the Transposes of its inputs, and a Transpose follow it."""
    perms = {perm for perm in map(_permutation, node.inputs) if perm is not None}
    if len(perms) != 1 or in_subgraph(node) or is_op(node, "Transpose"):
        return False
    (perm,) = perms
    if is_op(node, *_REDUCTIONS, "Squeeze"):
        return _push_reduction(model, node, perm)
    if is_op(node, "Reshape", "Flatten"):
        return _push_reshape(node, perm)
    if is_op(node, *_ELEMENTWISE):
        inputs = _inputs(model, node.inputs, perm)
    elif is_op(node, *_ONE_AXIS):
        inputs = _with_axis(model, node, perm)
    elif is_op(node, "Pad"):
        inputs = _padded(model, node, perm)
    elif is_op(node, "Resize", "Upsample"):
        inputs = _resized(model, node, perm)
    else:
        return False
    if inputs is None:
        return False
    node.inputs = inputs
    _transpose_outputs(model, node, perm)
    return True


def _inputs(model: Model, tensors: Iterable[gs.Tensor], perm: Permutation) -> list[gs.Tensor] | None:
    """Inputs in front of the Transposes; None where one is neither transposed, constant nor a scalar."""
    found = []
    for tensor in tensors:
        if _permutation(tensor) == perm:
            found.append(tensor.inputs[0].inputs[0])
        elif not tensor.name or (
            isinstance(tensor, gs.Constant) and tensor.values.size == 1 and tensor.values.ndim <= 1
        ):
            found.append(tensor)
        elif isinstance(tensor, gs.Constant) and tensor.values.ndim <= len(perm):
            values = tensor.values.reshape((1,) * (len(perm) - tensor.values.ndim) + tensor.values.shape)
            found.append(edit.constant(model, f"{tensor.name}_transposed", values.transpose(_inverse(perm))))
        else:
            return None
    return found


def _with_axis(model: Model, node: gs.Node, perm: Permutation) -> list[gs.Tensor] | None:
    softmax = is_op(node, "Softmax", "LogSoftmax")
    if softmax and model.graph.opset < 13:
        return None
    axis = int(node.attrs.get("axis", -1 if softmax else 0))
    data = node.inputs if is_op(node, "Concat") else node.inputs[:1]
    if any(isinstance(t, gs.Constant) and t.values.ndim != len(perm) for t in data):
        return None
    inputs = _inputs(model, data, perm)
    if inputs is not None:
        node.attrs["axis"] = perm[axis % len(perm)]
    return None if inputs is None else [*inputs, *node.inputs[len(data) :]]


def _padded(model: Model, node: gs.Node, perm: Permutation) -> list[gs.Tensor] | None:
    """Amounts of all axes, in front and behind, follow the axes."""
    if len(node.inputs) > 3 and node.inputs[3].name:  # axes of their own
        return None
    order = np.concatenate([_inverse(perm), np.asarray(_inverse(perm)) + len(perm)])
    inputs = _inputs(model, node.inputs[:1], perm)
    if "pads" in node.attrs:
        if inputs is not None:
            node.attrs["pads"] = [node.attrs["pads"][i] for i in order]
        return inputs
    pads = constant_input(node, 1)
    if inputs is None or pads is None or pads.size != 2 * len(perm):
        return None
    return [*inputs, edit.constant(model, f"{node.inputs[1].name}_transposed", pads[order]), *node.inputs[2:]]


def _resized(model: Model, node: gs.Node, perm: Permutation) -> list[gs.Tensor] | None:
    """Scales and sizes of all axes follow the axes."""
    if "axes" in node.attrs:
        return None
    inputs = _inputs(model, node.inputs[:1], perm)
    if "scales" in node.attrs:
        if inputs is not None:
            node.attrs["scales"] = [node.attrs["scales"][axis] for axis in _inverse(perm)]
        return inputs
    arguments: list[gs.Tensor] = []
    for index, tensor in enumerate(node.inputs[1:], 1):
        values = constant_input(node, index)
        if not tensor.name or (values is not None and values.size == 0):
            arguments.append(tensor)
        elif values is None or values.size != len(perm):  # computed, or a region of interest
            return None
        else:
            arguments.append(edit.constant(model, f"{tensor.name}_transposed", values[list(_inverse(perm))]))
    return None if inputs is None else [*inputs, *arguments]


def _push_reduction(model: Model, node: gs.Node, perm: Permutation) -> bool:
    by_input = len(node.inputs) > 1 and bool(node.inputs[1].name)
    axes = constant_input(node, 1) if by_input else node.attrs.get("axes")
    if axes is None or np.size(axes) == 0:
        return False
    axes = [int(axis) % len(perm) for axis in axes]
    kept = [perm[axis] for axis in range(len(perm)) if axis not in axes]
    keeps = not is_op(node, "Squeeze") and bool(node.attrs.get("keepdims", 1))
    if not keeps and kept != sorted(kept):
        return False
    moved = sorted(perm[axis] for axis in axes)
    node.inputs[0] = node.inputs[0].inputs[0].inputs[0]
    if by_input:
        node.inputs[1] = edit.constant(model, f"{node.inputs[1].name}_transposed", np.asarray(moved, np.int64))
    else:
        node.attrs["axes"] = moved
    if keeps:
        _transpose_outputs(model, node, perm)
    return True


def _push_reshape(node: gs.Node, perm: Permutation) -> bool:
    """Whether the Transpose in front moves axes of length 1 only, so that elements keep their order, and goes."""
    transpose = node.inputs[0].inputs[0]
    shape = constant_input(node, 1) if is_op(node, "Reshape") else None
    if perm[0] != 0 or not _keeps_order(transpose):
        return False
    if is_op(node, "Flatten"):
        if node.attrs.get("axis", 1) != 1:
            return False
    elif shape is None or node.attrs.get("allowzero", 0) or (shape[1:] == 0).any():  # 0 copies a length from its place
        return False
    node.inputs[0] = transpose.inputs[0]
    return True


def _transpose_outputs(model: Model, node: gs.Node, perm: Permutation) -> None:
    """The node computes new tensors, of which Transposes make the old ones."""
    for index, old in enumerate(node.outputs):
        if not old.name:
            continue
        shape = None if old.shape is None else [old.shape[axis] for axis in _inverse(perm)]
        inner = gs.Variable(model.unique_name(f"{old.name}_untransposed"), old.dtype, shape)
        node.outputs[index] = inner
        model.graph.nodes.append(gs.Node("Transpose", "", {"perm": list(perm)}, [inner], [old]))


# --- T_p(Pad(x)) in front of a convolution --------------------------------------------------------------------------


def _pull(model: Model, node: gs.Node) -> None:
    """T_p(Pad(x)) = Pad(T_p(x)) where a convolution reads it and may take over the padding."""
    perm = _permutation(node.outputs[0]) if is_op(node, "Transpose") and node.outputs else None
    if perm is None or not node.inputs[0].inputs or not is_op(node.inputs[0].inputs[0], "Pad"):
        return
    pad, padded, result = node.inputs[0].inputs[0], node.inputs[0], node.outputs[0]
    reader = model.sole_consumer(result)
    if model.sole_consumer(padded) is None or reader is None or not is_op(reader, "Conv"):
        return
    source, shape = pad.inputs[0], pad.inputs[0].shape
    inner = gs.Variable(model.unique_name(f"{source.name}_transposed"), source.dtype)
    inner.shape = None if shape is None else [shape[axis] for axis in perm]
    # As if the source were T_p^-1 of the inner tensor, behind which the Pad moves.
    back = gs.Variable(model.unique_name(f"{source.name}_back"), source.dtype, shape)
    inverse = gs.Node("Transpose", "", {"perm": list(_inverse(perm))}, [inner], [back])
    pad.inputs[0] = back
    arguments = _padded(model, pad, _inverse(perm))
    pad.inputs[0] = source
    back.inputs.clear()
    inverse.inputs.clear()
    if arguments is None:
        return
    node.inputs[0], node.outputs[0] = source, inner
    pad.inputs = [inner, *arguments[1:]]
    pad.outputs[0] = result
