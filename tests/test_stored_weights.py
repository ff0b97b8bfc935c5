"""Weights of recurrent operators, of branches and of loops: stored as integers, computed with in float."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import feeds, model, run
from onnx import ModelProto, helper, numpy_helper

import onnxq
from onnxq.checking import check

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, directions: int) -> ModelProto:
    rows, way = GATES[op] * 48, "bidirectional" if directions == 2 else "forward"
    weights = f"float[{directions},{rows},32] w, float[{directions},{rows},48] r, float[{directions},{2 * rows}] b"
    proto = model(
        f"(float[T,1,32] x) => (float[T,{directions},1,48] y) <{weights}>"
        f' {{ y = {op}<hidden_size=48, direction="{way}">(x, w, r, b) }}'
    )
    for tensor in proto.graph.initializer:  # rows of unequal size, as gates have them
        values = numpy_helper.to_array(tensor) * 0.2
        if tensor.name != "b":
            values = values * np.random.default_rng(3).uniform(0.1, 3, (*values.shape[:2], 1))
        tensor.CopyFrom(numpy_helper.from_array(np.float32(values), tensor.name))
    return proto


def db(proto: ModelProto, after: ModelProto, arrays: dict[str, np.ndarray], *, optimized: bool = False) -> float:
    expected = run(proto, arrays)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(after.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got = session.run(None, arrays)[0]
    first = next(iter(expected.values()))
    return float(20 * np.log10(np.linalg.norm(first) / np.linalg.norm(got - first)))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("preset", ["w8", "w8a8"])
def test_recurrent_weights(op: str, directions: int, preset: str) -> None:
    proto = recurrent(op, directions)
    arrays = feeds(proto, free=6)
    result = onnxq.quantize(proto, [arrays] * 8, threads=1, preset=preset)
    assert db(proto, result.model, arrays) > 30
    assert db(proto, result.model, arrays, optimized=True) > 30
    assert result.model.ByteSize() < 0.45 * proto.ByteSize()
    assert result.report.weights_only_nodes == 1
    kinds = {t.name: t.data_type for t in result.model.graph.initializer}
    assert onnx.TensorProto.FLOAT not in {kinds.get("w"), kinds.get("r")}


def test_one_scale_a_row() -> None:
    proto = recurrent("LSTM", 2)
    result = onnxq.quantize(proto, threads=1, preset="w8")
    scales = {t.name: t.dims for t in result.model.graph.initializer if t.name.endswith("_scale")}
    assert sorted(map(list, scales.values())) == [[2 * 4 * 48], [2 * 4 * 48]]


def test_left_out_by_the_user() -> None:
    proto = recurrent("GRU", 1)
    with pytest.raises(onnxq.errors.NothingToQuantizeError):
        onnxq.quantize(proto, threads=1, preset="w8", exclude=("GRU",))


def branches(*, inner: bool = False) -> ModelProto:
    """The weight in the main graph, read by both branches, or one in each."""
    random = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(np.float32(random.standard_normal((32, 48))), n) for n in ("w", "v")]
    table = numpy_helper.from_array(np.float32(random.standard_normal((300, 32))), "t")

    def body(name: str, op: str) -> onnx.GraphProto:
        weight = {"yes": "w", "no": "v"}[name] if inner else "w"
        nodes = [
            helper.make_node("Gather", ["t", "i"], [f"{name}_e"]),
            helper.make_node("MatMul", [f"{name}_e", weight], [f"{name}_h"]),
            helper.make_node(op, [f"{name}_h"], [f"{name}_y"]),
        ]
        made = [next(t for t in tensors if t.name == weight)] if inner else []
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, ["N", 48])], made)

    node = helper.make_node("If", ["c"], ["y"], then_branch=body("yes", "Tanh"), else_branch=body("no", "Neg"))
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("i", 7, ["N"]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, ["N", 48])],
        [table] if inner else [table, tensors[0]],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("inner", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize(
    "settings", [{"preset": "w8"}, {"preset": "w4", "block_size": 16}, {"preset": "w8", "embeddings": "4"}],
    ids=["w8", "w4", "table of 4 bits"],
)  # fmt: skip
def test_weights_in_branches(inner: bool, settings: dict[str, object]) -> None:
    proto = branches(inner=inner)
    result = onnxq.quantize(proto, threads=1, **settings)
    assert result.model.ByteSize() < 0.5 * proto.ByteSize()
    for taken in (True, False):
        arrays = {"i": np.arange(9), "c": np.array(taken)}
        for optimized in (True, False):
            assert db(proto, result.model, arrays, optimized=optimized) > (30 if settings == {"preset": "w8"} else 12)
    shape = [300, 16] if settings.get("embeddings") == "4" else [300, 32]
    assert sum(t.dims == shape for t in result.model.graph.initializer) == 1, "branches share the table"
    assert "two files" in result.report.to_text()


def test_weights_in_loops() -> None:
    weight = numpy_helper.from_array(np.float32(np.random.default_rng(0).standard_normal((40, 40)) / 6), "w")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["h"]),
            helper.make_node("Tanh", ["h"], ["o"]),
            helper.make_node("Identity", ["k"], ["again"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, t, d) for n, t, d in (("n", 7, []), ("k", 9, []), ("s", 1, None))],
        [helper.make_tensor_value_info("again", 9, []), helper.make_tensor_value_info("o", 1, None)],
    )
    times = numpy_helper.from_array(np.int64(5), "times")
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)], "g",
        [helper.make_tensor_value_info("x", 1, ["N", 40])], [helper.make_tensor_value_info("y", 1, ["N", 40])],
        [weight, times],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = onnxq.quantize(proto, threads=1, preset="w8")
    arrays = feeds(proto)
    assert db(proto, result.model, arrays) > 25
    assert db(proto, result.model, arrays, optimized=True) > 25
    assert result.model.ByteSize() < 0.45 * proto.ByteSize()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("settings", [{"preset": "w8"}, {}, {"preset": "w4"}, {"preset": "w4", "block_size": 4}])
def test_layers_without_an_integer_kernel(settings: dict[str, object], groups: int) -> None:
    proto = model(
        f"(float[N,16,5,5] x) => (float[N,?,?,?] y) <float[16,{32 // groups},3,3] w, float[8,32,3,3] v>"
        f" {{ a = ConvTranspose<group={groups}, strides=[2,2]>(x, w) y = Conv(a, v) }}"
    )
    arrays = feeds(proto, free=1)
    result = onnxq.quantize(proto, [arrays] * 8, threads=1, rounding="nearest", **settings)
    kinds = {t.name: t.data_type for t in result.model.graph.initializer}
    assert kinds["w_quantized"] == onnx.TensorProto.INT8  # 8 bits in any case: they are rounded to nearest
    assert "w" not in kinds
    scales = next(t for t in result.model.graph.initializer if t.name == "w_scale")
    assert list(scales.dims) == [32 // groups]
    assert db(proto, result.model, arrays, optimized=True) > (12 if "w4" in str(settings) else 28)
    assert not [n for n in result.report.float_nodes if n.op == "ConvTranspose"]


def test_layers_that_another_target_computes_in_float_keep_their_weights() -> None:
    proto = model(
        "(float[1,16,5,5] x) => (float[1,?,?,?] y) <float[16,32,3,3] w, float[8,32,3,3] v>"
        " { a = ConvTranspose<strides=[2,2]>(x, w) y = Conv(a, v) }"
    )
    for settings in ({"target": "tract"}, {"exclude": ("ConvTranspose",)}):
        result = onnxq.quantize(proto, [feeds(proto)] * 8, threads=1, **settings)
        assert "w" in {t.name for t in result.model.graph.initializer}


def test_a_float_layer_with_stored_weights_keeps_its_bias_in_float_between_grids() -> None:
    """ConvTranspose has no integer kernel: nothing asks for an integer bias, though its input is on a grid."""
    proto = model(
        "(float[1,4,8,8] x) => (float[?,?,?,?] y)"
        " <float[16,4,3,3] u, float[16,32,2,2] w, float[32] b, float[4,32,3,3] v>"
        " { c = Conv(x, u) r = Relu(c) a = ConvTranspose<strides=[2,2]>(r, w, b) h = Relu(a) y = Conv(h, v) }"
    )
    result = onnxq.quantize(proto, [feeds(proto, seed=seed) for seed in range(8)], threads=1, latency="off")
    assert not check(result.model, onnxq.TARGETS["ort"]).violations
