"""The time of the quantized model beside the float one: measured, told, and never part of the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import model
from quantized import samples
from reports import report as made_by_hand

import onnxq
from onnxq.errors import EngineError, UsageError
from onnxq.execution import latency
from onnxq.execution.latency import NodeTime, compare_times, node_times
from onnxq.execution.session import CPU, Session
from onnxq.pipeline import measure_latency, tune_latency
from onnxq.report import Latency, OperatorTime, Timing
from onnxq.report.text import timing_text

NET = """(float[1,8,16,16] x) => (float[?,?,?,?] y) <float[8,8,3,3] w, float[8] b, float[8,8,3,3] v> {
    a = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(a)  p = AveragePool<kernel_shape=[2,2]>(r)  c = Conv(p, v)
    y = Relu(c) }"""
SMALL = model("(float[1,8,16,16] x) => (float[?,?,?,?] y) <float[8,8,1,1] w> { y = Conv(x, w) }")
LARGE = model(
    "(float[1,8,16,16] x) => (float[?,?,?,?] y) <float[128,8,3,3] w, float[64,128,3,3] v>"
    " { a = Conv(x, w) y = Conv(a, v) }"
)


def quantize(**options: Any) -> onnxq.Result:
    proto = model(NET)
    return onnxq.quantize(proto, samples(proto), **options)


# --- measuring


def test_the_second_model_beside_the_first() -> None:
    feeds = [{"x": np.ones((1, 8, 16, 16), np.float32)}]
    slower, faster = compare_times((SMALL, LARGE), feeds, 1, 0.05), compare_times((LARGE, SMALL), feeds, 1, 0)
    assert slower.ratio > 2
    assert faster.ratio < 1 / 2
    assert slower.low <= slower.ratio <= slower.high
    assert slower.milliseconds > slower.float_milliseconds > 0
    assert faster.rounds == latency.FEWEST_ROUNDS <= slower.rounds <= latency.MOST_ROUNDS


def test_one_thread_is_measured_in_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = [{"x": np.ones((1, 8, 16, 16), np.float32)}]
    assert compare_times((SMALL, SMALL), feeds, 1, 0).clock == "processor"
    assert compare_times((SMALL, SMALL), feeds, 2, 0).clock == "wall"
    monkeypatch.setattr(latency, "session_provider", lambda: "CUDAExecutionProvider")
    assert compare_times((SMALL, SMALL), feeds, 1, 0).clock == "wall"


def test_what_nodes_take() -> None:
    nodes = node_times(LARGE, {"x": np.ones((1, 8, 16, 16), np.float32)})
    assert [node.op for node in nodes if node.op == "Conv"] == ["Conv", "Conv"]
    assert all(node.seconds >= 0 for node in nodes)
    assert sum(node.seconds for node in nodes) > 0


# --- the report


def test_a_report_has_the_time() -> None:
    found = quantize(threads=2).report
    assert found.latency is not None
    assert [t.threads for t in found.latency.timings] == [1, 2]
    assert found.latency.provider == CPU
    assert found.latency.samples == 4
    assert not found.latency.left_in_float
    assert "latency: " in found.to_text()
    assert "of float's" in found.to_text()
    written = json.loads(found.to_json())["latency"]["timings"][0]
    assert written["ratio"] > 0
    assert written["rounds"] >= latency.FEWEST_ROUNDS
    assert "of the float model's time" in found.to_html()
    assert "of float's" in found.to_markdown()


def test_none_where_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_latency, "compare_times", lambda *_: pytest.fail("measured"))
    found = quantize(latency="off").report
    assert found.latency is None
    assert "latency" not in found.to_text()


def test_other_tool_chains_are_not_timed() -> None:
    found = quantize(target="qnn").report
    assert found.latency is not None
    assert not found.latency.timings
    assert "latency: not measured: qnn is run by another tool-chain" in found.to_text()
    assert "not measured" in found.to_html()
    assert "not measured" in found.to_markdown()


def test_the_model_does_not_depend_on_it() -> None:
    assert quantize(latency="off").model == quantize(latency="report").model


def test_what_costs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Timing(1, 2.0, 1.0, 2.0, 1.9, 2.1, 5)
    monkeypatch.setattr(measure_latency, "compare_times", lambda *_: slow)
    before = [NodeTime("a_nchwc", "Conv", 1e-3), NodeTime("y_nchwc", "FusedConv", 1e-3)]
    after = [
        NodeTime("Q", "QuantizeLinear", 2e-4), NodeTime("node_0_token_3", "QLinearConv", 3e-3),
        NodeTime("node_3", "QLinearConv", 5e-4), NodeTime("t", "Transpose", 1e-5),
    ]  # fmt: skip
    monkeypatch.setattr(measure_latency, "node_times", lambda model, feed: after if isinstance(model, Path) else before)
    proto = model(NET)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    found = onnxq.quantize(proto, samples(proto)).report.latency
    assert found is not None
    assert found.is_slower
    conv, conversions = found.slow  # a hundredth of the time is not worth a word
    assert conv == OperatorTime("Conv", 2, 3.5, 2.0, ("node_0",))
    assert (conversions.op, conversions.nodes) == (measure_latency.CONVERSIONS, 1)


def test_a_profile_that_cannot_be_read_costs_no_more_than_the_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk cuts it off."""
    (tmp_path / "profile").write_text('{"cut": ')
    session = Session(SMALL)
    session._session = SimpleNamespace(end_profiling=lambda: str(tmp_path / "profile"))
    with pytest.raises(EngineError, match="profile cannot be read"):
        session.end_profile()

    def cut(*_: object) -> list[NodeTime]:
        raise EngineError("cut off")

    monkeypatch.setattr(measure_latency, "compare_times", lambda *_: Timing(1, 2.0, 1.0, 2.0, 1.9, 2.1, 5))
    monkeypatch.setattr(measure_latency, "node_times", cut)
    found = quantize().report.latency
    assert found is not None
    assert found.is_slower
    assert not found.slow
    assert found.notes == ("what costs is unknown: cut off",)


