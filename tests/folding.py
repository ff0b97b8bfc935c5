"""Layers with BatchNorm and constants around them, and what folding makes of them."""

from __future__ import annotations

import re

import numpy as np
from graphs import assert_same_function, model, ops, wrapped
from onnx import ModelProto

from onnxq.graph.model import Model
from onnxq.passes.base import Context, Outcome
from onnxq.passes.fold_batchnorm import FoldBatchNorm

TOLERANCE = 1e-5


def folded(proto: ModelProto) -> tuple[Model, Outcome]:
    after = wrapped(proto)
    return after, FoldBatchNorm().apply(after, Context())


def assert_folds(text: str, expected: str, *, tolerance: float = TOLERANCE, **options: object) -> Model:
    """The operators that are left; every node that went was counted; a second run finds nothing."""
    proto = model(text, **options)  # type: ignore[arg-type]
    before = proto.SerializeToString(deterministic=True)
    after, outcome = folded(proto)
    assert ops(after) == expected.split()
    assert outcome.changed >= 1
    assert not outcome.skips
    assert_same_function(proto, after.to_proto(), tolerance)
    assert FoldBatchNorm().apply(after, Context()).changed == 0
    assert proto.SerializeToString(deterministic=True) == before
    return after


def assert_declines(proto: ModelProto, reason: str, arrays: dict[str, np.ndarray] | None = None) -> None:
    """Nothing changed, and each BatchNormalization says why."""
    after, outcome = folded(proto)
    assert after.to_proto().graph == wrapped(proto).to_proto().graph
    assert outcome.changed == 0
    found = [s.reason for s in outcome.skips]
    assert len(found) == ops(proto).count("BatchNormalization")
    assert all(re.search(reason, text) for text in found), found


def norm(name: str, channels: int) -> str:
    """Declarations of one BatchNormalization's parameters."""
    return ", ".join(f"float[{channels}] {kind}{name}" for kind in ("g", "b", "m", "var"))


BN = "BatchNormalization<epsilon=0.001>"
BN5 = norm("", 5)

LAYERS = {
    "Conv": ("float[N,3,7,7] x", "float[5,3,3,3] w", "Conv(x, w)"),
    "Conv with bias": ("float[N,3,7,7] x", "float[5,3,3,3] w, float[5] c", "Conv(x, w, c)"),
    "Conv with pads": ("float[N,3,7,7] x", "float[5,3,3,3] w", "Conv<pads=[1,2,0,1], strides=[2,1]>(x, w)"),
    "Conv same": ("float[N,3,7,7] x", "float[5,3,2,2] w", 'Conv<auto_pad="SAME_UPPER", dilations=[1,1]>(x, w)'),
    "Conv 1d": ("float[N,3,7] x", "float[5,3,2] w", "Conv<pads=[1,0]>(x, w)"),
    "Conv 3d": ("float[N,3,4,4,4] x", "float[5,3,2,2,2] w, float[5] c", "Conv<dilations=[2,1,1]>(x, w, c)"),
    "Conv depthwise": ("float[N,5,7,7] x", "float[5,1,3,3] w, float[5] c", "Conv<group=5, pads=[1,1,1,1]>(x, w, c)"),
    "ConvTranspose": ("float[N,3,4,4] x", "float[3,5,3,3] w", "ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)"),
    "ConvTranspose with bias": ("float[N,3,4,4] x", "float[3,5,2,2] w, float[5] c", "ConvTranspose(x, w, c)"),
    "ConvTranspose depthwise": ("float[N,5,4,4] x", "float[5,1,2,2] w", "ConvTranspose<group=5>(x, w)"),
    "Gemm": ("float[N,3] x", "float[3,5] w, float[5] c", "Gemm(x, w, c)"),
    "Gemm transposed": ("float[N,3] x", "float[5,3] w", "Gemm<transB=1>(x, w)"),
    "MatMul": ("float[N,3] x", "float[3,5] w", "MatMul(x, w)"),
}


def layer(name: str, extra: str, nodes: str, outputs: str = "float[?] y") -> str:
    """A layer making `l`, then `nodes`. Output ranks are filled in."""
    given_, parameters, call = LAYERS[name]
    rank = given_.count(",") + 1
    outputs = outputs.replace("[?]", f"[{','.join('?' * rank)}]")
    return f"({given_}) => ({outputs}) <{parameters}, {extra}> {{ [layer] l = {call} {nodes} }}"


def heart(name: str, *, shifted: bool = True) -> str:
    op = name.split()[0]
    return "MatMul Add" if op == "MatMul" and shifted else op


BEFORE = {
    "Conv": ("float[N,3,7,7] x", "float[5,3,2,2] w", "Conv(n, w)"),
    "Conv valid": (
        "float[N,3,7,7] x",
        "float[5,3,2,2] w, float[5] c",
        'Conv<auto_pad="VALID", strides=[2,2]>(n, w, c)',
    ),
    "Conv grouped": ("float[N,6,7,7] x", "float[4,3,2,2] w", "Conv<group=2>(n, w)"),
    "Conv depthwise": ("float[N,3,7,7] x", "float[6,1,2,2] w, float[6] c", "Conv<group=3>(n, w, c)"),
    "Conv 1d": ("float[N,3,7] x", "float[5,3,2] w", "Conv(n, w)"),
    "Gemm": ("float[N,3] x", "float[3,5] w, float[5] c", "Gemm(n, w, c)"),
    "Gemm transposed": ("float[N,3] x", "float[5,3] w", "Gemm<transB=1>(n, w)"),
    "MatMul": ("float[N,3] x", "float[3,5] w", "MatMul(n, w)"),
}


def before(name: str, extra: str, call: str) -> str:
    """`call` makes `n` from `x`, which the layer reads."""
    given_, parameters, use = BEFORE[name]
    rank = given_.count(",") + 1
    shape = ",".join("?" * rank)
    return f"({given_}) => (float[{shape}] y) <{parameters}, {extra}> {{ n = {call} [layer] y = {use} }}"
