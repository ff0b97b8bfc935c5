"""What normalization makes of a graph."""

from __future__ import annotations

from graphs import assert_same_function, model, ops, wrapped
from onnx import ModelProto

from onnxq.graph.model import Model
from onnxq.passes.base import Context, Outcome
from onnxq.passes.normalize import Normalize


def normalized(proto: ModelProto) -> tuple[Model, Outcome]:
    after = wrapped(proto)
    return after, Normalize().apply(after, Context())


def assert_normalizes(text: str, expected: list[str], tolerance: float = 0, **options: object) -> Model:
    """The operators left, the function kept, and nothing left to do for a second run."""
    proto = model(text, **options)  # type: ignore[arg-type]
    after, outcome = normalized(proto)
    assert ops(after) == expected
    assert bool(outcome.changed) == (ops(proto) != expected)
    assert_same_function(proto, after.to_proto(), tolerance)
    again = after.to_proto()
    assert Normalize().apply(after, Context()).changed == 0
    assert after.to_proto() == again
    return after
