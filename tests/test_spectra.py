"""Front ends on sound: what a logarithm reads of a spectrum stays in float, and what follows does not."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import model, run, wrapped
from onnx import ModelProto

import onnxq
from onnxq.graph.spectra import in_front_of_logarithms
from onnxq.numeric.metrics import sqnr

BINS, WINDOW, MEL = 33, 64, 8

FRONT = """h = Conv<strides=[32]>(x, dft) r, i = Split<axis=1>(h, halves) rr = Mul(r, r) ii = Mul(i, i) p = Add(rr, ii)
    t = Transpose<perm=[0,2,1]>(p) m = MatMul(t, mel) c = Clip(m, small) f = Log(c) """

NETWORK = f"""(float[N,1,2048] x) => (float[N,63,8] y) <float[{2 * BINS},1,{WINDOW}] dft, float[{BINS},{MEL}] mel,
    int64[2] halves, float small, float[{MEL},16] w, float[16,8] v>
    {{ {FRONT} g = MatMul(f, w) a = Relu(g) y = MatMul(a, v) }}"""


def network(text: str = NETWORK) -> ModelProto:
    angle = 2 * np.pi * np.outer(np.arange(BINS), np.arange(WINDOW)) / WINDOW
    dft = np.concatenate([np.cos(angle), np.sin(angle)])[:, None] * np.hanning(WINDOW)
    centres = np.linspace(1, BINS - 1, MEL)
    mel = np.maximum(1 - np.abs(np.arange(BINS)[:, None] - centres) / 4, 0)
    return model(text, dft=dft, mel=mel, halves=[BINS, BINS], small=1e-9, seed=1)


def sounds(count: int = 32, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """A loud low tone, and little above it."""
    rng, t = np.random.default_rng(seed), np.arange(2048)
    made = (np.sin(0.1 * t * rng.uniform(0.8, 1.2)) + 1e-3 * rng.normal(size=2048) for _ in range(count))
    return [{"x": np.float32(sound)[None, None]} for sound in made]


def test_the_spectrum_stays_in_float_and_the_network_behind_it_does_not() -> None:
    proto = network()
    result = onnxq.quantize(proto, sounds(), threads=1, latency="off")
    in_float = {node.op for node in result.report.float_nodes if node.kind == "spectrum"}
    assert {"Conv", "MatMul", "Mul"} <= in_float
    assert result.report.integer_nodes == 2
    unseen = sounds(4, seed=9)
    assert min(sqnr(run(proto, x)["y"], run(result.model, x)["y"]) for x in unseen) > 20


def test_weights_alone_are_quantized_as_elsewhere() -> None:
    result = onnxq.quantize(network(), preset="w8", threads=1)
    assert not any(node.kind == "spectrum" for node in result.report.float_nodes)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("h = Conv(x, w) q = Mul(h, h) y = Log(q)", ["Conv", "Mul"]),
        ("h = Conv(x, w) q = Pow(h, two) s = Sqrt(q) y = Log(s)", ["Conv", "Pow", "Sqrt"]),
        ("h = Conv(x, w) q = ReduceL2<axes=[1]>(h) t = Transpose<perm=[0,2,1]>(q) g = Add(t, two) y = Log(g)",
         ["Conv", "ReduceL2", "Transpose", "Add"]),
        ("h = Conv(x, w) q = Abs(h) y = Log(q)", []),
        ("h = Conv(x, w) r = Relu(h) q = ReduceSumSquare<axes=[1]>(r) y = Log(q)", ["ReduceSumSquare"]),
        ("h = Conv(x, w) e = Exp(h) s = Add(e, two) y = Log(s)", []),  # Softplus
        ("h = Conv(x, w) e = Softmax(h) y = Log(e)", []),
        ("h = Conv(x, w) y = Mul(h, h)", []),
    ],
)  # fmt: skip
def test_what_counts_as_a_spectrum(nodes: str, expected: list[str]) -> None:
    text = f"(float[N,3,9] x) => (float[?,?,?] y) <float[4,3,1] w, float two> {{ {nodes} }}"
    graph = wrapped(model(text, two=2.0) if "two" in nodes else model(text.replace(", float two", "")))
    found = in_front_of_logarithms(graph)
    assert [node.op for node in graph.graph.nodes if id(node) in found] == expected


def test_a_front_end_alone_has_nothing_to_quantize() -> None:
    declared = NETWORK.partition("<")[2].partition(", float[8,16] w")[0]
    proto = network(f"(float[N,1,2048] x) => (float[N,63,{MEL}] f) <{declared}> {{ {FRONT} }}")
    with pytest.raises(onnxq.errors.NothingToQuantizeError, match="it makes a spectrum for Log"):
        onnxq.quantize(proto, sounds(), threads=1)
