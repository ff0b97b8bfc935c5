"""Tables: constants of which a node looks up rows, as embeddings are.

    Gather      row i along `axis` of T, for each index i          one scale for each index along `axis`
    GatherND    T[i_1, ..., i_k], for each index (i_1, ..., i_k)   one scale for each index along axis 0

Nothing is multiplied, so that no data is needed to quantize them: each row has the grid of its own values.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from .node import is_float, is_op


def table_of(node: gs.Node) -> gs.Constant | None:
    """The constant of which a node looks up rows, and nothing else; None where it does not."""
    if not is_op(node, "Gather", "GatherND") or len(node.inputs) < 2 or node.attrs.get("batch_dims", 0):
        return None
    table = node.inputs[0]
    if not isinstance(table, gs.Constant) or len(tuple(table.shape)) < 2 or not is_float(table):
        return None
    if isinstance(node.inputs[1], gs.Constant) or not 1 <= index_depth(node) < len(tuple(table.shape)):
        return None
    return table


def index_depth(node: gs.Node) -> int:
    """How many axes of the table an index names; 0 where that is not known."""
    shape = node.inputs[1].shape
    if node.op == "Gather":
        return 1
    return shape[-1] if shape and isinstance(shape[-1], int) else 0


def row_axis(node: gs.Node) -> int:
    """The axis along which the rows of its table lie, never negative."""
    ndim = len(node.inputs[0].shape or ())
    return int(node.attrs.get("axis", 0)) % ndim if node.op == "Gather" else 0
