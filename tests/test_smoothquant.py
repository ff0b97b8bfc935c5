"""Scales move from behind LayerNorm into the weights, the function stays, and residuals keep their values."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from quantized import context, quantized

import onnxq
from onnxq.execution.partial import extract
from onnxq.passes.base import Outcome
from onnxq.passes.smoothquant import SmoothQuant

GAMMA = np.where(np.arange(8) == 3, 50.0, 1.0)
NORMS = {
    "whole": "y = LayerNormalization<axis=-1>(x, g, b)",
    "without beta": "y = LayerNormalization<axis=-1>(x, g)",
    "decomposed": "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  p = Pow(d, two)  v = ReduceMean<axes=[-1]>(p)"
    "  e = Add(v, eps)  s = Sqrt(e)  n = Div(d, s)  h = Mul(n, g)  y = Add(h, b)",
    "tensorflow": "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  p = Pow(d, two)  v = ReduceMean<axes=[-1]>(p)"
    "  e = Add(v, eps)  s = Sqrt(e)  r = Reciprocal(s)  f = Mul(r, g)  h = Mul(x, f)  i = Mul(m, f)  l = Sub(b, i)"
    "  y = Add(h, l)",
    "RMS": "p = Mul(x, x)  v = ReduceMean<axes=[-1]>(p)  e = Add(v, eps)  s = Sqrt(e)  n = Div(x, s)  y = Mul(n, g)",
    "without gamma": "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  p = Pow(d, two)  v = ReduceMean<axes=[-1]>(p)"
    "  e = Add(v, eps)  s = Sqrt(e)  y = Div(d, s)",
}


def network(norm: str, readers: str = "q = MatMul(y, wq)  k = MatMul(y, wk)  z = Add(q, k)") -> ModelProto:
    text = (
        "(float[1,4,8] x) => (float[1,4,8] z) <float[8] g, float[8] b, float two, float eps, float[8,8] wq,"
        f" float[8,8] wk> {{ {NORMS[norm]}  {readers} }}"
    )
    return graphs.model(text, g=GAMMA, two=2.0, eps=1e-5)


def migrated(proto: ModelProto, alpha: float = 0.5) -> tuple[ModelProto, Outcome]:
    model = graphs.wrapped(proto)
    outcome = SmoothQuant(alpha).apply(model, context(proto))
    return model.to_proto(), outcome


def largest(proto: ModelProto, tensor: str = "y") -> np.ndarray:
    """Of each channel of a tensor, over the samples that `context` calibrates with."""
    copy = extract(proto, [tensor])
    runs = [graphs.run(copy, graphs.feeds(proto, seed=seed, free=1))[tensor] for seed in range(1, 5)]
    return np.abs(np.concatenate(runs)).max(axis=(0, 1))


@pytest.mark.parametrize("norm", NORMS)
def test_the_function_stays(norm: str) -> None:
    proto = network(norm)
    after, outcome = migrated(proto)
    assert outcome.changed == 1
    graphs.assert_same_function(proto, after, 1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_channels_follow_equation_4(norm: str) -> None:
    proto = network(norm)
    x, weights = largest(proto), graphs.weights(proto)
    w = np.maximum(np.abs(weights["wq"]).max(axis=1), np.abs(weights["wk"]).max(axis=1))
    for alpha in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(largest(migrated(proto, alpha)[0]), x ** (1 - alpha) * w ** (1 - alpha), rtol=1e-4)


def test_gemm_in_either_orientation() -> None:
    text = """(float[4,8] x) => (float[4,8] z) <float[8] g, float[8] b, float[8,8] wq, float[8,8] wk> {
        y = LayerNormalization<axis=-1>(x, g, b)  q = Gemm<transB=1>(y, wq)  k = Gemm(y, wk)  z = Add(q, k) }"""
    proto = graphs.model(text, g=GAMMA)
    after, outcome = migrated(proto)
    assert outcome.changed == 1
    graphs.assert_same_function(proto, after, 1e-5)


@pytest.mark.parametrize(
    "readers",
    [
        "q = MatMul(y, wq)  z = Add(q, y)",
        "q = MatMul(y, wq)  k = Tanh(y)  z = Add(q, k)",
        "q = MatMul(y, wq)  k = MatMul(y, wk)  p = Add(q, k)  z = Add(p, y)",
    ],
)
def test_a_residual_behind_the_norm_keeps_its_values_and_layers_read_a_product(readers: str) -> None:
    proto = network("whole", readers)
    after, outcome = migrated(proto)
    assert outcome.changed == 1
    graphs.assert_same_function(proto, after, 1e-5)
    (product,) = (node for node in after.graph.node if node.op_type == "Mul")
    assert product.input[0] == "y"
    read = {node.op_type: node.input[0] for node in after.graph.node}
    assert read["MatMul"] == product.output[0]
    assert "y" in {name for node in after.graph.node if node.op_type in ("Add", "Tanh") for name in node.input}
    gamma = next(t for t in after.graph.initializer if t.name == "g")
    np.testing.assert_array_equal(numpy_helper.to_array(gamma), GAMMA)


def test_what_no_linear_layer_reads_is_not_worth_a_word() -> None:
    assert migrated(network("whole", "z = Tanh(y)"))[1] == Outcome()


def test_dead_channels_keep_their_scale() -> None:
    gamma = np.where(np.arange(8) == 2, 0.0, GAMMA)
    text = """(float[1,4,8] x) => (float[1,4,8] z) <float[8] g, float[8,8] w> {
        y = LayerNormalization<axis=-1>(x, g)  z = MatMul(y, w) }"""
    proto = graphs.model(text, g=gamma)
    after, outcome = migrated(proto)
    assert outcome.changed == 1
    graphs.assert_same_function(proto, after, 1e-5)


def test_the_quantized_model_gains_and_the_comparison_says_so() -> None:
    proto = network("whole")
    data = [graphs.feeds(proto, seed=seed) for seed in range(1, 9)]
    result = onnxq.quantize(proto, data, force_int_kernels=True, smoothquant=0.5)
    (step,) = [step for step in result.report.steps if step.name == "SmoothQuant"]
    assert "; kept" in step.notes[0]
    plain = quantized(proto, data)
    noise = {}
    for name, other in (("plain", plain), ("migrated", result.model)):
        noise[name] = sum(np.square(graphs.run(other, f)["z"] - graphs.run(proto, f)["z"]).sum() for f in data)
    assert noise["migrated"] < noise["plain"] / 2


def test_alpha_is_a_share() -> None:
    with pytest.raises(onnxq.OnnxqError, match="`smoothquant` must be 0 to 1, got 2"):
        onnxq.Options(smoothquant=2.0)
