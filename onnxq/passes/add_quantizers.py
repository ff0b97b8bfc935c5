"""Where quantizers go (white paper sections 2.3.2 and 2.3.3): the inputs of every operator that runs in integers.

    1. Choose the nodes. Linear operators are quantized always; elementwise ones where an input is computed in
       integers; the target's rules and the user's patterns may keep a node in float, with a reason.
    2. Put the tensors that these nodes read, and those they must write, onto grids. An activation that the target
       fuses stands between an operator and the quantizer of its output.
    3. Data movement keeps the grid of its input: walking backwards, what is wanted behind a Reshape is wanted
       before it, and the quantizer behind follows the one before.

A tensor has one quantizer, however many nodes read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import UsageError
from ..graph.model import Model, Quantizer, grid_root
from ..graph.patterns import ACTIVATIONS, Composite, find_composites, residual_input
from ..numeric.quant import QuantSpec
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layer, linear_layers
from ..operators.node import ONNX_DOMAINS, is_float, is_op
from ..operators.registry import operands, preserves_grid
from ..targets import OpRule, Target
from .base import Context, Outcome, Skip


@dataclass(frozen=True)
class AddQuantizers:
    """Plan `Model.quantizers` for the target. What changes are the nodes that will run in integers.

    activation, weight: what they are to be like; None: they stay in float.  force_int_kernels: also use integer kernels
    that are slower than float ones.  include, exclude: patterns (glob) of node names or
    operator types; only what is included and not excluded is quantized.  tie: operator types whose inputs and
    output share one grid.
    """

    activation: QuantSpec | None
    weight: QuantSpec | None
    force_int_kernels: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        self._refuse_idle_patterns(model)
        target = context.target
        choice = _Choice(model, target, self)
        chosen, skips = choice.run()
        placement = _Placement(model, target, self, chosen, choice.fused, choice.composites)
        placement.place()
        for node, rule in chosen:
            if node.op in self.tie or rule.tie != "none":
                placement.tie(node, output=node.op in self.tie or rule.tie == "all")
        model.quantizers.update(placement.quantizers)
        moved_in_float = sum(r.kind == "movement" and not placement.keeps_grid(n) for n, r in chosen)
        notes = (f"quantized tensors: {len(placement.quantizers)}",)
        return Outcome(len(chosen) - moved_in_float, tuple(skips), notes)

    def _refuse_idle_patterns(self, model: Model) -> None:
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(_matches(node, pattern) for node in model.graph.nodes):
                    raise UsageError(
                        f"`{option}` {pattern!r} matches no node name and no operator type of {model.origin};"
                        " `onnxq inspect` lists them"
                    )

    def unwanted(self, node: gs.Node) -> str | None:
        """Why the user's patterns keep the node in float; None where they do not."""
        for pattern in self.exclude:
            if _matches(node, pattern):
                return f"excluded by {pattern!r}"
        if self.include and not any(_matches(node, pattern) for pattern in self.include):
            return "not included"
        return None


def _matches(node: gs.Node, pattern: str) -> bool:
    return fnmatchcase(node.name, pattern) or fnmatchcase(node.op, pattern)


