"""Activations that spoil the outputs on 8 bits get something better, and no others."""

from __future__ import annotations

from dataclasses import replace

import graphs
import numpy as np
import pytest
from onnx import ModelProto
from quantized import context, quantized, with_ranges

import onnxq
from onnxq.graph.model import Model
from onnxq.numeric.metrics import sqnr
from onnxq.passes.base import Context, Outcome
from onnxq.passes.fallback import Fallback
from onnxq.targets import TARGETS

RANDOM = np.random.default_rng(0)
LOUD = np.where(np.arange(16)[:, None] == 0, 1e-3, 1.0)
"""Rows of a weight that hardly reads channel 0."""


def weight(loud: bool) -> np.ndarray:
    return RANDOM.normal(0, 0.25, (16, 16)) * (LOUD if loud else 1.0)


def network(a: bool, b: bool) -> ModelProto:
    """Two branches, added; channel 0 of input a or b is loud, and hardly read."""
    text = """(float[N,16] a, float[N,16] b) => (float[N,16] y) <float[16,16] v, float[16,16] w, float[16,16] u> {
        c = MatMul(a, v)  d = MatMul(b, w)  e = Add(c, d)  t = Tanh(e)  y = MatMul(t, u)
    }"""
    return graphs.model(text, v=weight(a), w=weight(b), u=weight(False))


def feeds(a: float = 1.0, b: float = 1.0, count: int = 6) -> list[dict[str, np.ndarray]]:
    """Rows of normal values, one of them loud in channel 0."""
    made = []
    for _ in range(count):
        feed = {name: RANDOM.normal(0, 1, (1, 16)).astype(np.float32) for name in "ab"}
        feed["a"][0, 0] *= a
        feed["b"][0, 0] *= b
        made.append(feed)
    return made


def widened(a: float = 1.0, b: float = 1.0, **settings: object) -> tuple[Model, Outcome]:
    proto, data = network(a > 1, b > 1), feeds(a, b)
    model = with_ranges(proto, data, force_int_kernels=False)
    return model, Fallback().apply(model, context(proto, data, **settings))


def bits(model: Model) -> dict[str, int]:
    return {name: q.params.grid.bits for name, q in model.quantizers.items() if q.params is not None and not q.readers}


def test_the_tensor_with_outliers_gets_16_bits() -> None:
    model, outcome = widened(a=500.0)
    assert bits(model) == {"a": 16, "b": 8, "t": 8}
    assert outcome.changed == 1
    assert outcome.notes[0].endswith("1 of 3 activations changed")
    assert outcome.notes[1].startswith("a: outputs at ")
    assert outcome.notes[1].endswith("now uint16, largest value 6 times the root mean square")
    assert {skip.where for skip in outcome.skips} == {"b", "t"}


def test_nothing_is_widened_where_nothing_stands_out() -> None:
    model, outcome = widened()
    assert set(bits(model).values()) == {8}
    assert outcome.changed == 0


def test_tensors_that_help_only_together_are_found() -> None:
    model, _ = widened(a=500.0, b=500.0)
    assert bits(model) == {"a": 16, "b": 16, "t": 8}


@pytest.mark.parametrize(
    ("curve", "total", "count"),
    [((10.0, 15.0), 3, 0), ((10.0, 18.0), 3, 1), ((10.0, 11.0, 31.0), 4, 2), ((10.0, 10.5), 100, 0)],
)
def test_exceptions_pay_their_share_of_20_db_together(curve: tuple[float, ...], total: int, count: int) -> None:
    assert Fallback()._count(curve, total) == count


@pytest.mark.parametrize(
    ("kinds", "now", "layers"),
    [(("float",), "now in float", ()), (("dynamic",), "now with a range found at run time", ("MatMul_c",))],
)
def test_what_a_tensor_can_get_instead(kinds: tuple[str, ...], now: str, layers: tuple[str, ...]) -> None:
    proto, data = network(True, False), feeds(500.0)
    model = with_ranges(proto, data, force_int_kernels=False)
    outcome = Fallback(kinds).apply(model, context(proto, data))
    assert bits(model) == {"b": 8, "t": 8}
    assert outcome.notes[1].endswith(now)
    dynamic = [name for name, placed in model.placement.nodes.items() if placed.dynamic]
    assert tuple(dynamic) == layers


def test_what_is_worth_nothing_in_the_runtimes_arithmetic_is_not_taken() -> None:
    """N_k takes an exception for float; what counts is what it brings in what will run."""
    proto, data = network(True, False), feeds(500.0)
    measured: list[int] = []

    def measure(planned: Model) -> float:
        measured.append(sum(q.params.grid.bits == 16 for q in planned.quantizers.values() if q.params is not None))
        return 10.0 if measured[-1] == 0 else 10.5

    model = with_ranges(proto, data, force_int_kernels=False)
    outcome = Fallback(("a16",), measure).apply(model, context(proto, data))
    assert measured == [0, 1]
    assert set(bits(model).values()) == {8}
    assert outcome.changed == 0


