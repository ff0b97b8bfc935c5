"""The bundled models in vendors' tool-chains: built by TensorRT-RTX, in one partition of QNN, in int8 of OpenVINO.

ONNXQ_TOOLCHAINS names a folder with an environment for each, ONNXQ_TOOLCHAINS/qnn/bin/python and so on, as
`.ci/toolchains` makes it; OpenVINO may also be in this one. What is missing is skipped.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import model
from quantized import PLAIN, samples

import onnxq
from onnxq.toolchains import TOOLCHAINS, ToolchainOptions, process

MODELS = Path(__file__).parents[1] / "models"
LEAN = {"dead_channels": False, "cle": "off", "rounding": "nearest", "samples": 32}
ENOUGH_DB = 3.0
AGREES_DB = 25.0


def vendor(name):
    """Options for a tool-chain, or the test is skipped."""
    python = Path(os.environ.get("ONNXQ_TOOLCHAINS", "nowhere")) / name / "bin" / "python"
    if not python.exists():
        if name != "openvino" or importlib.util.find_spec("openvino") is None:
            pytest.skip(f"no environment of {name}: .ci/toolchains makes one")
        python = Path(sys.executable)
    return ToolchainOptions(toolchain_python=str(python), toolchain_limit=300.0, toolchain_samples=4)


@pytest.mark.parametrize("name", ["resnet_digits", "mobilenet_digits", "vit_digits"])
@pytest.mark.parametrize("target", ["tensorrt", "qnn", "openvino"])
def test_bundled_models(target, name):
    folder = MODELS / name
    how = vendor(target)
    report = onnxq.quantize(
        folder / "model.onnx", folder / "calib", target=target, freeze=("batch=1",), toolchain=how, **LEAN
    ).report
    found = report.toolchain
    assert found.accepted
    assert not found.problem
    assert not found.fallback
    assert found.integer_nodes == found.nodes
    assert found.partitions == (1 if target == "qnn" else None)
    assert found.samples == (4 if TOOLCHAINS[target].runs_models else 0)
    if target == "qnn":
        assert found.quality_db > found.runtime_quality_db - ENOUGH_DB
    if target == "openvino":
        assert found.sqnr_db > AGREES_DB
        layers = {"resnet_digits": 15, "mobilenet_digits": 25, "vit_digits": 22}
        assert found.nodes == layers[name]


CONV = model(
    """(float[N,3,8,8] x) => (float[N,5] y) <float[4,3,3,3] w, float[4] b, float[4,5] v, float[5] c> {
    h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(h) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, v, c) }"""
)


def tried(proto, target, how):
    return onnxq.check(proto, target, toolchain=how).toolchain


def test_tensorrt_refuses_quantized_biases_and_says_so():
    written = onnxq.quantize(CONV, samples(CONV), target="generic-int8", **PLAIN).model
    found = tried(written, "tensorrt", vendor("tensorrt"))
    assert not found.accepted
    assert "Int32" in found.problem


def test_qnn_runs_nothing_of_a_dynamic_batch():
    how = vendor("qnn")
    written = onnxq.quantize(CONV, samples(CONV), target="qnn", **PLAIN).model
    found = tried(written, "qnn", how)
    assert (found.partitions, found.integer_nodes) == (0, 0)
    assert "`freeze` x=1x3x8x8" in found.problem
    frozen = onnxq.quantize(CONV, samples(CONV), target="qnn", freeze=("x=1x3x8x8",), **PLAIN).model
    found = tried(frozen, "qnn", how)
    assert (found.partitions, found.fallback, found.problem) == (1, (), "")


def test_qnn_looks_rows_up_in_a_table():
    how = vendor("qnn")
    proto = model(
        "(int64[1,4] i) => (float[1,4,5] y) <float[400,64] t, float[64,5] w> { e = Gather(t, i) y = MatMul(e, w) }"
    )
    feeds = [{"i": np.random.default_rng(n).integers(0, 400, (1, 4))} for n in range(8)]
    found = onnxq.quantize(proto, feeds, target="qnn", toolchain=how, **PLAIN).report.toolchain
    assert (found.partitions, found.fallback, found.problem) == (1, (), "")


def test_qnn_leaves_matmul_with_a_scale_a_channel_to_the_cpu():
    how = vendor("qnn")
    written = onnxq.quantize(CONV, samples(CONV), target="ort", freeze=("N=1",), **PLAIN).model
    found = tried(written, "qnn", how)
    assert "Gemm" in [node.op for node in found.fallback]


def test_a_missing_package_names_what_to_install():
    if importlib.util.find_spec("onnxruntime_qnn") is not None:
        pytest.skip("it is here")
    with pytest.raises(onnxq.OnnxqError, match="pip install onnxruntime onnxruntime-qnn"):
        process.find_toolchain(onnxq.TARGETS["qnn"], ToolchainOptions(toolchain_python=sys.executable))
