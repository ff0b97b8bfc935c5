"""What a target can require of a model, by id, in words made from its data. `onnxq.checking` has a test for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..graph.patterns import ACTIVATIONS
from .target import FUSIBLE, OpRule, Target


@dataclass(frozen=True)
class Requirement:
    """One requirement of a target: its id, what it demands, and its source."""

    id: str
    text: str
    source: str


def requirements(target: Target) -> tuple[Requirement, ...]:
    """What the target requires, in the order of `REQUIREMENTS`."""
    return tuple(
        Requirement(id, REQUIREMENTS[id](target), target.requirements[id])
        for id in REQUIREMENTS
        if id in target.requirements
    )


def _opset(target: Target) -> str:
    highest = "or later" if target.max_opset is None else f"to {target.max_opset}"
    return f"the operator set is {target.min_opset} {highest}"


def _zero_point(what: str, spec: str) -> str:
    return f"zero points of {'signed ' * (spec == 'signed zero')}{what} are " + ("anything" if spec == "any" else "0")


def _weight_granularity(target: Target) -> str:
    linear = {op: rule for op, rule in target.rules.items() if rule.kind == "linear"}
    channels = [op for op, rule in linear.items() if rule.per_channel != "never" and target.weight.per_channel]
    if not channels:
        return "weights have one scale a tensor"
    rest = [op for op in linear if op not in channels]
    text = f"weights have one scale a tensor, or one an output channel in {_list(channels)}"
    text = f"{text}; only one a tensor in {_list(rest)}" if rest else text
    return f"{text}; matrices of {' or '.join(target.blocks)} may have blocks" if target.blocks else text


def _bias(target: Target) -> str:
    return {
        "int32": "biases of layers with quantized input and weight are int32, zero point 0, at the scale of the"
        " accumulator, s_x s_w",
        "float": "biases stay in float",
        "int8": "biases are quantized like weights, with a scale of their own",
    }[target.bias]


def _same_grid(target: Target) -> str:
    return f"output and input share one grid in {_list(op for op, r in target.rules.items() if r.grid == 'same')}"


def _shared_grid(target: Target) -> str:
    inputs = [op for op, rule in target.rules.items() if rule.tie == "inputs"]
    everything = [op for op, rule in target.rules.items() if rule.tie == "all"]
    return "; ".join(
        f"{what} of {_list(ops)} share one grid"
        for what, ops in (("the inputs", inputs), ("inputs and output", everything))
        if ops
    )


def _fused_activation(target: Target) -> str:
    *first, last = [op for op in FUSIBLE if op in target.fused and op not in ACTIVATIONS] or ["activation"]
    names = f"{', '.join(first)} or {last}" if first else last
    return f"nothing is quantized between an operator and the {names} that alone reads it"


def _fixed_encoding(target: Target) -> str:
    return "; ".join(
        f"{op} writes {e.type} with scale {e.scale:g} and zero point {e.zero_point}"
        for op, rule in target.rules.items()
        for e in rule.encodings
    )


def _integer_readers(target: Target) -> str:
    text = f"an activation is quantized only for a reader among {_list(readers(target))}"
    writers = [op for op, rule in target.rules.items() if rule.output == "grid"]
    return f"{text}, or where {_list(writers)} write it" if writers else text


def _shifts(target: Target) -> str:
    assert target.shifts is not None
    s = target.shifts
    return (
        f"with positions p = -log2(scale): {s.cut[0]} <= p_w + p_x - p_y <= {s.cut[1]} in linear layers,"
        f" min(0, shift - {s.accumulator}) <= p_w + p_x - p_b <= {s.bias} for their biases, inputs of Add and Sub at"
        f" most {s.read} apart, {s.add[0]} <= min p_x - p_y <= {s.add[1]} in Add, {s.mul[0]} <= sum p_x - p_y"
        f" <= {s.mul[1]} in Mul"
    )


REQUIREMENTS: Mapping[str, Callable[[Target], str]] = {
    "opset": _opset,
    "activation-types": lambda t: f"activations are {_list(t.activation_types)}",
    "weight-types": lambda t: f"weights are {_list(t.weight_types)}",
    "activation-zero-point": lambda t: _zero_point("activations", t.activation_zero_points),
    "weight-zero-point": lambda t: _zero_point("weights", t.weight_zero_points),
    "weight-range": lambda t: f"integers of weights lie within [-{t.weight_limit}, {t.weight_limit}] of the zero point",
    "activation-granularity": lambda t: (
        f"activations have one scale a tensor{', set or found at run time' if t.dynamic_activations else ''}"
    ),
    "weight-granularity": _weight_granularity,
    "power-of-two": lambda t: "scales are powers of two",
    "smallest-range": lambda t: f"grids span at least {t.smallest_range:g}",
    "bias": _bias,
    "fused-activation": _fused_activation,
    "same-grid": _same_grid,
    "shared-grid": _shared_grid,
    "fixed-encoding": _fixed_encoding,
    "integer-readers": _integer_readers,
    "float-outputs": lambda t: "outputs of the model are not quantized",
    "residual-add": lambda t: "where a convolution ends in an Add, that input is not quantized and the other one is",
    "whole-operators": lambda t: "an operator with a quantized weight, or output, has all inputs and outputs quantized",
    "one-width": lambda t: "all quantized inputs of an operator have one type",
    "shifts": _shifts,
}


REMEDIES: Mapping[str, str] = {
    "opset": "write the model at such an operator set; `onnxq quantize` converts it",
    "activation-types": "quantize with activations of such a type: `onnxq quantize --target` takes it",
    "weight-types": "quantize with weights of such a type; 4 bits can be stored in int8 (--store-4bit int8)",
    "activation-zero-point": "quantize activations symmetrically",
    "weight-zero-point": "quantize weights symmetrically",
    "weight-range": "quantize weights to fewer bits, or symmetrically",
    "activation-granularity": "give activations one scale a tensor, set beforehand where the target finds none",
    "weight-granularity": "quantize these weights per tensor, or along their output channels",
    "power-of-two": "round scales up to powers of two",
    "smallest-range": "raise the scale of what is nearly constant",
    "bias": "write biases in this form",
    "fused-activation": "quantize behind the activation only: a pair in front of it keeps it from being fused",
    "same-grid": "give output and input one scale and zero point",
    "shared-grid": "give these tensors one scale and zero point",
    "fixed-encoding": "give the output this scale and zero point",
    "integer-readers": "take the pair out: no kernel reads its integers",
    "float-outputs": "take the pair at the output out",
    "residual-add": "quantize the other branch of the Add, not what comes from the convolution",
    "whole-operators": "quantize all inputs and outputs of the operator, or none (--exclude its name)",
    "one-width": "give the operator's inputs one width, or convert between them",
    "shifts": "coarsen the finer of these scales",
}
"""What to do where a model breaks a requirement. By id."""


def readers(target: Target) -> tuple[str, ...]:
    """The operators that a target lets read integers."""
    return tuple(op for op, rule in target.rules.items() if reads_integers(rule))


def reads_integers(rule: OpRule | None) -> bool:
    """Whether a kernel reads integers by this rule; it does not where they are but moved."""
    return rule is not None and rule.kind not in ("commuting", "movement")


def _list(names: Iterable[str]) -> str:
    *first, last = tuple(names) or ("nothing",)
    return f"{', '.join(first)} and {last}" if first else last
