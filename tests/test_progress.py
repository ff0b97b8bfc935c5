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


def test_what_the_work_will_take_stays_on_the_screen(progress, capsys):
    progress("rounding weights: about 9 min", 0, 10)
    progress("rounding weights: conv1", 1, 10)
    text = capsys.readouterr().err
    assert "\ronnxq: rounding weights: about 9 min\n" in text
    assert text.endswith(" 10%  conv1")


@pytest.fixture
def lines(monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return Progress(clock=clock)


def test_without_a_terminal_there_is_a_line_for_each_step_that_took_long(lines, clock, capsys):
    with lines:
        for label, seconds in (("preparing", 1.0), ("calibrating", 9.0), ("rounding weights", 200.0)):
            for done in range(3):
                lines(f"{label}: layer {done}" if done else label, done, 2)
                clock.now += seconds / 3
    assert capsys.readouterr().err.splitlines() == [
        "onnxq: calibrating: 9 s",
        "onnxq: rounding weights: 50%, 67 s left",
        "onnxq: rounding weights: 100%",
        "onnxq: rounding weights: 3 min",
    ]


def test_without_a_terminal_forecasts_are_said_at_once_and_short_work_says_nothing(lines, capsys):
    with lines:
        lines("rounding weights: about 9 min; `rounding` nearest avoids it \x1b", 0, 2)
        lines("calibrating", 1, 2)
    assert capsys.readouterr().err == "onnxq: rounding weights: about 9 min; `rounding` nearest avoids it ?\n"


def test_a_disabled_one_says_nothing(clock, capsys):
    with Progress(enabled=False, clock=clock) as progress:
        progress("rounding weights: about 9 min", 0, 2)
        clock.now = 100.0
        progress("calibrating", 1, 2)
    assert capsys.readouterr().err == ""