def test_what_is_said() -> None:
    timing = Timing(1, 4.48, 8.47, 0.531, 0.5, 0.56, 221, "processor")
    text = "0.53 of float's (0.50 to 0.56 in half of 221 rounds), 8.47 -> 4.48 ms of processor time, 1 thread"
    assert timing_text(timing) == text
    busy = Timing(2, 3.0, 2.0, 1.5, 0.5, 3.0, 9)
    assert busy.is_unsure
    assert "the machine is too busy to tell" in timing_text(busy)
    slow = OperatorTime("Concat", 3, 0.5, 0.25, ("node\x1b[2J",))
    assert not Latency(CPU, 4, (busy,), slow=(slow,)).is_slower
    found = made_by_hand(latency=Latency(CPU, 4, (Timing(1, 2.0, 1.0, 2.0, 1.9, 2.1, 5),), slow=(slow,)))
    assert "slower than float: 3 Concat: 0.5 ms, 0.25 ms in the float model; most in node\\x1b[2J" in found.to_text()


# --- what is left in float for it


def test_average_pooling_stays_in_float_between_integers() -> None:
    result = quantize()
    assert {n.op: n.kind for n in result.report.float_nodes} == {"AveragePool": "slow"}
    assert "QLinearAveragePool" not in result.report.runtime_operators  # ONNX Runtime would quantize it by itself
    forced = quantize(force_int_kernels=True).report
    assert forced.runtime_operators["QLinearAveragePool"] == 1


def test_an_average_of_the_whole_image_is_computed_in_integers() -> None:
    proto = model(NET.replace("kernel_shape=[2,2]", "kernel_shape=[16,16]").replace("[8,8,3,3] v", "[8,8,1,1] v"))
    found = onnxq.quantize(proto, samples(proto), latency="off").report
    assert found.runtime_operators["QLinearGlobalAveragePool"] == 1
    assert not found.float_nodes


