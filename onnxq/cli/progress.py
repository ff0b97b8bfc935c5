"""One line of progress on a terminal, gone when the work is done; nothing elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType

import click

WIDTH = 30
ERASE_LINE = "\r\x1b[K"

PATIENCE = 2.0
"""Seconds of work that an estimate of the time left is based on at least."""


class Progress:
    """Called with (label, done, total); draws a bar on standard error if that is a terminal.

    label: what is being done and, behind a colon, a detail: `rounding weights: conv1 3.1 % -> 0.4 %`.
    done, total: in any unit that work is proportional to, for time left is estimated from them.
    """

    def __init__(self, enabled: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self._clock, self._shown = clock, ""
        self._work, self._begin, self._first, self._last = ("", 0), 0.0, 0, 0

    def __call__(self, label: str, done: int, total: int) -> None:
        if not self.enabled:
            return
        what, _, detail = label.partition(": ")
        share, left = done / max(total, 1), self._time_left(what, done, total)
        text = f"{what:<32} [{'#' * round(WIDTH * share):-<{WIDTH}}] {share:4.0%}{left}  {detail}"
        text = "".join(c if c.isprintable() else "?" for c in text)  # names come from the model
        self._show(text[: shutil.get_terminal_size().columns - 1].rstrip())

    def _time_left(self, what: str, done: int, total: int) -> str:
        """At the speed since this work began."""
        now = self._clock()
        if (what, total) != self._work or done < self._last:
            self._work, self._begin, self._first = (what, total), now, done
        self._last = done
        elapsed, worked = now - self._begin, done - self._first
        if elapsed < PATIENCE or not worked or done >= total:
            return ""
        return f", {_duration(elapsed / worked * (total - done))} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show("")

    def _show(self, text: str) -> None:
        if self.enabled and text != self._shown:
            click.echo(f"{ERASE_LINE}{text}", nl=False, err=True)
            self._shown = text


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
