"""Which nodes of a float model a target runs in integers, and why the others do not.

This is the one rule: `AddQuantizers` places quantizers by it, and `onnxq check` asks it what a QDQ model was to have
quantized, on the float model that it finds inside (`check.float_view`). Nodes are looked at in the order of the graph:

    linear        always                              elementwise   where an input is computed in integers
    movement      where its input is in integers      residual      behind a convolution that computes in integers

Whoever made the model comes first (`keeps`), then the target's rule for the node, then the graph around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.model import Model
from ..graph.patterns import ACTIVATIONS, Composite, find_composites, residual_input
from ..graph.spectra import in_front_of_logarithms
from ..operators.elementwise import clip_bounds, is_infinite_at_zero
from ..operators.linear import LinearLayer, linear_layer, linear_layers
from ..operators.node import is_float, is_op
from ..operators.registry import operands, preserves_grid
from ..operators.tables import table_of
from ..report import Reason
from .target import OpRule, Target

Keeps = Callable[[gs.Node], Reason | None]
"""Why a node stays in float whatever the target says; None where it does not."""


@dataclass(frozen=True)
class ChosenNode:
    """A node that runs in integers. data: the tensors, beside weights of linear layers, that it needs quantized."""

    node: gs.Node
    rule: OpRule
    data: tuple[gs.Tensor, ...]


@dataclass
class Choice:
    """chosen: in the order of the graph.  reasons: of nodes that stay in float, by name.

    fused: a tensor, by identity -> the output of the activation that runs as the end of what computes it.
    composites: nodes, by identity, that are a part of one operator.
    kept: names of nodes that would run in integers, or as a part of one that does, if `keeps` did not say otherwise.
    """

    chosen: list[ChosenNode] = field(default_factory=list)
    reasons: dict[str, Reason] = field(default_factory=dict)
    fused: dict[int, gs.Tensor] = field(default_factory=dict)
    composites: dict[int, Composite] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)


def choose(
    model: Model, target: Target, keeps: Keeps, *, force_int_kernels: bool = False, weights_only: bool = False
) -> Choice:
    """The nodes of a float model that the target runs in integers.

    force_int_kernels: also those whose integer kernels are slower than their float ones.  weights_only: whether all
    activations stay in float.
    """
    return _Chooser(model, target, keeps, force_int_kernels, weights_only).run()


def data_inputs(node: gs.Node, rule: OpRule) -> list[gs.Tensor]:
    """The tensors, beside weights of linear layers, that must be quantized for a node to run in integers. Of a residual
    Add it depends on the graph, see `graph.patterns.residual_input`."""
    if rule.kind == "movement" or rule.grid != "own" or rule.data == "first":
        return [node.inputs[0]]
    if rule.kind == "linear":
        return [t for t in (node.inputs[i] for i in operands(node)) if not isinstance(t, gs.Constant)]
    return [t for t in node.inputs if t.name and is_float(t)]


class _Chooser:
    def __init__(self, model: Model, target: Target, keeps: Keeps, force: bool, weights_only: bool) -> None:
        self.model, self.target, self.keeps, self.force = model, target, keeps, force
        self.result = Choice(composites={id(n): whole for whole in find_composites(model) for n in whole.nodes})
        self.integer: set[int] = {id(t) for t in model.graph.inputs if is_float(t)}  # tensors, by identity
        self.inputs = set(self.integer)  # those that are but inputs of the model, moved at most
        self.gridded: set[int] = set()  # integers that cannot be had in float for nothing: their kernel writes a grid
        self.weights = {id(layer.weight) for layer in linear_layers(model.graph.nodes)}
        fusible = {operator: forms for operator, forms in ACTIVATIONS.items() if operator in target.fused}
        self.activations = {id(whole.input): whole for whole in find_composites(model, fusible)}
        self.fused_nodes: set[int] = set()
        self.spectra = {} if weights_only else in_front_of_logarithms(model)

    def run(self) -> Choice:
        layers = linear_layers(self.model.graph.nodes) if self.target.added_bias == "layer" else ()
        biases = {id(layer.bias_node) for layer in layers if layer.bias_node is not layer.node}
        for node in self.model.graph.nodes:
            if id(node) in biases or id(node) in self.fused_nodes:
                continue
            rule, kept = self._rule(node), self.keeps(node)
            if kept is not None:
                if isinstance(rule, ChosenNode) or table_of(node) is not None:
                    self.result.kept.add(node.name)
                rule = kept
            if isinstance(rule, ChosenNode):
                self._mark(node, rule.rule)
                self.result.chosen.append(rule)
            elif rule is None and self._commutes(node):
                self._hand_on(node)
            elif rule is not None and _computes_floats(node):
                self.result.reasons[node.name] = rule
        return self.result

    def _rule(self, node: gs.Node) -> ChosenNode | Reason | None:
        """What of the node is quantized, or why it is not; None where that is not worth a word."""
        if (whole := self.result.composites.get(id(node))) is not None:
            return Reason("part", f"part of {whole.operator}, which ends in {whole.nodes[0].name!r}")
        rule = self.target.rule(node)
        if isinstance(rule, str):
            return self._follows_float_layer(node) or Reason("target", rule)
        if (logarithm := self.spectra.get(id(node))) is not None and isinstance(self.target.rule(logarithm), str):
            return Reason(
                "spectrum", f"it makes a spectrum for Log {logarithm.name!r}, whose small values a grid loses"
            )
        if not self.force and (slow := rule.slow(node)) is not None:
            return Reason("slow", slow)
        beside = None if self.force else rule.between_floats(node)
        if beside is not None and self._is_between_floats(node):
            return Reason("slow", beside)
        if rule.kind in ("commuting", "either"):
            return None
        data = data_inputs(node, rule)
        if rule.kind == "residual":
            addend = residual_input(self.model, node, lambda tensor: id(tensor) in self.integer)
            if isinstance(addend, str):
                return Reason("target", addend)
            data = [addend]
        chosen = ChosenNode(node, rule, tuple(data))
        if not all(is_float(t) for t in (*data, *node.outputs[:1])):
            return None if rule.kind == "movement" else Reason("type", "its tensors are not float32")
        if rule.kind == "movement":
            if id(data[0]) in self.integer:
                return chosen
            idle = isinstance(data[0], gs.Constant) or all(map(self._ends_in_outputs, node.outputs))
            return chosen if self.target.joins == "everywhere" and not idle else None
        reason = self._elementwise_reason(node, data) if rule.kind == "elementwise" else None
        return reason or self._infinity_reason(chosen) or chosen

    def _is_between_floats(self, node: gs.Node) -> bool:
        """Whether all that a layer reads, and all that reads it, computes in float."""
        layer = linear_layer(node)
        if not isinstance(layer, LinearLayer):
            return False
        neighbours = [*layer.input.inputs, *layer.output.outputs]
        fused, rules = self.target.fused, self.target.rules
        return len(neighbours) > 1 and all(
            n.op not in fused and (n.op not in rules or self.keeps(n) is not None) for n in neighbours
        )

    def _elementwise_reason(self, node: gs.Node, data: list[gs.Tensor]) -> Reason | None:
        """Why an elementwise operator that has an integer kernel stays in float here."""
        if not self._joins(data):
            producers = (t.inputs[0].name for t in data if t.inputs)
            cause = next((name for name in producers if name in self.result.reasons), None)
            return Reason("inputs", "none of its inputs is computed in integers", cause)
        for constant in (t for t in data if isinstance(t, gs.Constant)):
            if id(constant) in self.weights:
                text = f"{constant.name!r} is the weight of a linear layer, which has a grid of its own"
                return Reason("constant", text)
            if not np.isfinite(constant.values).all():
                return Reason("constant", f"constant {constant.name!r} holds infinity or not-a-number")
        parts = self._ends_in_outputs(node.outputs[0], joined=True)
        if is_op(node, "Concat") and parts:
            text = "it puts outputs of the model together: narrow ones would be lost on the grid of wide ones"
            return Reason("output", text)
        if self.target.outputs != "grid" and (parts or self.model.is_output(node.outputs[0])):
            return Reason("output", "it computes an output of the model, which keeps float precision")
        return None

    def _infinity_reason(self, chosen: ChosenNode) -> Reason | None:
        """Why a node stays in float in front of a logarithm, or as a divisor: a grid has a zero where the values are
        only small. A kernel that writes float may run there, unless it adds a bias, the guard, that integers lose."""
        layer = linear_layer(chosen.node) if chosen.rule.kind == "linear" else None
        adds = isinstance(layer, LinearLayer) and layer.bias is not None
        if not _writes_grid(chosen.rule) and not adds:
            return None
        output = self._output(chosen.node, chosen.rule)
        activation = self._activation_behind(output)
        reader = self._infinite_reader(activation[0].outputs[0] if activation else output)
        if reader is None:
            return None
        return Reason("target", f"{reader.op} {reader.name!r} is infinite where a grid makes small values zero")

    def _infinite_reader(self, tensor: gs.Tensor) -> gs.Node | None:
        """A node in float that is infinite where `tensor`, moved at most, is zero."""
        for reader in tensor.outputs:
            if is_infinite_at_zero(reader, tensor):
                if isinstance(self.target.rule(reader), str):
                    return reader
            elif preserves_grid(reader) and reader.inputs[0] is tensor:
                for output in reader.outputs:
                    if (found := self._infinite_reader(output)) is not None:
                        return found
        return None

    def _output(self, node: gs.Node, rule: OpRule) -> gs.Tensor:
        """What a node computes, its bias included."""
        layer = linear_layer(node) if rule.kind == "linear" else None
        return self.target.output_of(layer) if isinstance(layer, LinearLayer) else node.outputs[0]

    def _follows_float_layer(self, node: gs.Node) -> Reason | None:
        """The reason of an activation that would run as the end of the layer before it, which stays in float."""
        before = node.inputs[0].inputs[0] if node.op in self.target.fused and node.inputs[0].inputs else None
        reason = None if before is None else self.result.reasons.get(before.name)
        if before is None or reason is None or not isinstance(linear_layer(before), LinearLayer):
            return None
        return Reason("inputs", f"it follows its {before.op}, which stays in float: {reason.text}", before.name)

    def _ends_in_outputs(self, tensor: gs.Tensor, *, joined: bool = False) -> bool:
        """Whether a tensor becomes an output of the model, moved at most, and nothing else. joined: or a part of one,
        by a Concat, which stays in float there."""
        if not tensor.outputs:
            return self.model.is_output(tensor)
        return all(
            ((joined and is_op(reader, "Concat")) or (preserves_grid(reader) and reader.inputs[0] is tensor))
            and all(self._ends_in_outputs(output, joined=joined) for output in reader.outputs)
            for reader in tensor.outputs
        )

    def _joins(self, data: list[gs.Tensor]) -> bool:
        """Whether an elementwise operator on these tensors is worth a place among the integers."""
        if self.target.joins == "everywhere":
            return True
        joined = self.integer if self.force or self.target.joins == "integers" else self.gridded
        return any(id(t) in joined - self.inputs for t in data)

    def _mark(self, node: gs.Node, rule: OpRule) -> None:
        outputs = [self._output(node, rule), *node.outputs[1:]]
        self.integer.update(map(id, outputs))
        if rule.kind == "movement":
            self._hand_on(node)
            return
        writes_grid = _writes_grid(rule)
        if writes_grid:
            self.gridded.update(map(id, outputs))
        activation = self._activation_behind(outputs[0])
        if activation and not writes_grid and self._infinite_reader(activation[0].outputs[0]) is not None:
            return  # what is computed in float stays above zero
        if activation:
            behind = activation[0].outputs[0]
            self.result.fused[id(outputs[0])] = behind
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
        reasons = {n.name: reason for n in nodes if (reason := self.keeps(n)) is not None}
        kept = {name for name, reason in reasons.items() if reason.kind != "not included"}
        self.result.kept |= kept
        return () if kept else nodes


def _writes_grid(rule: OpRule) -> bool:
    return rule.output == "grid" or rule.followed


def _computes_floats(node: gs.Node) -> bool:
    return any(t.dtype in (np.float16, np.float32, np.float64) for t in node.outputs if t.dtype is not None)
