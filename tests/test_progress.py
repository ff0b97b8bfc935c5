"""The line of progress: layer, share, and time left by the work that is still to do."""

import sys

import pytest

from onnxq.cli.progress import Progress


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return Progress(clock=clock)


def line(capsys):
    return capsys.readouterr().err.rpartition("\r")[2].removeprefix("\x1b[K")


def test_a_layer_and_what_became_of_it(progress, capsys):
    progress("rounding weights: conv1 3.10% -> 0.40%", 5, 10)
    shown = line(capsys)
    assert shown.startswith("rounding weights ")
    assert shown.endswith(" 50%  conv1 3.10% -> 0.40%")


def test_time_left_follows_the_work_not_the_calls(progress, clock, capsys):
    progress("rounding weights", 0, 100)
    clock.now = 1.0
    progress("rounding weights: a", 5, 100)
    assert "left" not in line(capsys)  # too early to tell
    clock.now = 10.0
    progress("rounding weights: b", 10, 100)
    assert "10%, 90 s left  b" in line(capsys)
    clock.now = 50.0
    progress("rounding weights: c", 90, 100)
    assert "90%, 6 s left  c" in line(capsys)
    progress("rounding weights: d", 100, 100)
    assert "left" not in line(capsys)


def test_other_work_has_a_clock_of_its_own(progress, clock, capsys):
    progress("calibrating", 1, 10)
    clock.now = 1000.0
    progress("rounding weights", 0, 100)
    clock.now = 1600.0
    progress("rounding weights: a", 10, 100)
    assert "90 min left" in line(capsys)
    progress("rounding weights", 0, 100)  # once more
    clock.now = 1610.0
    progress("rounding weights: a", 50, 100)
    assert ", 10 s left" in line(capsys)


def test_the_line_fits_the_terminal_and_holds_no_control_characters(progress, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    progress("rounding weights: \x1b[31m" + "x" * 100, 5, 10)
    shown = line(capsys)
    assert len(shown) == 79
    assert "\x1b" not in shown


def test_nothing_where_nobody_looks(capsys):
    with Progress() as progress:
        progress("calibrating", 1, 2)
    assert capsys.readouterr().err == ""
