"""What decides between quantized models where outputs hide how good they are: saturated ones, and joined ones."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import model

from onnxq.data import Feed
from onnxq.execution.output_score import OutputScore
from onnxq.execution.services import Services
from onnxq.graph.comparable import Comparable, telling
from onnxq.numeric.metrics import Front, OutputSqnr, sqnr
from onnxq.pipeline.keep_if_better import QualityMeasure

CLASSES = "(float[N,5] x) => (float[N,3] y) <float[5,3] w> { z = Gemm(x, w)  y = Softmax(z) }"

YOLO = """(float[N,5] x) => (float[N,7] y) <float[5,4] w, float[5,3] v, float stride>
    { a = Gemm(x, w)  boxes = Mul(a, stride)  z = Gemm(x, v)  scores = Sigmoid(z)
      y = Concat<axis=1>(boxes, scores) }"""

NESTED = """(float[N,5] x) => (float[N,8] y) <float[5,2] w, float[5,4] v, float[1,2] anchors>
    { a = Gemm(x, w)  b = Gemm(x, v)  c = Concat<axis=1>(a, b)  d = Add(anchors, anchors)
      y = Concat<axis=1>(c, d) }"""

SLICED = """(float[N,5] x) => (float[N,1] y) <float[5,2] w, int64[1] one, int64[1] two>
    { z = Gemm(x, w)  r = Relu(z)  p = Softmax(r)  y = Slice(p, one, two, one) }"""

RANKED = """(float[N,5] x) => (float[N,2] v, int64[N,2] i) <float[5,9] w, int64[1] k>
    { z = Gemm(x, w)  p = Softmax(z)  v, i = TopK(p, k) }"""

BOTH = "(float[N,5] x) => (float[N,3] z, float[N,3] y) <float[5,3] w> { z = Gemm(x, w)  y = Sigmoid(z) }"

BARE = "(float[N,5] x) => (float[N,3] y) <float[5,3] w> { y = Gemm(x, w) }"

LOGARITHM = "(float[N,5] x) => (float[N,3] y) <float[5,3] w> { z = Gemm(x, w)  y = LogSoftmax(z) }"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CLASSES, [("y", None), ("z (in front of Softmax)", "y")]),
        (
            YOLO,
            [
                ("boxes (in front of Concat)", None),
                ("scores (in front of Concat)", None),
                ("z (in front of Sigmoid)", "scores (in front of Concat)"),
            ],
        ),
        (NESTED, [("a (in front of Concat)", None), ("b (in front of Concat)", None)]),  # anchors are exact
        (SLICED, [("y", None), ("r (in front of Softmax)", "y")]),
        (RANKED, [("p (in front of TopK)", None), ("z (in front of Softmax)", "p (in front of TopK)")]),
        (BOTH, [("z", None), ("y", None)]),  # the logits are an output themselves
        (BARE, [("y", None)]),
        (LOGARITHM, [("y", None)]),
    ],
)
def test_what_is_compared(text: str, expected: list[tuple[str, str | None]]) -> None:
    numbers = {"stride": 64.0} if text is YOLO else {"one": [1], "two": [2]} if text is SLICED else {}
    proto = model(text, check=False, **numbers, **({"k": 2} if text is RANKED else {}))  # type: ignore[arg-type]
    assert [(each.label, each.front and each.front.behind) for each in telling(proto)] == expected


def test_of_both_sides_of_a_saturating_operator_the_worse_counts() -> None:
    y, z = np.array([[1.0, 0.0]]), np.array([[10.0, 0.0]])
    for moved in (np.array([[5.0, 0.0]]), np.array([[10.0, 0.01]])):
        found = OutputSqnr({"z": Front("y", axis=1)})
        found.update({"y": y, "z": z}, {"y": y + 1e-3, "z": moved})
        assert found.db == pytest.approx(min(sqnr(y, y + 1e-3), sqnr(z[:, 0] - z[:, 1], moved[:, 0] - moved[:, 1])))


def test_softmax_tells_apart_the_best_two_classes() -> None:
    x = np.array([[3.0, 9.0, -40.0, 7.0], [1.0, 0.0, 5.0, 2.0]])
    y = x + np.array(
        [[0.0, 0.5, 30.0, -1.0], [1.0, 1.0, 1.0, 1.0]]
    )  # the third class counts nothing, a common shift neither
    reference, other = Front("p", axis=-1).seen(x, y)
    assert np.abs(reference).ravel().tolist() == [2.0, 3.0]
    assert np.abs(other).ravel().tolist() == [3.5, 3.0]
    reference, other = Front("p", axis=1).seen(x.T[None], y.T[None])
    assert np.abs(reference).ravel().tolist() == [2.0, 3.0]
    assert Front("p", axis=1).seen(x[:, :1], y[:, :1])[0].size == 0


def test_sigmoid_tells_nothing_apart_beyond_eight() -> None:
    reference, other = Front("p", (-8.0, 8.0)).seen(np.array([-30.0, 2.0]), np.array([-9.0, 3.0]))
    assert reference.tolist() == [-8.0, 2.0]
    assert other.tolist() == [-8.0, 3.0]


def saturated() -> tuple[object, object, list[Feed]]:
    """Two classes far apart, and a model whose logits are off by a third, which Softmax hides."""
    proto = model(CLASSES, w=np.full((5, 3), 1.0) * [6, 0, -6])
    moved = model(CLASSES, w=np.full((5, 3), 1.0) * [4, 0, -6])
    return proto, moved, [Feed({"x": np.ones((1, 5), np.float32)}, None, "")]


def test_softmax_hides_no_loss_from_the_measure_of_steps() -> None:
    proto, moved, samples = saturated()
    found = QualityMeasure(proto, samples).db(moved)  # type: ignore[arg-type]
    assert found == pytest.approx(sqnr(np.array([30.0]), np.array([20.0])), abs=0.1)
    assert found is not None
    assert found < 15


def test_nor_from_the_search_for_exceptions() -> None:
    proto, moved, samples = saturated()
    board = OutputScore(proto, samples, Services()).board(moved, ())  # type: ignore[arg-type]
    assert board.score({}) < 15


def test_boxes_hide_no_scores() -> None:
    """Of the whole output, scores make a hundred thousandth of the power."""
    w = np.full((5, 4), 20.0)
    proto = model(YOLO, stride=64.0, w=w, v=np.full((5, 3), 0.1))
    moved = model(YOLO, stride=64.0, w=w, v=np.full((5, 3), -0.1))
    samples = [Feed({"x": np.ones((1, 5), np.float32)}, None, "")]
    found = QualityMeasure(proto, samples).db(moved)
    assert found is not None
    assert found < 10


def test_a_comparable_says_what_lies_behind_it() -> None:
    assert telling(model(CLASSES))[1] == Comparable("z", "y", "Softmax", front=Front("y", axis=-1))
