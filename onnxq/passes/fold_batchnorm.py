"""BatchNorm folding (white paper equations 10 to 12), and that of per-channel Mul, Add, Sub and Div.

All of these are a per-channel affine map a x + c, a and c of shape (C,); for BatchNorm

    a = gamma / sqrt(var + epsilon)        c = beta - a mean                                       (10)

Behind a linear layer y = W x + b, with row k of W making channel k of y:

    a y + c  =  (a_k W_k) x + (a_k b_k + c_k)                                                      (11, 12)

Before one, with column j of W reading channel j:

    W (a x + c) + b  =  (W_j a_j) x + (b + sum_j W_j c_j)          exact for Conv where c = 0 or nothing is padded,
                                                                   since padding comes behind the map: pads stay 0

After folding BatchNorm the output of the layer has mean beta and standard deviation |a| sqrt(var) (section 3.2, where
epsilon is left out: |gamma|). For channels that carry a constant, var is far below epsilon and the two differ by all.
These moments are kept in `Model.moments`.

What belongs to a decomposed operator stays with it: the half of Gelu or the gamma of LayerNormalization, folded into
the next weight, would leave ONNX Runtime with a rest that it does not recognise, and runs node by node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from ..graph import edit
from ..graph.model import Model, Moments
from ..graph.patterns import find_composites
from ..operators import channels
from ..operators.linear import LinearLayer, layer_ending_in, linear_layer
from ..operators.node import channel_vector, is_op, rank
from .base import Context, Outcome, Skip

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """The map a x + c, a and c of shape (C,); `moments` of the result where they are known from BatchNorm."""

    a: Vector
    c: Vector
    moments: Moments | None = None


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold every per-channel affine map into the linear layer before or behind it, where that is exact."""

    title: ClassVar[str] = "Fold BatchNorm"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        folded, skips = 0, []
        parts = {id(node) for whole in find_composites(model) for node in whole.nodes}
        for node in list(model.graph.nodes):
            if id(node) in parts or not is_op(node, "BatchNormalization", "Mul", "Add", "Sub", "Div"):
                continue
            reason = _fold_behind(model, node)
            if reason is not None:
                second = _fold_before(model, node)
                reason = second and f"{reason}; {second}"
            if reason is None:
                folded += 1
            elif is_op(node, "BatchNormalization"):
                skips.append(Skip(node.name, reason))
        edit.drop_dangling(model)
        return Outcome(folded, tuple(skips))


def _fold_behind(model: Model, node: gs.Node) -> str | None:
    """Fold `node` into the linear layer whose output it maps; the reason where that cannot be."""
    x = _mapped_input(node)
    if x is None:
        return "it is no map by constants"
    layer = layer_ending_in(x)
    if isinstance(layer, str):
        return layer
    affine = _affine(model, node, layer.channels, layer.output_axis, layer.rank)
    if isinstance(affine, str):
        return affine
    if any(model.sole_consumer(t) is None for t in (layer.node.outputs[0], layer.output)):
        return f"the output of {layer.node.name!r} is read elsewhere too"
    if (reason := _refuses(model, layer)) is not None:
        return reason
    bias = layer.bias_values
    weight = np.asarray(layer.weight.values, np.float64) * channels.by_output(layer, affine.a)
    bias = affine.a * bias + affine.c
    if not _fits_float32(weight, bias):
        return "folded weights would not be finite in float32"
    known = model.moments.pop(layer.output.name, None)
    moments = affine.moments or (known and known.affine(affine.a, affine.c))
    edit.set_weight(model, layer, weight)
    if layer.bias is not None or affine.c.any():
        edit.set_bias(model, layer, bias)
    end = x.inputs[0]
    edit.take_over(node, end, x)
    if moments is not None:
        model.moments[end.outputs[0].name] = moments
    return None


