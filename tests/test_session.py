"""ONNX Runtime behind one door: its errors are ours, and results depend on samples alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import feeds, model, run
from onnx import ModelProto

from onnxq.calibration.collect import collect
from onnxq.data import Feed
from onnxq.errors import EngineError
from onnxq.execution.session import (
    Session,
    default_threads,
    optimized_graph,
    parallel_map,
    without_padding,
)
from onnxq.numeric.samples import MinMax


@pytest.fixture
def net() -> ModelProto:
    return model(
        "(float[N,3,8,8] x) => (float[N,5,?,?] y, float[N,5,?,?] h) <float[5,3,3,3] w, float[5] b>"
        " { h = Conv(x, w, b) y = Relu(h) }"
    )


def test_a_session_runs_from_memory_and_from_a_path(net: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(net.SerializeToString())
    arrays, expected = feeds(net), run(net)
    for source in (net, path, str(path)):
        session = Session(source)
        assert session.outputs == ["y", "h"]
        assert session.output_types() == {"y": "tensor(float)", "h": "tensor(float)"}
        for name, value in session.run(arrays).items():
            np.testing.assert_array_equal(value, expected[name])


def test_a_model_that_does_not_load() -> None:
    proto = model("(float[3] x) => (float[3] y) { y = no.such.Op(x) }", domains="no.such", check=False)
    with pytest.raises(EngineError, match=r"cannot load the model: .*no\.such") as caught:
        Session(proto)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load the model"):
        Session(tmp_path / "ghost.onnx")


@pytest.mark.parametrize(
    "arrays",
    [{}, {"x": np.zeros((1, 4, 8, 8), np.float32)}, {"x": np.zeros((1, 3, 8, 8))}, {"z": np.zeros(1, np.float32)}],
    ids=["missing", "shape", "type", "name"],
)
def test_a_feed_that_does_not_fit(net: ModelProto, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(EngineError, match="failed to run the model") as caught:
        Session(net).run(arrays)
    assert "\n" not in str(caught.value)


def test_sequences_come_as_lists() -> None:
    proto = model("(float[2] x) => (seq(float[?]) y) { y = SequenceConstruct(x, x) }")
    (value,) = Session(proto).run({"x": np.ones(2, np.float32)}).values()
    assert isinstance(value, list)
    assert len(value) == 2


def test_the_optimized_graph_is_the_rewritten_one_without_weights(net: ModelProto) -> None:
    del net.graph.output[1]
    graph = optimized_graph(net)
    assert [n.op_type for n in graph.node] != ["Conv", "Relu"], "the two are fused"
    assert not graph.initializer


def test_parallel_map_keeps_the_order() -> None:
    def slow(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i * i

    for threads in (1, 2, 5):
        assert list(parallel_map(slow, range(20), threads)) == [i * i for i in range(20)]


@pytest.mark.parametrize(("threads", "in_flight", "limit"), [(1, 0, 2), (2, 0, 4), (4, 1, 1), (2, 3, 3)])
def test_parallel_map_holds_few_items_at_once(threads: int, in_flight: int, limit: int) -> None:
    taken, finished, most = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal taken, most
        for i in range(30):
            taken += 1
            most = max(most, taken - finished)
            yield i

    for _ in parallel_map(lambda i: i, items(), threads, in_flight):
        finished += 1
    assert (taken, finished) == (30, 30)
    assert most <= limit


def test_parallel_map_works_at_the_same_time() -> None:
    barrier = threading.Barrier(2, timeout=5)
    assert len(list(parallel_map(lambda _: barrier.wait(), range(2), 2))) == 2


def test_parallel_map_stops_at_an_error_of_the_function() -> None:
    started = []

    def fail(i: int) -> None:
        started.append(i)
        raise ValueError(f"item {i}")

    with pytest.raises(ValueError, match="item 0"):
        list(parallel_map(fail, range(1000), 2))
    assert len(started) < 20


def test_parallel_map_passes_on_an_error_of_the_items() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(parallel_map(lambda i: i, items(), 2))


def batches(net: ModelProto, count: int = 9) -> list[dict[str, np.ndarray]]:
    return [feeds(net, seed=seed, free=1) for seed in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("in_flight", [0, 1])
def test_statistics_are_the_same_bits_on_any_number_of_threads(net: ModelProto, threads: int, in_flight: int) -> None:
    samples = batches(net)
    expected = [run(net, arrays) for arrays in samples]
    for order in (samples, samples[::-1]):
        found = collect(net, (Feed(arrays, None, "") for arrays in order), lambda name: MinMax(), threads, in_flight)
        for name in ("y", "h"):
            lo, hi = min(v[name].min() for v in expected), max(v[name].max() for v in expected)
            assert found[name] == MinMax(float(lo), float(hi))


def test_rows_that_only_fill_the_batch_do_not_count(net: ModelProto) -> None:
    arrays = feeds(net, free=4)
    padded = {"x": np.concatenate([arrays["x"][:2], 1000 * arrays["x"][2:]])}
    found = collect(net, [Feed(padded, 2, "")], lambda name: MinMax())
    short = collect(net, [Feed({"x": arrays["x"][:2]}, None, "")], lambda name: MinMax())
    assert found == short
    assert collect(net, [Feed(padded, None, "")], lambda name: MinMax()) != short


def test_padding_is_cut_only_where_there_is_a_batch() -> None:
    arrays = {"x": np.zeros((4, 3)), "scalar": np.zeros(())}
    value = np.arange(8).reshape(4, 2)
    assert without_padding(value, Feed(arrays, 3, "")).shape == (3, 2)
    assert without_padding(value, Feed(arrays, 4, "")) is value
    assert without_padding(value, Feed(arrays, None, "")) is value
    assert without_padding(value[:2], Feed(arrays, 1, "")).shape == (2, 2), "another first dimension is no batch"
    scalar = np.asarray(1.0)
    assert without_padding(scalar, Feed(arrays, 1, "")) is scalar
    sequence = [value, value, value, value]
    assert without_padding(sequence, Feed(arrays, 1, "")) is sequence


@pytest.mark.parametrize("threads", [1, 3])
def test_a_bad_feed_among_good_ones_is_an_error_not_a_hang(net: ModelProto, threads: int) -> None:
    bad = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    samples = [bad, *batches(net, 20)]
    with pytest.raises(EngineError):
        collect(net, (Feed(arrays, None, "") for arrays in samples), lambda name: MinMax(), threads)


def test_no_feeds_no_values(net: ModelProto) -> None:
    assert collect(net, [], lambda name: MinMax(), 2) == {"y": MinMax(), "h": MinMax()}


def test_there_is_at_least_one_processor() -> None:
    assert default_threads() >= 1
