"""Models run side by side: in order, without padding, the same on any number of threads; nothing comparable is None."""

from __future__ import annotations

from collections.abc import Iterator

import graphs
import numpy as np
import pytest
from onnx import ModelProto

from onnxq.data import Feed
from onnxq.errors import EngineError
from onnxq.execution.compare_outputs import Reference, map_models, output_sqnr, reference_outputs, run_models
from onnxq.execution.services import Services
from onnxq.execution.session import Session
from onnxq.numeric.metrics import sqnr

NET = "(float[N,3] x) => (float[N,4] y, int64[N,4] i) <float[3,4] w> { y = MatMul(x, w) i = Cast<to=7>(y) }"


def pair() -> tuple[ModelProto, ModelProto]:
    return graphs.model(NET), graphs.model(NET, seed=1)


def feeds(proto: ModelProto, count: int = 7) -> list[Feed]:
    return [Feed(graphs.feeds(proto, seed=i, free=2), 2, "") for i in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_each_feed_comes_with_the_outputs_of_every_model(threads: int) -> None:
    models = pair()
    given = feeds(models[0])
    found = list(run_models((models[0], Session(models[1])), given, threads))
    assert [feed for feed, _ in found] == given
    for feed, outputs in found:
        for model, computed in zip(models, outputs, strict=True):
            np.testing.assert_array_equal(computed["y"], graphs.run(model, feed.arrays)["y"])
    assert list(map_models(lambda feed, outputs: len(outputs), models, given, threads)) == [2] * 7


def test_rows_that_fill_a_batch_up_are_left_out() -> None:
    model, _ = pair()
    ((_, (outputs,)),) = run_models((model,), [Feed(graphs.feeds(model, free=4), 3, "")], 1)
    assert {name: value.shape for name, value in outputs.items()} == {"y": (3, 4), "i": (3, 4)}


def test_sqnr_is_that_of_all_samples_together() -> None:
    model, other = pair()
    given = feeds(model)
    references, outputs = reference_outputs(model, given, 2), reference_outputs(other, given, 2)
    whole = [np.concatenate([each["y"] for each in found]) for found in (references, outputs)]
    found = output_sqnr(zip(references, outputs, strict=True))
    assert found == pytest.approx(sqnr(*whole))
    assert output_sqnr(zip(references, references, strict=True)) == np.inf


def test_where_nothing_is_comparable_the_distance_is_unknown() -> None:
    model, _ = pair()
    integers = [{"i": outputs["i"]} for outputs in reference_outputs(model, feeds(model), 1)]
    assert output_sqnr(zip(integers, integers, strict=True)) is None
    ragged = [({"y": np.zeros((2, 3), np.float32)}, {"y": np.zeros((3, 3), np.float32)})]
    assert output_sqnr(ragged) is None


def test_a_model_that_fails_is_an_error() -> None:
    model, _ = pair()
    with pytest.raises(EngineError):
        list(run_models((model,), [Feed({"x": np.zeros((1, 5), np.float32)}, None, "")], 1))


@pytest.mark.parametrize("max_memory", [1 << 20, 1])
@pytest.mark.parametrize("optimize", [False, True])
def test_what_others_are_compared_with_is_computed_once(max_memory: int, optimize: bool) -> None:
    model, other = pair()
    given, read = feeds(model), list[Feed]()

    class Data:
        def __iter__(self) -> Iterator[Feed]:
            read.extend(given)
            return iter(given)

    reference = Reference(model, Data(), Services(threads=2, max_memory=max_memory), optimize=optimize)
    expected = [{name: x for name, x in each.items() if name == "y"} for each in reference_outputs(model, given, 1)]
    for second in (other, model, other):
        found = list(reference.beside(second))
        for (ours, theirs), x, y in zip(found, expected, reference_outputs(second, given, 1), strict=True):
            np.testing.assert_allclose(ours["y"], x["y"], rtol=1e-6)
            np.testing.assert_allclose(theirs["y"], y["y"], rtol=1e-6)
    assert len(read) == len(given)


def test_a_model_that_fails_beside_the_reference_leaves_it_usable() -> None:
    model, other = pair()
    reference = Reference(model, feeds(model), Services())
    with pytest.raises(EngineError):
        list(reference.beside(graphs.model("(float[N,5] x) => (float[N,5] y) { y = Relu(x) }")))
    assert len(list(reference.beside(other))) == len(feeds(model))
