"""A report as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

from .records import ReportData


def to_json(report: ReportData) -> str:
    """Strict JSON (no NaN or Infinity), keys as the records' fields."""
    text = json.dumps(plain(dataclasses.asdict(report)), indent=2, allow_nan=False)
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


_NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\]")
"""A list of numbers alone, which takes one line rather than one a number; strings never hold line breaks."""


def plain(value: Any) -> Any:
    """The same with null for what strict JSON has no number for: infinities and not-a-number."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
