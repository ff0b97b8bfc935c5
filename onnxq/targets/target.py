"""What a target is: a tool-chain's types, its rules by operator, and what it requires of a model, all of it data.

Passes read it to place quantizers, `onnxq check` to check any QDQ model; nothing else decides either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_graphsurgeon as gs

from ..graph.patterns import ACTIVATIONS, feeds_softmax
from ..numeric.quant import QuantSpec
from ..operators.linear import LinearForm, LinearLayer, linear_layer
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import Kind, linear_form, names, operator_of, preserves_grid

ToolchainName = Literal["", "tensorrt", "qnn", "openvino", "rknn", "tract", "opencv"]
"""The vendor's own software that `onnxq.toolchains` can run; empty: none."""

Condition = Callable[[gs.Node], str | None]


def never(node: gs.Node) -> str | None:
    """The condition that holds for no node."""
    return None


@dataclass(frozen=True)
class FixedEncoding:
    """Scale and zero point that an operator's output must have when it is stored in `type` (uint16, ...)."""

    type: str
    scale: float
    zero_point: int


@dataclass(frozen=True)
class OpRule:
    """How one operator is quantized.

    kind: `linear` operators are always quantized. `elementwise` ones join where one of their inputs is computed in
    integers already: between float operators they would only add noise and conversions. `movement` keeps the grid
    of its input, whatever that is. `residual`: an Add of which only one input is quantized, since it runs as the end
    of the convolution that computes the other one. `commuting` operators stay as they are; the compiler moves
    quantization past them. `either` may read a grid, but nothing is quantized for their sake.
    output: `grid` where the integer kernel exists only with a quantized output; `free` where it can write float.
    followed: whether elementwise operators behind it join although its output is free.
    data: whether `all` float inputs are quantized, or only the `first`, where the others are parameters.
    grid: `same` where the output must share the grid of the first input, `own` otherwise.
    tie: whether all `inputs`, or all inputs and the output, share one grid.
    fixed: the output's range where it is known without data. encodings: those that the tool-chain insists on.
    refuses: the reason why this very node has no integer kernel, or None.
    slow: the reason why its integer kernel does not pay, or None.  between_floats: why it does not where all that it
    reads and all that reads it computes in float.
    caution: what is to be known of a tool-chain where the operator is quantized, said once a model.
    per_channel: whether the kernel takes one weight scale a channel: `always`, only for a `matrix`, or `never`.
    """

    kind: Literal["linear", "elementwise", "movement", "residual", "commuting", "either"]
    output: Literal["grid", "free"] = "grid"
    data: Literal["all", "first"] = "all"
    grid: Literal["own", "same"] = "own"
    followed: bool = False
    tie: Literal["none", "inputs", "all"] = "none"
    fixed: tuple[float, float] | None = None
    encodings: tuple[FixedEncoding, ...] = ()
    refuses: Condition = never
    slow: Condition = never
    between_floats: Condition = never
    per_channel: Literal["always", "matrix", "never"] = "always"
    caution: str | None = None

    def takes_channels(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape may have one scale a channel."""
        return self.per_channel == "always" or (self.per_channel == "matrix" and len(shape) == 2)


@dataclass(frozen=True)
class Shifts:
    """Bounds of a shift-only accelerator, in bits. A tensor's position p is that of its scale, 2^-p.

    cut: of p_w + p_x - p_y of a linear layer.  bias: the most of p_w + p_x - p_b; the least is
    min(0, cut - accumulator) for the layer's own cut.  read: the most that the inputs of Add and Sub lie apart.
    add: of min(p_x) - p_y of Add.  mul: of the sum of p_x - p_y of Mul.
    """

    cut: tuple[int, int] = (0, 16)
    bias: int = 15
    accumulator: int = 16
    read: int = 7
    add: tuple[int, int] = (-7, 25)
    mul: tuple[int, int] = (0, 32)


@dataclass(frozen=True)
class Target:
    """A tool-chain. The first part says what is placed where, the second what `onnxq check` requires.

    activation, weight: what they are to be like; bits come from the preset.
    rules: by operator.  fused: activations, of `FUSIBLE`, that it fuses into the operator before.
    joins: where elementwise operators are quantized: behind kernels that write `grids` anyway, behind all that compute
    in `integers`, or `everywhere`.
    pairs: whether a quantized tensor is so for all its readers (`tensor`), or only for those that read integers
    (`reader`).
    outputs: whether the model's outputs are quantized (`grid`), in `float`, or as their kernels have it (`kernel`).
    fused_needs_grid: whether a kernel that could write float cannot where an activation is fused behind it.
    added_bias: whether the bias that exporters add behind MatMul is the `layer`'s, or an `operator` of its own.
    bias: int32 at the scale of the accumulator, `float`, or `int8` with a scale of its own.
    adds_biases: whether float biases of convolutions are added by a node of their own behind them.
    keeps_activations: whether Relu and Clip stay although the grid behind them does their work.
    reduced_weights: 8-bit weights use 7 bits.  smallest_range: of any grid, in real units.
    tables: whether what is looked up in a quantized table is dequantized (`rows`), or the `whole` table in front of the
    Gather, by a DequantizeLinear that the compiler moves behind it; or the whole table has the `grid` of what is looked
    up in it, one scale for all rows.
    min_opset, max_opset: where its quantized operators exist.
    whole_gelu: whether it takes Gelu as the operator of set 20 only, and nothing that an exporter decomposed it into.
    quantizes_float_weights: whether it does so by itself where the tensors around a float layer are quantized.
    runs_here: whether ONNX Runtime's integer kernels are what will run, so that they must agree with the model.
    dynamic_activations: whether it multiplies in integers with activations that are quantized at run time
    (`graph.dynamic_writer`).
    rounds_activations: widths of weight matrices beside which the runtime rounds activations of more than 8 bits to
    integers of 8, in blocks along the input channels, whatever the model says; none where it computes as written.
    tabulates_hard_swish: whether HardSwish runs in integers as a look-up and a product (`passes.tabulate_hard_swish`).
    static_shapes: whether it runs nothing of a model with dynamic dimensions.
    toolchain: which of `onnxq.toolchains` runs the result.

    requirements: what a model must fulfil, a key of `REQUIREMENTS` each, and who says so.
    activation_types, weight_types: that the tool-chain reads, as integers of that width.
    activation_zero_points, weight_zero_points: `any`, `zero`, or `signed zero` (unsigned types may have one).
    weight_limit: the largest |q - zero point| of weights.

    What its hardware takes, beside these:
    stores_int4: whether 4-bit weights are stored in 4 bits `always`, or only where the input of their layer stays in
    float (`weights only`); elsewhere int8 holds the same integers.
    weights_only: types of weights that it takes only where activations stay in float.
    blocks: types of weights that may have one scale for each block; none: no blocks.
    simulates_widths: whether activations of other widths than its types are taken, rounded to fewer integers by a Clip.
    zero_points_in_blocks: whether weights of up to 4 bits in blocks get zero points, beside activations in float, if
    nothing else is asked for: they are more accurate, and must be as fast.
    """

    name: str
    description: str
    source: str
    activation: QuantSpec
    weight: QuantSpec
    rules: Mapping[str, OpRule]
    fused: frozenset[str] = frozenset()
    joins: Literal["grids", "integers", "everywhere"] = "integers"
    pairs: Literal["tensor", "reader"] = "tensor"
    outputs: Literal["kernel", "grid", "float"] = "kernel"
    fused_needs_grid: bool = False
    added_bias: Literal["layer", "operator"] = "layer"
    bias: Literal["int32", "float", "int8"] = "int32"
    adds_biases: bool = False
    keeps_activations: bool = False
    reduced_weights: bool = False
    smallest_range: float = 0.0
    shifts: Shifts | None = None
    tables: Literal["rows", "whole", "grid"] = "whole"
    min_opset: int = 13
    max_opset: int | None = None
    whole_gelu: bool = False
    quantizes_float_weights: bool = False
    runs_here: bool = False
    dynamic_activations: bool = False
    rounds_activations: tuple[int, ...] = ()
    tabulates_hard_swish: bool = False
    static_shapes: bool = False
    toolchain: ToolchainName = ""
    requirements: Mapping[str, str] = field(default_factory=dict)
    activation_types: tuple[str, ...] = ("uint8", "int8", "uint16", "int16")
    weight_types: tuple[str, ...] = ("int8", "uint8", "int16", "uint16", "int4", "uint4")
    activation_zero_points: Literal["any", "signed zero", "zero"] = "any"
    weight_zero_points: Literal["any", "signed zero", "zero"] = "any"
    weight_limit: int | None = None
    stores_int4: Literal["always", "weights only"] = "always"
    weights_only: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ("int4", "uint4", "int8", "uint8", "int16", "uint16")
    simulates_widths: bool = True
    zero_points_in_blocks: bool = False

    def rule(self, node: gs.Node) -> OpRule | str:
        """The rule for a node, or the reason why it stays in float."""
        rule = self.rule_of(node)
        if rule is None and node.domain == "com.microsoft":
            return "this model went through a runtime's optimiser: quantize the model before it"
        if rule is None and node.domain not in ONNX_DOMAINS:
            return f"operator of domain {node.domain!r} is unknown; register it, see `onnxq.operators.register`"
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return (
                "activations inside of control flow stay in float, weights do not; to quantize both, export what is"
                " inside as models of their own (decoder and decoder-with-past, two files)"
            )
        if rule is None:
            return f"{self.name} has no integer kernel for {node.op}"
        if rule.kind == "movement" and not preserves_grid(node):
            return f"this {node.op} computes new values, which {self.name} does not do in integers"
        return rule.refuses(node) or rule

    def rule_of(self, node: gs.Node) -> OpRule | None:
        """The rule for a node's operator; one that a user has registered has that of its kind where none is its own."""
        key = node.op if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op}"
        operator = operator_of(node)
        if key in self.rules or operator is None or not operator.domain:
            return self.rules.get(key)
        return self.rule_of_kind(operator.kind)

    def rule_of_kind(self, kind: Kind) -> OpRule:
        """The rule for operators that users register."""
        if kind == "linear":
            return replace(self.rules.get("Gemm", OpRule("linear")), refuses=no_weight)
        return self.rules.get("Reshape", MOVES) if kind == "movement" else OpRule("elementwise")

    def refuses_blocks(self, kind: str) -> str | None:
        """Why weights stored in a type have no scale for each block."""
        if not self.blocks:
            return f"{self.name} has one weight scale a tensor, or one a channel"
        if kind not in self.blocks:
            return f"{self.name} takes blocks only of {' or '.join(self.blocks)} weights, and these are {kind}"
        return None

    def output_of(self, layer: LinearLayer) -> gs.Tensor:
        """What a linear layer computes, for this target."""
        return layer.output if self.added_bias == "layer" else layer.node.outputs[0]

    def packs_int4(self, store_4bit: str, beside_integers: bool) -> bool:
        """Whether 4-bit weights are stored in 4 bits. store_4bit: the option: auto, int4 or int8.  beside_integers:
        whether the input of their layer is quantized."""
        if store_4bit != "auto":
            return store_4bit == "int4"
        return self.stores_int4 == "always" or not beside_integers

    @property
    def runs_whole_operators(self) -> bool:
        """Whether an operator has all its inputs and outputs quantized, or none."""
        return "whole-operators" in self.requirements

    @property
    def fits_scales(self) -> bool:
        """Whether it has requirements on scales beyond their grids."""
        return self.smallest_range > 0 or self.shifts is not None or any(r.encodings for r in self.rules.values())

    def activation_of(self, bits: int) -> QuantSpec:
        """What activations of this width are to be like."""
        return replace(self.activation, grid=replace(self.activation.grid, bits=bits))

    def weight_of(self, bits: int) -> QuantSpec:
        """What weights of this width are to be like; below 8 bits no grid is narrow: there are no integers to spare."""
        width = bits - 1 if bits == 8 and self.reduced_weights else bits
        narrow = self.weight.grid.narrow and bits >= 8
        return replace(self.weight, grid=replace(self.weight.grid, bits=width, narrow=narrow))


