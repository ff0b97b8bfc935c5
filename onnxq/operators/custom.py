"""Operators of users' own domains: `onnxq.operators.register`, which targets in TOML use as well (`[[operator]]`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import UsageError
from .matmul import MatrixProduct
from .node import ONNX_DOMAINS
from .registry import Move, Operator, add

CustomKind = Literal["linear", "elementwise", "movement"]

_LINEAR = ("weight", "bias", "axis", "reduction_axis", "output_axis")
_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "linear": _LINEAR,
    "elementwise": ("homogeneous",),
    "movement": ("homogeneous", "move"),
}


def register(
    op: str,
    domain: str,
    kind: CustomKind,
    *,
    weight: int | None = None,
    bias: int | None = None,
    axis: int | None = None,
    reduction_axis: int | None = None,
    output_axis: Literal[1, -1] | None = None,
    homogeneous: bool | None = None,
    move: Move | None = None,
) -> Operator:
    """Say what an operator of another domain than ONNX's is to quantization.

    From then on it is placed, ranged, rounded, checked and reported as ONNX's own operators of its kind are, and a
    model's local function of its name is kept instead of inlined.

    op, domain: its name, and the domain of its nodes.
    kind: `linear` computes y = W x + b at every position, from input 0, x, as Gemm and MatMul do. `elementwise`
        computes new values, each from those at its place. `movement` writes values of its first input, or zeros.

    weight: of `linear`, the input that holds W, a matrix; 1 by default.
    bias: of `linear`, the input that holds b, (Cout,); by default there is none, and an Add behind may add it.
    axis, reduction_axis: of `linear`, the axes of output and of input channels in W; by default W is (Cin, Cout).
    output_axis: of `linear`, where the channels lie in x and y: -1, the last axis, by default, or 1.
    homogeneous: of the others, whether f(x / s) = f(x) / s for every s > 0 in each channel by itself, with the channels
        of input and output along the same axis, so that cross-layer equalization passes through it; false by default.
    move: of `movement`, where the elements go, for operators that bring channels into another order: a function from
        the node and an integer array in place of its first input, with a batch of 1, to a list of its outputs.

    Raises UsageError where this is contradictory, or the operator is registered already, as another one.
    """
    where = f"operator {domain}.{op}"
    if not isinstance(op, str) or not op:
        raise UsageError(f"op must be the name of an operator, got {op!r}")
    if not isinstance(domain, str) or domain in ONNX_DOMAINS:
        raise UsageError(f"{where}: domain must be another than ONNX's own, such as 'com.example', got {domain!r}")
    if kind not in _OF_KIND:
        raise UsageError(f"{where}: kind must be one of {', '.join(_OF_KIND)}, got {kind!r}")
    given = {"weight": weight, "bias": bias, "axis": axis, "reduction_axis": reduction_axis,
             "output_axis": output_axis, "homogeneous": homogeneous, "move": move}  # fmt: skip
    for name, value in given.items():
        if value is not None and name not in _OF_KIND[kind]:
            raise UsageError(f"{where}: {name} is for operators of another kind than {kind}")
    if kind == "linear":
        operator = Operator(op, kind, domain, linear=_product(where, given))
    else:
        if homogeneous and move is not None:
            raise UsageError(f"{where}: homogeneous is said already by move; give one of them")
        scaling: Literal["same", "moved"] | None = "moved" if move is not None else "same" if homogeneous else None
        operator = Operator(op, kind, domain, scaling=scaling, move=move)
    try:
        add(operator)
    except KeyError:
        raise UsageError(f"{where} is registered already, as something else") from None
    return operator


def _product(where: str, given: Mapping[str, Any]) -> MatrixProduct:
    defaults: dict[str, Any] = {"weight": 1, "bias": None, "axis": 1, "output_axis": -1}
    defaults["reduction_axis"] = 1 if given["axis"] == 0 else 0
    values = {name: default if given[name] is None else given[name] for name, default in defaults.items()}
    allowed = {"axis": (0, 1), "reduction_axis": (0, 1), "output_axis": (1, -1)}
    for name, value in values.items():
        if value is None:
            continue
        if type(value) is not int or (name in allowed and value not in allowed[name]) or value < -1:
            expected = " or ".join(map(str, allowed.get(name, ("the number of an input",))))
            raise UsageError(f"{where}: {name} must be {expected}, got {value!r}")
    if values["axis"] == values["reduction_axis"]:
        raise UsageError(f"{where}: axis and reduction_axis of the weight are the same, {values['axis']}")
    if values["weight"] < 1 or (values["bias"] is not None and values["bias"] < 1):
        raise UsageError(f"{where}: input 0 is x: weight and bias must be inputs 1 and up")
    if values["weight"] == values["bias"]:
        raise UsageError(f"{where}: weight and bias are both input {values['weight']}")
    return MatrixProduct(**values)
