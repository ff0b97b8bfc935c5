"""Where quantizers go (white paper sections 2.3.2 and 2.3.3): the inputs of every operator that runs in integers.

    1. Choose the nodes, by the rule that `onnxq check` reads, too (`targets.choice`). The user's patterns come first.
    2. Place quantizers (`_Placement`) at the tensors that these nodes read, and at those they must write. An activation
       that the target fuses stands between an operator and the quantizer of its output.
    3. Data movement keeps the grid of its input: walking backwards, what is wanted behind a Reshape is wanted
       before it, and the quantizer behind follows the one before.
    4. Few bits are for products: where activations have fewer than 8, those that no convolution or matrix product reads
       get 8, and the model's inputs do (`narrow`). Of ResNet-20's outputs at w4a4, on unseen images, the 4-bit image
       makes 8.7 dB alone, all else 11 dB; sums of a residual stream, in front of Add, a third of that. BRECQ
       (arXiv:2102.05426) and LSQ (arXiv:1902.08153) quantize so.

A tensor has one quantizer, however many nodes read it. What was decided of each node is in `Model.placement`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import onnx_graphsurgeon as gs

from ..errors import UsageError
from ..graph.model import Model, PlacedNode, Quantizer, grid_root
from ..numeric.quant import QuantSpec
from ..operators.linear import LinearLayer, linear_layer, linear_layers
from ..operators.node import ONNX_DOMAINS, is_op
from ..operators.registry import preserves_grid
from ..report import Reason
from ..targets import OpRule, Target
from ..targets.choice import Choice, ChosenNode, choose
from ..targets.target import uneven_blocks
from .base import Context, Outcome, Skip

WIDE_BITS = 8
"""Of activations that no product reads, at least."""


@dataclass(frozen=True)
class AddQuantizers:
    """Plan `Model.quantizers` for the target. What changes are the nodes that will run in integers.

    activation, weight: what they are to be like; None: they stay in float.  force_int_kernels: also use integer kernels
    that are slower than float ones.  include, exclude, keep_float: patterns (glob) of node names or operator types;
    only what is included and not excluded is quantized; keep_float excludes, too, in the name of overrides.
    tie: operator types whose inputs and output share one grid.  narrow: which activations have fewer bits than 8, where
    `activation` has: `products`, step 4, or `all`.
    float_hard_swish: whether HardSwish stays in float.
    """

    activation: QuantSpec | None
    weight: QuantSpec | None
    force_int_kernels: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    narrow: Literal["products", "all"] = "products"
    float_hard_swish: bool = False
    title: ClassVar[str] = "Add quantizers"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        self._refuse_unmatched_patterns(model)
        target = context.target
        choice = choose(
            model, target, self.users_reason,
            force_int_kernels=self.force_int_kernels, weights_only=self.activation is None,
        )  # fmt: skip
        placement = _Placement(model, target, self, choice)
        placement.place()
        tied = [
            placement.tie(each.node, output=each.node.op in self.tie or each.rule.tie == "all")
            for each in choice.chosen
            if each.node.op in self.tie or each.rule.tie != "none"
        ]
        widened = placement.widen_others() if self.narrow == "products" else 0
        model.quantizers.update(placement.quantizers)
        for each in choice.chosen:
            if each.rule.kind != "movement" or placement.keeps_grid(each.node):
                model.placement.nodes[each.node.name] = self._placed(each, placement)
        model.placement.nodes |= {name: PlacedNode(reason) for name, reason in choice.reasons.items()}
        count = sum(placed.reason is None for placed in model.placement.nodes.values())
        skips = tuple(Skip(where, reason.text) for where, reason in choice.reasons.items())
        rules = (each.rule for each in choice.chosen if self.activation is not None)
        cautions = dict.fromkeys(rule.caution for rule in rules if rule.caution is not None)
        warnings = (*cautions, *self._unneeded_patterns(model, choice.kept), *self._unneeded_ties(any(tied)))
        wide = (f"{widened} of them with {WIDE_BITS} bits: no product reads them, or they are inputs",) * bool(widened)
        notes = (f"quantized tensors: {len(placement.quantizers)}", *wide, *placement.whole_channels)
        return Outcome(count, skips, notes, warnings=warnings)

    def _placed(self, chosen: ChosenNode, placement: _Placement) -> PlacedNode:
        """What a chosen node needs; the preset may keep it in float all the same."""
        layer = linear_layer(chosen.node) if chosen.rule.kind == "linear" else None
        weight = layer.weight.name if isinstance(layer, LinearLayer) else None
        if weight is not None and self.weight is None:
            return PlacedNode(Reason("preset", "the preset leaves weights in float"))
        if weight is None and self.activation is None:
            return PlacedNode(Reason("preset", "the preset leaves activations in float"))
        data = tuple(t.name for t in chosen.data if (id(chosen.node), id(t)) not in placement.biases)
        return PlacedNode(None, data, weight, placement.written_by(chosen))

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Of nodes that the user keeps in float: (pattern, what names it in messages)."""
        yield from ((pattern, f"`exclude` {pattern!r}") for pattern in self.exclude)
        yield from ((pattern, f"the override of node {pattern!r} (keep-float)") for pattern in self.keep_float)

    def _refuse_unmatched_patterns(self, model: Model) -> None:
        for pattern, name in (*self.patterns(), *((p, f"`include` {p!r}") for p in self.include)):
            if not any(_matches(node, pattern) for node in model.graph.nodes):
                raise UsageError(
                    f"{name} matches no node name and no operator type of {model.origin}; `onnxq inspect` lists them"
                )

    def _unneeded_patterns(self, model: Model, kept: Collection[str]) -> Iterator[str]:
        """Of the user's patterns, those that match what stays in float without them. kept: what would not."""
        nodes = [node for node in model.graph.nodes if node.name in kept]
        for pattern, name in self.patterns():
            if not any(_matches(node, pattern) for node in nodes):
                yield f"{name} did nothing: what it matches stays in float, or runs as a part of another node, anyway"

    def _unneeded_ties(self, tied: bool) -> Iterator[str]:
        if self.tie and not tied:
            yield f"`tie` {', '.join(self.tie)} did nothing: no such operator has inputs whose grids could be shared"

    def users_reason(self, node: gs.Node) -> Reason | None:
        """Why the user's patterns keep the node in float; None where they do not."""
        for pattern in self.exclude:
            if _matches(node, pattern):
                return Reason("excluded", f"excluded by {pattern!r}")
        for pattern in self.keep_float:
            if _matches(node, pattern):
                return Reason("override", f"kept in float by the override of node {pattern!r}")
        if self.include and not any(_matches(node, pattern) for pattern in self.include):
            return Reason("not included", "not included")
        if self.float_hard_swish and is_op(node, "HardSwish"):
            return Reason("fallback", "in integers it would cost time, or the outputs too much (`hard_swish`)")
        return None


