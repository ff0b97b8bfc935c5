"""What all tests share."""

from __future__ import annotations

import math

import pytest

from onnxq.execution import progress_line


@pytest.fixture(autouse=True)
def quick_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step of work counts as long on a busy machine: tests look at what commands print. Not for tests of that."""
    if request.node.path.stem != "test_progress":
        monkeypatch.setattr(progress_line, "LONG", math.inf)
