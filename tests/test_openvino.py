"""What OpenVINO makes of our models: compiled and run on its CPU plugin, where it is installed (`.[openvino]`)."""

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import feeds, model, run
from quantized import PLAIN, quantized, samples
from test_targets import MISSING

import onnxq
from onnxq import Preprocess
from onnxq.numeric.metrics import Sqnr
from onnxq.targets import TARGETS
from onnxq.targets.target import MOVES

openvino = pytest.importorskip("openvino")

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "realmodels"
LINEAR = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")
IMAGES = 1000


def compiled(path):
    """On the CPU; float32 where it does not compute in integers, so that only those can differ from ONNX Runtime."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    return openvino.Core().compile_model(str(path), "CPU", settings)


def precisions(network):
    """Precision that each linear layer computes in, counted."""
    nodes = [node.get_rt_info() for node in network.get_runtime_model().get_ordered_ops()]
    facts = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in nodes]
    return Counter(precision for kind, precision in facts if kind in LINEAR)


def computed(network, inputs):
    """Outputs by name."""
    return {output.any_name: value for output, value in network(dict(inputs)).items()}


def agreement(expected, got):
    """SQNR in dB."""
    distance = Sqnr()
    distance.update(expected, got)
    return distance.db


def top1(classify, images, labels):
    """Share of images whose best class is the label, for a function from images to scores."""
    best = [classify(images[i : i + 100]).argmax(axis=1) for i in range(0, len(images), 100)]
    return float((np.concatenate(best) == labels).mean())


def script(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_as_good(path, images, labels, layers):
    """Linear layers in int8, but for the products of two activations, and top-1 as in ONNX Runtime."""
    network = compiled(path)
    found = precisions(network)
    assert found["u8"] + found["i8"] == layers, found
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    some = slice(None, None, max(len(images) // IMAGES, 1))
    there = top1(lambda x: network(x)[0], images[some], labels[some])
    here = top1(lambda x: session.run(None, {name: x})[0], images[some], labels[some])
    assert there == pytest.approx(here, abs=0.005)


@pytest.mark.parametrize(("name", "layers"), [("resnet_digits", 16), ("mobilenet_digits", 26), ("vit_digits", 23)])
def test_bundled_models(name, layers, tmp_path):
    evaluate = script(ROOT / "models" / "evaluate.py", "evaluate")
    mean, std = evaluate.MEAN_STD[name]
    folder, path = ROOT / "models" / name, tmp_path / "int8.onnx"
    options = {"preprocess": Preprocess(mean=mean, std=std), "samples": 16, "target": "openvino"}
    onnxq.quantize(folder / "model.onnx", folder / "calib", output=path, **options, **PLAIN)
    assert_as_good(path, *evaluate.load(name), layers)


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realmodels")
def test_resnet20(tmp_path):
    evaluate = script(REAL / "evaluate.py", "real_evaluate")
    folder, path = REAL / "resnet20_cifar10", tmp_path / "int8.onnx"
    preprocess = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    options = {"input_keys": {"input": "images"}, "preprocess": preprocess, "samples": 32, "target": "openvino"}
    onnxq.quantize(folder / "model.onnx", folder / "calib.npz", output=path, **options, **PLAIN)
    linear = [n for n in onnx.load(folder / "model.onnx").graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert_as_good(path, *evaluate.load("resnet20_cifar10"), len(linear))


# --- what the target's rules stand on ---------------------------------------------------------------------------

CONV = """(float[N,3,8,8] x) => (float[N,?,?,?] y) <float[8,3,3,3] w, float[8] b, float[4,8,1,1] v>
    { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v) }"""
TOKEN = """(float[N,3,8,8] x) => (float[N,?,?,?] y, float[N,6] e)
    <float[8,3,3,3] w, float[8] b, float[4,8,1,1] v, float[1,6] token, int64[1] size = {6}>
    { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v)
      n = Shape<start=0, end=1>(x) s = Concat<axis=0>(n, size) e = Expand(token, s) }"""


def in_openvino(net, folder, **settings):
    """The network that OpenVINO compiles, and SQNR of its first output against ONNX Runtime's, optimisations off."""
    path = folder / "q.onnx"
    quantized = onnxq.quantize(net, samples(net), output=path, **PLAIN, **settings).model
    network, inputs = compiled(path), feeds(net, seed=9, free=4)
    name = net.graph.output[0].name
    return network, agreement(run(quantized, inputs)[name], computed(network, inputs)[name])


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {"u8": 2}),
        ({"per_channel": False}, {"u8": 2}),
        ({"symmetric_activations": True}, {"i8": 1, "u8": 1}),
        ({"asymmetric_weights": True}, {"f32": 2}),
        ({"preset": "w4a8"}, {"u8": 2}),  # stored in int8
        ({"preset": "w4a8", "store_4bit": "int4"}, {"f32": 2}),
    ],
    ids=str,
)
def test_what_convolutions_need_for_int8(settings, found, tmp_path):
    network, db = in_openvino(model(CONV), tmp_path, target="openvino", **settings)
    assert precisions(network) == found
    assert db > 30


@pytest.mark.parametrize(("op", "precision"), [("SpaceToDepth", "f32"), ("GatherND", "f32"), ("GlobalMaxPool", "u8")])
def test_data_movement_beyond_what_nncf_lists(op, precision, tmp_path, monkeypatch):
    """Where the grids are the same in front and behind, as if the target moved integers through all of these."""
    target = TARGETS["openvino"]
    monkeypatch.setitem(TARGETS, "openvino", replace(target, rules={**target.rules, op: MOVES}))
    onnx.save(quantized(MISSING[op][1], target="openvino"), tmp_path / "q.onnx")
    info = [node.get_rt_info() for node in compiled(tmp_path / "q.onnx").get_runtime_model().get_ordered_ops()]
    kind = {"GlobalMaxPool": "Reduce"}.get(op, op)
    assert [i["runtimePrecision"].astype(str) for i in info if i["layerType"].astype(str) == kind] == [precision]


def test_biases_beside_shapes(tmp_path):
    """OpenVINO 2026.4 loses the bias of a quantized Conv beside a Shape; not where an Add adds it."""
    net = model(TOKEN, b=np.arange(8.0))  # equal biases would stay
    assert in_openvino(net, tmp_path, target="openvino")[1] > 30


def test_activations_in_front_of_16_bits(tmp_path):
    """OpenVINO 2026.4 drops QuantizeLinear of 16 bits; a Relu that its grid stood for would go with it."""
    assert in_openvino(model(CONV), tmp_path, target="openvino", preset="w8a16")[1] > 30
