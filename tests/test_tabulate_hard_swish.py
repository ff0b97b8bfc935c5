"""HardSwish in ONNX Runtime's integers: a look-up and a product, or float where that costs too much."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from graphs import feeds, model, run
from onnx import ModelProto
from quantized import PLAIN, kernels

import onnxq
from onnxq import TARGETS
from onnxq.checking import check
from onnxq.numeric.metrics import sqnr
from onnxq.pipeline import choose_hard_swish

BLOCK = """(float[1,4,12,12] x) => (float[1,8,12,12] y)
    <float[16,4,1,1] w, float[16,1,3,3] v, float[8,16,1,1] u, float[16] b> {
    a = Conv(x, w, b) h = HardSwish(a) d = Conv<group=16,pads=[1,1,1,1]>(h, v) k = HardSwish(d) y = Conv(k, u) }"""


def network(**values: np.ndarray) -> ModelProto:
    return model(BLOCK, check=False, **values)


def samples(proto: ModelProto, count: int = 32) -> list[dict[str, np.ndarray]]:
    return [feeds(proto, seed=seed) for seed in range(count)]


def quantized(proto: ModelProto, **options: object) -> onnxq.Result:
    usual = {**PLAIN, "threads": 1, "latency": "off", "hard_swish": "integers"}
    return onnxq.quantize(proto, samples(proto), **{**usual, **options})  # type: ignore[arg-type]


def test_a_block_runs_in_integers_throughout() -> None:
    proto = network()
    result = quantized(proto)
    found = Counter(kernels(result.model))
    assert found["QLinearLeakyRelu"] == found["QLinearMul"] == 2
    assert found["QLinearConv"] == 3
    assert not {"HardSwish", "HardSigmoid", "LeakyRelu", "Conv", "Mul"} & set(found)
    assert result.report.integer_nodes == 5
    x = feeds(proto, seed=99)
    assert sqnr(run(proto, x)["y"], run(result.model, x)["y"]) > 30
    assert not check(result.model, TARGETS["ort"]).violations


def test_the_gate_is_that_of_hard_swish_to_half_a_step() -> None:
    """On a network that hands x on, up to what grids of x and y round."""
    proto = model(
        "(float[1,1,32,32] x) => (float[1,1,32,32] y) <float[1,1,1,1] w> { a = Conv(x, w) h = HardSwish(a)"
        " y = Conv(h, w) }",
        w=1.0,
        check=False,
    )
    values = np.linspace(-8, 8, 1024, dtype=np.float32).reshape(1, 1, 32, 32)
    result = onnxq.quantize(
        proto, [{"x": values}] * 8, **PLAIN, threads=1, force_int_kernels=True, activation_range="minmax"
    )
    found = run(result.model, {"x": values})["y"]
    expected = run(proto, {"x": values})["y"]
    steps_x, step_y = 11 / 255, 8.375 / 255
    assert np.abs(found - expected).max() < 1.5 * steps_x / 2 + step_y + 8 * 0.003


def test_other_tool_chains_keep_the_operator() -> None:
    proto = network()
    for target in ("tract", "opencv", "generic-int8"):
        ops = [node.op_type for node in quantized(proto, target=target).model.graph.node]
        assert ops.count("HardSwish") == 2
        assert "LeakyRelu" not in ops


def test_where_the_output_is_read_in_float_the_operator_stays() -> None:
    proto = model(BLOCK.replace("y = Conv(k, u)", "y = Conv(k, u) z = Erf(k)").replace(
        "=> (float[1,8,12,12] y)", "=> (float[1,8,12,12] y, float[1,16,12,12] z)"), check=False)  # fmt: skip
    ops = Counter(node.op_type for node in quantized(proto).model.graph.node)
    assert ops["LeakyRelu"] + ops["HardSwish"] == 2


def test_wider_activations_keep_the_operator() -> None:
    ops = [node.op_type for node in quantized(network(), preset="w8a16").model.graph.node]
    assert ops.count("HardSwish") == 2


@pytest.mark.parametrize("choice", ["float", "integers"])
def test_the_choice_is_the_users(choice: str) -> None:
    result = quantized(network(), hard_swish=choice)
    in_float = {node.op for node in result.report.float_nodes}
    assert ("HardSwish" in in_float) == (choice == "float")
    assert ("Conv" in in_float) == (choice == "float"), "the depthwise Conv between them goes along"


def test_by_itself_in_float_where_layers_have_few_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 and 9 for each value of the two."""
    proto = network()
    result = quantized(proto, hard_swish="auto")
    steps = {step.title: step.notes for step in result.report.steps}
    assert steps["HardSwish in float"] == ("10 multiplications a value are too few for integers to pay",)
    assert {node.kind for node in result.report.float_nodes if node.op == "HardSwish"} == {"fallback"}
    monkeypatch.setattr(choose_hard_swish, "HARD_SWISH_PRODUCTS", 5.0)
    result = quantized(proto, hard_swish="auto")
    assert not any("HardSwish" in step.title and step.name == "ChooseHardSwish" for step in result.report.steps)
    assert result.report.integer_nodes == 5


def test_in_float_where_outputs_are_low_and_gain_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = network()
    monkeypatch.setattr(choose_hard_swish, "HARD_SWISH_PRODUCTS", 5.0)
    monkeypatch.setattr(choose_hard_swish, "LEAST_DB", 100.0)
    for gain, title in ((-20.0, "HardSwish in float"), (20.0, "HardSwish in integers")):
        monkeypatch.setattr(choose_hard_swish, "HARD_SWISH_DB", gain)
        result = quantized(proto, hard_swish="auto")
        assert [step.title for step in result.report.steps if step.name == "ChooseHardSwish"] == [title]
        kinds = {node.kind for node in result.report.float_nodes if node.op == "HardSwish"}
        assert kinds == ({"fallback"} if gain < 0 else set())


def test_names_are_kept_for_reports() -> None:
    proto = network()
    names = {node.name for node in quantized(proto).model.graph.node if node.op_type == "Mul"}
    assert names == {"HardSwish_h", "HardSwish_k"}


def test_a_dry_run_and_tuning_choose_alike() -> None:
    proto = network()
    dry = onnxq.dry_run(proto, samples(proto), **PLAIN, threads=1)
    done = quantized(proto, hard_swish="auto").report
    assert {n.node for n in dry.float_nodes} == {n.node for n in done.float_nodes}
    tuned = quantized(proto, hard_swish="auto", latency="tune").report
    assert {n.node for n in done.float_nodes} <= {n.node for n in tuned.float_nodes}
