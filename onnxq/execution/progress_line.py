"""Progress on standard error: on a terminal one line, gone when the work is done; elsewhere, as in the log of a build,
a line for each step of work that took long, and one a minute while it goes on.

    50%, 90 s left  rounding weights: conv1 3.1 % -> 0.4 %  [########--------]

Share, time left and layer come first and fit 40 columns; the bar is drawn where there is room behind them. Of what is
too long the step loses its end, and a layer its beginning: `/model/layer4/layer4.1/conv2/Conv` ends in what tells it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from .services import duration

ERASE_LINE = "\r\x1b[K"

PATIENCE = 2.0
"""Seconds of work that an estimate of the time left is based on at least."""

LONG = 5.0
"""Seconds from which on a step of work gets a line where there is no terminal."""

MINUTE = 60.0
"""Seconds between two lines about the same step there."""

SHORTEST_STEP = 8
"""Letters of the step's name that a long name of a layer leaves it."""


class TimeLeft:
    """Seconds that the rest of a step takes at the speed since it began."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._work, self._begin, self._first, self._last = ("", 0), 0.0, 0, 0

    def __call__(self, what: str, done: int, total: int) -> float | None:
        """None where it is too early to tell, and where nothing is left. Called each time that work is done."""
        now = self._clock()
        if (what, total) != self._work or done < self._last:
            self._work, self._begin, self._first = (what, total), now, done
        self._last = done
        elapsed, worked = now - self._begin, done - self._first
        if elapsed < PATIENCE or not worked or done >= total:
            return None
        return elapsed / worked * (total - done)


class ProgressLine:
    """Called with (label, done, total).

    label: what is being done and, behind a colon, a detail: `rounding weights: conv1 3.1 % -> 0.4 %`. A detail before
    anything is done says what the work will take: it stays on the screen.
    done, total: in any unit that work is proportional to, for time left is estimated from them.
    reworded: from options in backquotes to whatever the reader calls them.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, reworded: Callable[[str], str] = lambda text: text
    ) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._clock, self._reworded, self._time_left, self._shown = clock, reworded, TimeLeft(clock), ""
        self._step, self._since, self._said = "", clock(), clock()

    def __call__(self, label: str, done: int, total: int) -> None:
        what, _, detail = label.partition(": ")
        seconds = self._time_left(what, done, total)
        share, left = done / max(total, 1), "" if seconds is None else f", {duration(seconds)} left"
        if not self._on_terminal:
            self._say_of_steps(what, f"{share:.0%}{left}")
        if done == 0 and detail:
            self._say(f"{what}: {self._reworded(detail)}")
            detail = ""
        if self._on_terminal:
            width = _columns() - 1
            self._show(_line(share, left, _printable(what), _printable(detail), width))

    def _say_of_steps(self, what: str, state: str) -> None:
        """A line on the step that has ended, if it took long, and one a minute on the step that goes on."""
        now = self._clock()
        if what != self._step:
            self._end_step()
            self._step, self._since, self._said = what, now, now
        elif now - self._said >= MINUTE:
            self._say(f"{what}: {state}")
            self._said = now

    def _end_step(self) -> None:
        taken = self._clock() - self._since
        if self._step and taken >= LONG:
            self._say(f"{self._step}: {duration(taken)}")
        self._step = ""

    def _say(self, text: str) -> None:
        print(f"{ERASE_LINE * self._on_terminal}onnxq: {_printable(text)}", file=sys.stderr, flush=True)
        self._shown = ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show("")
        if not self._on_terminal and error is None:
            self._end_step()

    def _show(self, text: str) -> None:
        if self._on_terminal and text != self._shown:
            print(f"{ERASE_LINE}{text}", end="", file=sys.stderr, flush=True)
            self._shown = text


def _columns() -> int:
    """Of the terminal that standard error is; standard output may be a file."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # it is none after all
        return 80


def _line(share: float, left: str, what: str, detail: str, width: int) -> str:
    """At most `width` columns, always as many of them for the same width, so that the bar stays where it is."""
    cells = 0 if width < 50 else min(30, width // 5)
    head = f"{share:4.0%}{left}  "
    text = head + _fitted(what, detail, min(width, 120) - len(head) - (cells + 4) * (cells > 0))
    if not cells:
        return text.rstrip()
    return f"{text:<{min(width, 120) - cells - 4}}  [{'#' * round(cells * share):-<{cells}}]"


def _fitted(what: str, detail: str, room: int) -> str:
    """Step, layer and detail in so many columns: first the detail behind the layer is cut, then the step, then the
    beginning of the layer's name."""
    layer, _, rest = detail.partition(" ")
    if not layer:
        return what[:room]
    if len(what) + 2 + len(layer) > room:
        what = what[: max(room - 2 - len(layer), min(SHORTEST_STEP, room // 3))].rstrip()
        space = room - len(what) - 2
        layer = layer if len(layer) <= space else f"..{layer[2 - space :]}"
    return f"{what}: {layer} {rest}".rstrip()[:room]


def _printable(text: str) -> str:
    """Names come from the model."""
    return "".join(c if c.isprintable() else "?" for c in text)
