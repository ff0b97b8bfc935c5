"""Tied weights: a table of embeddings that the output layer reads transposed, which is one set of numbers.

    E = T[i]            T (V, D), by Gather
    y = x W             W (D, V) = T', by MatMul

Exporters write Transpose(T), which folding makes a constant, or store both. W belongs to the table then: it is stored
as Transpose of it, which every runtime evaluates when it loads the model. Where the last layer is a Gemm with transB,
or the table stands for the input of a Gemm, there is but one constant from the start.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from ..operators.linear import linear_layers
from ..operators.tables import table_of
from .model import Model


def find_ties(model: Model) -> Mapping[str, str]:
    """Weight -> table, by name, for weights of linear layers that are a table transposed."""
    tables = {t.name: t for node in model.graph.nodes if (t := table_of(node)) is not None and len(t.shape) == 2}
    weights = {layer.weight.name: layer.weight for layer in linear_layers(model.graph.nodes)}
    found = {}
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        for table in tables.values():
            if shape == tuple(table.shape)[::-1] and table.name != name and _is_transposed(weight, table):
                found[name] = table.name
                break
    return found


def _is_transposed(weight: gs.Constant, table: gs.Constant) -> bool:
    one, other = np.asarray(weight.values), np.asarray(table.values).T
    return one.dtype == other.dtype and bool(np.array_equal(one, other))