def _data_inputs(model: Model, node: gs.Node, rule: OpRule) -> list[gs.Tensor]:
    """The tensors that must be quantized when the node runs in integers; linear layers' weights are not among them."""
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
        self.integer: set[int] = {id(t) for t in model.graph.inputs if is_float(t)}  # tensors, by identity
        self.inputs = set(self.integer)  # those that are but inputs of the model, moved at most
        self.gridded: set[int] = set()  # integers that cannot be had in float for nothing: their kernel writes a grid
        self.weights = {id(layer.weight) for layer in linear_layers(model.graph.nodes)}
        self.composites = {id(node): whole for whole in find_composites(model) for node in whole.nodes}
        fusible = {operator: forms for operator, forms in ACTIVATIONS.items() if operator in target.fused}
        self.activations = {id(whole.input): whole for whole in find_composites(model, fusible)}
        self.fused: dict[int, gs.Tensor] = {}  # tensor -> output of the activation that its producer fuses
        self.fused_nodes: set[int] = set()

    def run(self) -> tuple[list[tuple[gs.Node, OpRule]], list[Skip]]:
        chosen, skips = [], []
        layers = linear_layers(self.model.graph.nodes) if self.target.added_bias == "layer" else ()
        biases = {id(layer.bias_node) for layer in layers if layer.bias_node is not layer.node}
        for node in self.model.graph.nodes:
            if id(node) in biases or id(node) in self.fused_nodes:
                continue
            rule = self.options.unwanted(node) or self._rule(node)
            if isinstance(rule, OpRule):
                self._mark(node, rule)
                chosen.append((node, rule))
            elif rule and _computes_floats(node):
                skips.append(Skip(node.name, rule))
        return chosen, skips

    def _rule(self, node: gs.Node) -> OpRule | str:
        """The rule by which the node is quantized, or why it is not; empty where that is not worth a word."""
        if (whole := self.composites.get(id(node))) is not None:
            return f"part of {whole.operator}, which ends in {whole.nodes[0].name!r}"
        rule = self.target.rule(node)
        if isinstance(rule, str):
            return rule
        if not self.options.force_int_kernels and (reason := rule.slow(node)) is not None:
            return reason
        if rule.kind in ("commuting", "either"):
            if rule.kind == "commuting":
                self._hand_on(node)
            return ""
        if rule.kind == "residual" and isinstance(addend := residual_input(self.model, node), str):
            return addend
        data = _data_inputs(self.model, node, rule)
        if not all(is_float(t) for t in (*data, *node.outputs[:1])):
            return "" if rule.kind == "movement" else "its tensors are not float32"
        if rule.kind == "movement":
            if id(data[0]) in self.integer:
                return rule
            idle = isinstance(data[0], gs.Constant) or all(map(self._ends_in_outputs, node.outputs))
            return rule if self.target.joins == "everywhere" and not idle else ""
        if rule.kind == "elementwise":
            if not self._joins(data):
                return "none of its inputs is computed in integers"
            for constant in (t for t in data if isinstance(t, gs.Constant)):
                if id(constant) in self.weights:
                    return f"{constant.name!r} is the weight of a linear layer, which has a grid of its own"
                if not np.isfinite(constant.values).all():
                    return f"constant {constant.name!r} holds infinity or not-a-number"
            if is_op(node, "Concat") and self._ends_in_outputs(node.outputs[0]):
                return "it puts outputs of the model together: narrow ones would be lost on the grid of wide ones"
            if self.target.outputs != "grid" and self.model.is_output(node.outputs[0]):
                return "it computes an output of the model, which keeps float precision"
        return rule

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
        return () if any(_matches(n, pattern) for n in nodes for pattern in self.options.exclude) else nodes


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

    def tie(self, node: gs.Node, output: bool) -> None:
        """Let all inputs of `node`, and its output where that is asked for, share one grid, wide enough for all."""
        last = node.outputs[0]
        tensors = (*node.inputs, *(self.fused.get(id(last), last),) * output)
        names = [t.name for t in tensors if not isinstance(t, gs.Constant)]
        roots = dict.fromkeys(grid_root(self.quantizers, name) for name in names if name in self.quantizers)
        if len(roots) < 2:
            return
        leader, *others = roots
        members = self.quantizers[leader].widened_by
        for other in others:
            members += (other, *self.quantizers[other].widened_by)
            self.quantizers[other] = replace(self.quantizers[other], grid_of=leader, widened_by=(), fixed=None)
        self.quantizers[leader] = replace(self.quantizers[leader], widened_by=members, fixed=None)

    def keeps_grid(self, node: gs.Node) -> bool:
        """Whether what a node of data movement writes is on the grid of what it reads."""
        return any(t.name in self.quantizers for t in node.outputs)
