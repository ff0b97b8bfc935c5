"""Exceptions from the preset as the last resort: few, within the budget, kept where they pay, and nowhere else."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import graphs
import numpy as np
import pytest
from onnx import ModelProto
from quantized import context, with_ranges

import onnxq
from onnxq.numeric.quant import Grid, QuantSpec
from onnxq.passes import make_exceptions
from onnxq.passes.base import Outcome
from onnxq.passes.make_exceptions import MakeExceptions
from onnxq.passes.round_weights import RoundWeights
from onnxq.pipeline import exceptions
from onnxq.report import Step
from onnxq.report.text import to_text
from onnxq.targets import ORT

WIDTH = 48


def network(tail: float = 1.5) -> ModelProto:
    """Four pointwise convolutions around a depthwise one, which has a twentieth of their weights each, and whose
    weights have long tails: exp(tail * normal)."""
    random = np.random.default_rng(0)
    text = f"""(float[N,{WIDTH},6,6] x) => (float[N,{WIDTH},6,6] y)
        <float[{WIDTH},{WIDTH},1,1] a, float[{WIDTH},{WIDTH},1,1] b, float[{WIDTH},1,3,3] d,
         float[{WIDTH},{WIDTH},1,1] e, float[{WIDTH},{WIDTH},1,1] f> {{
        p = Conv(x, a)  q = Relu(p)  r = Conv(q, b)  s = Relu(r)
        t = Conv <group = {WIDTH}, pads = [1, 1, 1, 1]> (s, d)  u = Relu(t)
        v = Conv(u, e)  w = Relu(v)  y = Conv(w, f)
    }}"""
    full = {name: random.normal(0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH, 1, 1)) for name in "abef"}
    deep = np.exp(random.normal(0, tail, (WIDTH, 1, 3, 3))) * random.choice([-1, 1], (WIDTH, 1, 3, 3))
    deep /= np.sqrt(np.square(deep).sum(axis=(1, 2, 3), keepdims=True))
    return graphs.model(text, **full, d=deep)


def feeds(count: int = 32) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(0, 1, (1, WIDTH, 6, 6)).astype(np.float32)} for _ in range(count)]


def bits(result: onnxq.Result) -> dict[str, str]:
    return {t.tensor: t.grid.split()[0] for t in result.report.tensors if t.kind == "constant"}


def step_of(result: onnxq.Result) -> Step | None:
    return next((step for step in result.report.steps if step.name == "MakeExceptions"), None)


def narrow() -> dict[str, Any]:
    return {"per_channel": False, "rounding": "nearest", "cle": "off", "force_int_kernels": True}


def test_the_small_layer_that_carries_the_noise_gets_8_bits() -> None:
    plain, result = (
        onnxq.quantize(network(), feeds(), preset="w3a8", exceptions=budget, **narrow()) for budget in (0, 5)
    )
    assert set(bits(plain).values()) == {"int3"}
    assert {name for name, grid in bits(result).items() if grid == "int8"} == {"d"}
    step = step_of(result)
    assert step is not None
    assert step.status == "kept"
    assert step.before_db is not None
    assert step.after_db is not None
    assert step.after_db > step.before_db + 1
    assert result.report.quality[0].sqnr_db > plain.report.quality[0].sqnr_db + 1
    assert "exceptions: 1 weight with 8 bits (4.5% of all weights); outputs at" in to_text(result.report)
    assert step.notes[2].startswith("d: outputs at ")


@pytest.mark.parametrize(
    "settings",
    [
        {"exceptions": 0},
        {"exceptions": 4},  # d has 4.5 % of the weights
        {"effort": "fast"},
        {"overrides": (onnxq.Override(tensor="a", bits=3),)},
        {"preset": "w8a8"},  # outputs are near the float ones
    ],
)
def test_nothing_is_excepted_where_it_may_not_or_need_not_be(settings: dict[str, Any]) -> None:
    result = onnxq.quantize(network(), feeds(), **{"preset": "w3a8", "exceptions": 5, **narrow(), **settings})
    width = "int8" if settings.get("preset") == "w8a8" else "int3"
    assert set(bits(result).values()) == {width}


def test_what_promises_too_little_is_not_made() -> None:
    result = onnxq.quantize(network(tail=8), feeds(), preset="w3a8", exceptions=5, **narrow())
    step = step_of(result)
    assert step is not None
    assert (step.status, step.changed) == ("nothing to do", 0)
    assert re.fullmatch(r"what fits the budget would bring about 0\.\d dB, which is too little", step.notes[0])
    assert set(bits(result).values()) == {"int3"}
    assert "exceptions:" not in to_text(result.report)


@pytest.mark.parametrize(("errors", "status"), [(-1000.0, "kept"), (0.5, "kept"), (1000.0, "dropped")])
def test_what_gains_is_kept_by_the_standard_error_of_the_gain(
    errors: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exceptions, "EXCEPTION_ERRORS", errors)
    step = step_of(onnxq.quantize(network(), feeds(), preset="w3a8", exceptions=5, **narrow()))
    assert step is not None
    assert step.status == status
    assert "what is lost falls by 2" in step.notes[0]
    assert step.notes[0].endswith("with a standard error of 2%")


def test_what_gains_less_than_it_promises_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_exceptions, "EXCEPTION_PROMISE_DB", 0.0)
    monkeypatch.setattr(exceptions, "TOLERANCE_DB", 1.0)
    result = onnxq.quantize(network(tail=8), feeds(), preset="w3a8", exceptions=5, **narrow())
    step = step_of(result)
    assert step is not None
    assert step.status == "dropped"
    assert set(bits(result).values()) == {"int3"}
    assert "exceptions:" not in to_text(result.report)


def test_weights_are_rounded_once_where_little_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"per_channel": False, "rounding": "gptq", "cle": "off", "force_int_kernels": True}
    rounded = []
    apply = RoundWeights.apply
    monkeypatch.setattr(RoundWeights, "apply", lambda *args: rounded.append(1) or apply(*args))
    for promise, times in ((1e9, 1), (0.0, 2)):
        monkeypatch.setattr(make_exceptions, "EXCEPTION_PROMISE_DB", promise)
        rounded.clear()
        onnxq.quantize(network(), feeds(), preset="w3a8", exceptions=5, **settings)
        assert len(rounded) == times


def loud(count: int = 32) -> tuple[ModelProto, list[dict[str, np.ndarray]]]:
    """A small layer whose input has a loud channel that it does not read, beside a large one."""
    random = np.random.default_rng(0)
    weights = {
        "v": random.normal(0, 0.3, (4, 16)),
        "w": random.normal(0, 0.1, (64, 64)),
        "u": random.normal(0, 0.1, (64, 16)),
    }
    weights["v"][0] = 0
    proto = graphs.model(
        """(float[N,4] a, float[N,64] b) => (float[N,16] y) <float[4,16] v, float[64,64] w, float[64,16] u> {
            c = MatMul(a, v)  d = MatMul(b, w)  e = Tanh(d)  f = MatMul(e, u)  y = Add(c, f)
        }""",
        **weights,
    )
    data = []
    for _ in range(count):
        feed = {name: random.normal(0, 1, (1, n)).astype(np.float32) for name, n in (("a", 4), ("b", 64))}
        feed["a"][0, 0] *= 200
        data.append(feed)
    return proto, data


def test_an_activation_within_the_budget_gets_what_runs_best() -> None:
    proto, data = loud()
    asked: list[int] = []

    def measure(planned: Any) -> float:
        asked.append(len(planned.quantizers))
        return float(len(planned.quantizers))  # the more are left, the better: 16 bits

    model = with_ranges(proto, data, force_int_kernels=False)
    step = MakeExceptions(0.03, None, ("a16", "float"), measure, model.clone())
    outcome = step.apply(model, context(proto, data))
    assert outcome.changed == 1
    assert outcome.notes[0] == "1 activation changed (in layers of 1.2% of the multiplications)"
    assert model.quantizers["a"].spec.grid.bits == 16
    assert len(asked) == 2
    untouched = with_ranges(proto, data, force_int_kernels=False)
    assert (
        not MakeExceptions(0.01, None, ("a16",), measure, untouched.clone())
        .apply(untouched, context(proto, data))
        .changed
    )
    assert untouched.quantizers["a"].spec.grid.bits == 8


def test_an_activation_that_carries_the_loss_of_the_default_gets_more() -> None:
    proto, data = loud()
    plain, result = (onnxq.quantize(proto, data, exceptions=budget, force_int_kernels=True) for budget in (0, 3))
    step = step_of(result)
    assert step is not None
    assert step.status == "kept"
    assert result.report.quality[0].sqnr_db > plain.report.quality[0].sqnr_db + 5
    assert "exceptions: 1 activation changed (in layers of 1.2% of the multiplications)" in to_text(result.report)
    assert step_of(plain) is None


def test_activations_of_few_bits_get_8_at_the_price_of_the_layers_that_read_them() -> None:
    """A large layer writes what a small one reads, one channel of which is loud, and hardly read."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(0, 0.1, (64, 64)), "v": random.normal(0, 0.1, (64, 2)), "u": random.normal(0, 0.1, (64, 64)),
    }  # fmt: skip
    weights["w"][:, 0] *= 100
    weights["v"][0] /= 100
    proto = graphs.model(
        """(float[N,64] a, float[N,64] b) => (float[N,64] y)
            <float[64,64] w, float[64,2] v, float[64,64] u, float[2,64] t> {
            c = MatMul(a, w)  r = Relu(c)  d = MatMul(r, v)  e = Relu(d)  f = MatMul(e, t)  g = MatMul(b, u)
            y = Add(f, g)
        }""",
        **weights, t=random.normal(0, 5, (2, 64)),
    )  # fmt: skip
    data = [{n: random.normal(0, 1, (1, 64)).astype(np.float32) for n in "ab"} for _ in range(32)]
    four = replace(onnxq.Options().activation, grid=Grid(4, signed=False))  # type: ignore[type-var]
    share = 64 * 2 / (2 * 64 * 64 + 2 * 64 * 2)
    for budget, count in ((0.9 * share, 0), (1.1 * share, 1)):
        model = with_ranges(proto, data, activation=four)
        assert model.quantizers["r"].spec.grid.bits == 4
        outcome = MakeExceptions(budget, None, ("a8",), lambda _: None, model.clone()).apply(
            model, context(proto, data)
        )
        assert outcome.changed == count
        assert model.quantizers["r"].spec.grid.bits == (8 if count else 4)
        params = model.quantizers["r"].params
        assert params is not None
        assert params.grid.bits == (8 if count else 4)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"preset": "w8a4"}, ("a8",)), ({"preset": "w4a8"}, ("a16", "dynamic", "float")),
        ({"preset": "w8a4", "fallback": "float"}, ("float",)),
    ],
)  # fmt: skip
def test_what_activations_may_get(
    settings: dict[str, Any], kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(exceptions, "EXCEPTIONS_BELOW_DB", 1000.0)
    monkeypatch.setattr(MakeExceptions, "apply", lambda step, *_: asked.append(step.kinds) or Outcome())
    onnxq.quantize(network(), feeds(), **{**narrow(), **settings})
    assert asked == [kinds]


def test_weights_get_nothing_where_the_target_has_nothing_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_exceptions, "EXCEPTION_PROMISE_DB", 0.0)
    proto, data = network(), feeds(8)
    model = with_ranges(proto, data, weight=onnxq.Options(preset="w4a8").weight)
    wider: QuantSpec | None = ORT.weight_of(8)
    for weight, count in ((None, 0), (wider, 1)):
        outcome = MakeExceptions(0.05, weight, (), lambda _: None, model.clone()).apply(model, context(proto, data))
        assert outcome.changed == count
