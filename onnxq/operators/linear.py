"""Linear layers, y = W x + b with W, b constant, whatever operator computes them.

Exporters write the bias of an operator without a bias input, such as MatMul, as an Add behind it; the two are one layer
here. Where the channels lie says the operator's `LinearForm`:

    operator        weight                      output-channel axis of W    of y
    Conv            (Cout, Cin/group, k...)     0                           1
    ConvTranspose   (Cin, Cout/group, k...)     1 (within each group)       1
    Gemm            (Cin, Cout), transB swaps   1, or 0 where transB        1
    MatMul          (..., Cin, Cout)            -1                          -1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from .node import in_subgraph, is_op, rank
from .registry import operator_of

if TYPE_CHECKING:
    from .matrix import LayerMatrix

Attributes = Mapping[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LinearForm(ABC):
    """What all linear operators are described by; input 0 is x.

    weight, bias: the inputs that hold W and b; without a bias input, an Add behind the node adds b.
    output_axis: where the channels lie in x and y, 1 or -1.
    grouped: along which axis of the weight groups follow each other, where the operator has groups.
    is_convolution: whether W slides over positions, so that what follows may run as the end of it.
    counted: whether multiplications are counted by the elements of y, or of x.
    computed_weight: whether the operator exists for two activations as well.
    """

    weight: int = 1
    bias: int | None = 2
    output_axis: Literal[1, -1] = 1
    grouped: Literal["output", "input"] = "output"
    counted: Literal["output", "input"] = "output"
    is_convolution: bool = False
    computed_weight: bool = False

    @abstractmethod
    def axes(self, attributes: Attributes, ndim: int) -> tuple[int, int]:
        """Axes of the output and of the input channels in a weight of `ndim` dimensions, never negative."""

    @abstractmethod
    def products(self, attributes: Attributes, weight: Shape) -> int:
        """Multiplications for each element of y, or of x (`counted`), from the weight's shape."""

    @abstractmethod
    def matrix(self, layer: LinearLayer) -> LayerMatrix:
        """The layer as one product of matrices."""

    def refuses(self, node: gs.Node, weight: gs.Constant, bias: gs.Constant | None) -> str | None:
        """Why this very node is no linear layer, or None."""
        return None

    def rank(self, layer: LinearLayer) -> int | None:
        """Number of dimensions of x and y; None where unknown."""
        return rank(layer.input)

    def coverage(self, layer: LinearLayer) -> NDArray[np.float64]:
        """At which share of the output positions each tap of the weight reads an input, and not padding, (taps,); or
        (1,), where it is the same for all (white paper section 3.3.1)."""
        return np.ones(1)

    def varies(self, layer: LinearLayer) -> str | None:
        """Why an input that is the same at all positions gives an output that is not; None where it does not."""
        return None