@pytest.mark.parametrize(("channels", "kind"), [(4, "slow"), (8, None)])
def test_small_groups_stay_in_float(channels: int, kind: str | None) -> None:
    proto = model(
        f"(float[1,16,6,6] x) => (float[?,?,?,?] y) <float[16,16,1,1] w, float[16,{channels},3,3] v, float[4,16,1,1] u>"
        f" {{ a = Conv(x, w) b = Conv<group={16 // channels}>(a, v) y = Conv(b, u) }}"
    )
    proto.graph.node[1].name = "grouped"
    found = onnxq.quantize(proto, samples(proto), latency="off").report
    assert {n.node: n.kind for n in found.float_nodes}.get("grouped") == kind


@pytest.mark.parametrize(("size", "kind"), [(128, "slow"), (32, None)])
def test_a_convolution_on_a_large_image_stays_in_float(size: int, kind: str | None) -> None:
    proto = model(
        f"(float[N,3,{size},{size}] x) => (float[N,?,?,?] y) <float[8,3,3,3] w, float[8,8,1,1] v>"
        " { a = Conv<strides=[2,2],pads=[1,1,1,1]>(x, w) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r)"
        "   y = Conv(p, v) }"
    )
    proto.graph.node[0].name = "first"
    result = onnxq.quantize(proto, np.ones((4, 3, size, size), np.float32), latency="off")
    assert {n.node: n.kind for n in result.report.float_nodes}.get("first") == kind
    assert onnxq.check(result.model, "ort").violations == ()


def test_pooling_behind_float_layers_reads_float() -> None:
    """ONNX Runtime 1.32 moves the QuantizeLinear behind a MaxPool to its front, and has a slow kernel for that."""
    proto = model(
        "(float[1,4,8,8] x) => (float[?,?,?,?] y) <float[4,4,1,1] w, float[4,4,1,1] v>"
        " { a = Conv(x, w) p = MaxPool<kernel_shape=[3,3]>(a) y = Conv(p, v) }"
    )
    proto.graph.node[0].name = "first"
    found = onnxq.quantize(proto, samples(proto), exclude=("first",), latency="off")
    runs = list(found.report.runtime_operators)
    assert found.report.runtime_operators["MaxPool"] == 1
    assert "Sum" in runs
    assert {node.op_type for node in found.model.graph.node} >= {"Sum", "MaxPool"}


# --- tuning


def three_layers() -> onnx.ModelProto:
    proto = model(
        "(float[1,8,6,6] x) => (float[?,?,?,?] y) <float[8,8,1,1] w, float[8,8,3,3] v, float[8,8,1,1] u>"
        " { a = Conv(x, w) b = Conv(a, v) y = Conv(b, u) }"
    )
    for name, node in zip(("first", "sec[o]nd", "third"), proto.graph.node, strict=True):
        node.name = name
    return proto


def tuned(monkeypatch: pytest.MonkeyPatch, ratio: float, **options: Any) -> onnxq.Result:
    """A network whose second convolution is said to lose in integers; trials take `ratio` of the time before."""
    proto = three_layers()
    lost = {"sec[o]nd": 1e-3, "first": -1e-3, "third": -1e-3}
    monkeypatch.setattr(tune_latency, "lost_seconds", lambda *_: lost)
    monkeypatch.setattr(tune_latency, "node_times", lambda *_: [NodeTime("n", "Conv", 2e-3)])
    timing = Timing(1, ratio, 1.0, ratio, ratio - 0.02, ratio + 0.02, 9)
    monkeypatch.setattr(tune_latency, "compare_times", lambda *_: timing)
    return onnxq.quantize(proto, samples(proto), latency="tune", **options)


def test_what_does_not_pay_is_left_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, 0.9)
    (node,) = found.report.float_nodes
    assert (node.node, node.kind) == ("sec[o]nd", "slow")
    assert "on this machine" in node.reason
    assert found.report.latency is not None
    assert found.report.latency.left_in_float == ("sec[o]nd",)
    assert "1 Conv in float: 0.90 of the time (0.88 to 0.92), left in float" in found.report.to_text()
    (override,) = found.report.options["overrides"]  # repeats it anywhere
    proto = three_layers()
    again = onnxq.quantize(proto, samples(proto), overrides=(onnxq.Override(**override),), latency="off")
    assert again.model == found.model
    assert onnxq.check(found.model, "ort").violations == ()


