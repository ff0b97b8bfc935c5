"""The graph of a planned model as a torch.nn.Module: its nodes in order, its quantizers in between.

    activation x    readers see x^, through the quantizer of its grid
    weight W        readers see W^; W is trained
    bias b          on integers at s_x s_w where lowering writes it so; b is trained

What is computed is what `lower_to_qdq` will write: the same tensors quantized alike, but for biases that a target
wants in 8 bits or added by operators of their own, which stay in float here. Activations that requantization performs
are kept, which changes nothing. Weights and biases go back into the ONNX model by their tensors' names; the network
itself is never exported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor, nn

from ..errors import EngineError, ModelError
from ..graph.model import Model, grid_root
from ..operators.linear import LinearLayer, linear_layers
from ..operators.node import ONNX_DOMAINS
from ..rounding.bias_scale import input_scale
from ..targets import Target
from .operators import Function, function_of
from .quantizer import LearnedQuantizer, on_bias_grid

AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean", "Resize")
"""Whose results are means of what they read, halves, quarters and the like."""


@dataclass(frozen=True)
class Read:
    """What a node reads: tensor `name`, through its quantizer or not.

    bias_of: the layer (input, weight, groups) whose accumulator's grid a bias is on.
    """

    name: str
    on_grid: bool = False
    bias_of: tuple[str, str, int] | None = None


@dataclass(frozen=True)
class Operation:
    """One node. spent: values that nothing reads later."""

    name: str
    op: str
    function: Function
    attributes: Mapping[str, Any]
    reads: tuple[Read | None, ...]
    writes: tuple[str, ...]
    spent: tuple[str, ...]


class TorchNetwork(nn.Module):
    """weights: what is trained, by tensor. quantizers: by the tensor that decides a grid. Keys as `key` makes them.

    model: the planned model, which stays as it is; without quantizers in it this is the float network.
    """

    def __init__(self, model: Model, target: Target, learn_ranges: bool = True) -> None:
        """Raises ModelError where operators have no counterpart here, naming all of them."""
        super().__init__()
        _refuse_unknown(model)
        self.model, self.target = model, target
        self.inputs = [t.name for t in model.graph.inputs]
        self.weights, self.quantizers = nn.ParameterDict(), nn.ModuleDict()
        self._constants: dict[str, Tensor] = {}
        self._roots = {name: grid_root(model.quantizers, name) for name in model.quantizers}
        tensors = model.graph.tensors()
        averaged = {root for node in model.graph.nodes if (root := self._kept_by_average(node)) is not None}
        for name in dict.fromkeys(self._roots.values()):
            self.quantizers[key(name)] = _quantizer(model, name, tensors[name], learn_ranges, name in averaged)
        layers = linear_layers(model.graph.nodes)
        self._layers = [(layer.weight.name, layer.bias.name if layer.bias is not None else None) for layer in layers]
        trained = {name for names in self._layers for name in names}
        for name, tensor in tensors.items():
            if isinstance(tensor, gs.Constant):
                self._hold(name, np.asarray(tensor.values), name in trained)
        biases = {id(layer.bias_node): layer for layer in layers if self._rounds_bias(layer)}
        self.outputs = {t.name: self._output(t) for t in model.graph.outputs}
        self.operations = self._operations([self._reads(node, biases.get(id(node))) for node in model.graph.nodes])

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs, in the model's order; one alone comes bare."""
        found = self.run(dict(zip(self.inputs, inputs, strict=True)))
        outputs = tuple(found[name] for name in self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, inputs: Mapping[str, Tensor], inner: Collection[str] = ()) -> dict[str, Tensor]:
        """Outputs by name, and the inner tensors `inner`, as they are before their quantizers."""
        values: dict[tuple[str, bool], Tensor] = {(name, False): x for name, x in inputs.items()}
        kept: dict[str, Tensor] = {}
        for operation in self.operations:
            results = self._compute(operation, values)
            for name, result in zip(operation.writes, results, strict=False):
                if name:
                    values[name, False] = result
                if name in inner:
                    kept[name] = result
            for name in operation.spent:
                values.pop((name, False), None)
                values.pop((name, True), None)
        return {**kept, **{name: self._value(read, values) for name, read in self.outputs.items()}}

    def _compute(self, operation: Operation, values: dict[tuple[str, bool], Tensor]) -> tuple[Tensor, ...]:
        inputs = [None if read is None else self._value(read, values) for read in operation.reads]
        try:
            result = operation.function(operation.attributes, *inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(
                f"{self.model.origin}: node {operation.name!r} ({operation.op}) failed in PyTorch: {reason}"
            ) from None
        return tuple(result) if isinstance(result, tuple | list) else (result,)

    def _value(self, read: Read, values: dict[tuple[str, bool], Tensor]) -> Tensor:
        if read.bias_of is not None:
            x, w, groups = read.bias_of
            scales = self._quantizer(x).scale(), self._quantizer(w).scale()
            return on_bias_grid(self.weights[key(read.name)], *scales, groups)
        place = read.name, read.on_grid
        if place not in values:
            values[place] = (
                self._quantizer(read.name)(self._float(read.name, values))
                if read.on_grid
                else (self._float(read.name, values))
            )
        return values[place]

    def _float(self, name: str, values: Mapping[tuple[str, bool], Tensor]) -> Tensor:
        if (name, False) in values:
            return values[name, False]
        return self.weights[key(name)] if key(name) in self.weights else self._constants[name]

    def _quantizer(self, name: str) -> LearnedQuantizer:
        module = self.quantizers[key(self._roots[name])]
        assert isinstance(module, LearnedQuantizer)
        return module

    def _hold(self, name: str, values: np.ndarray, trained: bool) -> None:
        tensor = torch.from_numpy(np.array(values))  # a copy: arrays are shared between models
        if trained:
            self.weights[key(name)] = nn.Parameter(tensor)
        else:
            self._constants[name] = tensor

    def _apply(self, fn: Any, recurse: bool = True) -> TorchNetwork:
        """`to` takes constants of floats along; integers, which are shapes, stay on the CPU."""
        super()._apply(fn, recurse)
        self._constants = {n: fn(t) if t.is_floating_point() else t for n, t in self._constants.items()}
        return self

    def units(self) -> dict[str, Tensor]:
        """By key of `weights`: in what units their changes count, of a shape that broadcasts.

        For a weight it is the step s of its grid: half of it is what rounding leaves, at any bits, and channels may
        differ by hundreds. A bias moves at its weight's relative speed, rms(b) rms(s) / rms(W); without a grid, rms(s)
        is rms(W).
        """
        found = {}
        for weight, bias in self._layers:
            w = self.weights[key(weight)].detach()
            found[key(weight)] = self._quantizer(weight).along(w) if weight in self._roots else _rms(w)
            if bias is not None:
                b = self.weights[key(bias)].detach()
                found[key(bias)] = _rms(b) * _rms(found[key(weight)]) / _rms(w)
        return found

    def _kept_by_average(self, node: gs.Node) -> str | None:
        """The grid that a node reads means of, and writes them on."""
        root = self._roots.get(node.inputs[0].name) if node.op in AVERAGES else None
        return root if root is not None and root == self._roots.get(node.outputs[0].name) else None

    def _rounds_bias(self, layer: LinearLayer) -> bool:
        target = self.target
        if layer.bias is None or target.bias != "int32" or target.adds_biases:
            return False
        if target.added_bias == "operator" and layer.bias_node is not layer.node:
            return False
        return input_scale(self.model, layer) is not None

    def _reads(self, node: gs.Node, layer: LinearLayer | None) -> tuple[Read | None, ...]:
        """layer: whose bias the node adds, where that is an integer."""
        found: list[Read | None] = []
        for tensor in node.inputs:
            quantizer = self.model.quantizers.get(tensor.name)
            if not tensor.name:
                found.append(None)
            elif layer is not None and id(tensor) == id(layer.bias):
                found.append(Read(tensor.name, bias_of=(layer.input.name, layer.weight.name, layer.groups)))
            elif quantizer is None:
                found.append(Read(tensor.name))
            else:
                everybody = not quantizer.readers and not isinstance(tensor, gs.Constant)
                rewritten = self._is_written_output(tensor)  # lowering then lets all readers follow
                found.append(Read(tensor.name, everybody or rewritten or node.name in quantizer.readers))
        return tuple(found)

    def _is_written_output(self, tensor: gs.Tensor) -> bool:
        """Whether a graph output leaves the model through its quantizer."""
        return self.target.outputs != "float" and self.model.is_output(tensor) and bool(tensor.inputs)

    def _output(self, tensor: gs.Tensor) -> Read:
        return Read(tensor.name, tensor.name in self.model.quantizers and self._is_written_output(tensor))

    def _operations(self, reads: list[tuple[Read | None, ...]]) -> list[Operation]:
        last: dict[str, int] = {}
        for index, found in enumerate(reads):
            last.update({read.name: index for read in found if read is not None})
        operations = []
        for index, (node, found) in enumerate(zip(self.model.graph.nodes, reads, strict=True)):
            names = {read.name for read in found if read is not None}
            spent = tuple(n for n in names if last[n] == index and n not in self.outputs)
            attributes = {**node.attrs, "_outputs": len(node.outputs)}
            writes = tuple(t.name for t in node.outputs)
            function = function_of(node)
            assert function is not None, "operators without one were refused"
            operations.append(Operation(node.name, node.op, function, attributes, found, writes, spent))
        return operations

    def written(self) -> Model:
        """A copy of the planned model with weights, biases and grids as they are now."""
        model = self.model.clone()
        tensors = model.graph.tensors()
        for name, tensor in tensors.items():
            if isinstance(tensor, gs.Constant) and key(name) in self.weights:
                tensor.values = np.array(self.weights[key(name)].detach().cpu().numpy())
        trained = {root: self._quantizer(root).trained_params() for root in set(self._roots.values())}
        for name, root in self._roots.items():
            model.quantizers[name] = model.quantizers[name].with_params(trained[root])
        return model


def key(name: str) -> str:
    """A tensor's name as PyTorch takes it for a parameter: without dots, and no method of a dictionary."""
    return "tensor " + name.replace("%", "%25").replace(".", "%2E")


def _rms(x: Tensor) -> Tensor:
    """1 for zeros."""
    size = x.square().mean().sqrt()
    return torch.where(size > 0, size, 1.0)


def _quantizer(model: Model, name: str, tensor: gs.Tensor, learn_ranges: bool, averaged: bool) -> LearnedQuantizer:
    quantizer = model.quantizers[name]
    assert quantizer.params is not None
    shape = tuple(n if isinstance(n, int) and n > 0 else 1 for n in tensor.shape or ())
    if not isinstance(tensor, gs.Constant):
        shape = shape[1:]  # a sample's elements, whatever the batch
    learned = learn_ranges and quantizer.fixed is None and not quantizer.given
    return LearnedQuantizer(quantizer.params, quantizer.spec, shape, learned, averaged)


def _refuse_unknown(model: Model) -> None:
    nodes = [n for n in model.graph.nodes if function_of(n) is None]
    if nodes:
        counts = Counter(n.op if n.domain in ONNX_DOMAINS else f"{n.domain}.{n.op}" for n in nodes)
        listed = ", ".join(f"{op} ({count} nodes, such as {_first(nodes, op)!r})" for op, count in counts.items())
        raise ModelError(
            f"{model.origin}: cannot be trained, since these operators have no counterpart in PyTorch here: {listed};"
            " `onnxq quantize` needs no training"
        )


def _first(nodes: list[gs.Node], op: str) -> str:
    return str(next(n.name for n in nodes if op.endswith(n.op)))
