"""What ONNX operators mean to quantization: linear layers and their channel axes, data movement, activations.

A linear layer computes y = W x + b with W, b constant. Where the output channels lie:

    operator        weight                      output-channel axis of W    of y
    Conv            (Cout, Cin/group, k...)     0                           1
    ConvTranspose   (Cin, Cout/group, k...)     1 (within each group)       1
    Gemm            (Cin, Cout), transB swaps   1, or 0 where transB        1
    MatMul          (..., Cin, Cout)            -1                          -1

Exporters write the bias of MatMul as an Add behind it; the two are one layer here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

ONNX_DOMAINS = (None, "", "ai.onnx")


@dataclass(frozen=True)
class LinearLayer:
    """A linear operator with constant weights, its bias, and where they sit.

    axis: output-channel axis of the weight, never negative.  bias_node: the node that adds the bias, `node` or
    an Add behind it; None without bias.  output: what the layer computes, bias included.
    """

    node: gs.Node
    input: gs.Tensor
    weight: gs.Constant
    axis: int
    bias: gs.Constant | None
    bias_node: gs.Node | None

    @property
    def output(self) -> gs.Tensor:
        return (self.bias_node or self.node).outputs[0]

    @property
    def bias_values(self) -> NDArray[np.float64]:
        """The bias, (Cout,); zeros where there is none."""
        return np.zeros(self.channels) if self.bias is None else np.asarray(self.bias.values, np.float64)

    @property
    def groups(self) -> int:
        return int(self.node.attrs.get("group", 1))

    @property
    def reduction_axis(self) -> int:
        """The axis of the weight that input channels (of a group) run along, never negative."""
        if self.node.op == "MatMul":
            return len(self.weight.shape) - 2
        return 1 - self.axis

    @property
    def channels(self) -> int:
        """Number of output channels."""
        count = int(self.weight.shape[self.axis])
        return count * self.groups if self.node.op == "ConvTranspose" else count

    @property
    def output_axis(self) -> int:
        """Where the channels lie in the output: 1, or -1 behind MatMul."""
        return -1 if self.node.op == "MatMul" else 1


LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_op(node: gs.Node, *ops: str) -> bool:
    """Whether the node is one of these operators of the standard ONNX domain."""
    return node.op in ops and node.domain in ONNX_DOMAINS


def in_subgraph(node: gs.Node) -> bool:
    """Whether the node lies in a branch or in the body of a loop, as `Model.from_proto` marks those that do."""
    return getattr(node, "in_subgraph", False)


def linear_layer(node: gs.Node) -> LinearLayer | str:
    """The layer that `node` is the heart of, or the reason why it is none."""
    if not is_op(node, *LINEAR_OPS):
        return f"{node.op} is not a linear operator"
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant):
        return f"weight {weight.name!r} is not constant"
    if isinstance(node.inputs[0], gs.Constant):
        return "the input is a constant too"
    if 0 in weight.shape:
        return f"weight {weight.name!r} has no elements"
    if node.op == "MatMul":
        if len(weight.shape) < 2:
            return f"weight {weight.name!r} is a vector"
        if rank(node.inputs[0]) == 1:
            return f"the input {node.inputs[0].name!r} is a vector, without a batch"
        return _with_added_bias(node, weight)
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is not None and not isinstance(bias, gs.Constant):
        return f"bias {bias.name!r} is not constant"
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return "the input is transposed (transA)"
        if node.attrs.get("alpha", 1.0) != 1.0 or (bias is not None and node.attrs.get("beta", 1.0) != 1.0):
            return "alpha or beta is not 1"
        axis = 0 if node.attrs.get("transB", 0) else 1
        if bias is not None and tuple(bias.shape) != (weight.shape[axis],):
            return f"bias {bias.name!r} of shape {tuple(bias.shape)} is not one value a channel"
    else:
        axis = 0 if node.op == "Conv" else 1
    return LinearLayer(node, node.inputs[0], weight, axis, bias, node if bias is not None else None)


def layer_ending_in(tensor: gs.Tensor) -> LinearLayer | str:
    """The linear layer whose output, bias included, is `tensor`; the reason if there is none."""
    if not tensor.inputs:
        return f"{tensor.name!r} is not computed by a linear layer"
    producer = tensor.inputs[0]
    heart = producer
    if is_op(producer, "Add"):
        products = [t.inputs[0] for t in producer.inputs if t.inputs and is_op(t.inputs[0], "MatMul")]
        heart = products[0] if products else producer
    layer = linear_layer(heart)
    if isinstance(layer, str) or layer.output is tensor:
        return layer
    return f"{tensor.name!r} is not computed by a linear layer alone"


def _with_added_bias(node: gs.Node, weight: gs.Constant) -> LinearLayer:
    bare = LinearLayer(node, node.inputs[0], weight, len(weight.shape) - 1, None, None)
    output = node.outputs[0]
    if len(output.outputs) != 1 or not is_op(output.outputs[0], "Add") or in_subgraph(output.outputs[0]):
        return bare
    add = output.outputs[0]
    bias = next((t for t in add.inputs if isinstance(t, gs.Constant)), None)
    if bias is None or tuple(bias.shape) != (weight.shape[-1],) or bias.dtype != weight.dtype:
        return bare
    return LinearLayer(node, node.inputs[0], weight, bare.axis, bias, add)


def is_depthwise(layer: LinearLayer) -> bool:
    """A Conv in which every output channel reads one input channel."""
    return layer.node.op == "Conv" and layer.groups > 1 and int(layer.weight.shape[1]) == 1


def channel_vector(constant: gs.Constant, channels: int, axis: int, ndim: int | None) -> np.ndarray | None:
    """A constant that broadcasts along one axis of a tensor, as float64 (C,); None where it is anything else.

    axis: the channel axis of that tensor, 1 or -1.  ndim: its rank, None where unknown (at least 1).
    """
    values = np.asarray(constant.values, np.float64)
    if values.ndim > (1 if ndim is None else ndim):
        return None
    if values.size == 1:
        return np.full(channels, values.reshape(()))
    if axis != -1 and ndim is None:
        return None
    shape = [1] * (ndim or 1)
    shape[axis] = channels
    padded = (1,) * (len(shape) - values.ndim) + values.shape
    return values.reshape(-1) if padded == tuple(shape) else None


def _constant_input(node: gs.Node, index: int) -> np.ndarray | None:
    """Value of an input if it is a constant; None where it is missing or computed."""
    tensor = node.inputs[index] if len(node.inputs) > index else None
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def _moves_any(node: gs.Node) -> bool:
    return True


def _moves_resize(node: gs.Node) -> bool:
    mode = node.attrs.get("mode", "nearest")
    return bool(mode == "nearest" and node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize")


def _moves_pad(node: gs.Node) -> bool:
    if node.attrs.get("mode", "constant") != "constant":
        return True
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    value = _constant_input(node, 2)
    return value is not None and not value.any()


GRID_PRESERVING: Mapping[str, Callable[[gs.Node], bool]] = {
    "Reshape": _moves_any, "Flatten": _moves_any, "Squeeze": _moves_any, "Unsqueeze": _moves_any,
    "Transpose": _moves_any, "Slice": _moves_any, "Gather": _moves_any, "GatherND": _moves_any,
    "Split": _moves_any, "Expand": _moves_any, "Tile": _moves_any, "Identity": _moves_any,
    "DepthToSpace": _moves_any, "SpaceToDepth": _moves_any, "MaxPool": _moves_any, "GlobalMaxPool": _moves_any,
    "ReduceMax": _moves_any, "ReduceMin": _moves_any, "Pad": _moves_pad, "Resize": _moves_resize,
}  # fmt: skip


def preserves_grid(node: gs.Node) -> bool:
    """Whether every value of the outputs is a value of the first input, or zero: its grid serves both.

    `Tile`, `Gather` and the like read their indices from further inputs, which are never quantized.
    """
    return node.domain in ONNX_DOMAINS and node.op in GRID_PRESERVING and GRID_PRESERVING[node.op](node)


def clip_bounds(node: gs.Node) -> tuple[float, float] | None:
    """The interval that Relu or Clip maps onto; None for other nodes and for bounds known only at run time."""
    if is_op(node, "Relu"):
        return 0.0, np.inf
    if not is_op(node, "Clip"):
        return None
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = _constant_input(node, index)
        if value is None and len(node.inputs) > index and node.inputs[index].name:
            return None
        bounds.append(default if value is None else float(value.reshape(())))
    return None if np.isnan(bounds).any() else (bounds[0], bounds[1])


def rank(tensor: gs.Tensor) -> int | None:
    """Number of dimensions, None where unknown."""
    return None if tensor.shape is None else len(tensor.shape)


def is_float(tensor: gs.Tensor) -> bool:
    """Whether the tensor is known to hold float32, the only type that is quantized."""
    return tensor.dtype is not None and tensor.dtype == np.float32
