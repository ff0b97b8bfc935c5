"""Networks of each family as PyTorch's exporters write them: on every target, with nothing in float but for a reason.

`tests/exported/families` holds their graphs as text, so that they are tested without torch; where torch is installed,
it exports them anew.
"""

from __future__ import annotations

import pytest
from exported_texts import NAMES, samples, written
from onnx import ModelProto
from quantized import PLAIN

import onnxq
from onnxq.targets import TARGETS

FLOAT = {
    "alexnet.torchscript-11": {"Pow", "Div"},
    "crnn.torchscript-11": {"ConstantOfShape", "LogSoftmax"},
    "deeplab.torchscript-11": {"Resize"},
    "efficientnet.dynamo-18": set(),
    "gru.dynamo-18": {"GRU"},
    "lstm.torchscript-13": {"ConstantOfShape", "LSTM"},
    "mobilenet-v3.torchscript-11": {"HardSigmoid"},
    "shufflenet.dynamo-21": set(),
    "shufflenet.torchscript-13": set(),
    "style-transfer.dynamo-18": {"InstanceNormalization", "Relu", "Elu"},
    "super-resolution.torchscript-17": {"PRelu", "Tanh"},
    "unet-bilinear.dynamo-18": {"Resize"},
    "unet.torchscript-11": {"ConvTranspose"},
    "yolo.dynamo-18": {"Sub", "Div"},
    "yolo.torchscript-13": {"Sub", "Div"},
    "yolo-v5.torchscript-11": {"Sub", "Pow"},
}
"""What ONNX Runtime has no integer kernel for. Elementwise operators beside these may stay in float with them."""

ELEMENTWISE = {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "Softmax", "Where"}
LEAST_DB = {"vitis-ai": 12.0}


def turn(name: str) -> list[str]:
    """Three targets, others for other networks, so that all get their share in a third of the time."""
    targets, start = sorted(TARGETS), NAMES.index(name)
    return ["ort", *(targets[(3 * start + step) % len(targets)] for step in (0, 1))]


def check_quality(proto: ModelProto, target: str) -> onnxq.Report:
    report = onnxq.quantize(proto, samples(proto), target=target, **PLAIN).report
    (quality,) = report.quality
    assert quality.sqnr_db is not None
    assert quality.sqnr_db > LEAST_DB.get(target, 16)
    assert report.requirements
    return report


@pytest.mark.parametrize(("name", "target"), [(name, target) for name in NAMES for target in turn(name)])
def test_targets_take_them(name: str, target: str) -> None:
    check_quality(written(name), target)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_in_float_but_what_has_no_kernel(name: str) -> None:
    proto = written(name)
    report = onnxq.quantize(proto, samples(proto), force_int_kernels=True, **PLAIN).report
    found = {node.op for node in report.float_nodes}
    assert FLOAT[name] <= found, "fewer than before: update the list"
    assert found - FLOAT[name] <= ELEMENTWISE
    for node in report.float_nodes:
        assert node.op in FLOAT[name] or node.reason in (
            "none of its inputs is computed in integers",
            "it computes an output of the model, which keeps float precision",
            "it puts outputs of the model together: narrow ones would be lost on the grid of wide ones",
        )


@pytest.mark.parametrize("name", NAMES)
def test_what_torch_exports_today_is_taken(name: str) -> None:
    """Takes up to 5 s for torch to export."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from exported_families import exported

    check_quality(exported(*name.split(".", 1)), turn(name)[1])
