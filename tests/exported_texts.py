"""Networks as PyTorch's exporters wrote them, from `tests/exported/families`, and inputs for them."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
from graphs import model
from onnx import ModelProto, numpy_helper

FOLDER = Path(__file__).parent / "exported" / "families"
NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))


def written(name: str) -> ModelProto:
    """The exported graph, with random weights that carry the signal on."""
    opset, text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n", 1)
    proto = model(text, opset=int(opset), ir_version=10)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1 and values.size > 8:
            fan = values.size / values.shape[0] if values.ndim != 3 else values.shape[-1]
            scaled = np.asarray(values * np.sqrt(1.5 / fan), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    return proto


def samples(proto: ModelProto, count: int = 4) -> list[dict[str, np.ndarray]]:
    """Noise, or token ids; dynamic axes but the batch are 16, 24, ... long."""
    (value,) = proto.graph.input
    random, found = np.random.default_rng(0), []
    for index in range(count):
        shape = graphs.shape(value, 16 + 8 * (index % 2))
        tokens = value.type.tensor_type.elem_type == 7
        array = random.integers(0, 20, (1, *shape[1:])) if tokens else random.standard_normal((1, *shape[1:]))
        found.append({value.name: np.asarray(array, np.int64 if tokens else np.float32)})
    return found
