"""Models that nobody trained for this project, where `../shared/realmodels` has them."""

import importlib.util
from pathlib import Path

import onnx
import pytest
from quantized import FLOAT_LINEAR, linear_in_float

import onnxq
from onnxq import Preprocess
from onnxq.execution.session import optimized_graph

REAL = Path(__file__).parent.parent.parent / "shared" / "realmodels"
MOBILENET, RESNET, ULTRAFACE = "mobilenet_v1_025_imagenet", "resnet20_cifar10", "ultraface"

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realmodels")

PREPROCESS = {
    MOBILENET: Preprocess(scale=1 / 127.5, mean=(1.0,)),
    RESNET: Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ULTRAFACE: Preprocess(scale=1 / 128, mean=(127 / 128,)),
}
PHOTOS = REAL / MOBILENET / "calib"
CALIBRATION = {
    MOBILENET: (PHOTOS, {}),
    RESNET: (REAL / RESNET / "calib.npz", {"input_keys": {"input": "images"}}),
    ULTRAFACE: (PHOTOS, {}),
}


def evaluation():
    spec = importlib.util.spec_from_file_location("real_evaluate", REAL / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """name -> (path of the result, report); each model is quantized once."""
    done = {}

    def quantize(name):
        if name not in done:
            data, options = CALIBRATION[name]
            path = tmp_path_factory.mktemp(name) / "int8.onnx"
            options = {**options, "samples": 50 if name == ULTRAFACE else 200}
            result = onnxq.quantize(
                REAL / name / "model.onnx", data, output=path, preprocess=PREPROCESS[name], **options
            )
            done[name] = path, result.report
        return done[name]

    return quantize


FASTER_IN_FLOAT = {MOBILENET: {"conv1", "conv_dw_1"}, RESNET: set(), ULTRAFACE: {"Conv_246", "Conv_249"}}
"""The first layers of depthwise-separable networks, the exceptions to integers everywhere."""


@pytest.mark.parametrize("name", CALIBRATION)
def test_every_linear_layer_runs_in_integers_but_for_named_exceptions(result, name):
    path, report = result(name)
    graph = optimized_graph(path)
    assert {n.node for n in report.float_nodes if n.op in FLOAT_LINEAR} == FASTER_IN_FLOAT[name]
    assert len(linear_in_float(node.op_type for node in graph.node)) == len(FASTER_IN_FLOAT[name])
    linear = [n for n in onnx.load(REAL / name / "model.onnx").graph.node if n.op_type in FLOAT_LINEAR]
    integer = [n for n in graph.node if n.op_type in ("QLinearConv", "QGemm")]
    assert len(integer) == len(linear) - len(FASTER_IN_FLOAT[name])


@pytest.mark.parametrize("name", CALIBRATION)
def test_with_every_kernel_there_are_no_exceptions(name):
    data, options = CALIBRATION[name]
    options = {**options, "samples": 20, "force_int_kernels": True, "activation_range": "minmax"}
    result = onnxq.quantize(REAL / name / "model.onnx", data, preprocess=PREPROCESS[name], **options)
    assert not linear_in_float(result.report.runtime_operators)


@pytest.mark.parametrize("name", CALIBRATION)
def test_nothing_of_ours_is_needed_to_run_it(result, name):
    path, _ = result(name)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    original = onnx.load(REAL / name / "model.onnx")
    assert {o.domain for o in proto.opset_import} == {""}
    constants = {t.name for t in original.graph.initializer}
    assert [i.name for i in proto.graph.input] == [i.name for i in original.graph.input if i.name not in constants]
    assert [o.name for o in proto.graph.output] == [o.name for o in original.graph.output]


def test_resnet20_loses_at_most_0_4_points(result):
    evaluate = evaluation()
    images, labels = evaluate.load(RESNET)
    assert len(labels) == 5000
    before = evaluate.top1(REAL / RESNET / "model.onnx", images, labels)
    after = evaluate.top1(result(RESNET)[0], images, labels)
    assert before == pytest.approx(81.0, abs=0.1)  # as the README beside it says: the preprocessing is right
    assert after >= before - 0.4, (before, after)


def test_ultraface_keeps_its_boxes(result):
    quality = {q.output: q for q in result(ULTRAFACE)[1].quality}
    assert quality["scores"].sqnr_db > 25
    assert quality["boxes"].sqnr_db > 25


def test_mobilenet_goes_through(result):
    """Min-max ranges leave this network at 12 dB: later range methods are for it."""
    report = result(MOBILENET)[1]
    assert report.quality[0].sqnr_db > 10
    assert report.quality[0].top1_agreement > 0.6


def test_the_result_does_not_depend_on_threads(result, tmp_path):
    data, options = CALIBRATION[RESNET]
    outputs = []
    for threads in (1, 2):
        result = onnxq.quantize(
            REAL / RESNET / "model.onnx", data, preprocess=PREPROCESS[RESNET], samples=20, threads=threads, **options
        )
        outputs.append(result.model.SerializeToString(deterministic=True))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("settings", "points", "cosine", "size"),
    [
        ({}, 0.5, 99.0, 0.30),
        ({"preset": "w8a8-dynamic"}, 0.5, 99.0, 0.30),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_sentence_encoder_keeps_its_score(settings, points, cosine, size, tmp_path):
    """Spearman's correlation on STS-B, float 84.14; cosine of its embeddings with the float model's, percent."""
    module, folder = evaluation(), REAL / "minilm_l3"
    path = tmp_path / "minilm.onnx"
    onnxq.quantize(folder / "model.onnx", folder / "calib", output=path, **settings)
    task = module.TASKS["minilm_l3"]
    feeds, labels = task.eval()
    found, reference = (module.run(model, feeds) for model in (path, folder / "model.onnx"))
    scores, best = task.score(found, labels, reference), task.score(reference, labels)
    assert scores["Spearman"] > best["Spearman"] - points
    assert scores["cosine with float"] > cosine
    assert path.stat().st_size < size * (folder / "model.onnx").stat().st_size
