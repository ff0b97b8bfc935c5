"""Which of a user's choices no model of a target can have: asked before any work, and answered with what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..numeric.quant import QuantSpec
from .target import Target


def contradictions(
    target: Target, weight: QuantSpec | None, activation: QuantSpec | None, store_4bit: str = "auto"
) -> Iterator[str]:
    """What the target does not take of grids that a user asked for, a sentence each.

    weight, activation: of all tensors; None: in float. store_4bit: as the option of this name.
    """
    required = target.requirements
    if target.runs_whole_operators and (weight is None) != (activation is None):
        left, given = ("activations", "weights") if activation is None else ("weights", "activations")
        yield (
            f"{target.name} runs operators in integers whole, and the preset leaves {left} in float: give both widths,"
            f" as in w8a8, or quantize {given} alone for another target"
        )
    if activation is not None:
        yield from _activation(target, activation)
    if weight is None:
        return
    packed = target.packs_int4(store_4bit, activation is not None)
    kind = _type(weight, replace(weight.grid, packed=packed).stored_bits)
    if "weight-types" in required and kind not in target.weight_types:
        yield f"{target.name} takes {_widths('w', target.weight_types)}, you asked w{weight.grid.bits} ({kind})"
    elif kind in target.weights_only and activation is not None:
        yield (
            f"{target.name} takes {kind} weights only where activations stay in float, you asked w{weight.grid.bits}"
            f"a{activation.grid.bits}: take w8a8, or w{weight.grid.bits} without activations"
        )
    if not weight.symmetric and _forbids(target.weight_zero_points, weight) and "weight-zero-point" in required:
        yield f"{target.name} takes weights with zero point 0: leave `asymmetric_weights` out"
    largest = weight.grid.qmax if weight.symmetric else weight.grid.qmax - weight.grid.qmin
    if target.weight_limit is not None and largest > target.weight_limit and "weight-range" in required:
        yield (
            f"{target.name} takes weights at most {target.weight_limit} steps from their zero point, and these reach"
            f" {largest}: ask for w8 or less, without `asymmetric_weights`"
        )
    if weight.block is not None and (refusal := target.refuses_blocks(kind)) is not None:
        yield f"{refusal}: leave `block_size` out"
    yield from _operator_set(target, replace(weight, grid=replace(weight.grid, packed=packed)))


def no_table_of_4_bits(target: Target) -> str | None:
    """Why tables of embeddings cannot have 4 bits, or None. Where rows are looked up as bytes, no type is asked for."""
    if target.tables == "rows":
        return None
    if target.tables == "grid":
        return f"a table has the grid of what is looked up in it on {target.name}, of 8 or 16 bits"
    if "int4" not in target.weight_types or "int4" in target.weights_only:
        return f"{target.name} reads int4 as weights of products at most, and a table is looked up"
    return None


def taken(target: Target) -> str:
    """The widths that a target takes, in words: `w4 or w8, a8; int4 weights where activations stay in float; ...`."""
    parts = [f"{_widths('w', target.weight_types)}, {_widths('a', target.activation_types)}"]
    if target.runs_whole_operators:
        parts.append("both widths, never one alone")
    if target.weights_only:
        parts.append(f"{' or '.join(target.weights_only)} weights where activations stay in float")
    if target.stores_int4 == "weights only" and "int4" in target.weight_types:
        parts.append("4-bit weights are stored in int8 beside quantized activations")
    parts.append(f"blocks of {' or '.join(target.blocks)}" if target.blocks else "no blocks")
    return "; ".join(parts)


FALLBACKS = ("a16", "dynamic", "float")
"""What an activation whose grid costs too much can get instead."""


def no_fallback(target: Target, kind: str) -> str | None:
    """Why activations of the target cannot get one of `FALLBACKS`, or None."""
    if kind == "a16" and not {"uint16", "int16"} & set(target.activation_types):
        return f"{target.name} reads no activations of 16 bits"
    if kind == "dynamic" and not target.dynamic_activations:
        return f"{target.name} does not quantize activations at run time, as ort does"
    if kind == "float" and target.runs_whole_operators:
        return f"{target.name} runs operators in integers whole, and leaves no activations in float"
    return None


def _activation(target: Target, spec: QuantSpec) -> Iterator[str]:
    types = target.activation_types
    yield from _operator_set(target, replace(spec, grid=replace(spec.grid, packed=False)))
    if "activation-types" in target.requirements:
        signs = {spec.grid.signed, False} if spec.one_tailed and spec.symmetric else {spec.grid.signed}
        kinds = [_type(spec, max(spec.grid.stored_bits, 8), signed) for signed in sorted(signs)]
        wrong = [kind for kind in kinds if kind not in types]
        widths = {int(kind.lstrip("uint")) for kind in types}
        exact = target.simulates_widths or spec.grid.bits in widths
        if not exact or (wrong and max(spec.grid.stored_bits, 8) not in widths):
            yield f"{target.name} takes {_widths('a', types)}, you asked a{spec.grid.bits}"
        elif wrong:
            yield f"{target.name} takes {' or '.join(types)} activations: leave `symmetric_activations` out"


def _operator_set(target: Target, spec: QuantSpec) -> Iterator[str]:
    if target.max_opset is not None and spec.min_opset > target.max_opset:
        what = "blocks" if spec.block is not None else f"{spec.grid.stored_bits} bits"
        yield f"{target.name} reads operator sets up to {target.max_opset}, and {what} need {spec.min_opset}"


def _forbids(rule: str, spec: QuantSpec) -> bool:
    return rule == "zero" or (rule == "signed zero" and spec.grid.signed)


def _type(spec: QuantSpec, bits: int, signed: bool | None = None) -> str:
    return f"{'int' if (spec.grid.signed if signed is None else signed) else 'uint'}{bits}"


def _widths(letter: str, types: Sequence[str]) -> str:
    return " or ".join(f"{letter}{bits}" for bits in sorted({int(kind.lstrip("uint")) for kind in types}))
