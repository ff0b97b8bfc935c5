"""HTML from Python: elements with everything escaped, numbers for people, sortable tables.

Names come from models and are not to be trusted: what is no `Markup` is text, and is escaped; control characters are
spelled out, and long names lose their middle.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..thresholds import WORST_LAYERS
from .text import printable, shortened

LONGEST_NAME = 120
LONGEST_TEXT = 800
VOID = {"meta", "input", "path", "line", "circle", "rect"}


class Markup(str):
    """HTML already, safe to be put into a page as it is."""


@dataclass(frozen=True)
class Section:
    """A section of a page. anchor: its address there. lead: a sentence on what is to be seen. body: its content."""

    anchor: str
    title: str
    lead: str
    body: Markup


def tag(element: str, *children: str, **attributes: str | float | None) -> Markup:
    """`tag("p", "a < b", class_="note")`. Children that are no Markup are escaped; None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in VOID and not children:
        return Markup(f"<{element}{given}/>")
    return Markup(f"<{element}{given}>{join(*children)}</{element}>")


def join(*children: str) -> Markup:
    """Children one after another, escaped where they are text."""
    escaped = (
        html.escape(shortened(c, LONGEST_TEXT), quote=False) if not isinstance(c, Markup) else c for c in children
    )
    return Markup("".join(escaped))


def name(text: str) -> str:
    """A name of the model's, of bearable length."""
    return shortened(text, LONGEST_NAME)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, a real minus sign; a dash where there is nothing to tell."""
    if value is None:
        return "–"
    text = f"{value:.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def decibels(value: float | None) -> str:
    """None means that nothing was lost."""
    return "lossless" if value is None else f"{value:.1f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in %, small ones not rounded to none."""
    if share is None:
        return "–"
    if share == 0:
        return "0 %"
    if share < 5e-5:
        return "< 0.01 %"
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"


def count(value: float) -> str:
    """1234567 -> 1.23 M."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Column:
    """numeric: right-aligned, sorted by number. hint: what it holds, for those who hover or listen."""

    title: str
    numeric: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """shown: what is read. key: what is sorted by, where that is not the text. bar: 0 to 1, drawn behind a number."""

    shown: str
    key: float | None = None
    bar: float | None = None


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> Markup:
    """A table that page.js sorts by a click on a column's head, and filters where it is long."""
    head = [
        tag(
            "th",
            tag("button", column.title, type="button", title=column.hint or None),
            scope="col",
            class_="n" if column.numeric else None,
        )
        for column in columns
    ]
    body = [tag("tr", *map(_cell, columns, row)) for row in rows]
    search = ""
    if len(body) > 12:
        search = tag("input", type="search", placeholder=f"Filter {len(body)} rows", aria_label=f"Filter: {caption}")
    style = "wide tall" if len(body) > 40 else "wide"
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return join(Markup(search), tag("div", inner, class_=style, tabindex="0", role="region", aria_label=caption))


def worst_first(
    caption: str, columns: Sequence[Column], worst: Sequence[Sequence[Cell]], every: Sequence[Sequence[Cell]], all: str
) -> Markup:
    """A table of the first `WORST_LAYERS` rows, and `every` row folded away. all: what those are called."""
    if len(worst) <= WORST_LAYERS:
        return table(caption, columns, worst)
    first = table(f"{caption}, the worst", columns, worst[:WORST_LAYERS])
    return join(first, folded(f"All {len(every)} {all}", table(caption, columns, every)))


def folded(summary: str, body: Markup) -> Markup:
    """What is shown on a click."""
    return tag("details", tag("summary", summary), body, class_="fold")


def with_code(text: str) -> Markup:
    """Text with what stands in backquotes as code."""
    parts = text.split("`")
    return join(*(tag("code", part, class_="whole") if place % 2 else part for place, part in enumerate(parts)))


def pasted(lines: str) -> Markup:
    """Lines to copy, as they are; nothing where there are none."""
    return tag("pre", tag("code", Markup(html.escape(lines, quote=False)))) if lines else Markup("")


def _cell(column: Column, cell: Cell) -> Markup:
    if not column.numeric:
        return tag("td", cell.shown)
    style = None if cell.bar is None else f"--bar:{100 * min(max(cell.bar, 0), 1):.0f}%"
    key = None if cell.key is None else f"{cell.key:.6g}"
    return tag("td", cell.shown, class_="n" if style is None else "n bar", data_key=key, style=style)
