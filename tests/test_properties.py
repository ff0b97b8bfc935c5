"""A short run of bench/properties.py: generated graphs are written clean for each target, or options are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import generated
import properties

from onnxq import TARGETS
from onnxq.operators import registry

ELSEWHERE = {"NonMaxSuppression", "NonZero", "Unique", "If", "Loop", "Scan"}
"""Operators that make shapes of their own, which no generated graph goes on from."""


def test_150_cases_with_options_of_all_kinds() -> None:
    results = properties.survey(11, range(150), defaults=False)
    assert {n: r for n, r in results.items() if r[0] not in properties.GOOD} == {}
    assert sum(outcome == "written" for outcome, _ in results.values()) > 50


def test_of_defaults_nothing_is_refused() -> None:
    results = properties.survey(12, range(100), defaults=True)
    assert {n: r for n, r in results.items() if r[0] not in ("written", "nothing")} == {}
    settings = [properties.options(np.random.default_rng([12, n, 1]), defaults=True) for n in range(100)]
    assert {each["target"] for each in settings} == set(TARGETS)


def test_every_operator_of_the_registry_is_generated() -> None:
    found = {node.op_type for number in range(400) for node in generated.make(0, number).nodes}
    kinds = ("linear", "elementwise", "pooling", "movement", "selection")
    assert {op for kind in kinds for op in registry.names(kind)} - found <= ELSEWHERE


def test_a_number_is_always_the_same_case() -> None:
    one, other = (generated.make(3, 5) for _ in range(2))
    assert one.model().SerializeToString() == other.model().SerializeToString()
    assert all(np.array_equal(one.feed(1)[name], values) for name, values in other.feed(1).items())
