"""bench/networks.py and its scores: standard errors of differences, its row of a small network, and its pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import networks
from task_score import TaskScore, difference_error, standard_error, top1


def labelled(count: int, hits: np.ndarray) -> tuple[TaskScore, list[list[np.ndarray]]]:
    """A score of two classes, and outputs that hit where `hits` says so."""
    labels = np.zeros(count, np.int64)
    return TaskScore(labels, top1), [[np.float32([[hit, 1 - hit]])] for hit in hits]


def test_the_error_of_a_share_is_that_of_statistics() -> None:
    hits = np.random.default_rng(0).random(1600) < 0.7
    task, outputs = labelled(1600, hits)
    share = hits.mean()
    assert task.of(outputs)["top-1"] == pytest.approx(100 * share)
    error = standard_error(task.without_groups(outputs))["top-1"]
    assert error == pytest.approx(100 * np.sqrt(share * (1 - share) / 1600), rel=0.5)  # of 16 groups


def test_what_both_models_do_cancels_out() -> None:
    random = np.random.default_rng(0)
    hits = random.random(1600) < 0.7
    other = hits ^ (random.random(1600) < 0.01)
    task, outputs = labelled(1600, hits)
    _, others = labelled(1600, other)
    same = task.without_groups(outputs)
    assert difference_error(same, same)["top-1"] == 0
    error = difference_error(same, task.without_groups(others))["top-1"]
    assert 0.1 < error < 0.5 < standard_error(same)["top-1"]


def test_ties_share_the_hit() -> None:
    assert top1([[np.float32([1, 1, 0])], [np.float32([0, 1, 0])]], [0, 1]) == {"top-1": 75.0}


def test_a_sample_may_take_two_runs() -> None:
    task = TaskScore([1.0, 2.0], lambda outputs, labels: {"sum": sum(x[0] for x in outputs) + sum(labels)})
    outputs = [[10], [20], [30], [40]]
    assert task.of(outputs) == {"sum": 103.0}
    assert task.of(outputs, [1]) == {"sum": 72.0}


def test_one_network_is_resumed_and_written_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text(f"# Head\n\n{networks.BEGIN}\nold\n{networks.END}\n\nfoot\n")
    monkeypatch.setattr(networks, "PAGES", (page,))
    options = ["--only", "models/mobilenet_digits", "--latency", "0.1", "--json", str(file)]
    networks.main([*options, "--configurations", "float", "w8a8"])
    first = {row["configuration"]: row for row in json.loads(file.read_text())}
    assert first["float"]["scores"]["top-1"] > 90
    assert abs(first["w8a8"]["scores"]["top-1"] - first["float"]["scores"]["top-1"]) < 2
    assert 25 < first["w8a8"]["sqnr_db"] < 60
    assert first["w8a8"]["cpu_seconds"] > 0.5
    assert 0 < first["w8a8"]["low"] <= first["w8a8"]["ratio"] <= first["w8a8"]["high"]

    def none(*_: object) -> networks.Row:
        raise AssertionError("what the file has is run again")

    monkeypatch.setattr(networks, "_in_child", none)
    networks.main([*options, "--configurations", "float", "w8a8", "--pages"])
    text = page.read_text()
    assert text.startswith("# Head\n")
    assert text.endswith("foot\n")
    assert "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| models/mobilenet_digits, top-1"))
    assert "not run" in row
    assert f"{first['float']['scores']['top-1']:.2f}" in row
