"""High-bias absorption: the function stays where the channel does, padding and other readers stop it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import assert_close, feeds, model, run
from test_scaling_groups import shaped

from onnxq.data import Feed
from onnxq.graph.model import Moments
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.base import Context

TEXT = (
    "(float[N,3,5,5] x) => (float[N,5,?,?] y) <float[4,3,1,1] w, float[4] b, float[5,4,3,3] v{more}>"
    " {{ a = Conv(x, w, b) {between} }}"
)
BIAS = np.array([100.0, 0.0, 50.0, -100.0])


def absorbed(between: str, more: str = "", **values: np.ndarray) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
    """The model before and after, and the reasons for what was left; on calibration data nothing changed."""
    proto = model(TEXT.format(between=between, more=more), b=BIAS, **values)
    arrays = [feeds(proto, seed=10 + i, free=1) for i in range(6)]
    changed = shaped(proto)
    outcome = AbsorbBias().apply(changed, Context(feeds=[Feed(a, None, "") for a in arrays]))
    after = changed.to_proto()
    for a in arrays:
        assert_close(run(after, a)["y"], run(proto, a)["y"], 1e-5)
    return proto, after, [s.reason for s in outcome.skips]


def first_bias(proto: onnx.ModelProto) -> np.ndarray:
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    return constants[proto.graph.node[0].input[2]]


def test_high_biases_move_on() -> None:
    _, after, _ = absorbed("r = Relu(a) y = Conv(r, v)")
    bias = first_bias(after)
    assert 0 < bias[0] < 30
    assert 0 < bias[2] < 30
    np.testing.assert_array_equal(bias[[1, 3]], BIAS[[1, 3]])
    assert len(after.graph.node[2].input) == 3, "a bias was created"


def test_two_readers_both_get_it() -> None:
    _, after, _ = absorbed("r = Relu(a) p = Conv(r, v) q = Conv(r, u) y = Add(p, q)", ", float[5,4,3,3] u")
    assert first_bias(after)[0] < 30


@pytest.mark.parametrize(
    ("between", "more", "reason"),
    [
        ("r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v)", "", "pads with zeros"),
        ("r = Sigmoid(a) y = Conv(r, v)", "", "Sigmoid is not a linear operator"),
        ("r = Relu(a) p = Conv(r, v) q = Softmax(r) y = Identity(p) z = Identity(q)", "", "Softmax is not"),
    ],
)
def test_reasons(between: str, more: str, reason: str) -> None:
    proto, after, skips = absorbed(between, more)
    assert any(reason in s for s in skips)
    np.testing.assert_array_equal(first_bias(after), first_bias(proto))


def test_clip_keeps_channels_that_reach_its_bound() -> None:
    between = "r = Clip(a, lo, hi) y = Conv(r, v)"
    _, after, _ = absorbed(between, ", float lo = {0.0}, float hi = {70.0}")
    bias = first_bias(after)
    assert bias[0] == 100
    assert bias[2] < 30


def test_batchnorm_moments_decide_without_data() -> None:
    proto = model(TEXT.format(between="r = Relu(a) y = Conv(r, v)", more=""), b=BIAS)
    changed = shaped(proto)
    changed.moments["a"] = Moments(np.array([10.0, 1.0, 4.0, -5.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    AbsorbBias().apply(changed, Context())
    np.testing.assert_allclose(first_bias(changed.to_proto()), BIAS - [7, 0, 1, 0])
    np.testing.assert_allclose(changed.moments["a"].mean, [3, 1, 3, -5])


def test_channels_that_were_hardly_seen_keep_their_bias() -> None:
    """Two rows are no ground for where a channel ends."""
    proto = model("(float[N,4] x) => (float[N,4] y) <float[4,4] v, float[4,4] w> { h = MatMul(x, v) y = MatMul(h, w) }")
    few = {"x": np.ones((2, 4), np.float32)}
    outcome = AbsorbBias().apply(shaped(proto), Context(feeds=[Feed(few, None, "")]))
    assert outcome.changed == 0
    assert "seen 2 times only" in outcome.skips[0].reason
