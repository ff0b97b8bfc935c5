"""Activations that get something better than their grids: which there are, and what they can get.

    a8         8 bits, where they have fewer, over the range of least squared error
    a16        16 bits over the whole range of the calibration data, which may hold every outlier
    dynamic    8 bits over the range of each sample, found at run time, where a product with a matrix reads it
    float      nothing

Where a target's operators read inputs of one width only, the inputs of an operator change together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from ..calibration.collect import collect_tensors
from ..graph.dynamic_writer import no_dynamic_product
from ..graph.model import Model, Quantizer, drop_quantizer, grid_root
from ..numeric.histogram import Histogram
from ..numeric.quant import QuantParams, QuantSpec
from ..numeric.ranges import set_range
from ..numeric.samples import Samples, Statistic
from ..operators.linear import LinearLayer, linear_layers
from ..report import Reason
from ..targets import Target
from .base import Context

_BITS = {"a8": 8, "a16": 16}

Together: TypeAlias = tuple[str, ...]
"""Tensors that must have one width."""


def narrow_activations(model: Model) -> dict[str, Quantizer]:
    """Quantizers of activations with parameters of their own and less than 16 bits."""
    tensors = model.graph.tensors()
    return {
        name: q
        for name, q in model.quantizers.items()
        if q.grid_of is None and q.params is not None and isinstance(tensors[name], gs.Variable)
        if q.params.grid.bits < 16 and not q.given
    }


def of_one_width(model: Model, candidates: Mapping[str, Quantizer], target: Target) -> list[Together]:
    """All candidates: each alone, or with the other inputs of an operator where the target mixes no widths."""
    leader = {name: name for name in candidates}
    if "one-width" in target.requirements:
        for node in model.graph.nodes:
            read = [grid_root(model.quantizers, t.name) for t in node.inputs if t.name in model.quantizers]
            first, *others = list(dict.fromkeys(name for name in read if name in leader)) or [""]
            leader = {
                name: leader[first] if known in map(leader.get, others) else known for name, known in leader.items()
            }
    return [tuple(n for n, known in leader.items() if known == name) for name in dict.fromkeys(leader.values())]


def _statistics(model: Model, names: Sequence[str], context: Context) -> dict[str, Samples]:
    """Calibration statistics of the roots, those of tensors that share their quantizers included."""
    members = {name: (name, *model.quantizers[name].widened_by) for name in names}
    wanted = [tensor for tensors in members.values() for tensor in tensors]
    known: Mapping[str, Statistic] = {}
    if wanted and context.statistics is not None:
        known = context.statistics.tensors
    elif wanted:
        known = collect_tensors(model, wanted, context, lambda name: Histogram(), "measuring exceptions")
    found = {}
    for name, (first, *others) in members.items():
        total = getattr(known[first], "histogram", known[first])
        for other in others:
            total = total.merge(getattr(known[other], "histogram", known[other]))
        found[name] = total.samples()
    return found


def widen(model: Model, exceptions: Mapping[str, str], context: Context) -> dict[str, str]:
    """Give activations, by the tensor that decides their grid, what they get instead; returns what that is, in words.
    What no product with a matrix reads, cannot get a range at run time, and is left in float."""
    known = _statistics(model, [name for name, kind in exceptions.items() if kind in _BITS], context)
    made = {}
    for name, kind in exceptions.items():
        if kind in _BITS:
            made[name] = f"now {_to_bits(model, name, known[name], _BITS[kind])}, {_crest(known[name])}"
            continue
        layers = dynamic_layers(model, name) if kind == "dynamic" else ()
        width = model.quantizers[name].spec.grid.bits
        found = "its range is found at run time" if layers else "in float"
        drop_quantizer(model, name, Reason("fallback", f"{width} bits cost the outputs too much: {found}"))
        for layer in layers:
            placed = model.placement.nodes[layer.node.name]
            model.placement.nodes[layer.node.name] = replace(placed, data=(), writes=None, dynamic=True)
        made[name] = "now with a range found at run time" if layers else "now in float"
    return made


def dynamic_layers(model: Model, root: str) -> list[LinearLayer]:
    """The layers that read a grid, on this tensor or on one that has the same, and can read one found at run time."""
    names = {name for name in model.quantizers if grid_root(model.quantizers, name) == root}
    return [
        layer
        for layer in linear_layers(model.graph.nodes)
        if layer.input.name in names and layer.node.name in model.placement.nodes
        if model.placement.nodes[layer.node.name].reason is None and no_dynamic_product(model, layer) is None
    ]


def _crest(samples: Samples) -> str:
    """How far the largest magnitude stands out."""
    power = float((np.square(samples.values) * samples.counts).sum() / max(samples.counts.sum(), 1))
    crest = max(samples.hi[0], -samples.lo[0]) / max(np.sqrt(power), np.finfo(np.float64).tiny)
    return f"largest value {crest:.0f} times the root mean square"


def _to_bits(model: Model, root: str, samples: Samples, bits: int) -> str:
    """Give the root and those that share its quantizer so many bits; returns their grid."""
    quantizer = model.quantizers[root]
    spec: QuantSpec = replace(quantizer.spec, grid=replace(quantizer.spec.grid, bits=bits))
    low, high = (samples.lo, samples.hi) if bits == 16 else set_range("mse", samples, spec)
    lo, hi = quantizer.fixed or (low[0], high[0])
    params = QuantParams.from_range(np.asarray(lo), np.asarray(hi), spec)
    for name, other in list(model.quantizers.items()):
        if grid_root(model.quantizers, name) == root:
            model.quantizers[name] = replace(other, spec=spec).with_params(params)
    return str(params.grid)
