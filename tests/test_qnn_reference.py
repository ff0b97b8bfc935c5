"""The target `qnn` beside ONNX Runtime's own configuration for QNN, where that says something."""

import pytest
from graphs import model
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from onnxq import TARGETS

QNN = TARGETS["qnn"]
NET = """(float[1,3,4,4] x) => (float[1,4,4,4] y, float[1,4,4,4] z, float[1,4,4,5] u)
    <float[4,3,1,1] w, float[4,5] v> { c = Conv(x, w) y = Sigmoid(c) z = Tanh(c) u = MatMul(c, v) }"""


def config(activation):
    return get_qnn_qdq_config(
        model(NET, opset=21, ir_version=10),
        None,
        activation_type=activation,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


@pytest.mark.parametrize(("kind", "name"), [(QuantType.QUInt16, "uint16"), (QuantType.QInt16, "int16")])
@pytest.mark.parametrize(("op", "output"), [("Sigmoid", "y"), ("Tanh", "z")])
def test_fixed_encodings(op, output, kind, name):
    (theirs,) = config(kind).extra_options["TensorQuantOverrides"][output]
    (ours,) = (e for e in QNN.rules[op].encodings if e.type == name)
    assert (ours.scale, ours.zero_point) == (theirs["scale"], theirs["zero_point"])


def test_ranges_symmetry_and_granularity():
    theirs = config(QuantType.QUInt8).extra_options
    assert QNN.smallest_range == theirs["MinimumRealRange"]
    assert QNN.activation.symmetric == theirs["ActivationSymmetric"]
    assert QNN.weight.symmetric == theirs["WeightSymmetric"]
    (weight,) = theirs["TensorQuantOverrides"]["v"]  # per tensor, although per_channel is asked for
    assert "axis" not in weight
    assert "w" not in theirs["TensorQuantOverrides"]
    assert (QNN.rules["MatMul"].per_channel, QNN.rules["Conv"].per_channel) == ("never", "always")