@dataclass(frozen=True)
class LinearLayer:
    """A linear operator with constant weights, its bias, and where they sit.

    form: of its operator.  bias_node: the node that adds the bias, `node` or an Add behind it; None without bias.
    """

    node: gs.Node
    form: LinearForm
    weight: gs.Constant
    bias: gs.Constant | None
    bias_node: gs.Node | None

    @property
    def input(self) -> gs.Tensor:
        return self.node.inputs[0]

    @property
    def output(self) -> gs.Tensor:
        """What the layer computes, bias included."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def bias_values(self) -> NDArray[np.float64]:
        """The bias, (Cout,); zeros where there is none."""
        return np.zeros(self.channels) if self.bias is None else np.asarray(self.bias.values, np.float64)

    @property
    def groups(self) -> int:
        return int(self.node.attrs.get("group", 1)) if self.form.is_convolution else 1

    @property
    def axis(self) -> int:
        """The axis of the weight that output channels (of a group) run along, never negative."""
        return self.form.axes(self.node.attrs, len(self.weight.shape))[0]

    @property
    def reduction_axis(self) -> int:
        """The axis of the weight that input channels (of a group) run along, never negative."""
        return self.form.axes(self.node.attrs, len(self.weight.shape))[1]

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[self.axis]) * (self.groups if self.form.grouped == "input" else 1)

    @property
    def input_channels(self) -> int:
        return int(self.weight.shape[self.reduction_axis]) * (self.groups if self.form.grouped == "output" else 1)

    @property
    def output_axis(self) -> int:
        """Where the channels lie in the input and in the output, 1 or -1."""
        return self.form.output_axis

    @property
    def rank(self) -> int | None:
        """Number of dimensions of input and output; None where unknown."""
        return self.form.rank(self)

    @property
    def varies(self) -> str | None:
        """Why an input that is the same at all positions gives an output that is not; None where it does not."""
        return self.form.varies(self)

    @property
    def counted(self) -> gs.Tensor:
        """The tensor each element of which takes `products` multiplications."""
        return self.input if self.form.counted == "input" else self.output

    @property
    def products(self) -> int:
        return self.form.products(self.node.attrs, tuple(map(int, self.weight.shape)))


def linear_layer(node: gs.Node) -> LinearLayer | str:
    """The layer that `node` is the heart of, or the reason why it is none."""
    operator = operator_of(node)
    if operator is None or (form := operator.linear) is None:
        return f"{node.op} is not a linear operator"
    weight = node.inputs[form.weight] if len(node.inputs) > form.weight else None
    if weight is None:
        return f"it has no input {form.weight}, the weight"
    if not isinstance(weight, gs.Constant):
        return f"weight {weight.name!r} is not constant"
    if isinstance(node.inputs[0], gs.Constant):
        return "the input is a constant too"
    if 0 in weight.shape:
        return f"weight {weight.name!r} has no elements"
    if form.bias is None:
        return form.refuses(node, weight, None) or _with_added_bias(node, form, weight)
    bias = node.inputs[form.bias] if len(node.inputs) > form.bias and node.inputs[form.bias].name else None
    if bias is not None and not isinstance(bias, gs.Constant):
        return f"bias {bias.name!r} is not constant"
    if reason := form.refuses(node, weight, bias):
        return reason
    return LinearLayer(node, form, weight, bias, node if bias is not None else None)


def linear_layers(nodes: Iterable[gs.Node]) -> list[LinearLayer]:
    """The layers among some nodes, in their order."""
    return [layer for node in nodes if isinstance(layer := linear_layer(node), LinearLayer)]


def adds_bias_of(node: gs.Node) -> gs.Node | None:
    """The linear operator without a bias input whose product, by itself or with other terms, an Add reads."""
    if not is_op(node, "Add"):
        return None
    producers = [t.inputs[0] for t in node.inputs if t.inputs]
    return next((producer for producer in producers if lacks_bias_input(producer)), None)


def lacks_bias_input(node: gs.Node) -> bool:
    """Whether a linear operator's bias, where it has one, is added by a node behind it."""
    operator = operator_of(node)
    return operator is not None and operator.linear is not None and operator.linear.bias is None


def layer_ending_in(tensor: gs.Tensor) -> LinearLayer | str:
    """The linear layer whose output, bias included, is `tensor`; the reason if there is none."""
    if not tensor.inputs:
        return f"{tensor.name!r} is not computed by a linear layer"
    producer = tensor.inputs[0]
    layer = linear_layer(adds_bias_of(producer) or producer)
    if isinstance(layer, str) or layer.output is tensor:
        return layer
    return f"{tensor.name!r} is not computed by a linear layer alone"


def _with_added_bias(node: gs.Node, form: LinearForm, weight: gs.Constant) -> LinearLayer:
    bare = LinearLayer(node, form, weight, None, None)
    readers = node.outputs[0].outputs
    if len(readers) != 1 or not is_op(readers[0], "Add") or in_subgraph(readers[0]):
        return bare
    bias = next((t for t in readers[0].inputs if isinstance(t, gs.Constant)), None)
    if bias is None or tuple(bias.shape) != (bare.channels,) or bias.dtype != weight.dtype:
        return bare
    return LinearLayer(node, form, weight, bias, readers[0])


def is_depthwise(layer: LinearLayer) -> bool:
    """A convolution in which every output channel reads one input channel."""
    return layer.groups > 1 and layer.form.grouped == "output" and int(layer.weight.shape[layer.reduction_axis]) == 1