def uneven_blocks(form: LinearForm, length: int, block: int) -> str | None:
    """Why a weight has no scale for each block of its `length` input channels: tool-chains take blocks in matrices
    only, and all of one length."""
    if form.is_convolution:
        return "convolutions have none"
    return f"they do not divide {length} input channels" if length % block else None


def no_layer(node: gs.Node) -> str | None:
    """Why a linear operator is none that has weights, or a product of two activations."""
    form = linear_form(node.op, node.domain)
    if form is not None and form.computed_weight:
        if not any(isinstance(t, gs.Constant) for t in node.inputs):
            return None
        if isinstance(node.inputs[0], gs.Constant):
            return "the weight is the left operand"
    return no_weight(node)


def no_weight(node: gs.Node) -> str | None:
    """Why a linear operator has no constant weights."""
    layer = linear_layer(node)
    return layer if isinstance(layer, str) else None


def masks_attention(node: gs.Node) -> str | None:
    """Why an Add or Where in front of Softmax is not quantized."""
    if feeds_softmax(node.outputs[0]):
        return "it masks or biases attention: scores beside -10000 or -inf fit no 8-bit grid"
    return None


def movement(rule: OpRule, *, but: Collection[str] = ()) -> dict[str, OpRule]:
    """One rule for all operators of data movement that the registry lists. but: those that the tool-chain computes in
    float, or has another rule for."""
    return {op: rule for op in names("movement") if op not in but}


FUSIBLE = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Tanh", "Gelu", "Mish", "HardSwish", *ACTIVATIONS,
)  # fmt: skip
"""Activations that may run as the end of the operator before."""

MOVES = OpRule("movement", grid="same")
POOLS = OpRule("elementwise", grid="same")
