"""Thresholds stand in one file, each with its meaning and its source, and docs/thresholds.md is made from them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import onnxq

ROOT = Path(onnxq.__file__).parent
REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "docs"))

from make_tables import Threshold, thresholds, thresholds_page  # noqa: E402

FOUND = thresholds()


def test_no_other_file_defines_a_threshold_in_db() -> None:
    definition = re.compile(r"^\s*\w+_DB\b[^=\n]*=(?!=)", re.MULTILINE)
    files = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if definition.search(path.read_text())]
    assert files == ["thresholds.py"]


@pytest.mark.parametrize("threshold", FOUND, ids=[each.name for each in FOUND])
def test_each_says_where_it_comes_from_and_is_used(threshold: Threshold) -> None:
    assert re.search(r"(Measured|By definition|Chosen): ", threshold.source), threshold.name
    source = re.match(r"Measured: ([\w-]+\.md)", threshold.source)
    assert source is None or (REPOSITORY / "bench" / "results" / source[1]).exists()
    users = [p for p in ROOT.rglob("*.py") if p.name != "thresholds.py" and threshold.name in p.read_text()]
    assert users, threshold.name


def test_the_page_is_current() -> None:
    assert (REPOSITORY / "docs" / "thresholds.md").read_text(encoding="utf-8") == thresholds_page()
