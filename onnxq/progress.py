"""One line of progress on a terminal, gone when the work is done; nothing elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

import click

WIDTH = 30
ERASE_LINE = "\r\x1b[K"


class Progress:
    """Called with (label, done, total); draws a bar on standard error if that is a terminal."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self._shown = ""

    def __call__(self, label: str, done: int, total: int) -> None:
        share = done / max(total, 1)
        self._show(f"{label:<32} [{'#' * round(WIDTH * share):-<{WIDTH}}] {share:4.0%}")

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
