"""Small charts and flow charts as SVG, for the notebooks and pages of docs/: no library, the same bytes every time.

Colours have enough contrast on a light and on a dark page: text and lines are of a middle grey, boxes are filled. Text
in a figure is for 440 pixels of width, so that it can be read on a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

GREY, FAINT = "#7a828e", "#7a828e55"
COLOURS = ("#3f6fd8", "#d9822b", "#1f7d57", "#a0418f", "#c2453d", "#7a828e")
WIDTH = 440


@dataclass(frozen=True)
class Picture:
    """An SVG; a notebook shows it. label: what a screen reader says of it."""

    width: int
    height: int
    marks: tuple[str, ...]
    label: str

    def _repr_svg_(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(self.label)}" '
            'font-family="system-ui, sans-serif" font-size="13">'
        )
        return "\n".join([head, *self.marks, "</svg>"]) + "\n"


def text(
    x: float, y: float, words: str, *, anchor: str = "start", fill: str = GREY, size: int = 13, weight: str = ""
) -> str:
    """One line of text, its baseline at y."""
    bold = f' font-weight="{weight}"' if weight else ""
    where = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text {where} fill="{fill}" font-size="{size}"{bold}>{escape(words)}</text>'


def line(x0: float, y0: float, x1: float, y1: float, *, stroke: str = GREY, width: float = 1, dash: str = "") -> str:
    """A straight line."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{stroke}" stroke-width="{width:g}"{dashed} fill="none"/>'


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """A line with a head, along one of the axes."""
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    left = f"{x1 - 7 * dx - 4 * dy:g} {y1 - 7 * dy - 4 * dx:g}"
    right = f"{x1 - 7 * dx + 4 * dy:g} {y1 - 7 * dy + 4 * dx:g}"
    head = f'<path d="M{x1:g} {y1:g}L{left}L{right}z" fill="{GREY}"/>'
    return line(x0, y0, x1 - 5 * dx, y1 - 5 * dy, width=1.5) + "\n" + head


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], colour: str, note: str = "") -> str:
    """A filled box with lines of white text in its middle; note: a smaller line below them."""
    rows = [*lines, note] if note else list(lines)
    top = y + height / 2 - 8 * len(rows) + 12
    marks = [f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{colour}"/>']
    for n, words in enumerate(rows):
        is_note = bool(note) and n == len(rows) - 1
        size, weight = (11, "") if is_note else (13, "600")
        marks.append(
            text(x + width / 2, top + 16 * n, words, anchor="middle", fill="#ffffff", size=size, weight=weight)
        )
    return "\n".join(marks)


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], title: str, unit: str, height: int = 220
) -> Picture:
    """Grouped bars, each with its value: one group for each name, one colour for each series."""
    top, bottom, left = 64, height - 28, 8
    most = max(max(values) for values in series.values())
    pitch = (WIDTH - 2 * left) / len(groups)
    each = min(pitch * 0.86 / len(series), 46)
    marks = [
        text(left, 18, f"{title}, {unit}", size=14, weight="600"),
        line(left, bottom, WIDTH - left, bottom, stroke=FAINT),
    ]
    x = left
    for n, name in enumerate(series):
        marks += [
            f'<rect x="{x:g}" y="30" width="10" height="10" fill="{COLOURS[n]}"/>',
            text(x + 14, 40, name, size=12),
        ]
        x += 30 + 6.6 * len(name)
    for g, group in enumerate(groups):
        middle = left + (g + 0.5) * pitch
        marks.append(text(middle, bottom + 17, group, anchor="middle", size=12))
        for n, values in enumerate(series.values()):
            tall = max(values[g], 0) / most * (bottom - top)
            x0 = middle + (n - len(series) / 2) * each
            size = f'width="{each - 2:.1f}" height="{tall:.1f}"'
            rect = f'<rect x="{x0 + 1:.1f}" y="{bottom - tall:.1f}" {size} fill="{COLOURS[n]}"/>'
            marks += [
                rect,
                text(
                    round(x0 + each / 2, 1), round(bottom - tall - 4, 1), f"{values[g]:.3g}", anchor="middle", size=11
                ),
            ]
    return Picture(WIDTH, height, tuple(marks), f"{title}, {unit}")


