"""Activations whose ranges are found at run time: what is written, and what ONNX Runtime makes of it."""

from __future__ import annotations

import graphs
import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxq
from onnxq.checking import check
from onnxq.execution.session import optimized_graph
from onnxq.numeric.metrics import sqnr
from onnxq.targets import TARGETS

RANDOM = np.random.default_rng(3)


def network() -> ModelProto:
    """Two products that read one tensor, a Gemm with a transposed weight, a convolution."""
    text = """(float[N,4,16] x, float[N,4,6,6] image) => (float[N,4,16] y, float[M,8] z, float[N,4,6,6] v)
    <float[16,16] a, float[16,16] b, float[16] c, float[8,16] d, float[8] e, float[4,4,1,1] f, int64[2] to> {
        p = MatMul(x, a)  q = MatMul(x, b)  r = Add(q, c)  t = Mul(p, r)  y = Tanh(t)
        flat = Reshape(y, to)  z = Gemm<transB=1>(flat, d, e)  v = Conv(image, f)
    }"""
    shapes = {"a": (16, 16), "b": (16, 16), "c": (16,), "d": (8, 16), "e": (8,), "f": (4, 4, 1, 1)}
    weights = {name: RANDOM.normal(0, 0.4, shape) for name, shape in shapes.items()}
    return graphs.model(text, to=np.array([-1, 16]), **weights)


def feed() -> dict[str, np.ndarray]:
    return {
        "x": RANDOM.normal(0, 1, (2, 4, 16)).astype(np.float32),
        "image": RANDOM.normal(0, 1, (2, 4, 6, 6)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def float_model() -> ModelProto:
    return network()


def test_products_with_a_matrix_are_written_as_the_runtime_fuses_them(float_model: ModelProto) -> None:
    result = onnxq.quantize(float_model, preset="w8a8-dynamic")
    domains = {node.domain for node in result.model.graph.node}
    assert domains <= {"", "ai.onnx"}
    kinds = [node.op_type for node in result.model.graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 2  # x, once for both of its readers, and flat
    assert kinds.count("MatMulInteger") == 3
    runs = [node.op_type for node in optimized_graph(result.model).node]
    assert runs.count("DynamicQuantizeMatMul") == 1
    assert runs.count("MatMulIntegerToFloat") == 2
    assert not {"MatMulInteger", "Gemm", "MatMul"} & set(runs)
    assert len(result.report.dynamic_nodes) == 3
    assert result.report.weights_only_nodes == 1  # the convolution
    assert "3 in integers with activations quantized at run time" in result.report.to_text()


def test_the_preset_is_dynamic_and_needs_no_data() -> None:
    options = onnxq.Options(preset="w8a8-dynamic")
    assert options.is_dynamic
    assert not options.needs_data
    assert onnxq.Options(preset="w8a8").needs_data


def test_no_data_are_needed_and_the_outputs_are_near(float_model: ModelProto) -> None:
    result = onnxq.quantize(float_model, preset="w8a8-dynamic")
    sample = feed()
    expected, found = (graphs.run(model, sample) for model in (float_model, result.model))
    assert all(sqnr(expected[name], found[name]) > 30 for name in ("y", "z", "v"))


@pytest.mark.parametrize("settings", [{"asymmetric_weights": True}, {"per_channel": False}, {"preset": "w4a8-dynamic"}])
def test_all_kinds_of_weights(float_model: ModelProto, settings: dict[str, object]) -> None:
    result = onnxq.quantize(float_model, **{"preset": "w8a8-dynamic", **settings})  # type: ignore[arg-type]
    assert len(result.report.dynamic_nodes) == 3
    sample = feed()
    expected, found = (graphs.run(model, sample)["z"] for model in (float_model, result.model))
    assert sqnr(expected, found) > (12 if settings.get("preset") else 30)


def test_check_reads_such_a_model(float_model: ModelProto) -> None:
    text = "(float[N,16] x) => (float[N,16] y) <float[16,16] a> { y = MatMul(x, a) }"
    result = onnxq.quantize(graphs.model(text, a=RANDOM.normal(0, 1, (16, 16))), preset="w8a8-dynamic")
    assert check(result.model, TARGETS["ort"]).is_clean
    assert check(onnxq.quantize(float_model, preset="w8a8-dynamic").model, TARGETS["ort"]).is_clean


def test_inspect_counts_them_among_the_integers(float_model: ModelProto) -> None:
    found = onnxq.inspect(float_model, preset="w8a8-dynamic")
    assert (found.integer_nodes, found.weights_only_nodes) == (3, 1)


def test_other_targets_take_no_ranges_that_are_found_at_run_time(float_model: ModelProto) -> None:
    result = onnxq.quantize(float_model, preset="w8a8-dynamic")
    for target in ("qnn", "tensorrt", "openvino"):
        found = check(result.model, TARGETS[target]).violations
        assert [v.requirement for v in found if "run time" in str(v)] == ["activation-granularity"] * 2


def test_it_is_faithful_to_a_range_that_is_not_the_calibration_datas(float_model: ModelProto) -> None:
    data = [feed() for _ in range(6)]
    loud = {name: 30 * values for name, values in feed().items()}
    static = onnxq.quantize(float_model, data, preset="w8a8", force_int_kernels=True)
    dynamic = onnxq.quantize(float_model, data, preset="w8a8-dynamic")
    expected, one, other = (graphs.run(model, loud)["y"] for model in (float_model, static.model, dynamic.model))
    assert sqnr(expected, other) > sqnr(expected, one) + 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "qnn"}, "qnn does not quantize activations at run time"),
        ({"block_size": 4}, "without blocks"),
        ({"preset": "w8a4-dynamic"}, "is unknown"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(onnxq.OnnxqError, match=message):
        onnxq.Options(**{"preset": "w8a8-dynamic", **settings})  # type: ignore[arg-type]


def test_rounding_and_bias_correction_see_what_is_read(float_model: ModelProto) -> None:
    data = [feed() for _ in range(12)]
    result = onnxq.quantize(float_model, data, preset="w4a8-dynamic", rounding="coordinate-descent")
    assert len(result.report.dynamic_nodes) == 3
    onnx.checker.check_model(result.model, full_check=True)


def test_other_readers_of_a_tensor_read_it_in_float() -> None:
    """An exception found at run time is one for products with a matrix; what else reads the tensor reads floats."""
    text = """(float[N,16] x) => (float[N,16] y) <float[16,16] a, float[16,16] b> {
        s = Sigmoid(x)  p = MatMul(x, a)  t = Mul(s, p)  y = MatMul(t, b)
    }"""
    loud = np.where(np.arange(16)[:, None] == 0, 1e-3, 1.0)
    proto = graphs.model(text, a=RANDOM.normal(0, 0.25, (16, 16)) * loud, b=RANDOM.normal(0, 0.25, (16, 16)))
    data = []
    for scale in np.geomspace(1, 300, 12):  # a range for all is coarse for most
        x = RANDOM.normal(0, 1, (1, 16)) * np.where(np.arange(16) == 0, scale, 1.0)
        data.append({"x": x.astype(np.float32)})
    result = onnxq.quantize(proto, data, fallback="dynamic", rounding="nearest", force_int_kernels=True)
    assert "MatMul_p" in result.report.dynamic_nodes
    assert check(result.model, TARGETS["ort"]).is_clean
