"""Bits chosen tensor by tensor: within the limits, honest where they cannot be kept, and reproduced by the file."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import graphs
import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto
from quantized import samples

import onnxq
from onnxq import Override, cli
from onnxq.errors import UsageError, VerificationError
from onnxq.evaluation.evaluator import Evaluator
from onnxq.evaluation.mixed_precision import Limits, MixedPrecision, auto_mixed
from onnxq.evaluation.planned_widths import Candidates
from onnxq.graph import storage
from onnxq.options import Options

NET = """(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[5,3,3,3] a, float[5,5,3,3] "b[0]", float[4,5,1,1] c> {
         h = Conv<pads=[1,1,1,1]>(x, a)  r = Relu(h)  i = Conv<pads=[1,1,1,1]>(r, "b[0]")  s = Relu(i)
         t = Add(s, r)  y = Conv(t, c) }"""

PLAIN = Options(
    force_int_kernels=True, rounding="nearest", bias_correction="off", cle="off", dead_channels=False, absorb=False
)


SOME = Limits(drop=22.0)


def net() -> ModelProto:
    proto = graphs.model(NET.replace('"b[0]"', "b"))
    for node in proto.graph.node:
        node.input[:] = ["b[0]" if name == "b" else name for name in node.input]  # a glob, if it is not escaped
    next(t for t in proto.graph.initializer if t.name == "b").name = "b[0]"
    return proto


@cache
def chosen(
    candidates: str = "w4,w8,a8,a16", limits: Limits = SOME, options: Options = PLAIN, closest: bool = False
) -> MixedPrecision:
    """For the net above; searched once in all tests."""
    proto = net()
    return auto_mixed(proto, samples(proto, 4), candidates, limits, options=options, closest=closest)


def bits_of(found: MixedPrecision) -> dict[str, int]:
    """Bits of every tensor on a grid of its own in the model that the choice gives."""
    proto = net()
    report = onnxq.quantize(proto, samples(proto, 4), options=found.options).report
    return {t.tensor: int("".join(c for c in t.grid if c.isdigit())) for t in report.tensors if t.grid_of is None}


def test_the_drop_is_kept_with_fewer_bits_than_the_most() -> None:
    found = chosen()
    assert found.reached
    assert found.drop <= 22.0
    assert set(bits_of(found).values()) == {4, 8}


def test_a_larger_drop_costs_fewer_operations() -> None:
    operations = [
        next(p.bops for p in chosen(limits=Limits(drop=drop)).front.points if p.chosen) for drop in (2, 22, 60)
    ]
    assert operations[0] > operations[1] > operations[2]


def test_the_front_is_monotone() -> None:
    points = chosen().front.points
    assert len(points) > 3
    by_cost = sorted(points, key=lambda p: p.bops)
    assert [p.score for p in by_cost] == sorted(p.score for p in by_cost)
    assert sum(p.chosen for p in points) == 1


@pytest.mark.parametrize("limit", ["bops", "size"])
def test_costs_are_kept_at_the_best_score(limit: str) -> None:
    front = chosen(limits=Limits(drop=60.0)).front.points
    middle = sorted(getattr(p, "bops" if limit == "bops" else "size_bytes") for p in front)[len(front) // 2]
    found = chosen(limits=Limits(**{limit: middle}))
    point = next(p for p in found.front.points if p.chosen)
    assert found.reached
    assert (point.bops if limit == "bops" else point.size_bytes) <= middle
    if limit == "size":  # activations cost nothing then
        assert {b for name, b in bits_of(found).items() if name not in ("a", "b[0]", "c")} == {16}


def test_what_cannot_be_reached_is_said_and_the_closest_given_on_demand() -> None:
    impossible = Limits(bops=1.0)
    with pytest.raises(VerificationError, match=r"w4,a8 cannot keep the limits; the closest: w4.0 a8.0 bits"):
        chosen("w4,a8", impossible)
    found = chosen("w4,a8", impossible, closest=True)
    assert not found.reached
    assert set(bits_of(found).values()) == {4, 8}


def test_a_drop_that_only_the_search_kept_is_gone_back_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The final model is what counts: here it scores worse than it was while searching."""
    free = next(p for p in chosen().front.points if p.chosen)
    real = Evaluator.measured
    monkeypatch.setattr(Evaluator, "measured", lambda self, proto: real(self, proto) - 10.0)
    found = chosen.__wrapped__()
    assert found.reached
    assert found.drop <= 22.0
    assert next(p for p in found.front.points if p.chosen).bops > free.bops


def test_the_users_own_overrides_stay() -> None:
    mine = (Override(tensor="a", bits=6), Override(tensor="r", keep_float=True))
    found = chosen(limits=Limits(drop=60.0), options=replace(PLAIN, overrides=mine))
    widths = bits_of(found)
    assert widths["a"] == 6
    assert "r" not in widths
    assert found.options.overrides[-2:] == mine


def test_weights_below_8_bits_are_rounded_by_descent_in_the_end() -> None:
    found = chosen("w4,w8", Limits(size=0.0), replace(PLAIN, rounding="auto"), closest=True)
    assert found.options.rounding == "coordinate-descent"
    assert chosen("w8", Limits(drop=60.0), replace(PLAIN, rounding="auto")).options.rounding == "auto"


@pytest.mark.parametrize(
    ("text", "message"),
    [("w4,8", "expected widths"), ("w1", "from 2 to 16"), ("w4,a32", "from 2 to 16"), ("", "expected widths")],
)
def test_candidates_are_checked(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Candidates.parse(text)


def test_candidates_for_what_stays_in_float_are_refused() -> None:
    with pytest.raises(UsageError, match="leaves activations in float"):
        chosen("w4,a8", options=replace(PLAIN, preset="w8"))


def test_every_candidate_is_planned() -> None:
    assert Candidates.parse("w4,w8,w6,a8").plans == [(8, 8), (6, 8), (4, 8)]
    assert Candidates.parse("a8, a16").plans == [(None, 16), (None, 8)]


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    proto = net()
    storage.write(proto, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.concatenate([feed["x"] for feed in samples(proto, 8)]))
    return tmp_path


def quantize(place: Path, output: str, *more: str) -> Result:
    files = [str(place / "in.onnx"), str(place / output), "--calib", str(place / "calib.npy")]
    return CliRunner().invoke(cli.main, ["quantize", *files, *more])


def test_the_file_gives_the_same_bytes(place: Path) -> None:
    (place / "mine.toml").write_text(
        'samples = 7\nactivation-range = "minmax"\n[[override]]\ntensor = "x"\nbits = 12\n'
    )
    spec = [
        "--auto-mixed",
        "w4,w8,a8,a16",
        "--target-drop",
        "22",
        "--metric",
        "sqnr",
        "--force-int-kernels",
        "--no-cle",
    ]
    spec += ["--config", str(place / "mine.toml"), "--write-config", str(place / "mixed.toml")]
    result = quantize(place, "one.onnx", *spec, "--report", str(place / "report.json"))
    assert result.exit_code == 0, result.output
    assert "bits on average" in result.output
    again = quantize(place, "two.onnx", "--config", str(place / "mixed.toml"))
    assert again.exit_code == 0, again.output
    assert (place / "one.onnx").read_bytes() == (place / "two.onnx").read_bytes()
    text = (place / "mixed.toml").read_text()
    assert {"samples = 7", 'activation-range = "minmax"', 'cle = "off"', 'rounding = "coordinate-descent"'} <= set(
        text.split("\n")
    )
    assert 'tensor = "b[[]0]"' in text
    assert json.loads((place / "report.json").read_text())["pareto"]["points"]


def test_nothing_is_written_where_the_limits_cannot_be_kept(place: Path) -> None:
    spec = ["--auto-mixed", "w4,a8", "--max-bops", "0", "--rounding", "nearest", "--no-cle", "--no-absorb"]
    result = quantize(place, "one.onnx", *spec, "--write-config", str(place / "m"))
    assert result.exit_code == 5
    assert "cannot keep the limits" in result.output
    assert {p.name for p in place.iterdir()} == {"in.onnx", "calib.npy"}
    assert quantize(place, "one.onnx", *spec, "--closest").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-drop", "1"], "--target-drop goes with --auto-mixed"),
        (["--labels", "x.txt"], "--labels goes with --eval-data or --auto-mixed"),
        (["--auto-mixed", "w4,w8"], "needs a limit"),
    ],
)
def test_options_that_make_no_sense_alone(place: Path, options: list[str], message: str) -> None:
    result = quantize(place, "one.onnx", *options)
    assert (result.exit_code, message in result.output) == (2, True), result.output
