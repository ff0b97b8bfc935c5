"""Detectors that select boxes themselves, and other networks whose outputs lie behind a selection."""

from __future__ import annotations

import numpy as np
from graphs import model
from onnx import ModelProto

HEAD = """
    a = Conv<pads=[1,1,1,1]>(x, w)  h = HardSwish(a)  b = Conv(h, wb)  k = Conv(h, wk)
    bt = Transpose<perm=[0,2,3,1]>(b)  boxes = Reshape(bt, four)
    kt = Transpose<perm=[0,2,3,1]>(k)  kr = Reshape(kt, two)  ks = Sigmoid(kr)  scores = Transpose<perm=[0,2,1]>(ks)
"""
ENDS = {
    "NonMaxSuppression": (
        "float[?,4] y",
        "n = NonMaxSuppression(boxes, scores, limit, overlap)  i = Slice(n, start, end, axis)  j = Squeeze(i, axis)"
        "  g = Gather<axis=1>(boxes, j)  y = Squeeze(g, zero)",
    ),
    "TopK": (
        "float[?,?,?] y, float[?,?,?] v",
        "v, i = TopK<axis=2>(scores, limit)  c = Unsqueeze(i, last)  y0 = Cast<to=1>(i)  y = Mul(y0, v)",
    ),
    "GatherND": (
        "float[?,?] y",
        "i = NonZero(scores)  t = Transpose(i)  g = GatherND(scores, t)  y = Unsqueeze(g, last)",
    ),
    "Loop": (
        "float[?,?,?] y",
        "y = Loop(limit0, , boxes) <body = body (int64 t, bool go, float[?,?,?] s) => (bool on, float[?,?,?] n)"
        " { on = Identity(go)  n = Add(s, boxes) }>",
    ),
}
DECLARED = (
    "float[4,3,3,3] w, float[4,4,1,1] wb, float[2,4,1,1] wk, int64[3] four, int64[3] two, int64[1] limit, int64 limit0,"
    " float[1] overlap, int64[1] start, int64[1] end, int64[1] axis, int64[1] zero, int64[1] last"
)
VALUES = {
    "four": [0, -1, 4], "two": [0, -1, 2], "limit": 3, "limit0": 2, "overlap": 0.5, "start": 2, "end": 3, "axis": 1,
    "zero": 0, "last": -1,
}  # fmt: skip


def detector(end: str) -> ModelProto:
    """A small detector that ends in one of `ENDS`."""
    outputs, nodes = ENDS[end]
    return model(f"(float[1,3,6,6] x) => ({outputs}) <{DECLARED}> {{ {HEAD} {nodes} }}", check=False, **VALUES)


def images(count: int, first: int = 0) -> list[dict[str, np.ndarray]]:
    """Feeds for `detector`."""
    seeds = range(first, first + count)
    return [{"x": np.asarray(np.random.default_rng(n).standard_normal((1, 3, 6, 6)), np.float32)} for n in seeds]
