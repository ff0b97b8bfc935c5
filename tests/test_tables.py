"""Tables that Gather and GatherND look up: stored as integers, one scale a row, once however many read them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import feeds, model, ops, run, weights
from onnx import ModelProto

import onnxq

ROWS, WIDTH = 400, 64
TABLE = f"float[{ROWS},{WIDTH}] t"
EMBEDDING = f"(int64[N] i) => (float[N,4] y) <{TABLE}, float[{WIDTH},4] w> {{ e = Gather(t, i) y = MatMul(e, w) }}"
HIDDEN = f"(int64[N] i) => (float[N,{ROWS}] y) <{TABLE}> {{ e = Gather(t, i) h = Tanh(e)"
TIED = f"{HIDDEN} w = Transpose(t) y = MatMul(h, w) }}"
TIED_GEMM = f"{HIDDEN} y = Gemm<transB=1>(h, t) }}"


def quantized(text: str, opset: int = 17, **settings: object) -> tuple[ModelProto, ModelProto, onnxq.Result]:
    proto = model(text, opset=opset)
    data = [{"i": np.random.default_rng(seed).integers(0, 5, (7,))} for seed in range(12)]
    result = onnxq.quantize(proto, data, threads=1, rounding="nearest", **settings)
    return proto, result.model, result


def stored(proto: ModelProto) -> int:
    return sum(len(t.raw_data) or t.ByteSize() for t in proto.graph.initializer)


def rows(values: np.ndarray, bits: int) -> np.ndarray:
    """What symmetric rounding of each row to its largest magnitude leaves."""
    most = 2 ** (bits - 1) - 1
    scale = np.float32(np.abs(values).max(1, keepdims=True) / most)
    return np.float32(np.rint(values / scale) * scale)


def test_rows_are_looked_up_as_integers() -> None:
    proto, after, result = quantized(EMBEDDING.replace("y = MatMul(e, w)", "h = Tanh(e) y = MatMul(h, w)"))
    table = weights(proto)["t"]
    assert not any(t.data_type == onnx.TensorProto.FLOAT and t.dims == [ROWS, WIDTH] for t in after.graph.initializer)
    assert {"Cast", "Mul"} <= set(ops(after))
    assert stored(after) < 0.35 * stored(proto)
    shown = onnx.ModelProto.FromString(after.SerializeToString())
    output = next(n.output[0] for n in shown.graph.node if n.op_type == "Mul")
    assert output == "e", "what was looked up keeps its name"
    shown.graph.output.append(onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, None))
    index = np.arange(ROWS)
    np.testing.assert_allclose(run(shown, {"i": index})["e"], rows(table, 8), rtol=1e-5, atol=1e-7)
    assert result.report.weights_only_nodes == 1


@pytest.mark.parametrize("kind", ["int64[N] i) => (float[N,3,8] y", "int64[N,2] i) => (float[N,8] y"])
def test_gather_nd(kind: str) -> None:
    text = f"({kind}) <float[300,3,8] t, int64[2] k> {{ e = GatherND(t, j) y = Tanh(e) }}"
    text = text.replace("GatherND(t, j)", "GatherND(t, i)").replace(", int64[2] k", "")
    if "N,2" not in kind:
        text = text.replace("int64[N] i", "int64[N,1] i")
    proto = model(text)
    rank = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    index = np.random.default_rng(0).integers(0, 3, (9, rank))
    result = onnxq.quantize(proto, [{"i": index}] * 8, threads=1, preset="w8")
    expected, got = run(proto, {"i": index})["y"], run(result.model, {"i": index})["y"]
    assert 30 < 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(got - expected)) < 60
    assert any(t.data_type == onnx.TensorProto.INT8 for t in result.model.graph.initializer)


@pytest.mark.parametrize("text", [TIED, TIED_GEMM], ids=["MatMul", "Gemm"])
@pytest.mark.parametrize("bits", ["8", "4"])
@pytest.mark.parametrize("preset", ["w8a8", "w8", "w4"])
def test_a_tied_table_is_stored_once(text: str, bits: str, preset: str) -> None:
    _, after, result = quantized(text, embeddings=bits, preset=preset)
    assert stored(after) < (0.35 if bits == "8" else 0.25) * ROWS * WIDTH * 4
    large = [t for t in after.graph.initializer if np.prod(t.dims) >= ROWS * WIDTH / 2]
    assert len(large) == 1
    assert result.report.quality[0].sqnr_db is not None
    assert result.report.quality[0].sqnr_db > (25 if bits == "8" else 12)


def test_four_bits_are_exact() -> None:
    text = EMBEDDING.replace("float[N,4] y", f"float[N,{WIDTH}] y").replace("y = MatMul(e, w)", "y = Identity(e)")
    proto = model(text.replace(f", float[{WIDTH},4] w", ""))
    levels = np.random.default_rng(0).integers(-7, 8, (ROWS, WIDTH))
    levels[:, 0] = 7
    scales = np.random.default_rng(1).uniform(0.1, 3, (ROWS, 1))
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32(levels * scales), "t"))
    result = onnxq.quantize(
        proto, [{"i": np.arange(9)}] * 8, threads=1, preset="w4", embeddings="4", weight_range="minmax"
    )
    got = run(result.model, {"i": np.arange(ROWS)})["y"]
    np.testing.assert_allclose(got, levels * scales, rtol=1e-5, atol=1e-6)
    assert stored(result.model) < 0.2 * stored(proto)


def test_tables_in_float_and_why() -> None:
    for settings, reason in (({"embeddings": "float"}, "`embeddings` float"), ({"exclude": ("Gather",)}, "excluded")):
        _, after, result = quantized(EMBEDDING, **settings)
        assert any(t.name == "t" and t.data_type == onnx.TensorProto.FLOAT for t in after.graph.initializer)
        (first, *_) = result.report.float_constants
        assert first.tensor == "t"
        assert first.bytes == 4 * ROWS * WIDTH
        assert reason in first.reason
        assert "stored in float: 100.0 KiB t: " in result.report.to_text()
        assert "did nothing" not in result.report.to_text()


def test_a_table_that_is_computed_with_stays() -> None:
    """It would be stored twice."""
    text = EMBEDDING.replace(
        "y = MatMul(e, w)", "m = Mul(t, k) s = ReduceSum<keepdims=0>(m) f = MatMul(e, w) y = Add(f, s)"
    )
    text = text.replace("k)", "c)").replace("{ e", "{ d = Cast<to=1>(i) c = ReduceMean<keepdims=0>(d) e")
    _, after, _ = quantized(text)
    assert not any(t.data_type == onnx.TensorProto.INT8 and t.dims == [ROWS, WIDTH] for t in after.graph.initializer)


def test_tied_floats_are_stored_once() -> None:
    _, after, _ = quantized(
        TIED.replace("y = MatMul(h, w)", "z = MatMul(h, w) y = MatMul(z, v)").replace(
            TABLE, f"{TABLE}, float[{ROWS},{ROWS}] v"
        ),
        embeddings="float",
        exclude=("MatMul_z",),
    )
    assert sum(t.dims in ([ROWS, WIDTH], [WIDTH, ROWS]) for t in after.graph.initializer) == 1


def test_compilers_get_the_whole_table_dequantized() -> None:
    _, after, _ = quantized(EMBEDDING, target="openvino")
    gather = next(n for n in after.graph.node if n.op_type == "Gather")
    source = next(n for n in after.graph.node if gather.input[0] in n.output)
    assert source.op_type == "DequantizeLinear"


def test_qnn_gets_a_table_on_the_grid_of_what_is_looked_up() -> None:
    """Seen with onnxruntime-qnn 2.7.0: with a scale a row, or another grid behind, its graph cannot be finalised."""
    for preset, kind in (("w8a8", "uint8"), ("w8a16", "uint16")):
        _, after, result = quantized(EMBEDDING, target="qnn", preset=preset)
        constants = weights(after)
        gather = next(n for n in after.graph.node if n.op_type == "Gather")
        table = next(n for n in after.graph.node if gather.input[0] in n.output)
        found = next(n for n in after.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == gather.output[0])
        assert constants[table.input[0]].dtype == kind
        assert constants[table.input[1]].shape == ()
        for mine, theirs in zip(table.input[1:], found.input[1:], strict=True):
            assert np.array_equal(constants[mine], constants[theirs])
        assert result.report.quality[0].sqnr_db > 30


def test_it_is_no_slower_than_dequantizing_the_table() -> None:
    """The table must not be dequantized for each run."""
    _, after, _ = quantized(EMBEDDING)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(after.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.run(None, feeds(model(EMBEDDING)))
    whole = [n for n in after.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("t_")]
    assert not whole