def curves(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    title: str,
    x_title: str,
    height: int = 240,
    dots: bool = False,
) -> Picture:
    """One curve, or one set of dots, for each series over x, with the extremes of both axes written at their ends."""
    left, right, top, bottom = 46, WIDTH - 12, 56, height - 34
    values = [value for each in series.values() for value in each]
    lo, hi = min(values), max(values)
    marks = [text(8, 18, title, size=14, weight="600")]
    at = left
    for n, name in enumerate(series):
        marks += [
            f'<rect x="{at:g}" y="30" width="10" height="10" fill="{COLOURS[n]}"/>',
            text(at + 14, 40, name, size=12),
        ]
        at += 30 + 6.6 * len(name)

    def px(value: float) -> float:
        return left + (value - min(x)) / ((max(x) - min(x)) or 1) * (right - left)

    def py(value: float) -> float:
        return bottom - (value - lo) / ((hi - lo) or 1) * (bottom - top)

    for value in (lo, (lo + hi) / 2, hi):
        marks += [
            line(left, py(value), right, py(value), stroke=FAINT),
            text(left - 4, py(value) + 4, f"{value:.3g}", anchor="end", size=11),
        ]
    for value, anchor in ((min(x), "start"), (max(x), "end")):
        marks.append(text(px(value), bottom + 15, f"{value:.3g}", anchor=anchor, size=11))
    marks.append(text((left + right) / 2, bottom + 15, x_title, anchor="middle", size=12))
    for n, each in enumerate(series.values()):
        points = [f"{px(a):.1f} {py(b):.1f}" for a, b in zip(x, each, strict=True)]
        if dots:
            circles = (f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="2.5" fill="{COLOURS[n]}"/>' for p in points)
            marks.append("".join(circles))
        else:
            marks.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{COLOURS[n]}" stroke-width="2"/>')
    return Picture(WIDTH, height, tuple(marks), title)


def boxplots(
    boxes: Sequence[tuple[float, ...]], title: str, x_title: str, near: float = 0.0, height: int = 260
) -> Picture:
    """One box for each channel: whiskers to the extremes, a box over the quartiles, a line at the median.

    near: values within +-near are drawn in proportion, others by their logarithm (asinh); 0: all in proportion.
    """
    left, right, top, bottom = 46, WIDTH - 8, 34, height - 28

    def bent(value: float) -> float:
        return math.asinh(value / near) if near else value

    lo, hi = bent(min(b[0] for b in boxes)), bent(max(b[-1] for b in boxes))
    pitch = (right - left) / len(boxes)

    def py(value: float) -> float:
        return round(bottom - (bent(value) - lo) / ((hi - lo) or 1) * (bottom - top), 1)

    powers = [sign * near * 10.0**power for sign in (-1, 1) for power in range(1, 9)] if near else []
    ticks = [0.0, *(v for v in powers if lo <= bent(v) <= hi)] if near else [lo, 0.0, hi]
    marks = [text(8, 18, title, weight="600"), text((left + right) / 2, height - 8, x_title, anchor="middle", size=12)]
    for value in ticks:
        marks.append(line(left, py(value), right, py(value), stroke=FAINT))
        marks.append(text(left - 4, py(value) + 4, f"{value:.3g}", anchor="end", size=11))
    for n, (least, lower, middle, upper, most) in enumerate(boxes):
        x = round(left + (n + 0.5) * pitch, 1)
        half = round(min(pitch * 0.35, 6), 1)
        marks.append(line(x, py(least), x, py(most), stroke=COLOURS[0], width=1.2))
        size = f'width="{2 * half:g}" height="{max(py(lower) - py(upper), 1):.1f}"'
        marks.append(f'<rect x="{x - half:.1f}" y="{py(upper):g}" {size} fill="{COLOURS[1]}"/>')
        marks.append(line(round(x - half, 1), py(middle), round(x + half, 1), py(middle), width=1.2))
    return Picture(WIDTH, height, tuple(marks), title)
