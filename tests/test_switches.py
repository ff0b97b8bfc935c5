"""A switchboard scores what whole models score, from wherever it starts."""

from __future__ import annotations

from functools import partial
from typing import Any

import graphs
import numpy as np
import pytest
from quantized import PLAIN, samples

from onnxq.evaluation.evaluator import Evaluator, open_evaluator
from onnxq.evaluation.metric import score_outputs
from onnxq.execution.switches import Switch, Switchboard
from onnxq.graph.model import Model, grid_root
from onnxq.graph.simulate import simulated
from onnxq.options import Options
from onnxq.pipeline.lower import lower

NET = """(float[N,3,8,8] x) => (float[N,4] y, float[N,5,8,8] side) <float[5,3,3,3] a, float[5] b, float[5,1,3,3] d,
         float[5,5,1,1] p, float[5,4] f, float[1] half> {
         h = Conv<pads=[1,1,1,1]>(x, a, b)  r = Relu(h)  s = Conv<group=5, pads=[1,1,1,1]>(r, d)  t = Relu(s)
         u = Conv(t, p)  w = Add(u, r)  side = Mul(w, half)  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(w)
         g = GlobalAveragePool(m)  v = Flatten(g)  y = MatMul(v, f) }"""

EVERYTHING = {"force_int_kernels": True, "preset": "w4a8", "cle": "off", "dead_channels": False, "absorb": False}


def evaluator(text: str = NET, count: int = 4, **settings: Any) -> Evaluator:
    proto = graphs.model(text)
    return open_evaluator(proto, samples(proto, count), options=Options(**{**EVERYTHING, **settings}))


def switchboard(given: Evaluator, **limits: Any) -> tuple[Model, dict[str, Switch], Switchboard]:
    base, switches = given.planned()
    return base, switches, opened(given, base, switches, **limits)


def opened(given: Evaluator, base: Model, switches: dict[str, Switch], **limits: Any) -> Switchboard:
    score = partial(score_outputs, given.metric, given.references)
    return Switchboard(base.to_proto(), switches.values(), given.feeds, score, **limits)


def whole(given: Evaluator, base: Model, names: set[str]) -> float:
    """The score of the float model with these switches' quantizers, as one model run from front to end."""
    copy, quantizers = base.clone(), given.plan.model.quantizers
    copy.quantizers = {n: q for n, q in quantizers.items() if grid_root(quantizers, n) in names}
    return given.measured(simulated(copy))


def test_all_off_is_the_float_model_even_where_biases_and_weights_were_changed() -> None:
    given = evaluator()
    _, _, board = switchboard(given)
    assert given.task.options.optimised_rounding == "coordinate-descent"
    assert board.hold({}) == np.inf
    assert given.float_score == np.inf


def test_all_on_is_the_quantized_model() -> None:
    given = evaluator()
    _, switches, board = switchboard(given)
    quantized = given.measured(lower(given.plan.model, given.task.context)[0])
    assert board.score(switches) == pytest.approx(quantized, abs=0.1)
    assert 5 < quantized < 40


def test_single_switches_score_what_whole_models_do() -> None:
    given = evaluator(**PLAIN)
    base, switches, board = switchboard(given)
    board.hold({})
    board.hold(switches)
    assert len(switches) > 8
    for name, switch in switches.items():
        assert board.score({name: switch}) == whole(given, base, {name})
        others = {n: g for n, g in switches.items() if n != name}
        assert board.score(others) == whole(given, base, set(others))


def test_followers_of_a_grid_are_switched_with_it() -> None:
    given = evaluator(**PLAIN)
    _, switches, _ = switchboard(given)
    followers = {n for n, q in given.plan.model.quantizers.items() if q.grid_of is not None}
    assert followers
    assert not followers & switches.keys()
    assert followers <= {tensor for switch in switches.values() for tensor in switch.tensors}


def test_scores_depend_neither_on_cuts_nor_on_threads() -> None:
    given = evaluator()
    base, switches = given.planned()
    states = [{n: switches[n]} for n in switches]
    states += [{n: s for n, s in switches.items() if n != off} for off in switches]
    found = []
    for limits in ({}, {"threads": 3}, {"max_memory": 0}, {"max_memory": 40_000}):
        board = opened(given, base, switches, **limits)
        board.hold({})
        board.hold(switches)
        found.append([board.score(state) for state in states])
    assert found[1:] == found[:1] * 3


def test_only_what_changed_is_computed_again() -> None:
    """Of a chain of equal layers half is, on average; less where the first layers are the expensive ones."""
    layers = " ".join(
        f"h{i} = Conv<pads=[1,1,1,1]>({'x' if i == 0 else f'r{i - 1}'}, w{i}) r{i} = Relu(h{i})" for i in range(8)
    )
    weights = ", ".join(f"float[3,3,3,3] w{i}" for i in range(8))
    given = evaluator(f"(float[N,3,8,8] x) => (float[N,3,8,8] y) <{weights}> {{ {layers} y = Identity(r7) }}")
    _, switches, board = switchboard(given)
    assert board.passes({}) == 1
    board.hold({})
    assert sum(board.passes({name: switch}) for name, switch in switches.items()) / len(switches) < 0.6


def test_less_memory_means_fewer_cuts() -> None:
    given = evaluator()
    base, switches = given.planned()
    made = {}
    for limit in (2**30, 40_000, 0):
        board = opened(given, base, switches, max_memory=limit)
        board.hold({})
        held = {id(array): array for cut in board._cuts for s in board._held[0].cuts[cut] for array in s.values()}
        made[limit] = len(board._cuts)
        size = sum(array.array().nbytes for array in held.values())
        assert size * 2 <= limit
        assert (board._cache.held, board._cache.spilled) == (size, 0)
    assert made[2**30] > made[40_000] > made[0] == 0


def test_the_memory_of_two_states_is_all_that_is_taken() -> None:
    given = evaluator()
    _, switches, board = switchboard(given)
    board.hold({})
    one = board._cache.held
    for name in list(switches)[:3]:
        board.hold({name: switches[name]})
    assert 0 < one < board._cache.most <= 2 * one


def test_samples_larger_than_the_first_go_to_files() -> None:
    text = NET.replace("float[N,3,8,8]", "float[N,3,H,W]").replace("float[N,5,8,8]", "float[N,5,H,W]")
    proto = graphs.model(text)
    rng = np.random.default_rng(0)
    data = [{"x": np.float32(rng.standard_normal((1, 3, size, size)))} for size in (4, 24, 24, 24)]
    given = open_evaluator(proto, data, options=Options(**{**EVERYTHING, **PLAIN}))
    base, switches = given.planned()
    found = []
    for limit in (2**30, 40_000):
        board = opened(given, base, switches, max_memory=limit)
        board.hold({})
        board.hold(switches)
        found.append([board.score({name: switch}) for name, switch in switches.items()])
    assert found[0] == found[1]
    assert board._cache.most <= 40_000
    assert board._cache.spilled > 0


def test_a_held_state_costs_nothing_again() -> None:
    given = evaluator()
    _, switches, board = switchboard(given)
    score = board.hold(switches)
    assert board.score(switches) == score
    assert board.passes(switches) == 0


def test_padding_of_a_fixed_batch_does_not_count() -> None:
    proto = graphs.model("(float[4,3] x) => (float[4,2] y) <float[3,2] w> { y = MatMul(x, w) }")
    rows = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    given = open_evaluator(proto, rows, options=Options(**{**EVERYTHING, **PLAIN}))
    assert [feed.rows for feed in given.feeds] == [4, 2]
    base, switches, board = switchboard(given)
    assert board.score(switches) == whole(given, base, set(switches))
