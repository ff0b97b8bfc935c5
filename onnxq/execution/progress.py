"""Progress of long work, as callers want to see it: `progress=` of every function that takes long.

None                  nothing is shown
True                  one line on a terminal; elsewhere a line for each step that took long (`progress_line`)
a function            called with (label, done, total); label: the step and, behind a colon, such as a layer
a class like tqdm     made anew for each step, with `total` and `desc`; updated and closed
an object like tqdm   reset for each step; its owner closes it
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

from ..errors import UsageError
from ..schema import checked_call
from .progress_line import ProgressLine
from .services import Progress, no_progress

P = ParamSpec("P")
R = TypeVar("R")


class Bar(Protocol):
    """What an object like tqdm has."""

    n: Any
    total: Any

    def update(self, n: Any = 1, /) -> Any: ...
    def close(self) -> Any: ...


class BarMaker(Protocol):
    """A class like tqdm."""

    def __call__(self, *, total: Any, desc: Any) -> Any: ...


ProgressLike: TypeAlias = Progress | BarMaker | Bar | bool | None
"""See the module."""


def shows_progress(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose keyword argument `progress` is any `ProgressLike`, made one that gets a plain function."""

    @checked_call
    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with open_progress(kwargs.get("progress")) as progress:
            kwargs["progress"] = progress
            return function(*args, **kwargs)

    return run


@contextmanager
def open_progress(like: Any) -> Iterator[Progress]:
    """What the caller passed as a function of (label, done, total). Raises UsageError for what it cannot be."""
    if like is None or like is False:
        yield no_progress
    elif like is True:
        with ProgressLine() as line:
            yield line
    elif isinstance(like, type):
        bars = _Bars(like)
        try:
            yield bars
        finally:
            bars.close()
    elif callable(getattr(like, "update", None)) and hasattr(like, "total"):
        yield _OneBar(like)
    else:
        _check_signature(like)
        yield like


def _check_signature(function: Any) -> None:
    expected = "`progress` must be a function of (label, done, total), a class or object like tqdm, or True"
    if not callable(function):
        raise UsageError(f"{expected}; got {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function written in C
        return
    try:
        signature.bind("calibrating", 1, 10)
    except TypeError as error:
        raise UsageError(f"{expected}; the one given cannot be called so: {error}") from None


class _Steps:
    """Tells steps apart by label and total, and what was done by going back."""

    def __init__(self) -> None:
        self.step, self.done = ("", -1), 0

    def is_new(self, label: str, done: int, total: int) -> bool:
        step = (label.partition(": ")[0], total)
        new = step != self.step or done < self.done
        self.step, self.done = step, done
        return new


class _Bars:
    """One bar after another, each for a step."""

    def __init__(self, maker: Callable[..., Any]) -> None:
        self._maker, self._steps = maker, _Steps()
        self._bar: Any = None

    def __call__(self, label: str, done: int, total: int) -> None:
        if self._steps.is_new(label, done, total):
            self.close()
            self._bar = self._maker(total=total, desc=self._steps.step[0])
        _advance(self._bar, label, done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class _OneBar:
    """The caller's bar, which begins anew with each step."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._steps = bar, _Steps()

    def __call__(self, label: str, done: int, total: int) -> None:
        bar = self._bar
        if self._steps.is_new(label, done, total):
            if callable(getattr(bar, "reset", None)):
                bar.reset(total=total)
            else:
                bar.n, bar.total = 0, total
            if callable(getattr(bar, "set_description", None)):
                bar.set_description(self._steps.step[0])
        _advance(bar, label, done)


def _advance(bar: Any, label: str, done: int) -> None:
    detail = label.partition(": ")[2]
    if detail and callable(getattr(bar, "set_postfix_str", None)):
        bar.set_postfix_str(detail, refresh=False)
    if done > bar.n:
        bar.update(done - bar.n)


def called(progress: ProgressLike) -> Progress:
    """In a function that `shows_progress`: the argument as what it has become."""
    return cast(Progress, progress)
