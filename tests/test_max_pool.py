"""MaxPool on integers is slow in ONNX Runtime where their channels are not last: there it stays in float."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import model
from onnx import ModelProto
from quantized import kernels, quantized

from onnxq.targets import ORT
from onnxq.targets.ort import ELSEWHERE
from onnxq.targets.target import MOVES, never

BODIES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "Conv": ("q = Relu(a)", "", 4, {}),
    "Add": ("s = Sigmoid(a) q = Add(a, s)", "", 4, {}),
    "Add of a constant": ("q = Add(a, k)", ", float[4,1,1] k", 4, {}),
    "Mul": ("s = Sigmoid(a) q = Mul(a, s)", "", 4, {}),
    "LeakyRelu": ("q = LeakyRelu<alpha=0.1>(a)", "", 4, {}),
    "Pad": ("q = Pad(a, p)", ", int64[8] p", 4, {"p": [0, 0, 1, 1, 0, 0, 1, 1]}),
    "Slice": ("q = Slice(a, s, e, i)", ", int64[1] s, int64[1] e, int64[1] i", 4, {"s": [1], "e": [7], "i": [2]}),
    "Split": ("q, t = Split<axis=2>(a, i)", ", int64[2] i", 4, {"i": [4, 4]}),
    "Tile": ("q = Tile(a, i)", ", int64[4] i", 4, {"i": [1, 1, 2, 1]}),
    "Resize": ('q = Resize<mode="nearest">(a, , s)', ", float[4] s", 4, {"s": [1, 1, 2, 2]}),
    "ReduceMax": ("s = ReduceMax<axes=[2], keepdims=1>(a) q = Add(a, s)", "", 4, {}),
    "MaxPool": ("q = MaxPool<kernel_shape=[2,2]>(a)", "", 4, {}),
    "Concat": ("s = Sigmoid(a) q = Concat<axis=1>(a, s)", "", 8, {}),
    "Concat, most of it": ("s = Sigmoid(a) q = Concat<axis=1>(a, s, x)", "", 12, {}),
    "Concat, half of it": ("s = Sigmoid(a) q = Concat<axis=1>(x, a, s, x)", "", 16, {}),
    "Reshape": ("q = Reshape(a, s)", ", int64[4] s", 4, {"s": [1, 4, 4, 16]}),
    "Gather": ("q = Gather<axis=2>(a, i)", ", int64[3] i", 4, {"i": [2, 0, 5]}),
    "Expand": ("s = GlobalAveragePool(a) q = Expand(s, i)", ", int64[4] i", 4, {"i": [1, 4, 5, 5]}),
    "Add of the input": ("q = Add(a, x)", "", 4, {}),
    "Where": ("q = Where(c, a, k)", ", bool[8,8] c, float[4,1,1] k", 4, {}),
}
SLOW = ("Concat, half of it", "Reshape", "Gather", "Expand", "Add of the input", "Where")


def pooled(case: str) -> ModelProto:
    body, declared, channels, values = BODIES[case]
    text = f"""(float[1,4,8,8] x) => (float[?,?,?,?] y) <float[4,4,3,3] v, float[4,{channels},1,1] w {declared}>
        {{ a = Conv<pads=[1,1,1,1]>(x, v) {body} z = MaxPool<kernel_shape=[2,2]>(q) y = Conv(z, w) }}"""
    return model(text, check=False, **values)


@pytest.mark.parametrize("case", BODIES)
def test_the_rule_says_what_onnx_runtime_does(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all MaxPools in integers: which kernel the one behind the body gets."""
    monkeypatch.setitem(ORT.rules, "MaxPool", MOVES)  # type: ignore[arg-type]
    assert bool(kernels(quantized(pooled(case)))["MaxPool"]) == (case in SLOW)


@pytest.mark.parametrize("case", BODIES)
def test_no_max_pool_runs_on_integers_in_the_order_that_is_slow(case: str) -> None:
    proto = quantized(pooled(case), force_int_kernels=False)
    found, pool = kernels(proto), next(n for n in reversed(proto.graph.node) if n.op_type == "MaxPool")
    before = next(n for n in proto.graph.node if pool.input[0] in n.output)
    assert (found["MaxPool"] > 0) == (case in SLOW)
    assert (before.op_type == "Sum") == (case in SLOW)
    if case in SLOW:  # it reads what was dequantized, and its result is quantized behind it
        assert found["DequantizeLinear"] >= 2
        assert found["QuantizeLinear"] >= 2


RESIDUAL = """(float[1,3,128,128] x) => (float[?,?,?,?] y) <float[8,3,3,3] s, float[8,8,3,3] v, float[4,8,1,1] w>
    { a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, s) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, v) BODY
      z = MaxPool<kernel_shape=[2,2]>(q) y = Conv(z, w) }"""


@pytest.mark.parametrize(("body", "kernel"), [("q = Relu(c)", "NhwcMaxPool"), ("q = Add(c, r)", "MaxPool")])
def test_behind_a_residual_block_that_starts_in_float(body: str, kernel: str) -> None:
    """The Conv on an image stays in float, and so does the order of channels of all that it is added to."""
    found = kernels(quantized(model(RESIDUAL.replace("BODY", body), check=False), force_int_kernels=False))
    assert {op for op in found if "MaxPool" in op} == {kernel}


def test_where_onnx_runtime_does_not_run_it_nothing_is_slow() -> None:
    assert all(rule.slow is never for rule in ELSEWHERE.rules.values())
