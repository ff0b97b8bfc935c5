"""A network in part computes what the whole does, from whatever passes a cut."""

from __future__ import annotations

from typing import Any

import graphs
import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxq.execution.partial import Cuts, Network
from onnxq.execution.session import Session

NET = """(float[N,3] x, float[N,3] z) => (float[N,3] y, float[N,3] early) <float[3,3] w, float s, uint8 o>
    { a = MatMul(x, w) q = QuantizeLinear(a, s, o) d = DequantizeLinear(q, s, o) early = Relu(d) idle = Neg(a)
      b = Relu(d) c = Add(b, z) y = Sub(c, d) }"""


def net() -> ModelProto:
    return graphs.model(NET, s=np.float32(0.1), o=np.uint8(128))


def every_node(proto: ModelProto) -> Cuts:
    network = Network(proto)
    count = len(network.nodes)
    return Cuts(network, range(1, count + 1), [*[()] * (count - 1), ("y", "early")])


def test_what_passes_each_cut() -> None:
    cuts = every_node(net())
    live = [set(names) for names in cuts.live]
    assert live[:2] == [{"x", "z"}, {"a", "z"}]
    assert live[2] == live[3] == {"q", "z"}, "what is dequantized is computed anew"
    assert live[4:6] == [{"q", "early", "z"}] * 2, "nobody reads what Neg computes"
    assert live[6:] == [{"b", "q", "early", "z"}, {"c", "q", "early"}, set()]
    assert cuts.made[0] == ["a"]
    assert cuts.made[6] == ["c"]


@pytest.mark.parametrize("cut", range(8))
def test_the_rest_of_the_network_runs_from_a_cut(cut: int) -> None:
    proto = net()
    feed, live = graphs.feeds(proto), every_node(proto).live[cut]
    network = Network(proto)
    everything: dict[str, Any] = {**feed, **Session(network.part(network.maker)).run(feed)}
    rest = network.part(("y", "early"), {name: everything[name].dtype for name in live})
    assert {value.name for value in rest.graph.input} == set(live)
    for name, value in Session(rest).run({name: everything[name] for name in live}).items():
        np.testing.assert_array_equal(value, everything[name])


def test_steps_end_where_tensors_are_wanted_of_them() -> None:
    """The tensor that is wanted of a step need not pass the cut behind it, but the one in front of it if it was made
    before."""
    network = Network(net())
    cuts = Cuts(network, [1, 6], [("x",), ("a",)])
    assert cuts.live == [["x"], ["a"], []]
    assert Cuts(network, [0, 6], [("x",), ("b",)]).live == [["x"], ["x"], []]


def test_constants_may_be_replaced() -> None:
    proto = net()
    network, feed = Network(proto), graphs.feeds(proto)
    halved = np.asarray(graphs.weights(proto)["w"] / 2, np.float32)
    constants = {"w": numpy_helper.from_array(halved, "w")}
    plain, other = (Session(network.part(["a"], constants=c)).run(feed)["a"] for c in ({}, constants))
    np.testing.assert_array_equal(other, plain / 2)


def test_constants_that_are_inputs_are_no_inputs_of_a_part_that_lacks_them() -> None:
    """Before IR version 4 each initializer was; a runtime would ask for values of one that is left out."""
    text = "(float[N,3] x) => (float[N,3] y) <float[3,3] w, int64 counted> { a = MatMul(x, w) y = Relu(a) }"
    for version in (3, 8):
        proto = graphs.model(text, ir_version=version)
        if version == 8:
            proto.graph.input.extend(graphs.model(text, ir_version=3).graph.input[1:])
        assert [v.name for v in proto.graph.input] == ["x", "w", "counted"]
        part = Network(proto).part(["a"])
        assert [v.name for v in part.graph.input] == ["x", "w"]
        assert Session(part).run({"x": np.ones((2, 3), np.float32)})["a"].shape == (2, 3)
