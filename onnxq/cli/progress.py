"""Progress on standard error: on a terminal one line, gone when the work is done; elsewhere, as in the log of a build,
a line for each step of work that took long, and one a minute while it goes on."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType

import click

from ..execution.services import duration
from .flags import as_flags, flags_of

WIDTH = 30
ERASE_LINE = "\r\x1b[K"

PATIENCE = 2.0
"""Seconds of work that an estimate of the time left is based on at least."""

LONG = 5.0
"""Seconds from which on a step of work gets a line where there is no terminal."""

MINUTE = 60.0
"""Seconds between two lines about the same step there."""


class Progress:
    """Called with (label, done, total).

    label: what is being done and, behind a colon, a detail: `rounding weights: conv1 3.1 % -> 0.4 %`. A detail before
    anything is done says what the work will take: it stays on the screen, options named as flags.
    done, total: in any unit that work is proportional to, for time left is estimated from them.
    """

    def __init__(self, enabled: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.enabled, self._on_terminal = enabled, enabled and sys.stderr.isatty()
        self._clock, self._shown = clock, ""
        self._work, self._begin, self._first, self._last = ("", 0), 0.0, 0, 0
        self._step, self._since, self._said = "", clock(), clock()

    def __call__(self, label: str, done: int, total: int) -> None:
        if not self.enabled:
            return
        what, _, detail = label.partition(": ")
        share, left = done / max(total, 1), self._time_left(what, done, total)
        if not self._on_terminal:
            self._say_of_steps(what, f"{share:.0%}{left}")
        if done == 0 and detail:
            context = click.get_current_context(silent=True)
            self._say(f"{what}: {detail if context is None else as_flags(detail, flags_of(context.command))}")
            detail = ""
        if self._on_terminal:
            text = f"{what:<32} [{'#' * round(WIDTH * share):-<{WIDTH}}] {share:4.0%}{left}  {detail}"
            self._show(_printable(text)[: shutil.get_terminal_size().columns - 1].rstrip())

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
        click.echo(f"{ERASE_LINE * self._on_terminal}onnxq: {_printable(text)}", err=True)
        self._shown = ""

    def _time_left(self, what: str, done: int, total: int) -> str:
        """At the speed since this work began."""
        now = self._clock()
        if (what, total) != self._work or done < self._last:
            self._work, self._begin, self._first = (what, total), now, done
        self._last = done
        elapsed, worked = now - self._begin, done - self._first
        if elapsed < PATIENCE or not worked or done >= total:
            return ""
        return f", {duration(elapsed / worked * (total - done))} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show("")
        if not self._on_terminal and error is None:
            self._end_step()

    def _show(self, text: str) -> None:
        if self._on_terminal and text != self._shown:
            click.echo(f"{ERASE_LINE}{text}", nl=False, err=True)
            self._shown = text


def _printable(text: str) -> str:
    """Names come from the model."""
    return "".join(c if c.isprintable() else "?" for c in text)
