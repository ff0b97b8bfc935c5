"""The models in `models/`, with the commands of the README: accuracy, and integer kernels all the way."""

import importlib.util
from importlib.metadata import version
from pathlib import Path

import onnx
import pytest
from quantized import FLOAT_LINEAR, linear_in_float

import onnxq
from onnxq.errors import VerificationError
from onnxq.execution.session import optimized_graph

OLD_RUNTIME = tuple(int(n) for n in version("onnxruntime").split(".")[:2]) < (1, 24)

MODELS = Path(__file__).parent.parent / "models"


def evaluation():
    spec = importlib.util.spec_from_file_location("models_evaluate", MODELS / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["resnet_digits", "mobilenet_digits", "vit_digits"])
def case(request):
    """(name, result of quantizing it with its calibration data and nothing else said)."""
    folder = MODELS / request.param
    try:
        return request.param, onnxq.quantize(folder / "model.onnx", folder / "calib")
    except VerificationError as error:
        if OLD_RUNTIME and request.param == "vit_digits":
            pytest.skip(f"a fault of ONNX Runtime before 1.24 with 24 channels, which verification finds: {error}")
        raise


def test_accuracy_stays_within_half_a_point(case):
    name, result = case
    evaluate = evaluation()
    images, labels = evaluate.load(name)
    before = evaluate.top1(MODELS / name / "model.onnx", images, labels)
    after = evaluate.top1(result.model.SerializeToString(), images, labels)
    assert before > 0.9
    assert after > before - 0.005, (before, after)


def test_every_linear_layer_runs_in_integers(case):
    name, result = case
    graph = optimized_graph(result.model)
    original = onnx.load(MODELS / name / "model.onnx").graph
    constants = {t.name for t in original.initializer}
    linear = [n for n in original.node if n.op_type in FLOAT_LINEAR and n.input[1] in constants]
    products = [n for n in original.node if n.op_type == "MatMul" and n.input[1] not in constants]  # attention
    assert len(linear_in_float(node.op_type for node in graph.node)) == len(products)
    kernels = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
    assert sum(node.op_type in kernels for node in graph.node) == len(linear)


def test_the_report_is_good_news(case):
    name, result = case
    report = result.report
    assert report.warnings == ()
    assert report.quality[0].sqnr_db > 25
    assert report.quality[0].top1_agreement > 0.95
    assert report.result.bytes < report.source.bytes / 2.4
    assert {node.op for node in report.float_nodes} <= {"LayerNormalization", "Gelu", "MatMul", "Softmax", "Mul"}
    assert bool(report.float_nodes) == (name == "vit_digits")


def test_convolutional_networks_convert_at_their_borders_only(case):
    name, result = case
    if name == "vit_digits":
        pytest.skip("LayerNormalization and Gelu run in float")
    operators = result.report.runtime_operators
    assert (operators["QuantizeLinear"], operators.get("DequantizeLinear", 0)) == (1, 0)
