"""A BERT-shaped encoder without a file of weights: seeded random ones, and the outliers that trained ones have.

In BERT a few dimensions of the residual stream carry values tens of times larger than the others, at a few tokens, in
the output of the feed-forward layers and of the LayerNorm behind (Bondarenko et al. 2021, arXiv:2109.12948): one 8-bit
grid for all dimensions is too coarse for most of them. Here a rare token's embedding is large in the `loud` dimensions;
in the later layers a unit of the feed-forward layer keeps it so, and gamma behind it is large there. Layers that write
or read those dimensions have small weights there, so that other tokens' values are ordinary, and the rare token's do
not dominate everything.

Nodes are those of `torch.onnx.export` below opset 17: decomposed LayerNormalization and Gelu, biases as Add, a mask
of -10000, lengths known at run time only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Floats = NDArray[np.float64]

VOCABULARY, LENGTH, CLASSES = 1000, 128, 8
RARE = 1
"""The token that brings the outliers."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Shape:
    """gain: of gamma in the loud dimensions. loud: how many. first: the layer that begins with it."""

    layers: int = 6
    width: int = 384
    heads: int = 6
    gain: float = 8.0
    loud: int = 2
    first: int = 2
    pre_norm: bool = False


def encoder(shape: Shape = Shape(), seed: int = 0) -> ModelProto:
    """input_ids, attention_mask, token_type_ids, int64 (N, T), to class scores (N, T, CLASSES)."""
    made = _Builder(shape, np.random.default_rng(seed))
    made.build()
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in INPUTS]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "length", CLASSES])
    graph = helper.make_graph(made.nodes, "encoder", values, [scores], made.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def sentences(count: int, seed: int = 1) -> list[dict[str, NDArray[np.int64]]]:
    """Random ids, one sentence each, of 8 to 64 tokens, some of them padding; one in four has the rare token."""
    random, found = np.random.default_rng(seed), []
    for index in range(count):
        length = int(random.integers(8, 65))
        mask = np.arange(length)[None] < int(random.integers(length // 2, length + 1))
        ids = np.where(mask, random.integers(RARE + 1, VOCABULARY, (1, length)), 0)
        ids[0, 1] = RARE if index % 4 == 0 else ids[0, 1]
        types = np.arange(length)[None] >= int(random.integers(1, length))
        found.append({name: np.asarray(v, np.int64) for name, v in zip(INPUTS, (ids, mask, types), strict=True)})
    return found


@dataclass
class _Builder:
    shape: Shape
    random: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    loud: NDArray[np.int64] = field(init=False)
    signs: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.loud = self.random.choice(self.shape.width, self.shape.loud, replace=False)
        self.signs = (-1.0) ** np.arange(self.shape.loud)

    def op(self, kind: str, *inputs: Any, name: str = "", **attributes: Any) -> str:
        """A node; what is no name among the inputs becomes an initializer. Returns its output's name."""
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        output = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], name=output, **attributes))
        return output

    def constant(self, values: Any) -> str:
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.constants.append(numpy_helper.from_array(array, f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def build(self) -> None:
        shape = self.shape
        length = self.op("Gather", self.op("Shape", "input_ids"), np.asarray(1))
        positions = self.op("Range", np.asarray(0), length, np.asarray(1))
        tables = ((VOCABULARY, "input_ids"), (2, "token_type_ids"), (LENGTH, positions))
        words, types, places = (self.op("Gather", self.embedding(n), ids) for n, ids in tables)
        x = self.op("Add", self.op("Add", words, types), places)
        mask = self.op("Cast", self.op("Unsqueeze", "attention_mask", np.asarray([1, 2])), to=TensorProto.FLOAT)
        mask = self.op("Mul", self.op("Sub", np.asarray(1.0), mask), np.asarray(-10000.0))
        x = x if shape.pre_norm else self.norm(x)
        for layer in range(shape.layers):
            x = self.block(x, mask, shape.gain if layer >= shape.first else 1.0)
        x = self.norm(x, shape.gain) if shape.pre_norm else x
        self.linear(x, self.weight(shape.width, CLASSES, reads=True), name="scores")

    def block(self, x: str, mask: str, gain: float) -> str:
        """Attention and feed-forward layer, each with its residual and its norm."""
        if self.shape.pre_norm:
            x = self.op("Add", x, self.attention(self.norm(x, gain), mask))
            return self.op("Add", x, self.feed_forward(self.norm(x, gain), 1.0))
        x = self.norm(self.op("Add", x, self.attention(x, mask)), 1 / gain)
        return self.norm(self.op("Add", x, self.feed_forward(x, gain)), gain)

    def attention(self, x: str, mask: str) -> str:
        shape, parts = self.shape, []
        for axes in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):  # query, key, value
            flat = self.linear(x, self.weight(shape.width, shape.width, reads=True))
            split = self.op("Reshape", flat, np.asarray([0, 0, shape.heads, shape.width // shape.heads]))
            parts.append(self.op("Transpose", split, perm=axes))
        scores = self.op("Div", self.op("MatMul", *parts[:2]), np.asarray(math.sqrt(shape.width / shape.heads)))
        weights = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, parts[2]), perm=[0, 2, 1, 3])
        return self.linear(
            self.op("Reshape", mixed, np.asarray([0, 0, shape.width])),
            self.weight(shape.width, shape.width, reads=False),
        )

    def feed_forward(self, x: str, gain: float) -> str:
        width = self.shape.width
        first, bias = self.weight(width, 4 * width, reads=True), self.normal(4 * width, std=0.1)
        second = self.weight(4 * width, width, reads=False)
        if gain > 1:  # unit 0 fires where LayerNorm's largest value, sqrt(width / loud), over the gain, comes in
            first[:, 0], bias[0] = 0, -2
            first[self.loud[0], 0] = gain
            second[0, self.loud] = 4 * self.signs
        h = self.linear(x, first, bias)
        gate = self.op("Add", self.op("Erf", self.op("Div", h, np.asarray(math.sqrt(2)))), np.asarray(1.0))
        return self.linear(self.op("Mul", self.op("Mul", h, gate), np.asarray(0.5)), second)

    def norm(self, x: str, gain: float = 1.0) -> str:
        """Decomposed LayerNormalization."""
        gamma = 1 + self.normal(self.shape.width, std=0.1)
        gamma[self.loud] *= gain
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", centred, np.asarray(2.0)), axes=[-1])
        normal = self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, np.asarray(1e-12))))
        return self.op("Add", self.op("Mul", normal, gamma), self.normal(self.shape.width, std=0.1))

    def embedding(self, count: int) -> Floats:
        table = self.normal(count, self.shape.width)
        table[:, self.loud] /= self.shape.gain
        if count == VOCABULARY and self.shape.gain > 1:
            table[RARE, self.loud] = 60 * self.signs
        return table

    def linear(self, x: str, weight: Floats, bias: Floats | None = None, name: str = "") -> str:
        """x W + b"""
        bias = self.normal(weight.shape[1], std=0.1) if bias is None else bias
        return self.op("Add", self.op("MatMul", x, weight), bias, name=name)

    def weight(self, inputs: int, outputs: int, reads: bool) -> Floats:
        """(inputs, outputs), for outputs of variance 1. reads: whether it reads or writes the residual stream."""
        weight = self.normal(inputs, outputs, std=1 / math.sqrt(inputs))
        weight[(self.loud, slice(None)) if reads else (slice(None), self.loud)] /= self.shape.gain
        return weight

    def normal(self, *shape: int, std: float = 1.0) -> Floats:
        return self.random.normal(0, std, shape)
