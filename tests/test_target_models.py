"""What `quantize --target T` writes keeps to what T requires, on graphs of each family, and runs in ONNX Runtime."""

import numpy as np
import pytest
from families import FAMILIES
from graphs import assert_close, run
from quantized import PLAIN, samples

import onnxq
from onnxq import TARGETS
from onnxq.checking import check


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_keeps_to_its_target(family, target):
    proto = FAMILIES[family]
    result = onnxq.quantize(proto, samples(proto), target=target, **PLAIN)
    assert not check(result.model, TARGETS[target]).violations
    assert result.report.requirements
    for feed in samples(proto, 1):
        assert_close(run(result.model, feed)["y"], run(proto, feed)["y"], 0.2)


@pytest.mark.parametrize("target", ["qnn", "generic-int8", "openvino"])
@pytest.mark.parametrize("family", ["Conv-Relu", "Sigmoid and Mul", "Tanh and Sub", "MatMul", "attention"])
def test_sixteen_bit_activations_keep_to_their_target(family, target):
    proto = FAMILIES[family]
    result = onnxq.quantize(proto, samples(proto), target=target, preset="w8a16", **PLAIN)
    assert not check(result.model, TARGETS[target]).violations


@pytest.mark.parametrize("target", TARGETS)
def test_bias_correction_leaves_biases_as_the_target_wants_them(target):
    proto = FAMILIES["MatMul without bias"]
    options = {**PLAIN, "bias_correction": "analytic"}
    result = onnxq.quantize(proto, samples(proto, 8), target=target, **options)
    assert not check(result.model, TARGETS[target]).violations


def weights_of(proto):
    return {t.name: onnxq.graph.storage.onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_seven_bit_weights_cannot_saturate_sixteen_bits():
    proto = FAMILIES["Conv-Relu"]
    found = weights_of(onnxq.quantize(proto, samples(proto), target="ort-no-vnni", **PLAIN).model)
    largest = max(int(np.abs(v.astype(int)).max()) for n, v in found.items() if n in ("w_quantized", "v_quantized"))
    assert 2 * 255 * largest < 2**15
    found = weights_of(onnxq.quantize(proto, samples(proto), target="ort", **PLAIN).model)
    assert np.abs(found["w_quantized"].astype(int)).max() == 127