def _fold_before(model: Model, node: gs.Node) -> str | None:
    """Fold `node` into the one linear layer that reads its output; the reason where that cannot be."""
    x = _mapped_input(node)
    heart = model.sole_consumer(node.outputs[0])
    if x is None or heart is None:
        return "its output is not read by one linear layer alone"
    layer = linear_layer(heart)
    if isinstance(layer, str):
        return f"behind it, {layer}"
    if layer.output is not heart.outputs[0] and model.is_output(heart.outputs[0]):
        return f"the output of {heart.name!r} is read elsewhere too"
    if (reason := _refuses(model, layer)) is not None:
        return reason
    count, axis = layer.input_channels, layer.output_axis
    ndim = rank(x) if layer.rank is None else layer.rank
    affine = _affine(model, node, count, axis, ndim)
    if isinstance(affine, str):
        return affine
    same_shape = x.shape is not None and len(x.shape) == ndim and x.shape[axis] == count
    if not is_op(node, "BatchNormalization") and not same_shape:
        return "its input is not known to have the shape of its output"
    shift = np.zeros(layer.channels)
    if affine.c.any():
        if layer.varies is not None:
            return f"of the layer behind it, {layer.varies}: a shift would not be one value a channel"
        shift = channels.propagate_mean(layer, affine.c)
    weight = np.asarray(layer.weight.values, np.float64) * channels.by_input(layer, affine.a)
    bias = shift if layer.bias is None else np.asarray(layer.bias.values, np.float64) + shift
    if not _fits_float32(weight, bias):
        return "folded weights would not be finite in float32"
    edit.set_weight(model, layer, weight)
    if shift.any():
        edit.set_bias(model, layer, bias)
    edit.replace_input(layer.node, node.outputs[0], x)
    return None


def _mapped_input(node: gs.Node) -> gs.Tensor | None:
    """The input that `node` maps; None where it has two that are not constant, or divides by it."""
    if is_op(node, "BatchNormalization"):
        return node.inputs[0]
    variables = [t for t in node.inputs if not isinstance(t, gs.Constant)]
    if len(variables) != 1 or (is_op(node, "Div") and variables[0] is not node.inputs[0]):
        return None
    return variables[0]


def _refuses(model: Model, layer: LinearLayer) -> str | None:
    """Why the weight must stay as it is, or None."""
    if model.is_shared(layer):
        return f"weight {layer.weight.name!r} is shared"
    if layer.weight.dtype != np.float32:
        return f"weight {layer.weight.name!r} is not float32"
    return None


def _affine(model: Model, node: gs.Node, count: int, axis: int, ndim: int | None) -> Affine | str:
    """The map of `node` on a tensor of rank `ndim` with `count` channels along `axis`; the reason if it is none."""
    if is_op(node, "BatchNormalization"):
        return _batchnorm(model, node, count, axis, ndim)
    vector = channel_vector(next(t for t in node.inputs if isinstance(t, gs.Constant)), count, axis, ndim)
    if vector is None:
        return "its constant is not one value a channel"
    one, zero = np.ones(count), np.zeros(count)
    if is_op(node, "Mul"):
        return Affine(vector, zero)
    if is_op(node, "Div"):
        return Affine(1 / vector, zero) if vector.all() else "it divides by zero"
    if is_op(node, "Add"):
        return Affine(one, vector)
    subtracted = isinstance(node.inputs[1], gs.Constant)
    return Affine(one, -vector) if subtracted else Affine(-one, vector)


def _batchnorm(model: Model, node: gs.Node, count: int, axis: int, ndim: int | None) -> Affine | str:
    parameters = [np.asarray(t.values, np.float64) for t in node.inputs[1:5] if isinstance(t, gs.Constant)]
    if len(parameters) < 4:
        return "its parameters are not constant"
    if node.attrs.get("training_mode", 0) or any(t.outputs or model.is_output(t) for t in node.outputs[1:]):
        return "it is in training mode"
    if axis == -1 and ndim != 2:
        return "it normalizes another axis than the layer's channels"
    gamma, beta, mean, variance = parameters
    if gamma.shape != (count,):
        return f"it has {gamma.size} channels, the layer {count}"
    denominator = variance + node.attrs.get("epsilon", 1e-5)
    if not (denominator > 0).all():
        return "its variance is not positive"
    a = gamma / np.sqrt(denominator)
    return Affine(a, beta - a * mean, Moments(beta, np.abs(a) * np.sqrt(np.maximum(variance, 0))))


def _fits_float32(*arrays: NDArray[np.float64]) -> bool:
    with np.errstate(over="ignore"):
        return all(np.isfinite(np.float32(a)).all() for a in arrays)
