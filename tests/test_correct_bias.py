"""Analytic bias correction: the mean error of quantized weights is gone, from data and from BatchNorm's moments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import feeds, model, run
from test_scaling_groups import shaped

from onnxq.data import Feed
from onnxq.graph.model import Model, Moments, Quantizer
from onnxq.graph.simulate import simulated
from onnxq.numeric.quant import Grid, QuantParams, QuantSpec
from onnxq.passes.base import Context
from onnxq.passes.correct_bias import CorrectBias

SPEC = QuantSpec(Grid(4, signed=True, narrow=True), symmetric=True)


def quantized(proto: onnx.ModelProto, *weights: str) -> Model:
    """The model with 4-bit quantizers on these weights."""
    planned = shaped(proto)
    tensors = planned.graph.tensors()
    for name in weights:
        values = np.asarray(tensors[name].values)
        params = QuantParams.from_range(values.min(), values.max(), SPEC)
        readers = tuple(node.name for node in tensors[name].outputs)
        planned.quantizers[name] = Quantizer(name, SPEC, params=params, readers=readers)
    return planned


def context(proto: onnx.ModelProto, count: int = 8) -> Context:
    return Context(feeds=[Feed(feeds(proto, seed=10 + i, free=1), None, "") for i in range(count)])


LAYERS = {
    "Conv": "(float[N,4,6,6] x) => (float[N,6,?,?] y) <float[6,4,3,3] w> { r = Relu(x) y = Conv(r, w) }",
    "depthwise": "(float[N,4,6,6] x) => (float[N,4,?,?] y) <float[4,1,3,3] w> { r = Relu(x) y = Conv<group=4>(r, w) }",
    "ConvTranspose": (
        "(float[N,4,6,6] x) => (float[N,6,?,?] y) <float[4,6,1,1] w, float[6] b> { y = ConvTranspose(x, w, b) }"
    ),
    "Gemm": "(float[N,5] x) => (float[N,3] y) <float[5,3] w> { y = Gemm(x, w) }",
    "MatMul": "(float[N,7,5] x) => (float[N,7,3] y) <float[5,3] w> { y = MatMul(x, w) }",
}


@pytest.mark.parametrize("layer", LAYERS)
def test_the_mean_of_the_output_is_what_it_was(layer: str) -> None:
    proto = model(LAYERS[layer])
    for node in proto.graph.node:
        node.name = node.output[0]
    planned, data = quantized(proto, "w"), context(proto)
    errors = []
    for _ in range(2):
        sim = simulated(planned)
        means = [run(sim, f.arrays)["y"] - run(proto, f.arrays)["y"] for f in data.feeds]
        axis = -1 if layer == "MatMul" else 1
        errors.append(np.abs(np.moveaxis(np.concatenate(means), axis, 0).reshape(means[0].shape[axis], -1).mean(1)))
        CorrectBias().apply(planned, data)
    before, after = errors
    assert before.max() > 1e-2
    if layer in ("Gemm", "MatMul", "ConvTranspose"):
        assert after.max() < 1e-5
    else:  # border pixels are read less often than others: their mean is not that of the middle
        assert after.max() < 0.5 * before.max()


def test_each_matrix_of_a_stack_meets_a_share_of_the_positions() -> None:
    proto = model("(float[1,4,7,5] x) => (float[1,4,7,3] y) <float[4,5,3] w> { y = MatMul(x, w) }")
    proto.graph.node[0].name = "n"
    planned = quantized(proto, "w")
    constant = {"x": np.broadcast_to(np.float32([2.0, -3.0, 1.0, 0.5, 4.0]), (1, 4, 7, 5)).copy()}
    CorrectBias().apply(planned, Context(feeds=[Feed(constant, None, "")]))
    error = run(simulated(planned), constant)["y"] - run(proto, constant)["y"]
    assert np.abs(error).max() > 1e-2
    np.testing.assert_allclose(error.mean(axis=(0, 1, 2)), 0, atol=1e-5)


@pytest.mark.parametrize(("width", "pads"), [("4", [1, 1, 1, 1]), ("W", [1, 0, 1, 0])])
def test_padding_is_counted(width: str, pads: list[int]) -> None:
    """Along the axes whose sizes are known."""
    proto = model(
        f"(float[1,2,4,{width}] x) => (float[1,3,?,?] y) <float[3,2,3,3] w, float[3] b>"
        f" {{ y = Conv<pads={pads}>(x, w, b) }}"
    )
    proto.graph.node[0].name = "n"
    planned = quantized(proto, "w")
    constant = {"x": np.broadcast_to(np.float32([[[[2.0]], [[-3.0]]]]), (1, 2, 4, 4)).copy()}
    CorrectBias().apply(planned, Context(feeds=[Feed(constant, None, "")]))
    error = run(simulated(planned), constant)["y"] - run(proto, constant)["y"]
    np.testing.assert_allclose(error.mean(axis=(0, 2, 3)), 0, atol=1e-5)


def test_moments_carry_through_clip_add_and_pooling() -> None:
    proto = model(
        "(float[N,3,6,6] x) => (float[N,2] y) <float[4,3,1,1] u, float[4,3,1,1] v, float lo = {0.0}, float hi = {6.0},"
        " float[4,2] w> { a = Conv(x, u) b = Conv(x, v) c = Clip(a, lo, hi) d = Relu(b) e = Add(c, d)"
        " f = GlobalAveragePool(e) g = Flatten(f) y = Gemm(g, w) }"
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    rng, size = np.random.default_rng(0), 200_000
    moments = {n: Moments(rng.normal(2, 2, 4), rng.uniform(1, 3, 4)) for n in "ab"}
    planned = quantized(proto, "w")
    planned.moments.update(moments)
    outcome = CorrectBias("moments").apply(planned, context(proto))
    assert outcome.changed == 1
    z = {n: rng.normal(m.mean, m.std, (size, 4)) for n, m in moments.items()}
    mean = (np.clip(z["a"], 0, 6) + np.maximum(z["b"], 0)).mean(axis=0)
    weight = planned.graph.tensors()["w"].values
    params = planned.quantizers["w"].params
    assert params is not None
    bias = planned.graph.nodes[-1].inputs[2].values
    np.testing.assert_allclose(bias, mean @ (np.float64(weight) - params.fake(weight)), atol=0.01)


def test_a_mean_that_is_not_known_is_said() -> None:
    proto = model(LAYERS["Gemm"])
    proto.graph.node[0].name = "n"
    outcome = CorrectBias().apply(quantized(proto, "w"), replace(context(proto), feeds=()))
    assert outcome.changed == 0
    assert "mean of its input 'x' is not known" in outcome.skips[0].reason
