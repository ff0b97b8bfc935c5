"""Detectors that select boxes themselves: NonMaxSuppression, TopK, GatherND, Loop stay in float, the rest does not."""

from __future__ import annotations

import numpy as np
import pytest
from detectors import ENDS, detector, images
from graphs import run
from quantized import PLAIN

import onnxq
from onnxq.checking import check
from onnxq.targets import TARGETS


@pytest.mark.parametrize("target", ["ort", "openvino", "qnn", "vitis-ai", "tensorrt", "generic-int8"])
@pytest.mark.parametrize("end", ENDS)
def test_targets_take_them(end: str, target: str) -> None:
    proto, feeds = detector(end), images(4)
    result = onnxq.quantize(proto, feeds, target=target, **PLAIN)
    assert not check(result.model, TARGETS[target]).violations
    kinds = {tensor.kind for tensor in result.report.tensors}
    weights = {tensor.tensor for tensor in result.report.tensors if tensor.kind == "constant"}
    assert {"w", "wb" if end == "Loop" else "wk"} <= weights
    assert "activation" in kinds
    assert {node.op_type for node in result.model.graph.node} >= {end}
    assert run(result.model, feeds[0])["y"].dtype == np.float32
