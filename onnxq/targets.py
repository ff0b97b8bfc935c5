"""What one vendor's tool-chain runs in integers, as data. Passes read it; nothing else decides placement.

A rule says, for one operator: which inputs go onto a grid, whether the integer kernel needs its output on one too,
and when the operator stays in float although its type has a kernel. The rules for ONNX Runtime were found by
feeding QDQ models of each operator to ONNX Runtime 1.32 and reading the graph that it then runs
(`tests/test_targets.py` repeats that), not from a list. Pad keeps its grid like all data movement, but 1.32 pads in
float between DequantizeLinear and QuantizeLinear, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from .graph.ops import ONNX_DOMAINS, LinearLayer, is_depthwise, is_op, linear_layer, preserves_grid
from .numeric.quant import Grid, QuantSpec

Condition = Callable[[gs.Node], str | None]


def _always(node: gs.Node) -> str | None:
    return None


@dataclass(frozen=True)
class OpRule:
    """How one operator is quantized.

    kind: `linear` operators are always quantized. `elementwise` ones join where one of their inputs is computed in
    integers already: between float operators they would only add noise and conversions. `movement` keeps the grid
    of its input, whatever that is.
    output: `grid` where the integer kernel exists only with a quantized output; `free` where it can write float.
    grid: `same` where the output shares the grid of the first input, `own` otherwise.
    fixed: the output's range where it is known without data.
    refuses: the reason why this very node has no integer kernel, or None.
    slow: the reason why its integer kernel does not pay, or None.
    per_channel: whether the kernel takes one weight scale a channel for this layer.
    """

    kind: Literal["linear", "elementwise", "movement"]
    output: Literal["grid", "free"] = "grid"
    grid: Literal["own", "same"] = "own"
    fixed: tuple[float, float] | None = None
    refuses: Condition = _always
    slow: Condition = _always
    per_channel: Callable[[LinearLayer], bool] = lambda layer: True


@dataclass(frozen=True)
class Target:
    """A tool-chain: its types, its rules by operator, and the activations that it fuses into the operator before.

    min_opset, max_opset: where its quantized operators exist.
    quantizes_float_weights: whether it does so by itself where the tensors around a float layer are on grids.
    """

    name: str
    description: str
    source: str
    activation: QuantSpec
    weight: QuantSpec
    rules: Mapping[str, OpRule]
    fused: frozenset[str] = frozenset()
    min_opset: int = 13
    max_opset: int | None = None
    quantizes_float_weights: bool = False

    def rule(self, node: gs.Node) -> OpRule | str:
        """The rule for a node, or the reason why it stays in float."""
        if node.domain not in ONNX_DOMAINS:
            return f"operator of domain {node.domain!r} is unknown"
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return "control flow is left in float"
        rule = self.rules.get(node.op)
        if rule is None:
            return f"{self.name} has no integer kernel for {node.op}"
        if rule.kind == "movement" and not preserves_grid(node):
            return f"this {node.op} computes new values, which {self.name} does not do in integers"
        return rule.refuses(node) or rule


def _ort_linear(node: gs.Node) -> str | None:
    if node.op == "MatMul" and not any(isinstance(t, gs.Constant) for t in node.inputs):
        return None  # two activations, as in attention: an integer kernel of its own
    if node.op == "MatMul" and isinstance(node.inputs[0], gs.Constant):
        return "the weight is the left operand"
    layer = linear_layer(node)
    return layer if isinstance(layer, str) else None


def _ort_mask(node: gs.Node) -> str | None:
    readers = node.outputs[0].outputs
    if readers and all(is_op(reader, "Softmax") for reader in readers):
        return "it masks or biases attention: scores beside -10000 or -inf fit no 8-bit grid"
    return None


def _ort_slow_conv(node: gs.Node) -> str | None:
    """Measured on x86 with VNNI: 3 input channels take 3 times as long as in float, a depthwise Conv at the size of
    the image 2 to 5 times; together with the conversions behind they cost MobileNets more than the rest gains."""
    layer = linear_layer(node)
    if isinstance(layer, LinearLayer) and (_starts_separable(layer) or _follows_start(layer)):
        return "the first layers of a depthwise-separable network are faster in float"
    return None


def _starts_separable(layer: LinearLayer) -> bool:
    """A Conv on an image whose only reader is depthwise."""
    behind = layer.output
    while len(behind.outputs) == 1 and is_op(behind.outputs[0], "Relu", "Clip"):
        behind = behind.outputs[0].outputs[0]
    readers = [linear_layer(reader) for reader in behind.outputs]
    return (
        layer.groups == 1
        and int(layer.weight.shape[1]) < 4
        and len(readers) == 1
        and isinstance(readers[0], LinearLayer)
        and is_depthwise(readers[0])
    )


def _follows_start(layer: LinearLayer) -> bool:
    source = layer.input
    while source.inputs and is_op(source.inputs[0], "Relu", "Clip"):
        source = source.inputs[0].inputs[0]
    before = linear_layer(source.inputs[0]) if source.inputs else ""
    return is_depthwise(layer) and isinstance(before, LinearLayer) and _starts_separable(before)


def _ort_slow_matmul(node: gs.Node) -> str | None:
    if any(isinstance(t, gs.Constant) for t in node.inputs):
        return None
    return "the product of two activations is faster in float, with its Softmax and scaling"


def _is_matrix(layer: LinearLayer) -> bool:
    return len(layer.weight.shape) == 2


_MOVEMENT = OpRule("movement", grid="same")
_POOLING = OpRule("elementwise", grid="same")
_ELEMENTWISE = OpRule("elementwise")
_MASKING = OpRule("elementwise", refuses=_ort_mask)

ORT = Target(
    name="ort",
    description="ONNX Runtime on CPUs: uint8 activations, int8 weights, int32 biases",
    source="graphs that ONNX Runtime 1.32 runs, operator by operator",
    activation=QuantSpec(Grid(8, signed=False), symmetric=False),
    weight=QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True, per_channel=True),
    rules={
        "Conv": OpRule("linear", refuses=_ort_linear, slow=_ort_slow_conv),
        "Gemm": OpRule("linear", output="free", refuses=_ort_linear),
        "MatMul": OpRule("linear", "free", refuses=_ort_linear, slow=_ort_slow_matmul, per_channel=_is_matrix),
        "Add": _MASKING,
        "Mul": _ELEMENTWISE,
        "Concat": _ELEMENTWISE,
        "Where": _MASKING,
        "LeakyRelu": _ELEMENTWISE,
        "Sigmoid": OpRule("elementwise", fixed=(0.0, 1.0)),
        "Softmax": OpRule("elementwise", fixed=(0.0, 1.0)),
        "AveragePool": _POOLING,
        "GlobalAveragePool": _POOLING,
        **dict.fromkeys(
            (
                "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split",
                "Expand", "Tile", "DepthToSpace", "ReduceMax", "ReduceMin", "Pad", "Resize",
            ),
            _MOVEMENT,
        ),
    },
    fused=frozenset({"Relu", "Clip"}),
    quantizes_float_weights=True,
    max_opset=27,
)  # fmt: skip

TARGETS: Mapping[str, Target] = {target.name: target for target in (ORT,)}
