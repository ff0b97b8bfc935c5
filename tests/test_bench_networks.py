"""bench/networks.py, torch_peers.py and their scores: errors of differences, a row of a small network, their pages."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import child
import network_table
import networks
import torch_peers
from network_table import Configuration, Row
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
    begin, end = networks.TABLE.marks
    page.write_text(f"# Head\n\n{begin}\nold\n{end}\n\nfoot\n")
    table = replace(networks.TABLE, pages=(page,))
    options = ["--only", "models/mobilenet_digits", "--latency", "0.1", "--json", str(file)]
    networks.main([*options, "--configurations", "float", "w8a8"], table)
    first = {row["configuration"]: row for row in json.loads(file.read_text())}
    assert first["float"]["scores"]["top-1"] > 90
    assert abs(first["w8a8"]["scores"]["top-1"] - first["float"]["scores"]["top-1"]) < 2
    assert 25 < first["w8a8"]["sqnr_db"] < 60
    assert first["w8a8"]["cpu_seconds"] > 0.5
    assert 0 < first["w8a8"]["low"] <= first["w8a8"]["ratio"] <= first["w8a8"]["high"]

    def none(*_: object) -> networks.Row:
        raise AssertionError("what the file has is run again")

    monkeypatch.setattr(networks, "_in_child", none)
    networks.main([*options, "--configurations", "float", "w8a8", "--pages"], table)
    text = page.read_text()
    assert text.startswith("# Head\n")
    assert text.endswith("foot\n")
    assert "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| models/mobilenet_digits, top-1"))
    assert "not run" in row
    assert f"{first['float']['scores']['top-1']:.2f}" in row


def written(file: Path, *rows: Row) -> Path:
    file.write_text(json.dumps([asdict(row) for row in rows]))
    return file


def test_peers_stand_beside_what_the_first_bench_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, other = "models/mobilenet_digits", "models/resnet_digits"
    page = tmp_path / "page.md"
    table = replace(torch_peers.TABLE, pages=(page,))
    page.write_text("{}\n{}\nbetween\n{}\n{}\n".format(*networks.TABLE.marks, *table.marks))
    first = [
        Row(each, column, "abc", 9, scores={"top-1": score}, errors={"top-1": 0.5})
        for each in (name, other)
        for column, score in (("float", 90.0), ("w8a8", 89.0), ("w4a4", 70.0))
    ]
    table = replace(table, beside=written(tmp_path / "first.json", *first))
    peer = Row(name, "Quark", "abc", 9, scores={"top-1": 88.0}, errors={"top-1": 0.5}, cpu_seconds=3)
    failed = Row(name, "AIMET", "abc", outcome="failed", why="ValueError: no")
    file = written(tmp_path / "peers.json", peer, failed)
    monkeypatch.setattr(networks, "_in_child", None)  # without --peers nothing is measured
    networks.main(["--json", str(file), "--only", name, "--pages"], table)
    text = page.read_text()
    assert (
        text.count("| models/mobilenet_digits, top-1 | 9 | 90.00 ± 0.50 | 89.00 (-1.00 ± 0.50) | 88.00 (-2.00 ±") == 1
    )
    assert text.index("between") < text.index("88.00")
    assert "- models/mobilenet_digits, AIMET: ValueError: no" in text
    assert "70.00" not in text  # no column of this table
    assert other not in text  # no peer was measured there


def test_a_column_needs_its_environment() -> None:
    args = networks.parsed(networks.TABLE, "doc", [])
    with_peers = networks.parsed(networks.TABLE, "doc", ["--peers", "python"])
    assert not networks._is_available(Configuration("quark", in_peers=True), args)
    assert networks._is_available(Configuration("quark", in_peers=True), with_peers)
    assert networks._is_available(Configuration("onnxq"), args)
    assert not networks._is_available(Configuration("qat", module="no_such_module"), args)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "nothing was said"),
        ("reading\nno such operator\n", "no such operator"),
        ("  raise\nx.ShapeError: 3 and 4\nException ignored in: <f>\nlater\n", "x.ShapeError: 3 and 4"),
        ("RuntimeError: first\nValueError: " + "x" * 1000, "ValueError: " + "x" * (networks.MOST_SAID - 12)),
    ],
)  # fmt: skip
def test_why_a_tool_failed(said: str, why: str) -> None:
    assert networks.why(said) == why


def test_steps_of_peers_are_named() -> None:
    assert child._named(("cle", "adaround=200"), "cle", "adaround") == {"cle": "", "adaround": "200"}
    with pytest.raises(ValueError, match="expected steps of cle, got claw"):
        child._named(("claw",), "cle")


def test_a_faster_model_of_another_tool_is_named() -> None:
    def line(peer: tuple[float, float, float], own: tuple[float, float, float]) -> str | None:
        rows = [
            Row("net", name, "abc", ratio=middle, low=low, high=high)
            for name, (low, middle, high) in {"onnxsim": peer, "quantize_static": (2.0, 2.0, 2.0), "w8a8": own}.items()
        ]
        return network_table._slower(networks.TABLE, {row.key: row for row in rows}, "net")

    assert line((0.5, 0.6, 0.7), (0.5, 0.6, 0.7)) is None
    assert line((0.5, 0.6, 0.7), (0.4, 0.5, 0.6)) is None
    both = "- net: onnxsim 0.50 (0.40 to 0.60), w8a8 "
    assert line((0.4, 0.5, 0.6), (0.7, 0.8, 0.9)) == both + "0.80 (0.70 to 0.90)"
    assert line((0.4, 0.5, 0.6), (0.5, 0.6, 0.7)) == both + "0.60 (0.50 to 0.70); their quartiles overlap"
