"""Values of the command line that are no plain text or number, in the forms that people write them in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from ..report import printable

if TYPE_CHECKING:
    Kind = click.ParamType[Any]
else:  # no generic class before click 8.5
    Kind = click.ParamType


class _Number(Kind):
    """A number, or a fraction like 1/255."""

    name = "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return number(value)
        except ValueError:
            return self.fail(f"{value!r} is not a number like 0.0039 or 1/255", param, ctx)


class _Numbers(Kind):
    """Numbers with commas or spaces between them, or a list in a TOML file."""

    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, (int, float)):
            return (float(value),)
        parts = re.split(r"[,\s]+", value.strip(" []()")) if isinstance(value, str) else value
        try:
            return tuple(number(part) for part in parts)
        except (TypeError, ValueError):
            self.fail(f"{printable(repr(value))} is not a list of numbers like 0.485,0.456,0.406", param, ctx)


class _Size(Kind):
    """N or HEIGHTxWIDTH in pixels, or a number or pair in a TOML file."""

    name = "N|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        if isinstance(value, int):
            return value
        parts = re.split(r"[x,\s]+", value.lower().strip(" []()")) if isinstance(value, str) else value
        try:
            sides = tuple(int(part) for part in parts)
        except (TypeError, ValueError):
            sides = ()
        if len(sides) in (1, 2):
            return sides if len(sides) == 2 else sides[0]
        return self.fail(f"{value!r} is not a size like 224 or 240x320", param, ctx)


class _InputRange(Kind):
    """INPUT=LO,HI as (input, lo, hi)."""

    name = "INPUT=LO,HI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float, float]:
        if isinstance(value, tuple):
            return value
        name, _, ends = str(value).rpartition("=")
        try:
            lo, hi = (float(end) for end in ends.split(","))
        except ValueError:
            self.fail(f"{value!r} is not of the form INPUT=LO,HI", param, ctx)
        if not (name and lo < hi):
            self.fail(f"{value!r} is not of the form INPUT=LO,HI with LO below HI", param, ctx)
        return name, lo, hi


def number(text: Any) -> float:
    """A number, or a fraction of two. Raises ValueError."""
    above, slash, below = str(text).partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None


class _Mebibytes(click.IntRange):
    """MiB, or a number with its unit: 512, 512MB, 4GiB."""

    name = "MIB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(?:([mg])(?:i?b)?)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size in MiB like 512, or 4GB", param, ctx)
        size: int = super().convert(int(float(match[1]) * (1024 if match[2] == "g" else 1)), param, ctx)
        return size


OTHER: dict[str, Kind] = {
    "scale": _Number(), "mean": _Numbers(), "std": _Numbers(), "resize": _Size(), "crop": _Size(),
    "input_ranges": _InputRange(), "max_memory": _Mebibytes(min=1),
}  # fmt: skip
"""By the names of the options in Python."""

MULTIPLE = ("input_ranges",)

_PART = re.compile(r"[\[(]*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?(/\d+)?[\])]*,?[\])]*", re.IGNORECASE)


def joined(arguments: list[str], command: click.Command) -> list[str]:
    """`--mean 0.485 0.456 0.406` as `--mean 0.485,0.456,0.406`: options of the kinds above take all numbers behind."""
    options = (p for p in command.params if isinstance(p, click.Option))
    lists = {name for p in options if isinstance(p.type, (_Numbers, _Size)) for name in p.opts}
    found: list[str] = []
    rest = list(arguments)
    while rest:
        head = rest.pop(0)
        if head == "--":
            return [*found, head, *rest]
        name, equals, first = head.partition("=")
        if name not in lists:
            found.append(head)
            continue
        parts = [first] if equals else []
        while rest and _PART.fullmatch(rest[0]):
            parts.append(rest.pop(0))
        found += [name, ",".join(part.strip("[](),") for part in parts)] if parts else [head]
    return found
