"""Facts about channels are measured once for each graph and calibration data, and anew where either changes."""

from dataclasses import replace

import graphs
import numpy as np
from quantized import context, samples

from onnxq.calibration.channel_facts import channel_facts

NET = "(float[N,3,4] x) => (float[N,5,4] y) <float[5,3,1] w> { a = Relu(x) y = Conv(a, w) }"


def test_what_was_measured_is_not_measured_again():
    proto, seen = graphs.model(NET), []
    work = context(proto, samples(proto, 3), progress=lambda label, done, total: seen.append(label))
    model = graphs.wrapped(proto)
    first = channel_facts(model, {"a": 1}, work, "one")
    again = channel_facts(model, {"a": 1, "y": 1}, work, "two")
    assert again["a"] is first["a"]
    channel_facts(model, {"y": 1, "a": 1}, work, "three")
    assert seen == ["one"] * 3 + ["two"] * 3
    other_axis = channel_facts(model, {"a": 2}, work, "four")
    assert other_axis["a"].mean.shape == (4,)


def test_other_weights_and_other_data_are_measured_anew():
    proto = graphs.model(NET)
    model, work = graphs.wrapped(proto), context(proto, samples(proto, 3))
    before = channel_facts(model, {"y": 1}, work, "")["y"].mean
    fewer = replace(work, feeds=list(work.feeds)[:1])
    assert not np.array_equal(channel_facts(model, {"y": 1}, fewer, "")["y"].mean, before)
    model.graph.tensors()["w"].values = model.graph.tensors()["w"].values * np.float32(2)
    np.testing.assert_allclose(channel_facts(model, {"y": 1}, work, "")["y"].mean, 2 * before, rtol=1e-6)
