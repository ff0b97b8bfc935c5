"""Constant channels lose their weights on both sides, where that is exact."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import assert_close, feeds, model, run
from test_scaling_groups import shaped

from onnxq.data import Feed
from onnxq.graph.batchnorm_statistics import propagate_batchnorm_statistics
from onnxq.graph.model import Model, Moments
from onnxq.passes import remove_dead_channels
from onnxq.passes.base import Context, Outcome
from onnxq.passes.remove_dead_channels import RemoveDeadChannels

TEXT = (
    "(float[N,3,5,5] x) => (float[N,5,?,?] y) <float[4,3,1,1] w, float[4] b, float[5,4,3,3] v, float[5] c>"
    " {{ a = Conv(x, w, b) r = Relu(a) y = Conv{pads}(r, v, c) }}"
)


def remove(proto: onnx.ModelProto, *, with_data: bool = True) -> tuple[Model, Outcome]:
    arrays = [feeds(proto, seed=10 + i, free=1) for i in range(6)]
    context = Context(feeds=[Feed(a, None, "") for a in arrays] if with_data else [])
    changed = shaped(proto)
    outcome = RemoveDeadChannels().apply(changed, context)
    after = changed.to_proto()
    for a in arrays:
        assert_close(run(after, a)["y"], run(proto, a)["y"], 1e-5)
    return changed, outcome


def dead(value: float, pads: str = "") -> onnx.ModelProto:
    """Channel 1 of `a` is `value`, blown up: weights of 1e-9 in front and 1e3 behind."""
    rng = np.random.default_rng(3)
    w, b, v = rng.normal(size=(4, 3, 1, 1)), rng.normal(size=4), rng.normal(size=(5, 4, 3, 3))
    w[1], b[1], v[:, 1] = 1e-9 * w[1], value, 1e3
    return model(TEXT.format(pads=pads), w=w, b=b, v=v)


def test_a_constant_goes_into_the_next_bias() -> None:
    changed, outcome = remove(dead(0.5))
    tensors = changed.graph.tensors()
    assert not tensors["w"].values[1].any()
    assert not tensors["v"].values[:, 1].any()
    assert tensors["v"].values[:, 0].all()
    assert outcome.changed == 2
    assert "1 of 4 channels are constant" in outcome.notes[0]


def test_padding_keeps_the_columns_of_a_constant_that_is_not_zero() -> None:
    changed, outcome = remove(dead(0.5, "<pads=[1,1,1,1]>"))
    assert not changed.graph.tensors()["w"].values[1].any()
    assert changed.graph.tensors()["v"].values[:, 1].all()
    assert "pads with zeros" in outcome.skips[0].reason


def test_a_constant_zero_passes_padding() -> None:
    changed, outcome = remove(dead(-0.5, "<pads=[1,1,1,1]>"))
    assert not changed.graph.tensors()["v"].values[:, 1].any()
    assert not outcome.skips


def test_a_channel_that_relu_always_cuts_is_constant() -> None:
    w, b = np.ones((4, 3, 1, 1)), np.zeros(4)
    b[2] = -1000
    changed, _ = remove(model(TEXT.format(pads=""), w=w, b=b))
    assert not changed.graph.tensors()["w"].values[2].any()
    assert changed.graph.tensors()["w"].values[[0, 1, 3]].all()
    layer = next(node for node in changed.graph.nodes if node.op == "Conv")
    assert layer.inputs[2].values[2] == 0, "what Relu makes of it, lest a bias without meaning decide a scale"


def test_a_channel_that_is_rarely_active_stays() -> None:
    w, b = np.ones((4, 3, 1, 1)), np.zeros(4)
    b[2] = -6  # beyond what the samples reach, by little
    changed, outcome = remove(model(TEXT.format(pads=""), w=w, b=b))
    assert changed.graph.tensors()["w"].values[2].all()
    assert outcome.changed == 0


def test_without_data_moments_and_weights_tell() -> None:
    w = np.random.default_rng(0).normal(size=(4, 3, 1, 1))
    w[3] = 0
    proto = model(TEXT.format(pads=""), w=w)
    changed = shaped(proto)
    changed.moments["a"] = Moments(np.zeros(4), np.array([1, 2, 1e-9, 1]))
    RemoveDeadChannels().apply(changed, Context())
    tensors = changed.graph.tensors()
    assert not tensors["v"].values[:, 3].any()
    assert not tensors["w"].values[2].any()
    assert changed.moments["a"].std[2] == 0


def test_nothing_to_do() -> None:
    _, outcome = remove(model(TEXT.format(pads="")))
    assert (outcome.changed, outcome.skips) == (0, ())


def stack(layers: int, **values: np.ndarray) -> onnx.ModelProto:
    """MatMul with Relu between, 6 channels everywhere."""
    text = " ".join(f"h{i} = MatMul({f'r{i - 1}' if i else 'x'}, w{i}) r{i} = Relu(h{i})" for i in range(layers))
    weights = ", ".join(f"float[6,6] w{i}" for i in range(layers))
    return model(f"(float[N,6] x) => (float[N,6] y) <{weights}> {{ {text} y = Identity(r{layers - 1}) }}", **values)


def test_constants_run_through_any_number_of_layers_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """And BatchNorm statistics are propagated once, not for each layer: in deep networks that takes long."""
    calls = []
    monkeypatch.setattr(
        remove_dead_channels,
        "propagate_batchnorm_statistics",
        lambda model, **given: calls.append(model) or propagate_batchnorm_statistics(model, **given),
    )
    first = np.eye(6) * (np.arange(6) > 1)
    after, outcome = remove(stack(5, w0=first, **{f"w{i}": np.eye(6) for i in range(1, 5)}))
    assert (outcome.changed, len(calls)) == (8, 1)
    weights = [c.values for c in after.initializers() if c.name.startswith("w")]
    assert all(not w[:2].any() and not w[:, :2].any() for w in weights[1:])


@pytest.mark.parametrize(("count", "refused"), [(1, True), (31, True), (32, False)])
def test_channels_that_were_hardly_seen_are_not_taken_for_constant(count: int, refused: bool) -> None:
    """A row for each sample: of a few of them, all below zero, nothing follows."""
    proto = stack(2)
    rows = np.repeat(feeds(proto, seed=1, free=1)["x"], count, axis=0)
    outcome = RemoveDeadChannels().apply(shaped(proto), Context(feeds=[Feed({"x": rows}, None, "")]))
    assert bool(outcome.changed) != refused
    assert [f"seen {count} times only" in skip.reason for skip in outcome.skips] == [True, True] * refused
