"""Random float graphs for `properties.py`: operators of every kind in topologies that no exporter would write.

A graph grows from one or two inputs of 1 to 5 dimensions, operator by operator; each reads any tensors that exist by
then, so that there are branches, several readers, and outputs in the middle. Constants stand on either side, some are
shared by several layers, some weights are computed. `make(seed, number)` is always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 20
Shape = tuple[int, ...]


@dataclass
class Graph:
    """A model that grows. shapes: of float tensors that may be read.  constants: of float weights, by shape."""

    rng: np.random.Generator
    shapes: dict[str, Shape] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    inputs: list[tuple[str, Shape]] = field(default_factory=list)
    weights: dict[Shape, list[str]] = field(default_factory=dict)
    masks: dict[str, float] = field(default_factory=dict)

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def input(self, shape: Shape, mask: float | None = None) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs.append((name, shape))
        self.shapes[name] = shape
        if mask is not None:
            self.masks[name] = mask
        return name

    def constant(self, values: Any, stem: str = "c") -> str:
        name = f"{stem}{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value))

    def weight(self, *shape: int) -> str:
        """A weight; tied to another layer's at times, computed at times."""
        known = self.weights.get(shape, [])
        if known and self.chance(0.4):
            return str(self.one(*known))
        fan = max(int(np.prod(shape[1:], dtype=int)), 1)
        name = self.constant((self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), "w")
        self.weights.setdefault(shape, []).append(name)
        if self.chance(0.06):
            factor = self.op("ReduceMean", self.any(), self.integers(), shape=(), keepdims=0, noop_with_empty_axes=0)
            return self.op("Mul", name, factor, shape=shape)
        return name

    def any(self, rank: int | None = None) -> str:
        """A tensor to read, recent ones preferred; of this rank, reshaped where there is none."""
        names = [n for n, shape in self.shapes.items() if rank is None or len(shape) == rank]
        if names:
            place = len(names) - 1 - min(int(self.rng.geometric(0.35)) - 1, len(names) - 1)
            return names[place]
        name = self.any()
        shape = self.shapes[name]
        size = int(np.prod(shape, dtype=int))
        assert rank is not None
        wanted: list[int] = [1]
        for _ in range(rank - 1):
            factor = next((f for f in (4, 3, 2) if size % f == 0), 1)
            wanted.append(factor)
            size //= factor
        wanted[-1] *= size
        return self.op("Reshape", name, self.integers(*wanted), shape=tuple(wanted))

    def op(self, kind: str, *inputs: str, shape: Shape, outputs: int = 1, **attributes: Any) -> str:
        """A node with one output, which may be read from then on."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.shapes[name] = shape
        return name

    def same(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.op(kind, *inputs, shape=self.shapes[inputs[0]], **attributes)

    def model(self) -> ModelProto:
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output if name in self.shapes]
        outputs = [n for n in made if n not in read] + [n for n in made if n in read and self.chance(0.05)]
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shapes[n]) for n in outputs]
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self.inputs]
        graph = helper.make_graph(self.nodes, "generated", inputs, values, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

    def feed(self, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        found = {}
        for name, shape in self.inputs:
            values = rng.standard_normal(shape).astype(np.float32)
            if name in self.masks:
                values = np.where(values > 0.8, np.float32(self.masks[name]), np.float32(0))
                values[..., 0] = 0  # something is left for each row
            found[name] = values
        return found


# --- operators --------------------------------------------------------------------------------------------------------


def conv(g: Graph) -> str:
    x = g.any(g.one(4, 4, 4, 3, 5))
    n, c, *space = g.shapes[x]
    groups = c if g.chance(0.2) else 1
    out = c * g.one(1, 2) if groups > 1 and c > 1 else g.one(2, 4, 6)
    groups = groups if out % groups == 0 else 1
    size = g.one(1, 1, 3)
    inputs = [x, g.weight(out, c // groups, *[size] * len(space))]
    inputs += [g.constant(g.rng.standard_normal(out).astype(np.float32), "b")] if g.chance(0.6) else []
    stride = 2 if min(space) > 3 and g.chance(0.25) else 1
    shape = (n, out, *(-(-d // stride) for d in space))
    pads = [size // 2] * 2 * len(space)
    return g.op("Conv", *inputs, shape=shape, group=groups, pads=pads, strides=[stride] * len(space))


def conv_transpose(g: Graph) -> str:
    x = g.any(4)
    n, c, h, w = g.shapes[x]
    out = g.one(2, 4)
    if max(h, w) > 8:
        return g.op("ConvTranspose", x, g.weight(c, out, 1, 1), shape=(n, out, h, w))
    inputs = [x, g.weight(c, out, 2, 2), *([g.weight(out)] if g.chance(0.5) else [])]
    return g.op("ConvTranspose", *inputs, shape=(n, out, 2 * h, 2 * w), strides=[2, 2])


def gemm(g: Graph) -> str:
    x = g.any(2)
    n, k = g.shapes[x]
    out, transposed = g.one(3, 4, 8), g.chance(0.5)
    inputs = [x, g.weight(out, k) if transposed else g.weight(k, out)]
    inputs += [g.weight(out)] if g.chance(0.7) else []
    alpha = {"alpha": 0.5} if g.chance(0.1) else {}
    return g.op("Gemm", *inputs, shape=(n, out), transB=int(transposed), **alpha)


def matmul(g: Graph) -> str:
    x = g.any(g.one(1, 2, 3, 3, 4))
    *lead, k = g.shapes[x]
    kind, out = g.one("weight", "weight", "weight", "left", "stack", "self", "vector"), g.one(4, 6)
    if kind == "left" and lead:
        return g.op("MatMul", g.weight(out, lead[-1]), x, shape=(*lead[:-1], out, k))
    if kind == "stack" and len(lead) > 1:
        return g.op("MatMul", x, g.weight(*lead[:-1], k, out), shape=(*lead, out))
    if kind == "self" and lead:
        turned = [*range(len(lead) - 1), len(lead), len(lead) - 1]
        other = g.op("Transpose", x, perm=turned, shape=(*lead[:-1], k, lead[-1]))
        return g.op("MatMul", x, other, shape=(*lead, lead[-1]))
    if kind == "vector" and lead:
        return g.op("MatMul", x, g.weight(k), shape=tuple(lead))
    y = g.op("MatMul", x, g.weight(k, out), shape=(*lead, out))
    return g.op("Add", y, g.weight(out), shape=(*lead, out)) if g.chance(0.5) else y


def binary(g: Graph) -> str:
    """Two tensors of one shape, or one and a constant on either side."""
    x = g.any()
    shape = g.shapes[x]
    kind = g.one("Add", "Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Pow", "Where")
    others = [n for n, s in g.shapes.items() if s == shape and n != x]
    if kind == "Pow":
        return g.same("Pow", x, g.scalar(2.0))
    if kind == "Div":
        return g.same("Div", x, g.scalar(g.one(2.0, -3.0)))
    if others and g.chance(0.6):
        other = g.one(*others)
    else:
        dims = g.one((), (1,) * len(shape), shape, shape[-1:] if shape else ())
        other = g.constant(np.asarray(g.rng.standard_normal(dims), np.float32))
    if kind == "Where":
        return g.op("Where", g.constant(g.rng.random(shape) < 0.5), x, other, shape=shape)
    pair = [x, other] if g.chance(0.6) else [other, x]
    return g.op(kind, *pair, shape=shape)


def unary(g: Graph) -> str:
    kinds: Mapping[str, dict[str, Any]] = {
        "Relu": {}, "LeakyRelu": {}, "Elu": {}, "Sigmoid": {}, "Tanh": {}, "HardSigmoid": {}, "HardSwish": {},
        "Gelu": {}, "Mish": {}, "Softplus": {}, "Erf": {}, "Abs": {}, "Neg": {}, "Identity": {}, "Round": {},
        "Floor": {}, "Ceil": {}, "Sign": {}, "Dropout": {},
    }  # fmt: skip
    kind = g.one(*kinds, "Relu", "Relu", "Sigmoid", "Clip", "PRelu", "Softmax", "Log", "Swish")
    x = g.any()
    if kind == "Clip":
        low, high = g.one((0.0, 6.0), (0.0, 6.0), (-1.0, 1.0))
        return g.same("Clip", x, g.scalar(low), g.scalar(high))
    if kind == "PRelu":
        return g.same("PRelu", x, g.constant(np.float32([0.1])))
    if kind == "Softmax":
        return g.same("Softmax", x, axis=-1) if g.shapes[x] else g.same("Relu", x)
    if kind == "Log":
        return g.same("Log", g.same("Add", g.same("Abs", x), g.scalar(0.1)))
    if kind == "Swish":
        return g.same("Mul", x, g.same("Sigmoid", x))
    return g.same(kind, x)


def normalization(g: Graph) -> str:
    if g.chance(0.4):
        x = g.any(g.one(3, 4))
        c = g.shapes[x][1]
        random = [g.constant(g.rng.standard_normal(c).astype(np.float32)) for _ in range(3)]
        return g.same("BatchNormalization", x, *random, g.constant(g.rng.random(c).astype(np.float32) + 0.5))
    x = g.any(g.one(2, 3))
    width = g.shapes[x][-1]
    return g.same("LayerNormalization", x, g.constant(np.ones(width, np.float32)), axis=-1)


def pooling(g: Graph) -> str:
    x = g.any(4)
    n, c, h, w = g.shapes[x]
    kind = g.one(
        "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax",
        "ReduceMin", "ReduceSum",
    )  # fmt: skip
    if kind.startswith("Global"):
        return g.op(kind, x, shape=(n, c, 1, 1))
    if kind.startswith("Reduce"):
        return g.op(kind, x, g.integers(2, 3), shape=(n, c, 1, 1), keepdims=1)
    if min(h, w) < 2:
        return g.same("Relu", x)
    return g.op(kind, x, shape=(n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])


def movement(g: Graph) -> str:
    kind = g.one(
        "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "GatherND", "Split", "Expand",
        "Tile", "DepthToSpace", "SpaceToDepth", "Pad", "Resize",
    )  # fmt: skip
    if kind in ("DepthToSpace", "SpaceToDepth", "Resize"):
        x = g.any(4)
        n, c, h, w = g.shapes[x]
        if kind == "DepthToSpace" and c % 4 == 0:
            return g.op(kind, x, shape=(n, c // 4, 2 * h, 2 * w), blocksize=2)
        if kind == "SpaceToDepth" and h % 2 == w % 2 == 0:
            return g.op(kind, x, shape=(n, 4 * c, h // 2, w // 2), blocksize=2)
        if max(h, w) > 8:
            return g.same("Identity", x)
        scales = g.constant(np.float32([1, 1, 2, 2]))
        return g.op("Resize", x, "", scales, shape=(n, c, 2 * h, 2 * w), mode=g.one("nearest", "linear"))
    x = g.any(g.one(2, 3, 4))
    shape = g.shapes[x]
    if kind == "Reshape":
        return g.op(kind, x, g.integers(shape[0], -1), shape=(shape[0], int(np.prod(shape[1:], dtype=int))))
    if kind == "Flatten":
        return g.op(kind, x, shape=(shape[0], int(np.prod(shape[1:], dtype=int))))
    if kind == "Unsqueeze" and len(shape) < 5:
        return g.op(kind, x, g.integers(1), shape=(shape[0], 1, *shape[1:]))
    if kind == "Squeeze" and shape[0] == 1:
        return g.op(kind, x, g.integers(0), shape=shape[1:])
    if kind == "Slice" and shape[-1] > 2:
        return g.op(kind, x, g.integers(1), g.integers(shape[-1]), g.integers(-1), shape=(*shape[:-1], shape[-1] - 1))
    if kind == "Gather":
        return g.op(kind, x, g.integers(0, 0), shape=(*shape[:-1], 2), axis=-1)
    if kind == "GatherND":
        return g.op(kind, x, g.constant(np.zeros((2, 1), np.int64)), shape=(2, *shape[1:]))
    if kind == "Split" and shape[-1] % 2 == 0:
        names = [f"split{len(g.nodes)}_{i}" for i in range(2)]
        g.nodes.append(helper.make_node("Split", [x], names, name=f"n{len(g.nodes)}", axis=-1, num_outputs=2))
        g.shapes.update(dict.fromkeys(names, (*shape[:-1], shape[-1] // 2)))
        return names[0]
    if kind == "Expand" and len(shape) < 4:
        return g.op(kind, x, g.integers(2, *[1] * len(shape)), shape=(2, *shape))
    if kind == "Tile" and shape[-1] < 16:
        return g.op(kind, x, g.integers(*[1] * (len(shape) - 1), 2), shape=(*shape[:-1], 2 * shape[-1]))
    if kind == "Pad":
        pads = [0] * (len(shape) - 1) + [1]
        value = [g.scalar(g.one(0.0, 0.0, 1.0))] if g.chance(0.5) else []
        return g.op(kind, x, g.integers(*pads, *pads), *value, shape=(*shape[:-1], shape[-1] + 2))
    turned = [0, *(1 + int(i) for i in g.rng.permutation(len(shape) - 1))]
    return g.op("Transpose", x, perm=turned, shape=tuple(shape[i] for i in turned))


def concat(g: Graph) -> str:
    x = g.any(g.one(2, 3, 4))
    shape = g.shapes[x]
    fits = [n for n, s in g.shapes.items() if len(s) == len(shape) and s[0] == shape[0] and s[2:] == shape[2:]]
    others = [g.one(*fits) for _ in range(g.one(1, 2))]
    if g.chance(0.2):
        others.append(g.weight(*shape))
    axis_length = sum(g.shapes.get(n, shape)[1] for n in (x, *others))
    return g.op("Concat", x, *others, shape=(shape[0], axis_length, *shape[2:]), axis=1)


def residual(g: Graph) -> str:
    x = g.any(4)
    c = g.shapes[x][1]
    y = g.op("Conv", x, g.weight(c, c, 3, 3), g.weight(c), shape=g.shapes[x], pads=[1, 1, 1, 1])
    other = x if g.chance(0.6) else g.op("Conv", x, g.weight(c, c, 1, 1), shape=g.shapes[x])
    pair = [y, other] if g.chance(0.5) else [other, y]
    total = g.op("Add", *pair, shape=g.shapes[x])
    return g.same("Relu", total) if g.chance(0.7) else total


def attention(g: Graph) -> str:
    x = g.any(3)
    n, t, c = g.shapes[x]
    query, key = (g.op("MatMul", x, g.weight(c, 8), shape=(n, t, 8)) for _ in range(2))
    turned = g.op("Transpose", key, perm=[0, 2, 1], shape=(n, 8, t))
    scores = g.op("MatMul", query, turned, shape=(n, t, t))
    if g.chance(0.5):
        scores = g.same("Mul", scores, g.scalar(0.35))
    kind = g.one("none", "input", "where", "bias")
    if kind == "input":
        mask = g.input((n, t, t), g.one(-1e4, -np.inf))
        scores = g.same("Add", scores, mask)
        del g.shapes[mask]
    elif kind == "where":
        hidden = np.triu(np.ones((t, t), bool), 1)
        scores = g.op("Where", g.constant(hidden), g.scalar(-np.inf), scores, shape=(n, t, t))
    elif kind == "bias":
        scores = g.same("Add", scores, g.op("MatMul", query, g.weight(8, t), shape=(n, t, t)))
    shares = g.same("Softmax", scores, axis=-1)
    del g.shapes[scores]  # it may hold infinity, which no output may
    return g.op("MatMul", shares, x, shape=(n, t, c))


def gelu(g: Graph) -> str:
    x = g.any()
    error = g.same("Erf", g.same("Div", x, g.scalar(2**0.5)))
    gate = g.same("Mul", x, g.same("Add", error, g.scalar(1.0)))
    return g.same("Mul", gate, g.scalar(0.5)) if g.chance(0.7) else gate


def squeeze_excite(g: Graph) -> str:
    x = g.any(4)
    n, c, *_ = g.shapes[x]
    mean = g.op("GlobalAveragePool", x, shape=(n, c, 1, 1))
    gate = g.op("Conv", mean, g.weight(c, c, 1, 1), shape=(n, c, 1, 1))
    gate = g.same(g.one("Sigmoid", "HardSigmoid"), gate)
    return g.same("Mul", x, gate)


def selection(g: Graph) -> str:
    """Integers and truth values, and a way back to floats."""
    x = g.any(g.one(2, 3))
    shape = g.shapes[x]
    kind = g.one("TopK", "ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Hardmax")
    if kind == "TopK":
        name = f"topk{len(g.nodes)}"
        node = helper.make_node("TopK", [x, g.integers(1)], [name, f"{name}_at"], name=f"n{len(g.nodes)}")
        g.nodes.append(node)
        g.shapes[name] = (*shape[:-1], 1)
        return name
    if kind == "Hardmax":
        return g.same("Hardmax", x)
    if kind in ("ArgMax", "ArgMin"):
        found, shape = g.op(kind, x, shape=(*shape[:-1], 1), axis=-1), (*shape[:-1], 1)
    else:
        found = g.op(kind, x, g.scalar(0.0), shape=shape)
    del g.shapes[found]
    return g.op("Cast", found, shape=shape, to=TensorProto.FLOAT)


def lookup(g: Graph) -> str:
    """A table that Gather reads, at times the weight of a layer, too."""
    width = g.one(4, 6)
    table = g.weight(8, width)
    return g.op("Gather", table, g.constant(g.rng.integers(0, 8, (1, 3))), shape=(1, 3, width))


BUILDERS: tuple[Callable[[Graph], str], ...] = (
    conv, conv, conv, conv_transpose, gemm, matmul, matmul, binary, binary, unary, unary, unary, normalization, pooling,
    movement, movement, concat, residual, attention, gelu, squeeze_excite, selection, lookup,
)  # fmt: skip

INPUTS: tuple[Shape, ...] = ((1, 4, 8, 8), (1, 3, 6, 6), (1, 6, 12), (2, 8), (1, 2, 4, 4, 4), (1, 5, 8), (8,))


def make(seed: int, number: int) -> Graph:
    """The graph of a number; of a seed it is always the same."""
    g = Graph(np.random.default_rng([seed, number]))
    for _ in range(g.one(1, 1, 2)):
        g.input(g.one(*INPUTS))
    steps = int(g.rng.integers(2, 12))
    builders = [g.one(*BUILDERS) for _ in range(4)]  # few kinds at a time meet each other more often
    for _ in range(steps):
        builder = g.one(*builders) if g.chance(0.6) else g.one(*BUILDERS)
        builder(g)
    return g
