"""The ranking names what costs most, in both directions, and a budget changes only how much of it is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import graphs
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto
from quantized import samples

from onnxq import cli
from onnxq.errors import UsageError
from onnxq.evaluation import sensitivity as module
from onnxq.evaluation.sensitivity import SensitivityAnalysis, sensitivity
from onnxq.graph import storage
from onnxq.options import Options

NET = """(float[N,3,8,8] x) => (float[N,4] y) <float[5,3,3,3] a, float[5,1,3,3] d, float[6,5,1,1] p, float[6,4] f> {
         h = Conv<pads=[1,1,1,1]>(x, a)  r = Relu(h)  s = Conv<group=5, pads=[1,1,1,1]>(r, d)  t = Relu(s)
         u = Conv(t, p)  q = Relu(u)  g = GlobalAveragePool(q)  v = Flatten(g)  y = Gemm(v, f) }"""

PLAIN = Options(
    force_int_kernels=True,
    per_channel=False,
    rounding="nearest",
    cle="off",
    dead_channels=False,
    absorb=False,
    bias_correction="off",
    weight_range="minmax",
)


def uneven() -> ModelProto:
    """Filter 0 of the depthwise layer is a thousand times larger than the others, and reads a channel that is zero."""
    rng = np.random.default_rng(3)
    a, d = rng.standard_normal((5, 3, 3, 3)), rng.standard_normal((5, 1, 3, 3))
    a[0] = 0
    d[0] *= 1000
    return graphs.model(NET, a=a, d=d)


def analysis(proto: ModelProto, **settings: Any) -> SensitivityAnalysis:
    return sensitivity(proto, samples(proto, 6), **{"options": PLAIN, **settings})


def test_the_layer_with_uneven_channels_is_on_top() -> None:
    found = analysis(uneven())
    first = found.measured[0]
    assert (first.unit, first.kind) == ("d", "weights")
    assert first.only is not None
    assert first.all_but is not None
    assert first.only < 15 < 35 < min(e.only for e in found.measured[1:] if e.only is not None)
    assert first.all_but > max(e.all_but for e in found.measured[1:] if e.all_but is not None) + 10
    assert first.own_db == min(e.own_db for e in found.measured if e.kind == "weights")


def test_scores_are_those_of_figure_9() -> None:
    found = analysis(uneven())
    assert found.float_score == found.off == np.inf
    only = [e.only for e in found.measured if e.only is not None]
    assert found.on <= min(only) + 0.5
    assert only == sorted(only)
    assert len(only) == 9  # weights of 4 layers, x, r, t, q, and g with what keeps its grid
    assert found.samples == 6


def test_layers_are_switched_as_a_whole() -> None:
    found = {e.unit: e for e in analysis(uneven(), by="layer").measured}
    names = {frozenset(e.tensors) for e in found.values() if e.kind == "layer"}
    assert {frozenset({"a", "r"}), frozenset({"d", "t"}), frozenset({"p", "q"})} <= names
    assert found["x"].kind == "activation"
    assert [t for e in found.values() for t in e.tensors].count("r") == 1


def test_a_budget_takes_the_worst_first_and_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {e.unit: e for e in analysis(uneven()).measured}
    monkeypatch.setattr(module, "_fits", lambda budget, start, durations: len(durations) < 4)
    some = analysis(uneven(), budget=1.0)
    assert len(some.measured) == 3
    assert all(everything[e.unit] == e for e in some.measured)
    assert max(e.own_db for e in some.measured) <= min(e.own_db for e in some.not_measured)
    assert all(e.only is None and e.all_but is None for e in some.not_measured)
    assert f"not measured within 1 s: {len(everything) - 3} units" in some.to_text()


def test_a_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves one second an evaluation, the first one being that of all switches together."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    measured = module._measured

    def slow(*arguments: Any) -> Any:
        now[0] += 1.0
        return measured(*arguments)

    monkeypatch.setattr(module, "_measured", slow)
    found = analysis(uneven(), budget=4.5)
    assert 0 < found.seconds <= 4.5
    assert len(found.measured) == 3


@pytest.mark.parametrize(("preset", "units"), [("w8", {"w"}), ("w8a8", {"w", "x"})])
def test_weights_alone_and_the_input_alone_can_be_ranked(preset: str, units: set[str]) -> None:
    """No tensor that a node computes has a quantizer."""
    proto = graphs.model("(float[N,3] x) => (float[N,4] y) <float[3,4] w> { y = MatMul(x, w) }")
    found = analysis(proto, options=replace(PLAIN, preset=preset)).measured
    assert {effect.unit for effect in found} == units
    assert all(20 < effect.own_db < 80 for effect in found)


def test_labels_count() -> None:
    proto = uneven()
    data = samples(proto, 40)
    labels = [int(graphs.run(proto, feed)["y"].argmax()) for feed in data]
    found = sensitivity(proto, data, options=replace(PLAIN, preset="w2a8"), labels=labels)
    assert (found.metric, found.unit, found.float_score, found.off) == ("top-1 accuracy", "%", 100.0, 100.0)
    assert found.measured[0].only == min(e.only for e in found.measured if e.only is not None) < 100


@pytest.mark.parametrize("settings", [{"data_free": True}, {"from_encodings": "x.json"}])
def test_only_what_data_tells_is_measured(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"`{next(iter(settings))}`"):
        analysis(uneven(), options=replace(PLAIN, **settings))


def test_the_command_prints_a_table_or_json(tmp_path: Any) -> None:
    proto = uneven()
    storage.write(proto, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.concatenate([feed["x"] for feed in samples(proto, 6)]))
    plain = ["--force-int-kernels", "--per-tensor", "--no-cle", "--no-dead-channels", "--no-absorb", "--quiet"]
    plain += ["--weight-range", "minmax", "--rounding", "nearest"]
    command = ["sensitivity", str(tmp_path / "in.onnx"), "--calib", str(tmp_path / "calib.npy"), *plain]
    table = CliRunner().invoke(cli.main, [*command, "--top", "2"])
    assert table.exit_code == 0, table.output
    assert table.output.splitlines()[2].endswith("weights     d")
    head, pasted = table.output.split("\n\n", 1)
    assert len(head.splitlines()) == 5
    assert pasted.count("[[override]]") == 2
    found = json.loads(CliRunner().invoke(cli.main, [*command, "--json"]).output)
    assert found["measured"][0]["unit"] == "d"
    assert found["float_score"] is None
