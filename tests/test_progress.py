"""The line of progress: layer, share, and time left by the work that is still to do."""

import json
import sys

import pytest

import onnxq
from onnxq.cli.progress import JsonProgress
from onnxq.errors import UsageError
from onnxq.execution.progress import open_progress
from onnxq.execution.progress_line import ProgressLine


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
    return ProgressLine(clock)


def line(capsys):
    return capsys.readouterr().err.rpartition("\r")[2].removeprefix("\x1b[K")


def test_a_layer_and_what_became_of_it(progress, capsys):
    progress("rounding weights: conv1 3.10% -> 0.40%", 5, 10)
    assert line(capsys).startswith(" 50%  rounding weights: conv1 3.10% -> 0.40%  ")


def test_time_left_follows_the_work_not_the_calls(progress, clock, capsys):
    progress("rounding weights", 0, 100)
    clock.now = 1.0
    progress("rounding weights: a", 5, 100)
    assert "left" not in line(capsys)  # too early to tell
    clock.now = 10.0
    progress("rounding weights: b", 10, 100)
    assert " 10%, 90 s left  rounding weights: b " in line(capsys)
    clock.now = 50.0
    progress("rounding weights: c", 90, 100)
    assert " 90%, 6 s left  rounding weights: c " in line(capsys)
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


LAYERS = ["conv1", "/model/layer4/layer4.1/conv2/Conv", "x" * 200, "a:b/ReLU_17 3.10% -> 0.40%"]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("step", ["rounding weights", "comparing what the layers compute"])
def test_share_time_left_and_layer_fit_every_terminal(progress, clock, monkeypatch, capsys, width, step, layer):
    """The end of a layer's name is seen, and the beginning of the step's, whatever the width."""
    monkeypatch.setenv("COLUMNS", str(width))
    progress(f"{step}: {layer}", 1, 10)
    clock.now = 540.0
    progress(f"{step}: {layer}", 5, 10)
    shown = line(capsys)
    assert len(shown) < width
    assert shown.startswith(" 50%, 11 min left  " + step[:6])
    assert layer.split()[0][-8:] in shown
    assert ("[" in shown) == (width >= 60)
    if width >= 80 and len(step) + len(layer) < 40:
        assert f"{step}: {layer}" in shown


@pytest.mark.parametrize(("width", "bar"), [(40, None), (60, "[#####------]"), (80, "[#######--------]")])
def test_the_bar_stands_still_and_comes_last(progress, monkeypatch, capsys, width, bar):
    monkeypatch.setenv("COLUMNS", str(width))
    places = set()
    for layer in LAYERS:
        progress(f"rounding weights: {layer}", 45, 100)
        shown = line(capsys)
        places.add(shown.rfind("["))
        assert bar is None or shown.endswith(bar)
    assert len(places) == 1


def test_the_line_holds_no_control_characters(progress, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    progress("rounding weights: \x1b[31m" + "x" * 100, 5, 10)
    shown = line(capsys)
    assert len(shown) == 79
    assert "\x1b" not in shown


def test_what_the_work_will_take_stays_on_the_screen(progress, capsys):
    progress("rounding weights: about 9 min", 0, 10)
    progress("rounding weights: conv1", 1, 10)
    text = capsys.readouterr().err
    assert "\r\x1b[Konnxq: rounding weights: about 9 min\n" in text
    assert " 10%  rounding weights: conv1 " in text


@pytest.fixture
def lines(monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return ProgressLine(clock)


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


# --- progress= of the functions in Python -----------------------------------------------------------------------------


class Bars:
    """Takes down what happens to bars like those of tqdm."""

    def __init__(self):
        self.log = []

    def maker(self):
        log = self.log

        class Bar:
            def __init__(self, iterable=None, desc=None, total=None):
                self.n, self.total = 0, total
                log.append(f"{desc} of {total}")

            def reset(self, total=None):
                self.n, self.total = 0, total
                log.append(f"reset {total}")

            def set_description(self, desc=None):
                log.append(desc)

            def set_postfix_str(self, s="", refresh=True):
                log.append(s)

            def update(self, n=1):
                self.n += n
                log.append(f"+{n}")

            def close(self):
                log.append("closed")

        return Bar


def work(progress):
    for done in range(3):
        progress("rounding weights: conv" if done else "rounding weights", done, 2)
    progress("calibrating", 1, 4)


def test_a_class_like_tqdm_gets_a_bar_for_each_step():
    bars = Bars()
    with open_progress(bars.maker()) as progress:
        work(progress)
    assert bars.log == [
        "rounding weights of 2", "conv", "+1", "conv", "+1", "closed", "calibrating of 4", "+1", "closed",
    ]  # fmt: skip


def test_an_object_like_tqdm_begins_anew_and_stays_open():
    bars = Bars()
    bar = bars.maker()()
    bars.log.clear()
    with open_progress(bar) as progress:
        work(progress)
    assert bars.log == [
        "reset 2", "rounding weights", "conv", "+1", "conv", "+1", "reset 4", "calibrating", "+1",
    ]  # fmt: skip


def test_bars_close_when_the_work_fails():
    bars = Bars()

    def fail():
        with open_progress(bars.maker()) as progress:
            progress("calibrating", 1, 4)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert bars.log[-1] == "closed"


def test_our_own_line_a_function_and_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    seen = []
    for like in (True, lambda *state: seen.append(state), None, False):
        with open_progress(like) as progress:
            work(progress)
    assert " 50%  rounding weights: conv" in capsys.readouterr().err
    assert seen[-1] == ("calibrating", 1, 4)


@pytest.mark.parametrize("like", ["tqdm", 3, lambda: None, lambda done, total: None])
def test_what_shows_no_progress_is_refused(like):
    with (
        pytest.raises(UsageError, match=r"`progress` must be a function of \(label, done, total\)"),
        open_progress(like),
    ):
        pass


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (onnxq.quantize, 2), (onnxq.dry_run, 2), (onnxq.calibrate, 3), (onnxq.compare, 3), (onnxq.evaluate, 2),
        (onnxq.sensitivity, 2), (onnxq.debug, 2), (onnxq.auto_mixed, 4),
    ],
)  # fmt: skip
def test_every_long_function_takes_any_progress(function, arguments):
    with pytest.raises(UsageError, match="`progress` must be a function"):
        function(*["none.onnx"] * arguments, progress=3)


# --- --log-format json ------------------------------------------------------------------------------------------------


def test_json_is_an_object_a_second_and_each_steps_ends(clock, capsys):
    progress = JsonProgress(str.upper, clock)
    progress("rounding weights: about 9 min", 0, 100)
    for done in range(1, 101):
        clock.now += 0.25
        progress(f"rounding weights: conv{done} 1 % -> 2 %", done, 100)
    events = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert events[0] == {"event": "forecast", "step": "rounding weights", "text": "ABOUT 9 MIN"}
    assert {event["event"] for event in events[1:]} == {"progress"}
    assert [event["percentage"] for event in events[1:]] == [0, 4, *range(8, 100, 4), 100]
    assert events[6] == {
        "event": "progress", "step": "rounding weights", "percentage": 20.0, "seconds_left": 20.0, "layer": "conv20",
        "detail": "1 % -> 2 %",
    }  # fmt: skip
