"""Where quantizers go (white paper sections 2.3.2 and 2.3.3): the inputs of every operator that runs in integers.

    1. Choose the nodes (`_Choice`). Linear operators are quantized always; elementwise ones where an input is computed
       in integers. The user's patterns come first, then the target's rules, then the graph around the node: each may
       keep a node in float, with a `Reason`.
    2. Place quantizers (`_Placement`) at the tensors that these nodes read, and at those they must write. An activation
       that the target fuses stands between an operator and the quantizer of its output.
    3. Data movement keeps the grid of its input: walking backwards, what is wanted behind a Reshape is wanted
       before it, and the quantizer behind follows the one before.

A tensor has one quantizer, however many nodes read it. What was decided of each node is in `Model.placement`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import UsageError
from ..graph.model import Model, PlacedNode, Quantizer, grid_root
from ..graph.patterns import ACTIVATIONS, Composite, find_composites, residual_input
from ..numeric.quant import QuantSpec
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layer, linear_layers
from ..operators.node import ONNX_DOMAINS, is_float, is_op
from ..operators.registry import operands, preserves_grid
from ..operators.tables import table_of
from ..report import Reason
from ..targets import OpRule, Target
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class AddQuantizers:
    """Plan `Model.quantizers` for the target. What changes are the nodes that will run in integers.

    activation, weight: what they are to be like; None: they stay in float.  force_int_kernels: also use integer kernels
    that are slower than float ones.  include, exclude, keep_float: patterns (glob) of node names or operator types;
    only what is included and not excluded is quantized; keep_float excludes, too, in the name of overrides.
    tie: operator types whose inputs and output share one grid.
    """

    activation: QuantSpec | None
    weight: QuantSpec | None
    force_int_kernels: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    title: ClassVar[str] = "Add quantizers"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        self._refuse_unmatched_patterns(model)
        target = context.target
        choice = _Choice(model, target, self)
        chosen = choice.run()
        placement = _Placement(model, target, self, chosen, choice.fused, choice.composites)
        placement.place()
        tied = [
            placement.tie(node, output=node.op in self.tie or rule.tie == "all")
            for node, rule in chosen
            if node.op in self.tie or rule.tie != "none"
        ]
        model.quantizers.update(placement.quantizers)
        for node, rule in chosen:
            if rule.kind != "movement" or placement.keeps_grid(node):
                model.placement.nodes[node.name] = self._placed(node, rule, placement)
        model.placement.nodes |= {name: PlacedNode(reason) for name, reason in choice.reasons.items()}
        count = sum(placed.reason is None for placed in model.placement.nodes.values())
        skips = tuple(Skip(where, reason.text) for where, reason in choice.reasons.items())
        warnings = (*choice.unneeded_patterns(), *self._unneeded_ties(any(tied)))
        return Outcome(count, skips, (f"quantized tensors: {len(placement.quantizers)}",), warnings=warnings)

    def _placed(self, node: gs.Node, rule: OpRule, placement: _Placement) -> PlacedNode:
        """What a chosen node needs; the preset may keep it in float all the same."""
        layer = linear_layer(node) if rule.kind == "linear" else None
        weight = layer.weight.name if isinstance(layer, LinearLayer) else None
        if weight is not None and self.weight is None:
            return PlacedNode(Reason("preset", "the preset leaves weights in float"))
        if weight is None and self.activation is None:
            return PlacedNode(Reason("preset", "the preset leaves activations in float"))
        data = _data_inputs(placement.model, node, rule)
        return PlacedNode(None, tuple(t.name for t in data if id(t) not in placement.biases), weight)

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
        return None


def _matches(node: gs.Node, pattern: str) -> bool:
    return fnmatchcase(node.name, pattern) or fnmatchcase(node.op, pattern)


def _data_inputs(model: Model, node: gs.Node, rule: OpRule) -> list[gs.Tensor]:
    """The tensors, beside weights of linear layers, that must be quantized for the node to run in integers."""
    if rule.kind == "residual":
        branch = residual_input(model, node)
        return [] if isinstance(branch, str) else [branch]
    if rule.kind == "movement" or rule.grid != "own" or rule.data == "first":
        return [node.inputs[0]]
    if rule.kind == "linear":
        return [t for t in (node.inputs[i] for i in operands(node)) if not isinstance(t, gs.Constant)]
    return [t for t in node.inputs if t.name and is_float(t)]


class _Choice:
    """Step 1: which nodes run in integers, and why the others do not."""

    def __init__(self, model: Model, target: Target, options: AddQuantizers) -> None:
        self.model, self.target, self.options = model, target, options
        self.reasons: dict[str, Reason] = {}  # of nodes that stay in float, by name
        self.integer: set[int] = {id(t) for t in model.graph.inputs if is_float(t)}  # tensors, by identity
        self.inputs = set(self.integer)  # those that are but inputs of the model, moved at most
        self.gridded: set[int] = set()  # integers that cannot be had in float for nothing: their kernel writes a grid
        self.weights = {id(layer.weight) for layer in linear_layers(model.graph.nodes)}
        self.composites = {id(node): whole for whole in find_composites(model) for node in whole.nodes}
        fusible = {operator: forms for operator, forms in ACTIVATIONS.items() if operator in target.fused}
        self.activations = {id(whole.input): whole for whole in find_composites(model, fusible)}
        self.fused: dict[int, gs.Tensor] = {}  # tensor -> output of the activation that its producer fuses
        self.fused_nodes: set[int] = set()
        self.needed: set[str] = set()  # patterns of the user's without which something would run in integers

    def run(self) -> list[tuple[gs.Node, OpRule]]:
        chosen = []
        layers = linear_layers(self.model.graph.nodes) if self.target.added_bias == "layer" else ()
        biases = {id(layer.bias_node) for layer in layers if layer.bias_node is not layer.node}
        for node in self.model.graph.nodes:
            if id(node) in biases or id(node) in self.fused_nodes:
                continue
            rule, users = self._rule(node), self.options.users_reason(node)
            if users is not None:
                if isinstance(rule, OpRule) or table_of(node) is not None:
                    self.needed.update(p for p, _ in self.options.patterns() if _matches(node, p))
                rule = users
            if isinstance(rule, OpRule):
                self._mark(node, rule)
                chosen.append((node, rule))
            elif rule is None and self._commutes(node):
                self._hand_on(node)
            elif rule is not None and _computes_floats(node):
                self.reasons[node.name] = rule
        return chosen

    def unneeded_patterns(self) -> Iterator[str]:
        """Of the user's patterns, those that match what stays in float without them."""
        for pattern, name in self.options.patterns():
            if pattern not in self.needed:
                yield f"{name} did nothing: what it matches stays in float, or runs as a part of another node, anyway"

    def _rule(self, node: gs.Node) -> OpRule | Reason | None:
        """The rule by which the node is quantized, or why it is not; None where that is not worth a word."""
        if (whole := self.composites.get(id(node))) is not None:
            return Reason("part", f"part of {whole.operator}, which ends in {whole.nodes[0].name!r}")
        rule = self.target.rule(node)
        if isinstance(rule, str):
            return self._follows_float_layer(node) or Reason("target", rule)
        if not self.options.force_int_kernels and (slow := rule.slow(node)) is not None:
            return Reason("slow", slow)
        if rule.kind in ("commuting", "either"):
            return None
        if rule.kind == "residual" and isinstance(addend := residual_input(self.model, node), str):
            return Reason("target", addend)
        data = _data_inputs(self.model, node, rule)
        if not all(is_float(t) for t in (*data, *node.outputs[:1])):
            return None if rule.kind == "movement" else Reason("type", "its tensors are not float32")
        if rule.kind == "movement":
            if id(data[0]) in self.integer:
                return rule
            idle = isinstance(data[0], gs.Constant) or all(map(self._ends_in_outputs, node.outputs))
            return rule if self.target.joins == "everywhere" and not idle else None
        return self._elementwise_reason(node, data) or rule if rule.kind == "elementwise" else rule

    def _elementwise_reason(self, node: gs.Node, data: list[gs.Tensor]) -> Reason | None:
        """Why an elementwise operator that has an integer kernel stays in float here."""
        if not self._joins(data):
            producers = (t.inputs[0].name for t in data if t.inputs)
            cause = next((name for name in producers if name in self.reasons), None)
            return Reason("inputs", "none of its inputs is computed in integers", cause)
        for constant in (t for t in data if isinstance(t, gs.Constant)):
            if id(constant) in self.weights:
                text = f"{constant.name!r} is the weight of a linear layer, which has a grid of its own"
                return Reason("constant", text)
            if not np.isfinite(constant.values).all():
                return Reason("constant", f"constant {constant.name!r} holds infinity or not-a-number")
        if is_op(node, "Concat") and self._ends_in_outputs(node.outputs[0]):
            text = "it puts outputs of the model together: narrow ones would be lost on the grid of wide ones"
            return Reason("output", text)
        if self.target.outputs != "grid" and self.model.is_output(node.outputs[0]):
            return Reason("output", "it computes an output of the model, which keeps float precision")
        return None

    def _follows_float_layer(self, node: gs.Node) -> Reason | None:
        """The reason of an activation that would run as the end of the layer before it, which stays in float."""
        before = node.inputs[0].inputs[0] if node.op in self.target.fused and node.inputs[0].inputs else None
        reason = None if before is None else self.reasons.get(before.name)
        if before is None or reason is None or not isinstance(linear_layer(before), LinearLayer):
            return None
        return Reason("inputs", f"it follows its {before.op}, which stays in float: {reason.text}", before.name)

    def _ends_in_outputs(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor becomes an output of the model, moved at most, and nothing else."""
        if not tensor.outputs:
            return self.model.is_output(tensor)
        return all(
            preserves_grid(reader) and reader.inputs[0] is tensor and all(map(self._ends_in_outputs, reader.outputs))
            for reader in tensor.outputs
        )

    def _joins(self, data: list[gs.Tensor]) -> bool:
        """Whether an elementwise operator on these tensors is worth a place among the integers."""
        if self.target.joins == "everywhere":
            return True
        joined = self.integer if self.options.force_int_kernels or self.target.joins == "integers" else self.gridded
        return any(id(t) in joined - self.inputs for t in data)

    def _mark(self, node: gs.Node, rule: OpRule) -> None:
        outputs = list(node.outputs)
        layer = linear_layer(node) if rule.kind == "linear" else None
        if isinstance(layer, LinearLayer):
            outputs = [self.target.output_of(layer)]
        self.integer.update(map(id, outputs))
        if rule.kind == "movement":
            self._hand_on(node)
            return
        writes_grid = rule.output == "grid" or rule.followed
        if writes_grid:
            self.gridded.update(map(id, outputs))
        activation = self._activation_behind(outputs[0])
        if activation:
            behind = activation[0].outputs[0]
            self.fused[id(outputs[0])] = behind
            self.fused_nodes.update(map(id, activation))
            self.integer.add(id(behind))
            if writes_grid or self.target.fused_needs_grid:
                self.gridded.add(id(behind))

    def _commutes(self, node: gs.Node) -> bool:
        rule = self.target.rule(node)
        return isinstance(rule, OpRule) and rule.kind == "commuting"

    def _hand_on(self, node: gs.Node) -> None:
        """What a node writes that moves integers, or that quantization moves past, is what it reads."""
        for kept in (self.integer, self.inputs, self.gridded):
            if id(node.inputs[0]) in kept:
                kept.update(map(id, node.outputs))

    def _activation_behind(self, tensor: gs.Tensor) -> tuple[gs.Node, ...]:
        """The nodes, the last one first, of the activation that runs as the end of what computes a tensor."""
        nodes: tuple[gs.Node, ...] = ()
        sole, whole = self.model.sole_consumer(tensor), self.activations.get(id(tensor))
        if sole is not None and is_op(sole, *self.target.fused):
            nodes = (sole,) if clip_bounds(sole) is not None or not is_op(sole, "Clip") else ()
        elif whole is not None and not self.model.is_output(tensor):
            inside = set(map(id, whole.nodes))
            nodes = whole.nodes if all(id(reader) in inside for reader in tensor.outputs) else ()
        kept = {pattern for pattern, _ in self.options.patterns() if any(_matches(n, pattern) for n in nodes)}
        self.needed |= kept
        return () if kept else nodes


def _computes_floats(node: gs.Node) -> bool:
    return any(t.dtype in (np.float16, np.float32, np.float64) for t in node.outputs if t.dtype is not None)


@dataclass
class _Placement:
    """Steps 2 and 3: the quantizers of the chosen nodes, by tensor name."""

    model: Model
    target: Target
    options: AddQuantizers
    chosen: list[tuple[gs.Node, OpRule]]
    fused: Mapping[int, gs.Tensor]
    composites: Mapping[int, Composite]
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    biases: set[int] = field(default_factory=set)  # constants, by identity, whose grids come with lowering

    def place(self) -> None:
        self.biases = {id(layer.bias) for layer in linear_layers(self.model.graph.nodes)}
        for node, rule in self.chosen:
            if rule.kind == "movement":
                continue
            for tensor in _data_inputs(self.model, node, rule):
                if id(tensor) not in self.biases:
                    self._activation(tensor, node)
            layer = linear_layer(node) if rule.kind == "linear" else None
            if isinstance(layer, LinearLayer):
                self._weight(layer, rule)
            if rule.output == "grid" or self._ends_in_activation(node):
                self._output(node, rule)
        self._follow_movement()
        self._follow_commuting()
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
        operator = self.composites[id(node)].operator if id(node) in self.composites else node.op
        rule = self.target.rules.get(operator)
        return None if rule is None else rule.fixed

    def _weight(self, layer: LinearLayer, rule: OpRule) -> None:
        spec = self.options.weight
        if spec is None:
            return
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
        return id(output) in self.fused and not self.model.is_output(self.fused[id(output)])

    def _output(self, node: gs.Node, rule: OpRule) -> None:
        layer = linear_layer(node) if rule.kind == "linear" else None
        output = self.target.output_of(layer) if isinstance(layer, LinearLayer) else node.outputs[0]
        behind = self.fused.get(id(output), output)
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
        moving = [node for node, rule in self.chosen if rule.kind == "movement"]
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

    def _in_graph_order(self) -> None:
        order = {name: index for index, name in enumerate(self.model.graph.tensors())}
        self.quantizers = dict(sorted(self.quantizers.items(), key=lambda item: order[item[0]]))

    def tie(self, node: gs.Node, output: bool) -> bool:
        """Let all inputs of `node`, and its output where that is wanted, share one grid, wide enough for all; whether
        there was anything to share."""
        last = node.outputs[0]
        tensors = (*node.inputs, *(self.fused.get(id(last), last),) * output)
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

    def keeps_grid(self, node: gs.Node) -> bool:
        """Whether what a node of data movement writes is on the grid of what it reads."""
        return any(t.name in self.quantizers for t in node.outputs)
