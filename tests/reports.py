"""Reports made by hand, for tests of how they are written: names as a hostile model might have them."""

from __future__ import annotations

from typing import Any

from onnxq.report import (
    ChannelRanges,
    Distribution,
    FloatConstant,
    FloatNode,
    Layer,
    LogEntry,
    Measure,
    ModelFacts,
    OutputQuality,
    ParetoFront,
    ParetoPoint,
    QuantizedTensor,
    Report,
    SampleSets,
    Sensitivity,
    SensitivityRanking,
    Step,
)

HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\n\u202e|`</script>\"'&" + "long" * 300


def layer(index: int, name: str = "", channels: int = 5) -> Layer:
    """Layers get noisier and cheaper along the network; the third one was left in float."""
    boxes = tuple((-1.0 - c, -0.5, 0.0, 0.5 + c, 1.0 + 2 * c) for c in range(min(channels, 64)))
    ranges = ChannelRanges(channels, tuple(range(len(boxes))), boxes, boxes[::-1] if index % 2 else ())
    grid = None if index == 2 else "int8 narrow per channel"
    scale = None if index == 2 else (0.01, 0.02 + index, 0.5)
    return Layer(
        name or f"conv{index}", "Conv", f"w{index}", (channels, 3, 3, 3), 10**9 // (index + 1), grid, "uint8", scale,
        0.001 * index, None if index == 2 else 40.0 - index % 30, 35.0 - index % 30, ranges,
    )  # fmt: skip


def distribution(index: int, name: str = "") -> Distribution:
    counts = tuple((k * 7919 + index) % 1000 for k in range(64))
    return Distribution(name or f"t{index}", "uint8", -3.0, 9.0, -2.0, 6.0, 0.05, 30.0 + index, -3.0, 9.0, counts)


def report(layers: int = 20, tensors: int = 20, name: str = "", channels: int = 5, **other: Any) -> Report:
    """A report with something in every section. name: of everything that a model may name."""
    node = name or "node"
    fields: dict[str, Any] = {
        "onnxq": "0",
        "onnxruntime": "0",
        "options": {"preset": "w8a8", "per_channel": True, "target": "ort"},
        "source": ModelFacts(name or "folder/net.onnx", 4_000_000, 17, 30, 1_000_000),
        "result": ModelFacts("out.onnx", 1_000_000, 17, 60, 1_000_000),
        "samples": SampleSets(75, 12, 13, "on 13 samples held out", are_unseen=True),
        "steps": (
            Step("FoldBatchNorm", "Fold BatchNorm", "", 3, 0.1),
            Step(
                "EqualizeLayers",
                "Cross-layer equalization",
                "method='noise'",
                9,
                1.0,
                ("tried", node),
                ((node, node),),
                10.0,
                12.5,
                "kept",
            ),
            Step("AbsorbBias", "Absorb high biases", "", 0, 1.0, ("tried",), (), 12.5, 11.0, "dropped"),
            Step("SmoothQuant", "SmoothQuant", "", 0, 1.0, status="nothing to do"),
        ),
        "integer_nodes": 18,
        "simulated_nodes": 0,
        "weights_only_nodes": 0,
        "float_nodes": (
            FloatNode(node, "Softmax", node, "inputs", node),
            FloatNode("gelu", "Gelu", "no kernel", "target"),
        ),
        "float_constants": (FloatConstant(node, 5_000_000, node, "Gather", f"reason {node}"),),
        "tensors": tuple(
            QuantizedTensor(f"{node}{i}", "activation", "uint8", (0.1,), (3,), None, node) for i in range(tensors)
        ),
        "quality": (OutputQuality(node, 31.25, 50.0, 0.96875),),
        "runtime_operators": {"QLinearConv": 12},
        "warnings": (f"something about {node}",),
        "seconds": 3.5,
        "requirements": (f"zero-points: of {node}",),
        "layers": tuple(layer(i, f"{name}{i}" if name else "", channels) for i in range(layers)),
        "distributions": tuple(distribution(i, f"{name}{i}" if name else "") for i in range(tensors)),
        "measures": (Measure("Top-1 accuracy", "%", 59.12, 58.4),),
        "sensitivity": SensitivityRanking(
            "SQNR", "dB", (Sensitivity(node, "weights", 12.5, None), Sensitivity("b", "activation", float("inf"), 30.0))
        ),
        "pareto": ParetoFront(
            "top-1, %", (ParetoPoint(2048, 1e9, 50.0, node, True), ParetoPoint(4096, 2e9, 58.0, "w8a8", False))
        ),
        "log": (LogEntry("Look", "here", "dB", ((node, 3.0), ("other", -1.0))),),
    }
    return Report(**{**fields, **other})
