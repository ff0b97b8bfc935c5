"""What looks into models works on those whose weights stay in files: the same findings, no weights in protobufs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import model

import onnxq
from onnxq.debugging.workflow import AccuracyTarget, debug
from onnxq.evaluation.compare import compare
from onnxq.evaluation.evaluate import evaluate
from onnxq.evaluation.mixed_precision import Limits, auto_mixed
from onnxq.evaluation.sensitivity import sensitivity
from onnxq.execution.session import Session
from onnxq.graph import large
from onnxq.options import Options

SMALL = 1000
"""Bytes: the limit, lowered, from which on weights stay in files."""

PACKED = onnx.TensorProto.INT4
"""Two to a byte: these cannot be mapped, and are small."""

NET = (
    "(float[N,30] x) => (float[N,?] y) <float[30,40] u, float[40] b, float[40,50] v, float[50,20] w>"
    " { a = MatMul(x, u) c = Add(a, b) d = Relu(c) e = MatMul(d, v) f = Relu(e) y = MatMul(f, w) }"
)
DATA = np.random.default_rng(0).standard_normal((8, 30)).astype(np.float32)
QUICK = Options(activation_range="minmax", weight_range="minmax", cle="off", dead_channels=False, threads=1)


@pytest.fixture
def nets(tmp_path: Path) -> tuple[Path, Path]:
    """A float model and a quantized one, both with their data beside them."""
    options: dict[str, Any] = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save_model(model(NET), tmp_path / "net.onnx", **options, location="weights.bin")
    result = onnxq.quantize(tmp_path / "net.onnx", DATA, options=QUICK)
    onnx.save_model(result.model, tmp_path / "quantized.onnx", **options, location="integers.bin")
    return tmp_path / "net.onnx", tmp_path / "quantized.onnx"


def evaluated(net: Path, quantized: Path) -> list[object]:
    found = evaluate(quantized, DATA, reference=net)
    fast = evaluate(quantized, DATA, reference=net, optimized=True)
    return [figure.value for each in (found, fast) for figure in each.figures]


def compared(net: Path, quantized: Path) -> list[object]:
    tensors = compare(net, quantized, DATA).tensors
    assert [t.weight for t in tensors if t.weight] == ["u", "v", "w"]
    return [value for t in tensors for value in (t.sqnr_db, t.weight_sqnr_db, t.cosine)]


def ranked(net: Path, quantized: Path) -> list[object]:
    found = sensitivity(net, DATA, options=QUICK)
    effects = sorted(found.measured, key=lambda effect: effect.unit)
    return [found.on, *(value for e in effects for value in (e.unit, e.own_db, e.only, e.all_but))]


def debugged(net: Path, quantized: Path) -> list[object]:
    options = dataclasses.replace(QUICK, preset="w4a8", rounding="nearest", bias_correction="off")
    found = debug(net, DATA, options=options, goal=AccuracyTarget(score=25.0), metric="sqnr")
    return [found.reached, found.score, [entry.title for entry in found.log]]


def mixed(net: Path, quantized: Path) -> list[object]:
    found = auto_mixed(net, DATA, "w4,w8,a8", Limits(drop=5.0), metric="sqnr", options=QUICK)
    return [found.reached, found.score, repr(found.options.overrides)]


@pytest.mark.parametrize("look", [evaluated, compared, ranked, debugged, mixed])
def test_the_same_findings(
    nets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, look: Callable[[Path, Path], list[Any]]
) -> None:
    """But for the last bits, as for `quantize`; and nothing stays behind in the temporary folder."""
    expected, embedded, spilled = look(*nets), [0], [0]
    load = Session.__init__

    def watched(self: Session, source: Any, **options: Any) -> None:
        if isinstance(source, onnx.ModelProto):
            sizes = [len(t.raw_data) for t in source.graph.initializer if t.data_type != PACKED]
            embedded.append(max(sizes, default=0))
            spilled.append(len(large.references(source)))
        load(self, source, **options)

    monkeypatch.setattr(large, "LARGE", SMALL)
    monkeypatch.setattr(large, "SMALLEST", SMALL)
    monkeypatch.setattr(Session, "__init__", watched)
    found = look(*nets)
    assert max(embedded) < SMALL
    assert max(spilled) >= 3
    assert large._STORE.folder is None
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        assert one == (pytest.approx(other, rel=1e-3) if isinstance(one, float) else other)
