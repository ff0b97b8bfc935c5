"""What a logarithm reads, or a division divides by, is not put onto a grid, whose zero would make it infinite."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import feeds, model, run
from onnx import ModelProto

import onnxq

READERS = ("y = Log(p)", "y = Reciprocal(p)", "y = Div(x0, p)", "y = Pow(p, k)")


def network(layer: str, reader: str) -> ModelProto:
    return model(
        f"""(float[4,8,6,6] x, float[4,8,6,6] x0) => (float[4,8,6,6] y)
        <float[8,8,1,1] w, float[6,6] m, float small = {{1e-6}}, float k = {{-0.5}}> {{ {layer} {reader} }}"""
    )


LAYERS = {
    "Conv": "a = Conv(x, w) b = Abs(a) p = Clip(b, small) ",
    "ConvClip": "a = Conv(x, w) p = Clip(a, small) ",
    "MatMul": "a = MatMul(x, m) p = Clip(a, small) ",
    "MatMulBias": "a = MatMul(x, m) p = Add(a, small) ",
    "MatMulAdd": "a = MatMul(x, m) c = Relu(a) p = Add(c, small) ",
    "moved": "a = Conv(x, w) c = Clip(a, small) t = Transpose<perm=[0,1,3,2]>(c) p = Transpose<perm=[0,1,3,2]>(t) ",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_outputs_stay_finite(layer: str, reader: str) -> None:
    proto = network(LAYERS[layer], reader)
    samples = [feeds(proto, seed=seed) for seed in range(8)]
    if layer in ("ConvClip", "MatMulBias", "moved"):
        with pytest.raises(onnxq.errors.NothingToQuantizeError, match="infinite where a grid makes small values zero"):
            onnxq.quantize(proto, samples, threads=1)
        return
    result = onnxq.quantize(proto, samples, threads=1)
    for sample in samples:
        assert np.isfinite(run(result.model, sample)["y"]).all()


def test_the_reason_names_the_reader() -> None:
    proto = network("h = Conv(x, w) a = Conv(h, w) p = Clip(a, small) ", READERS[0])
    result = onnxq.quantize(proto, [feeds(proto, seed=seed) for seed in range(8)], threads=1)
    reasons = {node.op: node.reason for node in result.report.float_nodes}
    assert reasons["Conv"].endswith("is infinite where a grid makes small values zero"), "the second, not the first"
    assert result.report.integer_nodes == 1


def test_a_product_of_matrices_writes_float_in_front_of_a_logarithm() -> None:
    proto = network(LAYERS["MatMul"], READERS[0])
    result = onnxq.quantize(proto, [feeds(proto, seed=seed) for seed in range(8)], threads=1)
    assert [n.op_type for n in result.model.graph.node][-2:] == ["Clip", "Log"]
    assert result.report.integer_nodes == 1


def test_a_dividend_and_a_positive_power_are_quantized() -> None:
    for reader in ("y = Div(p, x0)", "q = Mul(k, k) y = Pow(p, q)"):
        proto = network(LAYERS["ConvClip"], reader)
        result = onnxq.quantize(proto, [feeds(proto, seed=seed) for seed in range(8)], threads=1)
        assert any(node.op_type == "Conv" for node in result.model.graph.node)
        assert result.report.integer_nodes + result.report.simulated_nodes >= 1


def test_where_the_target_divides_in_integers_both_are_quantized() -> None:
    proto = network(LAYERS["ConvClip"], READERS[2])
    result = onnxq.quantize(proto, [feeds(proto, seed=seed) for seed in range(8)], threads=1, target="qnn")
    assert not [node for node in result.report.float_nodes if node.op in ("Conv", "Div")]
