"""Operators that lost the quantizer of an input or an output stay in float whole, where the target wants it so.

A tensor may have no range (infinite values on calibration data), or none in the encodings that were given. Then

    a node needs x, w and the grid of y; one of them is not quantized    =>    x, w and y are no more quantized for it

where nothing else needs them, and so on for what needed those. What the user keeps in float is not looked at: that
contradicts the target, and is refused before any work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..graph.model import Model, PlacedNode, Quantizer, drop_quantizer
from ..report import Reason
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class LeaveIncompleteOperators:
    """Take the quantizers of operators away that are not quantized whole."""

    title: ClassVar[str] = "Leave incomplete operators in float"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        if not context.target.runs_whole_operators:
            return Outcome()
        skips = []
        while incomplete := _incomplete(model):
            for name, reason in incomplete.items():
                placed = model.placement.nodes[name]
                model.placement.nodes[name] = PlacedNode(reason)
                skips.append(Skip(name, reason.text))
                _forget(model, name, placed, reason)
        return Outcome(len(skips), tuple(skips))


def _incomplete(model: Model) -> dict[str, Reason]:
    """Nodes that lack a quantizer, and why."""
    found = {}
    for name, placed in model.placement.nodes.items():
        if placed.reason is None and (tensor := _missing(model, name, placed)) is not None:
            reason = model.placement.tensors[tensor]
            found[name] = Reason(reason.kind, f"{tensor!r} is in float: {reason.text}", tensor)
    return found


def _missing(model: Model, name: str, placed: PlacedNode) -> str | None:
    """A tensor that a node needs, and that lost its quantizer for another reason than the user's wish."""
    needed = (*placed.data, placed.weight, placed.writes)
    for tensor in needed:
        reason = model.placement.tensors.get(tensor or "")
        if tensor is not None and reason is not None and not reason.is_the_users:
            quantizer = model.quantizers.get(tensor)
            if quantizer is None or (quantizer.readers and name not in quantizer.readers and tensor != placed.writes):
                return tensor
    return None


def _forget(model: Model, name: str, placed: PlacedNode, reason: Reason) -> None:
    """Take away what was quantized for a node alone."""
    for tensor in (*placed.data, placed.weight):
        quantizer = model.quantizers.get(tensor or "")
        if quantizer is not None and quantizer.readers:
            _drop_reader(model, quantizer, name, reason)
    needed = {
        t for other in model.placement.nodes.values() if other.reason is None for t in (*other.data, other.writes)
    }
    for tensor in (*placed.data, placed.writes):
        if tensor in model.quantizers and tensor not in needed and not model.quantizers[tensor].readers:
            drop_quantizer(model, tensor, replace(reason, text=f"all that needs it is in float: {reason.text}"))


def _drop_reader(model: Model, quantizer: Quantizer, reader: str, reason: Reason) -> None:
    readers = tuple(name for name in quantizer.readers if name != reader)
    if readers:
        model.quantizers[quantizer.tensor] = replace(quantizer, readers=readers)
    else:
        drop_quantizer(model, quantizer.tensor, reason)
