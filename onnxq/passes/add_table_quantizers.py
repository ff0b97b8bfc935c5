"""Where tables get quantizers: constants of which Gather or GatherND looks up rows, as embeddings are.

    T (V, D), row i      T~_i = s_i q_i,   s_i = max_d |T_id| / q_max       one scale a row; no data needed

A table that the output layer reads, too (`Model.is_shared`, `graph.ties`), has one grid for both: row i of the table is
output channel i of the layer, so that one scale a row is one scale a channel. Where the layer has one scale for all of
its weight, so has the table. Such a table stays rounded to nearest: what suits the one reader need not suit the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.model import Model, PlacedNode, Quantizer
from ..numeric.quant import QuantSpec
from ..operators.linear import LinearLayer, linear_layer, linear_layers
from ..operators.tables import row_axis, table_of
from ..report import Reason
from ..thresholds import SMALLEST_TABLE
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class AddTableQuantizers:
    """Plan quantizers of tables. spec: what these are to be like, one scale a row; None: they stay in float, by the
    user's will or by the preset's, as `reason` says."""

    spec: QuantSpec | None
    reason: str = ""
    title: ClassVar[str] = "Add quantizers of tables"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        tables: dict[str, tuple[gs.Constant, list[gs.Node]]] = {}
        for node in model.graph.nodes:
            table = table_of(node)
            if table is not None and math.prod(table.shape) >= SMALLEST_TABLE:
                tables.setdefault(table.name, (table, []))[1].append(node)
        planned, skips = 0, []
        for name, (table, nodes) in tables.items():
            reason = self._plan(model, table, nodes, context.target.tables == "grid")
            if reason is None:
                planned += 1
                continue
            model.placement.tensors[name] = reason
            skips.append(Skip(name, reason.text))
        return Outcome(planned, tuple(skips))

    def _plan(self, model: Model, table: gs.Constant, nodes: list[gs.Node], on_one_grid: bool) -> Reason | None:
        """Why the table stays in float, or None. on_one_grid: whether what is looked up must keep its grid."""
        if self.spec is None:
            return Reason("preset", self.reason)
        name, axis = table.name, row_axis(nodes[0])
        users = (model.placement.nodes.get(node.name) for node in nodes)
        kept = next((p.reason for p in users if p is not None and p.reason is not None and p.reason.is_the_users), None)
        if kept is not None:
            return kept
        if any(row_axis(node) != axis for node in nodes):
            return Reason("constant", "rows along different axes of it are looked up")
        if not np.isfinite(table.values).all():
            return Reason("constant", "it holds infinity or not-a-number")
        tied, others = _tied_layers(model, table), _other_readers(model, table)
        if others:
            return Reason("constant", f"{others[0].name!r} ({others[0].op}) reads it in float")
        if on_one_grid:
            return _plan_on_one_grid(model, table, nodes, bool(tied))
        known = [q for layer in tied if (q := model.weight_quantizer(layer)) is not None]
        if len(known) < len(tied):
            names = [layer.node.name for layer in tied if model.weight_quantizer(layer) is None]
            return Reason("constant", f"{names[0]!r} reads it in float, too")
        whole = any(q.axis is None for q in known)
        spec = replace(self.spec, per_channel=not whole, block=None)
        method = "minmax" if spec.grid.bits >= 8 and not whole else None
        quantizer = Quantizer(name, spec, None if whole else axis, method=method)
        for layer in tied:
            weight = model.quantizers[layer.weight.name]
            own = quantizer if layer.weight is table else replace(quantizer, axis=None if whole else layer.axis)
            model.quantizers[weight.tensor] = replace(own, tensor=weight.tensor, readers=weight.readers)
        readers = model.quantizers[name].readers if name in model.quantizers else ()
        model.quantizers[name] = replace(quantizer, readers=(*readers, *(node.name for node in nodes)))
        for node in nodes:
            model.placement.nodes[node.name] = PlacedNode(None, weight=name)
        return None


def _plan_on_one_grid(model: Model, table: gs.Constant, nodes: list[gs.Node], is_tied: bool) -> Reason | None:
    """A table with one scale, whose grid what is looked up in it keeps: what is looked up are its values."""
    if is_tied:
        return Reason("constant", "an output layer reads it on another grid")
    found = [model.quantizers.get(node.outputs[0].name) for node in nodes]
    if any(q is None or q.grid_of is not None or q.given for q in found):
        return Reason("inputs", "what is looked up in it is not quantized on a grid of its own")
    specs = [q.spec for q in found if q is not None]
    if any(spec != specs[0] for spec in specs):
        return Reason("inputs", "what is looked up in it is quantized to several types")
    model.quantizers[table.name] = Quantizer(
        table.name, replace(specs[0], per_channel=False), method="minmax", readers=tuple(node.name for node in nodes)
    )
    for quantizer in found:
        if quantizer is not None:
            model.quantizers[quantizer.tensor] = replace(quantizer, grid_of=table.name, fixed=None)
    for node in nodes:
        model.placement.nodes[node.name] = PlacedNode(None, weight=table.name)
    return None


def _tied_layers(model: Model, table: gs.Constant) -> list[LinearLayer]:
    """The linear layers whose weight the table is, as it stands or transposed, with one output channel for each row."""
    found = []
    for layer in linear_layers(model.graph.nodes):
        if model.tied.get(layer.weight.name) == table.name or (layer.weight is table and layer.axis == 0):
            found.append(layer)
    return found


def _other_readers(model: Model, table: gs.Constant) -> list[gs.Node]:
    """Readers to whom the table is neither a table nor a weight with a channel for each row."""

    def understood(node: gs.Node) -> bool:
        layer = linear_layer(node)
        is_weight = isinstance(layer, LinearLayer) and layer.weight is table and layer.axis == 0
        return table_of(node) is table or is_weight

    return [node for node in model.consumers(table) if not understood(node)]