def test_of_several_kinds_the_one_that_is_worth_most_is_taken() -> None:
    proto, data = network(True, False), feeds(500.0)

    def measure(planned: Model) -> float:
        if any(placed.dynamic for placed in planned.placement.nodes.values()):
            return 14.0
        return 19.0 if "a" not in planned.quantizers else 10.0

    model = with_ranges(proto, data, force_int_kernels=False)
    outcome = Fallback(("a16", "dynamic", "float"), measure).apply(model, context(proto, data))
    assert "a" not in model.quantizers  # 9 dB for a price of 6.7 are more than nothing, but
    assert outcome.notes[1].endswith("now with a range found at run time")  # 4 dB for 0.67 are more still


@pytest.mark.parametrize(
    ("target", "fallback", "message"),
    [
        ("qnn", "dynamic", "qnn does not quantize activations at run time"),
        ("tensorrt", "a16", "tensorrt reads no activations of 16 bits"),
        ("qnn", "float", "qnn runs operators in integers whole"),
        ("vitis-ai", "auto", "vitis-ai reads no activations of 16 bits"),
    ],
)
def test_what_the_target_does_not_take_is_refused_before_any_work(target: str, fallback: str, message: str) -> None:
    with pytest.raises(onnxq.OnnxqError, match=message):
        onnxq.Options(target=target, fallback=fallback)


def test_a_fallback_needs_activations() -> None:
    with pytest.raises(onnxq.OnnxqError, match="`preset` w8 has none"):
        onnxq.Options(preset="w8", fallback="auto")


@pytest.mark.parametrize(("target", "width"), [("ort", 8), ("qnn", 16)])
def test_inputs_of_an_operator_go_together_where_widths_must_not_mix(target: str, width: int) -> None:
    text = """(float[N,16] a, float[N,16] b) => (float[N,16] y) <float[16,16] v, float[16,16] w, float[16,16] u> {
        c = MatMul(a, v)  d = MatMul(b, w)  e = Add(c, d)  y = MatMul(e, u)
    }"""
    loud = weight(False) * np.where(np.arange(16) == 0, 500.0, 1.0)
    proto, data = graphs.model(text, v=loud, w=weight(False), u=weight(True)), feeds()
    model = with_ranges(proto, data)
    Fallback().apply(model, context(proto, data, target=TARGETS[target]))
    assert bits(model) == {"a": 8, "b": 8, "c": 16, "d": width, "e": 16}


def test_what_keeps_the_grid_follows() -> None:
    text = "(float[N,2,8] a) => (float[N,16] y) <float[16,16] v, int64[2] to> { r = Reshape(a, to)  y = MatMul(r, v) }"
    proto = graphs.model(text, v=weight(True), to=np.array([-1, 16]))
    data = [{"a": feed["a"].reshape(1, 2, 8)} for feed in feeds(500.0)]
    model = with_ranges(proto, data, force_int_kernels=False)
    Fallback(worth=10.0).apply(model, context(proto, data))
    assert bits(model) == {"a": 16, "r": 16}
    assert model.quantizers["r"].params is model.quantizers["a"].params


def test_grids_that_were_given_stay() -> None:
    proto, data = network(True, False), feeds(500.0)
    model = with_ranges(proto, data, force_int_kernels=False)
    model.quantizers["a"] = replace(model.quantizers["a"], given=True)
    Fallback().apply(model, context(proto, data))
    assert bits(model)["a"] == 8


def test_without_data_nothing_is_tried() -> None:
    model = with_ranges(network(True, False), feeds(500.0))
    assert Fallback().apply(model, Context()).notes == ("not run: there are no calibration data",)


def test_threads_and_repetition_change_nothing() -> None:
    proto, data = network(True, True), feeds(300.0, 40.0)
    found = []
    for threads in (1, 3):
        model = with_ranges(proto, data, force_int_kernels=False)
        found.append((Fallback().apply(model, context(proto, data, threads=threads)), bits(model)))
    assert found[0] == found[1]


def test_the_whole_model_gains_and_runs() -> None:
    proto, data = network(True, False), feeds(500.0)
    plain, wide = (quantized(proto, data, fallback=choice) for choice in ("off", "a16"))
    assert [o.version for o in wide.opset_import if o.domain == ""] == [21]
    before, after = (
        sqnr(*(np.concatenate([graphs.run(m, feed)["y"] for feed in data]) for m in (proto, other)))
        for other in (plain, wide)
    )
    assert after > before + 10


def test_data_free_refuses() -> None:
    with pytest.raises(onnxq.OnnxqError, match="`fallback` a16 needs calibration data"):
        onnxq.quantize(network(False, False), data_free=True, fallback="a16")
