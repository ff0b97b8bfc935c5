"""Text detectors and recognisers as PaddlePaddle's exporter writes them, with seeded weights; needs no other framework.

Operator set 11 or 12, every weight written by a Constant node, BatchNormalization beside Conv, decomposed HardSwish,
height and width known at run time only, sizes computed by Shape, Slice, Cast and Concat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import graphs
import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CLASSES = 12
FLOAT, INT64 = np.float32, np.int64


@dataclass
class Builder:
    """Adds nodes; every method takes names of tensors and returns the name of its output."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[NodeProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"p2o.{op}.{len(self.nodes)}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0]

    def constant(self, values: ArrayLike, dtype: type = FLOAT) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, dtype))
        return self.add("Constant", value=tensor)

    def weight(self, *shape: int, fan: int) -> str:
        return self.constant(self.random.standard_normal(shape) * np.sqrt(2 / fan))

    def conv(self, x: str, cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> str:
        """Without bias."""
        weight = self.weight(cout, cin // groups, kernel, kernel, fan=cin // groups * kernel * kernel)
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.add("Conv", x, weight, kernel_shape=[kernel] * 2, pads=pads, strides=strides, group=groups)

    def norm(self, x: str, width: int) -> str:
        """BatchNormalization whose channels differ in range, as they do in trained networks."""
        gamma, beta = np.exp(0.5 * self.random.standard_normal(width)), 0.5 * self.random.standard_normal(width)
        values = gamma, beta, np.zeros(width), np.ones(width)
        return self.add("BatchNormalization", x, *map(self.constant, values), epsilon=1e-5)

    def biased(self, x: str, width: int) -> str:
        """A bias as Add of a reshaped vector."""
        shape = self.constant([1, width, 1, 1], INT64)
        return self.add("Add", x, self.add("Reshape", self.constant(0.1 * self.random.standard_normal(width)), shape))

    def hard_swish(self, x: str) -> str:
        gate = self.add("Clip", self.add("Add", x, self.constant(3)), self.constant(0), self.constant(6))
        return self.add("Div", self.add("Mul", x, gate), self.constant(6))

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def swish(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def block(self, x: str, cin: int, cout: int, act: Callable[[str], str] | None = None, **conv: int) -> str:
        y = self.norm(self.conv(x, cin, cout, **conv), cout)
        return y if act is None else act(y)

    def squeeze_excite(self, x: str, width: int) -> str:
        y = self.biased(self.conv(self.add("GlobalAveragePool", x), width, width // 4, kernel=1), width // 4)
        y = self.biased(self.conv(self.relu(y), width // 4, width, kernel=1), width)
        return self.add("Mul", x, self.add("HardSigmoid", y, alpha=0.2, beta=0.5))

    def inverted(self, x: str, width: int, stride: int = 1) -> str:
        """MobileNetV3's block: wide, depthwise, squeeze and excite, narrow."""
        y = self.block(x, width, 2 * width, self.hard_swish, kernel=1)
        y = self.block(y, 2 * width, 2 * width, self.hard_swish, stride=stride, groups=2 * width)
        y = self.block(self.squeeze_excite(y, 2 * width), 2 * width, width, kernel=1)
        return y if stride > 1 else self.add("Add", x, y)

    def part(self, shape: str, start: int, end: int) -> str:
        ends = (self.constant([value], INT64) for value in (start, end))
        return self.add("Slice", shape, *ends, self.constant([0], INT64))

    def resize_like(self, x: str, model: str) -> str:
        """Nearest neighbours, to the height and width of another tensor: roi and scales are empty."""
        size = self.add("Cast", self.part(self.add("Cast", self.add("Shape", model), to=6), 2, 4), to=7)
        sizes = self.add("Concat", self.part(self.add("Shape", x), 0, 2), size, axis=0)
        return self.add("Resize", x, self.constant([]), self.constant([]), sizes, **_NEAREST)

    def enlarge(self, x: str, factor: int) -> str:
        scales = self.constant([1, 1, factor, factor])
        return self.add("Resize", x, self.constant([]), scales, **_NEAREST)

    def transposed(self, x: str, cin: int, cout: int) -> str:
        weight = self.weight(cin, cout, 2, 2, fan=4 * cin)
        y = self.add("ConvTranspose", x, weight, kernel_shape=[2, 2], strides=[2, 2])
        return self.biased(y, cout)

    def linear(self, x: str, cin: int, cout: int) -> str:
        bias = self.constant(0.1 * self.random.standard_normal(cout))
        return self.add("Add", self.add("MatMul", x, self.weight(cin, cout, fan=cin)), bias)

    def layer_norm(self, x: str, width: int) -> str:
        centred = self.add("Sub", x, self.add("ReduceMean", x, axes=[-1]))
        square = self.add("ReduceMean", self.add("Pow", centred, self.constant(2)), axes=[-1])
        normal = self.add("Div", centred, self.add("Sqrt", self.add("Add", square, self.constant(1e-5))))
        scaled = self.add("Mul", normal, self.constant(self.random.uniform(0.5, 1.5, width)))
        return self.add("Add", scaled, self.constant(0.1 * self.random.standard_normal(width)))

    def attention(self, x: str, width: int, heads: int) -> str:
        """Query, key and value out of one product, by Reshape, Transpose, Slice and Squeeze."""
        packed = self.add("Reshape", self.linear(x, width, 3 * width), self._rows(x, [3, heads, width // heads]))
        packed = self.add("Transpose", packed, perm=[2, 0, 3, 1, 4])
        query, key, value = (self.add("Squeeze", self.part(packed, i, i + 1), axes=[0]) for i in range(3))
        query = self.add("Mul", query, self.constant((width / heads) ** -0.5))
        scores = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=3), value)
        mixed = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(self.add("Reshape", mixed, self._rows(x, [width])), width, width)

    def _rows(self, x: str, dims: Sequence[int]) -> str:
        """The shape (batch, rows of x, *dims)."""
        return self.add("Concat", self.part(self.add("Shape", x), 0, 2), self.constant(dims, INT64), axis=0)

    def lstm(self, x: str, width: int, hidden: int) -> str:
        """Both directions over (length, batch, width), to (length, batch, 2 hidden); the state begins at zero."""
        state = self.add(
            "Expand",
            self.constant(np.zeros((2, 1, hidden))),
            self.add(
                "Concat",
                self.constant([2], INT64),
                self.part(self.add("Shape", x), 1, 2),
                self.constant([hidden], INT64),
                axis=0,
            ),
        )
        weights = self.weight(2, 4 * hidden, width, fan=width), self.weight(2, 4 * hidden, hidden, fan=2 * hidden)
        bias = self.constant(0.1 * self.random.standard_normal((2, 8 * hidden)))
        y = self.add(
            "LSTM", x, *weights, bias, "", state, state, outputs=3, hidden_size=hidden, direction="bidirectional"
        )
        y = self.add("Transpose", y, perm=[0, 2, 1, 3])
        return self.add("Reshape", y, self.constant([0, 0, -1], INT64))

    def model(self, y: str, image: Sequence[int | str], output: Sequence[int | str], opset: int) -> ModelProto:
        self.nodes[-1].output[0] = "y"
        assert y.startswith("p2o")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, image)
        values = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
        graph = helper.make_graph(self.nodes, "paddle-onnx", [x], [values])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
        _settle(proto, feeds(pixels(4, image[2] if isinstance(image[2], int) else None, seed=9)))
        onnx.checker.check_model(proto, full_check=True)
        return proto


def _settle(proto: ModelProto, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Give BatchNormalization the means and variances that its inputs have, one after another."""
    constants = {node.output[0]: node.attribute[0].t for node in proto.graph.node if node.op_type == "Constant"}
    for node in (n for n in proto.graph.node if n.op_type == "BatchNormalization"):
        part = ModelProto()
        part.CopyFrom(proto)
        del part.graph.output[:]
        part.graph.output.add(name=node.input[0])
        values = [next(iter(graphs.run(part, feed).values())) for feed in feeds]
        pixels = np.concatenate([v.transpose(1, 0, 2, 3).reshape(v.shape[1], -1) for v in values], 1)
        for name, value in zip(node.input[3:], (pixels.mean(1), pixels.var(1)), strict=True):
            constants[name].CopyFrom(numpy_helper.from_array(np.asarray(value, FLOAT)))


_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def detector(opset: int = 11, width: int = 8) -> ModelProto:
    """Images (N, 3, H, W), H and W multiples of 8, to the probability of text (N, 1, H, W); after PP-OCRv3."""
    made = Builder()
    scales = [made.inverted(made.block("x", 3, width, made.hard_swish, stride=2), width)]
    for _ in range(2):
        scales.append(made.inverted(scales[-1], width, stride=2))
    fine, middle, coarse = (made.conv(scale, width, width, kernel=1) for scale in scales)
    middle = made.add("Add", middle, made.resize_like(coarse, middle))
    fine = made.add("Add", fine, made.resize_like(middle, fine))
    levels = [made.squeeze_excite(made.conv(level, width, width), width) for level in (coarse, middle, fine)]
    joined = made.add("Concat", made.enlarge(levels[0], 4), made.enlarge(levels[1], 2), levels[2], axis=1)
    y = made.block(joined, 3 * width, width, made.relu)
    y = made.add("Sigmoid", made.transposed(y, width, 1))
    return made.model(y, ["N", 3, "H", "W"], ["N", 1, "H", "W"], opset)


def recogniser(opset: int = 12, width: int = 8) -> ModelProto:
    """Lines of text (N, 3, 16, W) to the probability of characters (N, W / 4, CLASSES); convolutions and an LSTM."""
    made = Builder()
    y = made.inverted(made.block("x", 3, width, made.hard_swish, stride=2), width)
    y = made.add("MaxPool", made.block(y, width, width, made.relu), kernel_shape=[2, 2], strides=[2, 2])
    y = made.add("AveragePool", y, kernel_shape=[4, 1], strides=[4, 1])
    y = made.add("Transpose", made.add("Squeeze", y, axes=[2]), perm=[2, 0, 1])
    y = made.add("Transpose", made.lstm(y, width, width), perm=[1, 0, 2])
    y = made.add("Softmax", made.linear(y, 2 * width, CLASSES), axis=2)
    return made.model(y, ["N", 3, 16, "W"], ["N", "T", CLASSES], opset)


def transformer(opset: int = 11, width: int = 16) -> ModelProto:
    """As `recogniser`, but by attention along the line; after SVTR."""
    made = Builder()
    y = made.block(made.block("x", 3, width, made.swish, stride=2), width, width, made.swish, stride=2)
    y = made.add("AveragePool", y, kernel_shape=[4, 1], strides=[4, 1])
    y = made.add("Transpose", made.add("Squeeze", y, axes=[2]), perm=[0, 2, 1])
    y = made.add("Add", y, made.attention(made.layer_norm(y, width), width, 2))
    inner = made.swish(made.linear(made.layer_norm(y, width), width, 2 * width))
    y = made.layer_norm(made.add("Add", y, made.linear(inner, 2 * width, width)), width)
    y = made.add("Softmax", made.linear(y, width, CLASSES), axis=2)
    return made.model(y, ["N", 3, 16, "W"], ["N", "T", CLASSES], opset)


MODELS: dict[str, Callable[[], ModelProto]] = {
    "detector": detector,
    "recogniser": recogniser,
    "transformer": transformer,
}


def pixels(count: int, height: int | None = None, seed: int = 0) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of different sizes, strokes on paper. height: of all of them."""
    random, found = np.random.default_rng(seed), []
    for index in range(count):
        size = height or 24 + 8 * (index % 3), 32 + 8 * (index % 4)
        page = np.repeat(np.repeat(random.uniform(120, 255, (size[0] // 8, size[1] // 8, 3)), 8, 0), 8, 1)
        ink = np.repeat(random.uniform(0, 1, (size[0], size[1] // 2, 1)), 2, 1) < 0.3
        page = np.where(ink, random.uniform(0, 90, 3), page) + 6 * random.standard_normal((*size, 3))
        found.append(np.asarray(np.clip(page, 0, 255), np.uint8))
    return found


def feeds(images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Pictures as the models take them, one at a time: (pixel / 255 - 0.5) / 0.5, channels first."""
    return [{"x": np.asarray((p.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5, FLOAT)} for p in images]
