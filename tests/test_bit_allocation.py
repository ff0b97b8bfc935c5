"""Costs of bits, by hand, and the path that takes them away where they are least missed."""

from __future__ import annotations

from itertools import pairwise

import graphs
import numpy as np
import pytest
from quantized import samples, with_ranges

from onnxq.data import Feed
from onnxq.evaluation.bit_allocation import BitCosts, path
from onnxq.execution.workload import workload

COSTS = BitCosts(
    products=((100.0, "x", "a"), (10.0, "r", "b"), (1.0, "r", None)),
    weights=((9, "a"), (5, "b"), (7, None)),
    idle={"i": 50.0},
)
WIDE = {"x": 8, "a": 8, "r": 8, "b": 8, "i": 8}


def test_products_are_counted_from_real_shapes() -> None:
    proto = graphs.model(
        """(float[N,3,7,9] x) => (float[N,2,14,18] z, float[N,4] y)
           <float[6,3,3,3] a, float[6,1,3,3] d, float[6,2,2,2] t, float[6,4] f> {
           h = Conv<pads=[1,1,1,1]>(x, a)  s = Conv<group=6>(h, d)  z = ConvTranspose<strides=[2,2]>(h, t)
           g = GlobalAveragePool(s)  v = Flatten(g)  y = Gemm(v, f) }"""
    )
    for i, node in enumerate(proto.graph.node):
        node.name = f"n{i}"
    feed = Feed(graphs.feeds(proto, free=1), 1, "here")
    work = workload(proto, feed)
    assert workload(proto, feed, max_memory=1) == work, "in several runs it is the same"
    conv, depthwise = 6 * 7 * 9 * 27, 6 * 5 * 7 * 9
    assert work.products == {"n0": conv, "n1": depthwise, "n2": 6 * 7 * 9 * 2 * 4, "n5": 24}
    assert (work.elements("h"), work.bytes("h")) == (6 * 7 * 9, 4 * 6 * 7 * 9)


def test_costs_of_a_model() -> None:
    proto = graphs.model(
        """(float[N,3] x) => (float[N,4] y) <float[3,5] a, float[5,4] b> { h = MatMul(x, a)  r = Relu(h)
           y = MatMul(r, b) }"""
    )
    model = with_ranges(proto)
    work = workload(model.to_proto(), Feed(samples(proto, 1, free=2)[0], 2, "here"))
    assert work.rows == 2
    costs = BitCosts.of(model, model.quantizers, work)
    assert sorted(costs.products) == [(15.0, "x", "a"), (20.0, "r", "b")]
    assert sorted(costs.weights) == [(15, "a"), (20, "b")]
    assert costs.idle == {}


def test_bit_operations_and_size() -> None:
    bits = {**WIDE, "a": 4, "b": 6}
    assert COSTS.bops(bits) == 100 * 8 * 4 + 10 * 8 * 6 + 1 * 8 * 32
    assert COSTS.size(bits) == 5 + 5 + 28  # 9 halves rounded up; 6 bits are stored in 8; 7 floats
    assert COSTS.mean_bits({**WIDE, "a": 4}) == "w14.3 a8.0"


@pytest.mark.parametrize("cost", ["bops", "size"])
def test_what_is_saved_is_the_difference(cost: str) -> None:
    total = {"bops": COSTS.bops, "size": COSTS.size}[cost]
    for unit in ("x", "a", "r", "b"):
        assert COSTS.saved(cost, WIDE, unit, 4) == total(WIDE) - total({**WIDE, unit: 4})  # type: ignore[arg-type]


def test_the_path_goes_where_noise_is_cheapest() -> None:
    noise = {"x": {8: 0.0, 4: 9.0}, "a": {8: 0.0, 4: 1.0}, "r": {8: 0.0}, "b": {8: 0.0, 4: 1.0}, "i": {8: 0.0, 4: 50.0}}
    points = path(noise, COSTS, "bops")
    changed = [next(u for u in WIDE if a[u] != b[u]) for a, b in pairwise(points)]
    assert points[0] == WIDE
    assert changed == ["a", "b", "x", "i"]  # 1 / 3200, 1 / 320, 9 / 1600 by then, 50 / 200
    assert points[-1] == {**dict.fromkeys(WIDE, 4), "r": 8}


def test_by_size_activations_keep_their_bits() -> None:
    noise = {"x": {8: 0.0, 4: 0.0}, "a": {8: 0.0, 4: 1.0}, "r": {8: 0.0}, "b": {8: 0.0, 6: 0.0}, "i": {8: 0.0}}
    assert path(noise, COSTS, "size") == [WIDE, {**WIDE, "a": 4}]


def test_a_step_may_pass_over_a_width_above_the_hull() -> None:
    noise = {"a": {8: 0.0, 6: 5.0, 4: 6.0}}
    points = path(noise, BitCosts(((1.0, None, "a"),), (), {}), "bops")
    assert [p["a"] for p in points] == [8, 4]


def test_infinite_noise_comes_last() -> None:
    noise = {"x": {8: 0.0, 4: np.inf}, "a": {8: 0.0, 4: 10.0**9}}
    points = path(noise, BitCosts(((1.0, "x", "a"),), (), {}), "bops")
    assert points[1] == {"x": 8, "a": 4}
