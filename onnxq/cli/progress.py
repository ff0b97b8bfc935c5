"""Progress of a command, and its log, on standard error: as text for people, or as JSON, an object a line, for programs
(`--log-format json`):

    {"event": "progress", "step": "rounding weights", "percentage": 50.0, "seconds_left": 90, "layer": "conv1", ...}
    {"event": "forecast", "step": "rounding weights", "text": "about 9 min of CPU time; --rounding nearest avoids it"}
    {"event": "log", "level": "info", "text": "Fold BatchNorm: 20 changed, 0.01 s"}    such as steps as they end
    {"event": "warning", "text": "4 calibration samples are few: ..."}
    {"event": "result", "output": "out.onnx", ...}      what the run came to: the report without its long lists
    {"event": "error", "text": "...", "exit_code": 3}
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import click

from ..execution.progress_line import ERASE_LINE, ProgressLine, TimeLeft
from ..execution.services import Progress, no_progress
from ..report import printable
from .flags import as_flags, flags_of

FORMATS = ("text", "json")

_FORMAT = "onnxq.log-format"
"""Where a command's context keeps what --log-format says."""

SECOND = 1.0
"""Seconds between two objects about the same step, at least."""


def keep_format(ctx: click.Context, parameter: click.Parameter, value: str) -> None:
    """Callback of --log-format."""
    ctx.meta[_FORMAT] = value


def logs_json(ctx: click.Context) -> bool:
    """Whether standard error is for a program."""
    return ctx.meta.get(_FORMAT) == "json"


def emit(event: str, **fields: Any) -> None:
    """A JSON object as a line on standard error."""
    click.echo(json.dumps({"event": event, **fields}), err=True)


def show_progress(quiet: bool) -> AbstractContextManager[Progress]:
    """How this command shows the progress of its work."""
    ctx = click.get_current_context()
    reworded = partial(as_flags, flags=flags_of(ctx.command))
    if quiet:
        return nullcontext(no_progress)
    return nullcontext(JsonProgress(reworded)) if logs_json(ctx) else ProgressLine(reworded=reworded)


class JsonProgress:
    """Called with (label, done, total), as `ProgressLine`: an object a second at most, beside the steps' ends."""

    def __init__(self, reworded: Callable[[str], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._reworded, self._clock, self._time_left = reworded, clock, TimeLeft(clock)
        self._step, self._said = ("", 0), 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        what, _, detail = label.partition(": ")
        seconds, now = self._time_left(what, done, total), self._clock()
        if done == 0 and detail:
            emit("forecast", step=what, text=self._reworded(detail))
        elif (what, total) == self._step and done < total and now - self._said < SECOND:
            return
        layer, _, rest = detail.partition(" ") if done else ("", "", "")
        emit(
            "progress",
            step=what,
            percentage=round(100 * done / max(total, 1), 1),
            seconds_left=None if seconds is None else round(seconds, 1),
            layer=layer or None,
            detail=rest or None,
        )
        self._step, self._said = (what, total), now


class _Log(logging.Handler):
    """Prints records on standard error, over a line of progress, with options named as the flags of a command."""

    def __init__(self, flags: dict[str, str], as_json: bool) -> None:
        super().__init__()
        self.flags, self.as_json = flags, as_json

    def emit(self, record: logging.LogRecord) -> None:
        text, level = as_flags(record.getMessage(), self.flags), record.levelname.lower()
        if self.as_json and record.levelno >= logging.WARNING:
            emit("warning", text=text)
        elif self.as_json:
            emit("log", level=level, text=text)
        else:
            erase = ERASE_LINE if sys.stderr.isatty() else ""
            prefix = "" if record.levelno <= logging.INFO else f"{level}: "
            click.echo(f"{erase}onnxq: {prefix}{printable(text)}", err=True)


def show_log(ctx: click.Context, *, verbose: bool, quiet: bool) -> None:
    """The log of the package on standard error until the command ends: with -v, and for programs unless -q."""
    as_json = logs_json(ctx)
    if not verbose and (quiet or not as_json):
        return
    logger, handler = logging.getLogger("onnxq"), _Log(flags_of(ctx.command), as_json)
    ctx.call_on_close(partial(logger.setLevel, logger.level))
    ctx.call_on_close(partial(logger.removeHandler, handler))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def watch_format(ctx: click.Context, arguments: list[str]) -> None:
    """Know --log-format json before the command line is parsed, so that what is wrong with it is said so, too."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    if any(first == "--log-format=json" or (first, second) == ("--log-format", "json") for first, second in pairs):
        ctx.meta[_FORMAT] = "json"