def _matches(node: gs.Node, pattern: str) -> bool:
    return fnmatchcase(node.name, pattern) or fnmatchcase(node.op, pattern)


@dataclass
class _Placement:
    """Steps 2 and 3: the quantizers of the chosen nodes, by tensor name."""

    model: Model
    target: Target
    options: AddQuantizers
    choice: Choice
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    biases: set[tuple[int, int]] = field(default_factory=set)  # (node, bias), by identity: their grids come later
    whole_channels: list[str] = field(default_factory=list)  # layers that have no blocks, and why

    def place(self) -> None:
        self.biases = {(id(layer.bias_node), id(layer.bias)) for layer in linear_layers(self.model.graph.nodes)}
        for each in self.choice.chosen:
            node, rule = each.node, each.rule
            if rule.kind == "movement":
                continue
            for tensor in each.data:
                if (id(node), id(tensor)) not in self.biases:
                    self._activation(tensor, node)
            layer = linear_layer(node) if rule.kind == "linear" else None
            if isinstance(layer, LinearLayer):
                self._weight(layer, rule)
            if rule.output == "grid" or self._ends_in_activation(node):
                self._output(node, rule)
        self._follow_movement()
        self._follow_commuting()
        self._adopt()
        self._in_graph_order()

    def _activation(self, tensor: gs.Tensor, reader: gs.Node | None = None) -> None:
        if self.options.activation is None:
            return
        spec = Quantizer(tensor.name, self.options.activation, fixed=self._known_range(tensor))
        written = tensor.name in self.quantizers and not self.quantizers[tensor.name].readers  # for whoever reads it
        quantizer = self.quantizers.setdefault(tensor.name, spec)
        if reader is not None and (isinstance(tensor, gs.Constant) or (self.target.pairs == "reader" and not written)):
            self.quantizers[tensor.name] = replace(quantizer, readers=(*quantizer.readers, reader.name))

    def _known_range(self, tensor: gs.Tensor) -> tuple[float, float] | None:
        """What Softmax and the like cannot leave, also where they run in float."""
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.domain not in ONNX_DOMAINS:
            return None
        operator = self.choice.composites[id(node)].operator if id(node) in self.choice.composites else node.op
        rule = self.target.rules.get(operator)
        return None if rule is None else rule.fixed

    def _weight(self, layer: LinearLayer, rule: OpRule) -> None:
        spec = self.options.weight
        if spec is None:
            return
        length = int(layer.weight.shape[layer.reduction_axis])
        if spec.block is not None and (why := uneven_blocks(layer.form, length, spec.block)) is not None:
            self.whole_channels.append(f"{layer.node.name}: one scale a channel, not blocks of {spec.block}: {why}")
            spec = replace(spec, block=None, per_channel=self.target.weight.per_channel)
        if not rule.takes_channels(layer.weight.shape):
            spec = replace(spec, per_channel=False)
        name, reader = layer.weight.name, (layer.node.name,)
        axis = layer.reduction_axis if spec.block else layer.axis if spec.per_channel else None
        known = self.quantizers.get(name)
        if known is None:
            self.quantizers[name] = Quantizer(name, spec, axis, readers=reader)
            return
        if known.axis != axis:  # tied weights whose layers have their channels on different axes
            known = replace(known, spec=replace(spec, per_channel=False, block=None), axis=None)
        self.quantizers[name] = replace(known, readers=(*known.readers, *reader))

    def _ends_in_activation(self, node: gs.Node) -> bool:
        """Kernels that can write float may not where an activation is fused behind them, but for the model's output."""
        if not self.target.fused_needs_grid:
            return False
        layer = linear_layer(node)
        output = self.target.output_of(layer) if isinstance(layer, LinearLayer) else node.outputs[0]
        return id(output) in self.choice.fused and not self.model.is_output(self.choice.fused[id(output)])

    def written_by(self, chosen: ChosenNode) -> str | None:
        """The tensor that a node must write on a grid, where one was placed."""
        if chosen.rule.output != "grid" or chosen.rule.kind == "movement":
            return None
        _, behind = self._written(chosen.node, chosen.rule)
        return behind.name if behind.name in self.quantizers else None

    def _written(self, node: gs.Node, rule: OpRule) -> tuple[gs.Tensor, gs.Tensor]:
        """What a node computes, its bias included, and the output of the activation that it ends in, if any."""
        layer = linear_layer(node) if rule.kind == "linear" else None
        output = self.target.output_of(layer) if isinstance(layer, LinearLayer) else node.outputs[0]
        return output, self.choice.fused.get(id(output), output)

    def _output(self, node: gs.Node, rule: OpRule) -> None:
        output, behind = self._written(node, rule)
        if self.target.outputs == "float" and self.model.is_output(behind):
            return
        self._activation(behind)
        quantizer = self.quantizers.get(behind.name)
        if quantizer is None:
            return
        if rule.fixed is not None and behind is output:
            self.quantizers[behind.name] = replace(quantizer, fixed=rule.fixed)
        elif rule.grid != "own" and behind is output:
            self.quantizers[behind.name] = replace(quantizer, grid_of=node.inputs[0].name)

    def _follow_movement(self) -> None:
        moving = [each.node for each in self.choice.chosen if each.rule.kind == "movement"]
        if self.target.outputs == "grid":
            for tensor in (t for node in moving for t in node.outputs if self.model.is_output(t)):
                self._activation(tensor)
        for node in reversed(moving):
            followers = [t for t in node.outputs if t.name in self.quantizers]
            if followers:
                source = node.inputs[0]
                self._activation(source)
                for tensor in followers:
                    quantizer = self.quantizers[tensor.name]
                    self.quantizers[tensor.name] = replace(quantizer, grid_of=source.name, fixed=None)

    def _follow_commuting(self) -> None:
        """Where values were written on a grid, operators that quantization moves past keep it."""
        written = {name: name for name, quantizer in self.quantizers.items() if not quantizer.readers}
        for node in self.model.graph.nodes:
            rule, source = self.target.rule_of(node), written.get(node.inputs[0].name if node.inputs else "")
            if source is None or rule is None or rule.kind != "commuting" or not preserves_grid(node):
                continue
            for tensor in node.outputs:
                written[tensor.name] = source
                if tensor.name in self.quantizers:
                    follower = replace(self.quantizers[tensor.name], grid_of=source, fixed=None)
                    self.quantizers[tensor.name] = follower

    def _adopt(self) -> None:
        """What others had quantized in front of an operator that keeps the grid of its input, and behind it, is on one
        grid: tool-chains take it for an operator in integers, although nothing would be quantized for its own sake."""
        chosen = {id(each.node) for each in self.choice.chosen}
        for node in self.model.graph.nodes:
            reason = self.choice.reasons.get(node.name)
            rule = self.target.rule(node)
            if id(node) in chosen or isinstance(rule, str) or rule.grid != "same":
                continue
            if reason is not None and reason.kind not in ("inputs", "output"):
                continue
            source = self.quantizers.get(node.inputs[0].name)
            behind = [q for t in node.outputs if (q := self.quantizers.get(t.name)) is not None and q.grid_of is None]
            if source is None or not behind or (source.readers and node.name not in source.readers):
                continue
            for quantizer in behind:
                self.quantizers[quantizer.tensor] = replace(quantizer, grid_of=source.tensor, fixed=None)
            self.choice.reasons.pop(node.name, None)
            self.choice.chosen.append(ChosenNode(node, rule, (node.inputs[0],)))

    def _in_graph_order(self) -> None:
        order = {name: index for index, name in enumerate(self.model.graph.tensors())}
        self.quantizers = dict(sorted(self.quantizers.items(), key=lambda item: order[item[0]]))

    def tie(self, node: gs.Node, output: bool) -> bool:
        """Let all inputs of `node`, and its output where that is wanted, share one grid, wide enough for all; whether
        there was anything to share."""
        last = node.outputs[0]
        tensors = (*node.inputs, *(self.choice.fused.get(id(last), last),) * output)
        names = [t.name for t in tensors if not isinstance(t, gs.Constant)]
        roots = dict.fromkeys(grid_root(self.quantizers, name) for name in names if name in self.quantizers)
        if len(roots) < 2:
            return False
        leader, *others = roots
        members = self.quantizers[leader].widened_by
        for other in others:
            members += (other, *self.quantizers[other].widened_by)
            self.quantizers[other] = replace(self.quantizers[other], grid_of=leader, widened_by=(), fixed=None)
        self.quantizers[leader] = replace(self.quantizers[leader], widened_by=members, fixed=None)
        return True

    def widen_others(self) -> int:
        """Step 4; returns how many tensors it concerns. All that share a grid have one width."""
        tensors = self.model.graph.tensors()
        linear = [each for each in self.choice.chosen if each.rule.kind == "linear"]
        read = {grid_root(self.quantizers, t.name) for each in linear for t in each.data if t.name in self.quantizers}
        inputs = {t.name for t in self.model.graph.inputs}
        weights = {layer.weight.name for layer in linear_layers(self.model.graph.nodes)}
        widened = 0
        for name, quantizer in self.quantizers.items():
            root = grid_root(self.quantizers, name)
            if name in weights or quantizer.spec.grid.bits >= WIDE_BITS or (root in read and root not in inputs):
                continue
            grid = replace(quantizer.spec.grid, bits=WIDE_BITS)
            self.quantizers[name] = replace(quantizer, spec=replace(quantizer.spec, grid=grid))
            widened += isinstance(tensors[name], gs.Variable)
        return widened

    def keeps_grid(self, node: gs.Node) -> bool:
        """Whether what a node of data movement writes is on the grid of what it reads."""
        return any(t.name in self.quantizers for t in node.outputs)
