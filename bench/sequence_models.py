"""Small networks on sequences without files of weights: seeded random ones, with the outliers that trained ones have.

    gpt          decoder of 4 blocks in front-norm form, past keys and values, output layer tied to the table
    merged       the same block in an If, with and without past, as merged decoders are exported; weights outside
    tagger       embedding, bidirectional LSTM, bidirectional GRU, scores of each token
    conformer    half-step feed-forward, attention, convolution (pointwise, gated, depthwise, Swish), feed-forward
    deberta      attention of content to position beside content to content, relative positions gathered
    vocoder      transposed convolutions and dilated residual ones, LeakyRelu, as HiFi-GAN

The encoder is that of `encoder.py`. A few channels of every norm's gain are `LOUD` times larger than the others, and
the weights that read them that much smaller: what per-tensor grids of transformers suffer from (arXiv:2109.12948).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Feed = dict[str, NDArray[Any]]
LOUD = 8.0
WORDS, WIDTH, HEADS = 1500, 128, 4


@dataclass
class Net:
    """Nodes and constants, added by methods that return the name of what they compute."""

    random: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    count: int = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def constant(self, values: Any, stem: str = "c") -> str:
        name, array = self.name(stem), np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op: str, *inputs: str, outputs: int = 1, output: str = "", **attributes: Any) -> Any:
        names = [output] if output else [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, self.name(op), **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, fan: int = 0, loud: NDArray[Any] | None = None) -> str:
        """He's variance; rows that read loud channels are that much smaller; output channels of unequal size."""
        values = self.random.normal(0, 1, shape) / np.sqrt(fan or shape[0])
        values = values * self.random.uniform(0.5, 1.5, shape[-1])
        return self.constant(values if loud is None else values / loud[:, None], "w")

    def linear(self, x: str, rows: int, columns: int, loud: NDArray[Any] | None = None) -> str:
        product = self.op("MatMul", x, self.weight(rows, columns, loud=loud))
        return str(self.op("Add", product, self.constant(self.random.normal(0, 0.1, columns), "b")))

    def norm(self, x: str) -> tuple[str, NDArray[Any]]:
        gain = np.where(self.random.permutation(WIDTH) < 2, LOUD, self.random.uniform(0.8, 1.2, WIDTH))
        found = self.op("LayerNormalization", x, self.constant(gain), self.constant(np.zeros(WIDTH)), axis=-1)
        return found, np.maximum(gain, 1.0)

    def split(self, x: str) -> str:
        """(N, T, D) to (N, heads, T, D / heads)"""
        shaped = self.op("Reshape", x, self.constant([0, 0, HEADS, WIDTH // HEADS]))
        return str(self.op("Transpose", shaped, perm=[0, 2, 1, 3]))

    def merge(self, x: str) -> str:
        turned = self.op("Transpose", x, perm=[0, 2, 1, 3])
        return str(self.op("Reshape", turned, self.constant([0, 0, WIDTH])))

    def scores(self, q: str, k: str) -> str:
        raw = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        return str(self.op("Mul", raw, self.constant((WIDTH // HEADS) ** -0.5)))

    def attention(self, x: str, bias: Callable[[str], str] | None = None) -> str:
        y, loud = self.norm(x)
        q, k, v = (self.split(self.linear(y, WIDTH, WIDTH, loud)) for _ in range(3))
        scores = self.scores(q, k)
        scores = scores if bias is None else self.op("Add", scores, bias(q))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return str(self.op("Add", x, self.linear(self.merge(mixed), WIDTH, WIDTH)))

    def feed_forward(self, x: str, share: float = 1.0) -> str:
        y, loud = self.norm(x)
        inner = self.op("Gelu", self.linear(y, WIDTH, 4 * WIDTH, loud))
        y = self.linear(inner, 4 * WIDTH, WIDTH)
        return str(self.op("Add", x, y if share == 1 else self.op("Mul", y, self.constant(share))))

    def model(self, inputs: dict[str, tuple[int, list[Any]]], outputs: list[str]) -> ModelProto:
        given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
        made = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", given, made, self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(proto)  # of the outputs, too
        onnx.checker.check_model(inferred)
        del inferred.graph.value_info[:]
        return inferred


def _past(x: str, past: tuple[str, str] | None, net: Net, present: tuple[str, str]) -> str:
    """A block of the decoder whose keys and values go on from the past."""
    y, loud = net.norm(x)
    q, k, v = (net.split(net.linear(y, WIDTH, WIDTH, loud)) for _ in range(3))
    for name, new, old in zip(present, (k, v), past or ("", ""), strict=True):
        if old:
            net.op("Concat", old, new, output=name, axis=2)
        else:
            net.op("Identity", new, output=name)
    weights = net.op("Softmax", net.scores(q, present[0]), axis=-1)
    mixed = net.merge(net.op("MatMul", weights, present[1]))
    return net.feed_forward(net.op("Add", x, net.linear(mixed, WIDTH, WIDTH)))


PAST: list[Any] = [1, HEADS, "past", WIDTH // HEADS]


def gpt(seed: int = 0, layers: int = 4) -> ModelProto:
    net = Net(np.random.default_rng(seed))
    table = net.constant(net.random.normal(0, 1, (WORDS, WIDTH)), "table")
    x, inputs, outputs = net.op("Gather", table, "ids"), {"ids": (TensorProto.INT64, [1, 1])}, ["logits"]
    for layer in range(layers):
        past, present = ((f"{when}_{layer}_key", f"{when}_{layer}_value") for when in ("past", "present"))
        inputs |= dict.fromkeys(past, (TensorProto.FLOAT, PAST))
        outputs += present
        x = _past(x, past, net, present)
    y, _ = net.norm(x)
    net.op("MatMul", y, net.op("Transpose", table, perm=[1, 0]), output="logits")
    return net.model(inputs, outputs)


def merged(seed: int = 1) -> ModelProto:
    """One block in both branches; ONNX's merged decoders keep the weights in the outer graph."""
    net = Net(np.random.default_rng(seed))
    x = net.op("Gather", net.constant(net.random.normal(0, 1, (200, WIDTH)), "table"), "ids")
    branches = []
    for past in (("past_key", "past_value"), None):
        inner = Net(np.random.default_rng(seed + 7), count=1000 if past else 5000)
        end = "with" if past else "without"
        present = f"key_{end}", f"value_{end}"
        y = _past(_past(x, past, inner, present), None, inner, (f"k2_{end}", f"v2_{end}"))
        ranks = (y, 3), (present[0], 4), (present[1], 4)
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in ranks]
        branches.append((helper.make_graph(inner.nodes, end, [], values), inner.constants))
    shared = {np.asarray(numpy_helper.to_array(t)).tobytes(): t.name for t in branches[0][1]}
    net.constants += branches[0][1]
    for node in branches[1][0].node:  # the weights of the two branches are the same ones
        by_name = {t.name: shared[numpy_helper.to_array(t).tobytes()] for t in branches[1][1]}
        node.input[:] = [by_name.get(name, name) for name in node.input]
    outputs = ["hidden", "present_key", "present_value"]
    graphs = {"then_branch": branches[0][0], "else_branch": branches[1][0]}
    net.nodes.append(helper.make_node("If", ["use_past"], outputs, "If", **graphs))
    past = dict.fromkeys(("past_key", "past_value"), (TensorProto.FLOAT, PAST))
    return net.model({"ids": (TensorProto.INT64, [1, 1]), "use_past": (TensorProto.BOOL, [1]), **past}, outputs)


def tagger(seed: int = 2, hidden: int = 96) -> ModelProto:
    net = Net(np.random.default_rng(seed))
    x = net.op("Gather", net.constant(net.random.normal(0, 0.5, (WORDS, WIDTH)), "table"), "ids")
    x, width = net.op("Transpose", x, perm=[1, 0, 2]), WIDTH
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        w, r = (net.constant(net.random.normal(0, n**-0.5, (2, gates * hidden, n)), "w") for n in (width, hidden))
        b = net.constant(net.random.normal(0, 0.1, (2, 2 * gates * hidden)), "b")
        y = net.op(op, x, w, r, b, hidden_size=hidden, direction="bidirectional")
        x = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.constant([0, 0, 2 * hidden]))
        width = 2 * hidden
    net.op("Identity", net.linear(x, width, 20), output="tags")
    return net.model({"ids": (TensorProto.INT64, [1, "length"])}, ["tags"])


def conformer(seed: int = 3) -> ModelProto:
    net = Net(np.random.default_rng(seed))
    x = net.linear("frames", 80, WIDTH)
    for _ in range(2):
        x = net.attention(net.feed_forward(x, 0.5))
        y, _ = net.norm(x)
        y = net.op("Transpose", y, perm=[0, 2, 1])
        y = net.op("Conv", y, net.constant(net.random.normal(0, WIDTH**-0.5, (2 * WIDTH, WIDTH, 1)), "w"))
        a, gate = net.op("Split", y, outputs=2, axis=1, num_outputs=2)
        y = net.op("Mul", a, net.op("Sigmoid", gate))
        w = net.constant(net.random.normal(0, 15**-0.5, (WIDTH, 1, 15)), "w")
        y = net.op("Conv", y, w, group=WIDTH, pads=[7, 7])
        y = net.op("Mul", y, net.op("Sigmoid", y))
        y = net.op("Conv", y, net.constant(net.random.normal(0, WIDTH**-0.5, (WIDTH, WIDTH, 1)), "w"))
        x = net.feed_forward(net.op("Add", x, net.op("Transpose", y, perm=[0, 2, 1])), 0.5)
    net.op("Identity", net.linear(net.norm(x)[0], WIDTH, 64), output="scores")
    return net.model({"frames": (TensorProto.FLOAT, [1, "length", 80])}, ["scores"])


def deberta(seed: int = 4, reach: int = 32) -> ModelProto:
    net = Net(np.random.default_rng(seed))
    x = net.op("Gather", net.constant(net.random.normal(0, 1, (WORDS, WIDTH)), "table"), "ids")
    positions = net.constant(net.random.normal(0, 1, (1, 2 * reach, WIDTH)), "positions")
    length = net.op("Gather", net.op("Shape", "ids"), net.constant(1))
    steps = net.op("Range", net.constant(0), length, net.constant(1))
    rows, columns = (net.op("Unsqueeze", steps, net.constant([axis])) for axis in (1, 0))
    apart = net.op("Clip", net.op("Sub", rows, columns), net.constant(-reach), net.constant(reach - 1))
    index = net.op("Unsqueeze", net.op("Add", apart, net.constant(reach)), net.constant([0, 1]))

    def relative(q: str) -> str:
        scores = net.scores(q, net.split(net.linear(positions, WIDTH, WIDTH)))  # (1, heads, T, 2 reach)
        head = net.op("Shape", net.op("MatMul", q, net.op("Transpose", q, perm=[0, 1, 3, 2])))
        return str(net.op("GatherElements", scores, net.op("Expand", index, head), axis=3))

    for _ in range(3):
        x = net.feed_forward(net.attention(x, relative))
    net.op("Identity", net.norm(x)[0], output="hidden")
    return net.model({"ids": (TensorProto.INT64, [1, "length"])}, ["hidden"])


def vocoder(seed: int = 5) -> ModelProto:
    net = Net(np.random.default_rng(seed))

    def conv(x: str, inside: int, outside: int, size: int, dilation: int = 1) -> str:
        w = net.constant(net.random.normal(0, (2 / (inside * size)) ** 0.5, (outside, inside, size)), "w")
        b, pad = net.constant(net.random.normal(0, 0.05, outside), "b"), dilation * (size // 2)
        return str(net.op("Conv", x, w, b, pads=[pad, pad], dilations=[dilation]))

    x, width = conv("mel", 80, 128, 7), 128
    for stride in (8, 4):
        x = net.op("LeakyRelu", x, alpha=0.1)
        w = net.constant(net.random.normal(0, (2 / (2 * width)) ** 0.5, (width, width // 2, 2 * stride)), "w")
        x = net.op("ConvTranspose", x, w, strides=[stride], pads=[stride // 2, stride // 2])
        width //= 2
        for dilation in (1, 3):
            y = conv(net.op("LeakyRelu", x, alpha=0.1), width, width, 3, dilation)
            y = conv(net.op("LeakyRelu", y, alpha=0.1), width, width, 3)
            x = net.op("Add", x, net.op("Mul", y, net.constant(0.5)))
    x = conv(net.op("LeakyRelu", x, alpha=0.01), width, 1, 7)
    net.op("Tanh", net.op("Mul", x, net.constant(0.3)), output="wave")
    return net.model({"mel": (TensorProto.FLOAT, [1, 80, "length"])}, ["wave"])


def token_feeds(count: int, seed: int) -> list[Feed]:
    random = np.random.default_rng(seed)
    return [{"ids": random.integers(0, WORDS, (1, int(random.integers(8, 40))))} for _ in range(count)]


def frame_feeds(name: str, axes: tuple[int, ...]) -> Callable[[int, int], list[Feed]]:
    """Smooth noise, (1, T, 80) or (1, 80, T)."""

    def feeds(count: int, seed: int) -> list[Feed]:
        random, found = np.random.default_rng(seed), []
        for _ in range(count):
            noise = random.normal(0, 1, (1, int(random.integers(40, 100)), 80))
            smooth = np.cumsum(noise, axis=1) / np.sqrt(1 + np.arange(noise.shape[1]))[None, :, None]
            found.append({name: np.ascontiguousarray(smooth.transpose(axes), np.float32)})
        return found

    return feeds


def step_feeds(proto: ModelProto) -> Callable[[int, int], list[Feed]]:
    """What a decoder with past is given step by step: keys and values of length zero at first, then growing."""
    from onnxq.execution.session import Session

    session = Session(proto)
    pasts = [value.name for value in proto.graph.input if value.name.startswith("past")]
    is_merged = any(value.name == "use_past" for value in proto.graph.input)
    words = 200 if is_merged else WORDS

    def steps(random: np.random.Generator) -> Iterator[Feed]:
        past = {name: np.zeros((1, HEADS, 0, WIDTH // HEADS), np.float32) for name in pasts}
        for step in range(12):
            feed = {"ids": random.integers(0, words, (1, 1)), **past}
            if is_merged:
                feed["use_past"] = np.array([step > 0])
            yield feed
            found = session.run(feed)
            past = {name: found[name.replace("past", "present")] for name in pasts}

    def feeds(count: int, seed: int) -> list[Feed]:
        random = np.random.default_rng(seed)
        return [feed for _ in range(-(-count // 12)) for feed in steps(random)][:count]

    return feeds
