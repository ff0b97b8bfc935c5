"""SmoothQuant: large channels behind a LayerNorm become small, and the weights that read them large, as
cross-layer equalization does between linear layers (arXiv:2211.10438, equations 3 and 4).

    y = gamma n + beta      n (..., C) the normalised input; gamma, beta (C,)
    z = y W + b             of each linear layer that reads y; W (C, M)

For any s > 0, with S = diag(s),

    y W  =  (y S^-1) (S W)          gamma / s,  beta / s,  row j of W times s_j

    s_j  =  max |y_j|^a / max_m |W_jm|^(1 - a)

with the maximum of y over calibration data, and that of W over all layers that read y. a = 1 makes all channels of y
alike and leaves all outliers to W, a = 0 the other way round. Channels of which either is 0 keep their scale.

Whatever else reads y, a residual as in BERT, would see other values: such a LayerNorm keeps its scales, and a Mul by
1 / s stands in front of the linear layers. Measured on MiniLM-L3 (w8a8, effort fast, unseen texts): 19.9 dB without,
24.2, 25.0 and 25.2 dB with a = 0.3, 0.5 and 0.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from ..calibration.channel_facts import channel_facts
from ..graph import edit
from ..graph.model import Model
from ..graph.patterns import find_composites
from ..operators import channels
from ..operators.linear import LinearLayer, linear_layer
from ..operators.node import in_subgraph, is_op
from .base import Context, Outcome, Skip

Vector = NDArray[np.float64]

LARGEST = 2.0**20
"""Of s and 1 / s: keeps float32 weights normal whatever they were."""


@dataclass(frozen=True)
class SmoothQuant:
    """Divide what LayerNormalization and RMSNormalization write, whole or decomposed, by s. alpha: a above, 0 to 1."""

    alpha: float = 0.5
    title: ClassVar[str] = "SmoothQuant"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        norms, skips = [], []
        for norm in _find_norms(model):
            layers = _readers(model, norm)
            if isinstance(layers, str):
                skips.append(Skip(norm.node.name, layers))
            elif layers:
                norms.append((norm, layers))
        facts = channel_facts(model, {norm.output.name: -1 for norm, _ in norms}, context, "measuring channels")
        notes = []
        for norm, layers in norms:
            known = facts.get(norm.output.name)
            if known is None or not np.isfinite([known.lo, known.hi]).all():
                skips.append(Skip(norm.node.name, "nothing is known of the values that it writes"))
                continue
            largest = np.maximum(np.abs(known.lo), np.abs(known.hi))
            scale = self._scale(largest, np.max([_rows(layer) for layer in layers], axis=0))
            _migrate(model, norm, layers, scale)
            before, after = (_spread(x) for x in (largest, largest / scale))
            notes.append(f"{norm.node.name}: largest over median channel {before:.3g}, then {after:.3g}")
        return Outcome(len(notes), tuple(skips), tuple(notes))

    def _scale(self, largest: Vector, weights: Vector) -> Vector:
        alive = (largest > 0) & (weights > 0)
        x, w = np.where(alive, largest, 1.0), np.where(alive, weights, 1.0)
        scale = np.clip(x**self.alpha / w ** (1 - self.alpha), 1 / LARGEST, LARGEST)
        return np.where(alive, scale, 1.0)


@dataclass(frozen=True)
class _Norm:
    """node: the last one.  gamma, beta: the nodes that read them, and at which input; None where there is none."""

    node: gs.Node
    gamma: tuple[gs.Node, int] | None
    beta: tuple[gs.Node, int] | None

    @property
    def output(self) -> gs.Tensor:
        return self.node.outputs[0]


def _find_norms(model: Model) -> Iterator[_Norm]:
    for node in model.graph.nodes:
        if is_op(node, "LayerNormalization", "RMSNormalization") and len(node.outputs) == 1:
            yield _Norm(node, *(((node, i) if len(node.inputs) > i and node.inputs[i].name else None) for i in (1, 2)))
    for whole in find_composites(model):
        if whole.operator in ("LayerNormalization", "RMSNormalization"):
            places = (_place(whole.nodes, whole.bound.get(name)) for name in ("gamma", "beta"))
            yield _Norm(whole.nodes[0], *places)


def _place(nodes: tuple[gs.Node, ...], constant: gs.Tensor | None) -> tuple[gs.Node, int] | None:
    """The node that reads a constant, and at which input."""
    places = ((node, i) for node in nodes for i, tensor in enumerate(node.inputs) if tensor is constant)
    return next(places, None) if constant is not None else None


def _readers(model: Model, norm: _Norm) -> list[LinearLayer] | str:
    """The linear layers that read the norm's output, or why they cannot be scaled; none where no linear layer does."""
    found = (linear_layer(node) for node in model.consumers(norm.output) if not in_subgraph(node))
    layers = [
        layer
        for layer in found
        if isinstance(layer, LinearLayer) and layer.input is norm.output and _reads_last_axis(layer)
    ]
    if not layers:
        return []
    if any(len(layer.weight.shape) != 2 for layer in layers):
        return "a weight that reads what it writes is no matrix"
    if any(map(model.reads_table, layers)):
        return "a weight that reads what it writes is a table that other nodes look up, too"
    return layers


