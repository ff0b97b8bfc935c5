"""Calibration of a decoder with past: one .npz a step, keys and values of length zero at first, then growing."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
import pytest
from onnx import ModelProto

import onnxq
from onnxq.numeric.metrics import sqnr

RANDOM = np.random.default_rng(11)
WIDTH, VOCABULARY, STEPS = 16, 40, 6


def decoder() -> ModelProto:
    """One head; the present keys and values are the next step's past."""
    text = """(int64[1,1] ids, float[1,past,16] past_key, float[1,past,16] past_value)
    => (float[1,1,40] logits, float[1,total,16] present_key, float[1,total,16] present_value)
    <float[40,16] table, float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16,16] wo,
     float[16,40] head, float four> {
        x = Gather(table, ids)
        q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        present_key = Concat<axis=1>(past_key, k)  present_value = Concat<axis=1>(past_value, v)
        turned = Transpose<perm=[0,2,1]>(present_key)
        raw = MatMul(q, turned)  scaled = Div(raw, four)  weights = Softmax<axis=-1>(scaled)
        mixed = MatMul(weights, present_value)  o = MatMul(mixed, wo)  y = Add(x, o)
        logits = MatMul(y, head)
    }"""
    shapes = {
        "table": (VOCABULARY, WIDTH),
        "head": (WIDTH, VOCABULARY),
        **dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH)),
    }
    weights = {name: RANDOM.normal(0, 0.4, shape) for name, shape in shapes.items()}
    return graphs.model(text, **weights, four=np.array(4.0))


def steps(proto: ModelProto, texts: int) -> list[dict[str, np.ndarray]]:
    """What the decoder is given, step by step, as it generates some texts."""
    found = []
    for _ in range(texts):
        past = {name: np.zeros((1, 0, WIDTH), np.float32) for name in ("past_key", "past_value")}
        ids = RANDOM.integers(0, VOCABULARY, (1, 1))
        for _ in range(STEPS):
            feed = {"ids": np.asarray(ids, np.int64), **past}
            found.append(feed)
            outputs = graphs.run(proto, feed)
            past = {name: outputs[name.replace("past", "present")] for name in past}
            ids = outputs["logits"][:, -1].argmax(axis=-1)[None]
    return found


@pytest.mark.parametrize("settings", [{}, {"preset": "w8"}, {"preset": "w4", "block_size": 8}, {"fallback": "auto"}])
def test_one_file_a_step(settings: dict[str, object], tmp_path: Path) -> None:
    proto = decoder()
    feeds = steps(proto, 6)
    for number, feed in enumerate(feeds):
        np.savez(tmp_path / f"step_{number:04d}.npz", **feed)
    result = onnxq.quantize(proto, tmp_path, **settings)  # type: ignore[arg-type]
    fresh = steps(proto, 3)
    pairs = [(graphs.run(proto, feed), graphs.run(result.model, feed)) for feed in fresh]
    for name in ("logits", "present_key", "present_value"):
        expected, found = (np.concatenate([pair[i][name].ravel() for pair in pairs]) for i in (0, 1))
        assert sqnr(expected, found) > (12 if settings.get("preset") == "w4" else 20)
    assert {q.output for q in result.report.quality} == {"logits", "present_key", "present_value"}