@pytest.mark.parametrize("ratio", [0.99, 1.2])
def test_what_is_not_clearly_faster_stays_in_integers(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    found = tuned(monkeypatch, ratio)
    assert not found.report.float_nodes
    assert not found.report.options["overrides"]
    assert "not kept" in found.report.to_text()


def test_what_makes_outputs_worse_stays_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = iter([30.0, *[20.0] * 20])
    monkeypatch.setattr("onnxq.pipeline.keep_if_better.QualityMeasure.db", lambda *_: next(worse, 20.0))
    found = tuned(monkeypatch, 0.5)
    assert not found.report.float_nodes
    assert "outputs worse, not kept" in found.report.to_text()


def test_layers_beside_operators_in_float_are_tried_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions on both sides of a HardSwish cost more than its layers gain; the last layer is not beside it."""
    proto = model(
        "(float[1,8,6,6] x) => (float[?,?,?,?] y) <float[8,8,1,1] w, float[8,8,3,3] v, float[8,8,1,1] u>"
        " { a = Conv(x, w) h = HardSwish(a) b = Conv(h, v) r = Relu(b) y = Conv(r, u) }"
    )
    for name, node in zip(("first", "swish", "second", "relu", "third"), proto.graph.node, strict=True):
        node.name = name
    lost = dict.fromkeys(("first", "second", "third"), -1e-4)
    monkeypatch.setattr(tune_latency, "lost_seconds", lambda *_: lost)
    times = [NodeTime("q", "QuantizeLinear", 1e-3), NodeTime("n", "QLinearConv", 1e-3)]
    monkeypatch.setattr(tune_latency, "node_times", lambda *_: times)
    monkeypatch.setattr(tune_latency, "compare_times", lambda *_: Timing(1, 0.5, 1.0, 0.5, 0.4, 0.6, 9))
    found = onnxq.quantize(proto, samples(proto), latency="tune", hard_swish="float").report
    assert found.latency is not None
    assert found.latency.left_in_float == ("first", "second")
    assert found.latency.notes[0].startswith("2 layers beside operators in float: 0.50 of the time")
    assert found.latency.notes[-1].endswith("nothing would be left in integers, not kept")  # the third is beside it now


def test_tuning_needs_data_and_a_target_that_runs_here() -> None:
    with pytest.raises(UsageError, match="`latency` tune, `target` qnn: another tool-chain runs it"):
        onnxq.Options(latency="tune", target="qnn")
    with pytest.raises(UsageError, match="`latency` tune needs calibration data"):
        onnxq.Options(latency="tune", data_free=True)
    with pytest.raises(UsageError, match="and so does `from_encodings`"):
        onnxq.Options(latency="tune", from_encodings="e.json")
    with pytest.raises(UsageError, match="`latency` tune needs calibration data"):
        onnxq.quantize(model(NET), preset="w8", latency="tune")


@pytest.mark.parametrize("preset", ["w8", "w8a8"])
def test_recurrent_weights_are_timed_with_the_option_that_dequantizes_them_once(preset: str) -> None:
    """At w8a8 the option would take the integers of the layer behind."""
    proto = model(
        "(float[20,1,32] x) => (float[20,1,1,7] y) <float[1,192,32] w, float[1,192,48] r, float[48,7] v>"
        " { h = LSTM<hidden_size=48>(x, w, r) y = MatMul(h, v) }"
    )
    report = onnxq.quantize(proto, samples(proto), preset=preset).report
    assert report.latency is not None
    options = [timing.option for timing in report.latency.timings]
    assert options.count("session.disable_quant_qdq = 1") == (preset == "w8")
    assert options[0] == ""
    assert ("with the session option session.disable_quant_qdq = 1" in report.to_text()) == (preset == "w8")
    json.loads(report.to_json())
