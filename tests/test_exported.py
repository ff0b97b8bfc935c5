"""Encoders as PyTorch's exporters write them: whole operators, every layer in integers, on every target.

`tests/exported` holds their graphs as text, so that they are tested without torch; where torch is installed, it exports
them anew.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import graphs
import numpy as np
import pytest
from graphs import model
from onnx import ModelProto
from quantized import kernels, planned, reasons

import onnxq
from onnxq.errors import UsageError
from onnxq.graph.patterns import find_composites
from onnxq.passes.base import Context
from onnxq.pipeline.prepare import prepare
from onnxq.targets import TARGETS

FOLDER = Path(__file__).parent / "exported"
NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))
WHOLE = {
    "torchscript-11": {"LayerNormalization": 2, "Gelu": 1},
    "torchscript-13-tanh": {"LayerNormalization": 2, "Gelu": 1},
    "torchscript-16-rms": {"RMSNormalization": 2, "Gelu": 1},
    "torchscript-17": {"Gelu": 1},
    "dynamo-18": {"Gelu": 1},
    "dynamo-18-rms-tanh": {"RMSNormalization": 2, "Gelu": 1},
    "dynamo-20": {},
}
"""What each exporter decomposes."""


def written(name: str) -> ModelProto:
    """The exported graph, with random weights of a trained layer's size."""
    opset, text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n", 1)
    proto = model(text, opset=int(opset))
    for tensor in proto.graph.initializer:
        values = graphs.numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.dtype == np.float32:
            scaled = np.asarray(values / np.sqrt(values.shape[0]), np.float32)
            tensor.CopyFrom(graphs.numpy_helper.from_array(scaled, tensor.name))
    return proto


def sentences(count: int = 6) -> list[dict[str, np.ndarray]]:
    """Token ids and masks, of 4 to 9 tokens."""
    random, found = np.random.default_rng(0), []
    for index in range(count):
        length = 4 + index
        mask = np.arange(length)[None] < length - index % 3
        ids = random.integers(0, 50, (1, length))
        found.append({"input_ids": np.asarray(ids, np.int64), "attention_mask": np.asarray(mask, np.int64)})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_whole_and_layers_in_integers(name: str) -> None:
    proto = written(name)
    prepared, _ = prepare(proto, name, onnxq.Options(), Context())
    wholes = find_composites(prepared)
    assert Counter(whole.operator for whole in wholes) == WHOLE[name]
    inner = {node.outputs[0].name for whole in wholes for node in whole.nodes[1:]}
    made, outcome = planned(proto)
    assert not inner & set(made.quantizers)
    weights = [q for q in made.quantizers.values() if q.axis is not None]
    assert len(weights) == 4
    assert not [node for node, reason in reasons(outcome).items() if "MatMul" in node and "mask" not in reason]
    assert any("it masks or biases attention" in reason for reason in reasons(outcome).values())


@pytest.mark.parametrize("name", NAMES)
def test_the_softmax_of_attention_has_the_range_0_to_1(name: str) -> None:
    made, _ = planned(written(name))
    graph = made.graph
    outputs = [node.outputs[0].name for node in graph.nodes if node.op == "Softmax"]
    assert len(outputs) == 1
    assert made.quantizers[outputs[0]].fixed == (0.0, 1.0)


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("name", ["torchscript-11", "dynamo-18-rms-tanh", "dynamo-20"])
def test_every_target_takes_them(name: str, target: str) -> None:
    result = onnxq.quantize(written(name), sentences(), target=target)
    (quality,) = result.report.quality
    assert quality.sqnr_db is not None
    assert quality.sqnr_db > 12


@pytest.mark.parametrize(
    "settings",
    [{"preset": "w4a8", "fallback": "a16"}, {"preset": "w4", "block_size": 8}, {"bias_correction": "empirical"}],
)
def test_every_step_takes_sentences_of_different_lengths(settings: dict[str, object]) -> None:
    result = onnxq.quantize(written("dynamo-18"), sentences(), smoothquant=0.5, **settings)
    (quality,) = result.report.quality
    assert quality.sqnr_db is not None
    assert quality.sqnr_db > 12


SETTINGS: tuple[dict[str, object], ...] = (
    *({"preset": preset} for preset in ("w8a16", "w4a8", "w4a16", "w8", "w4", "a8", "w8a8-dynamic")),
    {"preset": "w8", "block_size": 8},
    {"fallback": "auto"},
    {"asymmetric_weights": True},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("name", ["torchscript-13-tanh", "dynamo-20"])
def test_any_preset_is_written_or_refused_before_any_work(name: str, settings: dict[str, object]) -> None:
    """Nothing of an ordinary encoder fails in verification, whatever it is asked for."""
    written_for = []
    for target in ("ort", "qnn", "tensorrt", "openvino"):
        quick = {"target": target, "effort": "fast", "rounding": "nearest", **settings}
        with contextlib.suppress(UsageError):
            onnxq.quantize(written(name), sentences(), **quick)  # type: ignore[arg-type]
            written_for.append(target)
    assert "ort" in written_for


def test_blocks_of_4_bits_run_in_their_kernel() -> None:
    result = onnxq.quantize(written("dynamo-20"), sentences(), preset="w4", block_size=16)
    assert kernels(result.model)["MatMulNBits"] == 4


@pytest.mark.parametrize("name", NAMES)
def test_what_torch_exports_today_is_understood(name: str) -> None:
    """Takes up to 5 s for torch to export."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from exported_encoder import case

    proto = case(name)
    prepared, _ = prepare(proto, name, onnxq.Options(), Context())
    assert Counter(whole.operator for whole in find_composites(prepared)) == WHOLE[name]
    result = onnxq.quantize(proto, sentences())
    assert sum(tensor.kind == "constant" for tensor in result.report.tensors) == 4