def _is_free(model: Model, norm: _Norm, layers: list[LinearLayer]) -> bool:
    """Whether the norm's own scale can change: it is constant, and nothing but these layers reads what it scales."""
    places = [place for place in (norm.gamma, norm.beta) if place is not None]
    constant = all(isinstance(node.inputs[index], gs.Constant) for node, index in places)
    return constant and not model.is_output(norm.output) and len(model.consumers(norm.output)) == len(layers)


def _reads_last_axis(layer: LinearLayer) -> bool:
    """Whether channels lie along the last axis of its input, along which the norm has its gamma."""
    return layer.output_axis == -1 or layer.rank == 2


def _rows(layer: LinearLayer) -> Vector:
    """Largest magnitude of the weights that read each input channel, (C,)."""
    weight = np.asarray(layer.weight.values)
    ends = weight.max(axis=layer.axis, initial=0.0), -weight.min(axis=layer.axis, initial=0.0)
    return np.asarray(np.maximum(*ends), np.float64)


def _spread(largest: Vector) -> float:
    return float(largest.max(initial=0.0) / max(np.median(largest), np.finfo(np.float64).tiny))


def _migrate(model: Model, norm: _Norm, layers: list[LinearLayer], scale: Vector) -> None:
    for layer in layers:
        edit.set_weight(model, layer, channels.scaled(layer, np.ones(layer.channels), scale))
    if not _is_free(model, norm, layers):
        _multiply_in_front(model, norm, layers, 1 / scale)
        return
    for place in (norm.gamma, norm.beta):
        if place is not None:
            node, index = place
            old = node.inputs[index]
            assert isinstance(old, gs.Constant)
            divided = np.asarray(np.asarray(old.values, np.float64) / scale, old.values.dtype)
            node.inputs[index] = edit.constant(model, old.name, divided)
    if norm.gamma is None:  # it was folded into the layers behind, which get it back
        _multiply(model, norm, 1 / scale)


def _multiply(model: Model, norm: _Norm, factor: Vector) -> None:
    """A new node multiplies what the norm writes; it takes over the tensor's name."""
    output = norm.output
    inner = gs.Variable(model.unique_name(f"{output.name}_unscaled"), output.dtype, output.shape)
    norm.node.outputs[0] = inner
    _insert_product(model, norm, inner, output, "gamma", factor)


def _multiply_in_front(model: Model, norm: _Norm, layers: list[LinearLayer], factor: Vector) -> None:
    """A new node multiplies what the norm writes, for these layers alone."""
    output = norm.output
    scaled = gs.Variable(model.unique_name(f"{output.name}_smooth"), output.dtype, output.shape)
    for layer in layers:
        layer.node.inputs = [scaled if tensor is output else tensor for tensor in layer.node.inputs]
    _insert_product(model, norm, output, scaled, "smooth", factor)


def _insert_product(
    model: Model, norm: _Norm, read: gs.Tensor, written: gs.Tensor, suffix: str, factor: Vector
) -> None:
    by = edit.constant(model, f"{norm.output.name}_{suffix}", np.asarray(factor, np.float32))
    multiply = gs.Node("Mul", f"{norm.node.name}_{suffix}", inputs=[read, by], outputs=[written])
    index = next(i for i, node in enumerate(model.graph.nodes) if node is norm.node)
    model.graph.nodes.insert(index + 1, multiply)
