"""Charts as inline SVG: pure functions from numbers to markup, coloured by the classes of page.css.

A scale maps data [d0, d1] onto pixels [p0, p1]; y runs upwards in data and downwards in pixels:

    p(v) = p0 + (v - d0) (p1 - p0) / (d1 - d0)

Ticks are multiples of 1, 2 or 5 times a power of ten. Marks of one kind are one <path>, whose coordinates have one
digit behind the point: a chart takes one to three kilobytes however large the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Markup, decibels, number, tag
from .records import Box, Distribution, ParetoFront


@dataclass(frozen=True)
class Scale:
    """Data [d0, d1] to pixels [p0, p1]. An empty range of data is widened."""

    d0: float
    d1: float
    p0: float
    p1: float

    def __call__(self, value: float) -> float:
        width = (self.d1 - self.d0) or 1.0
        return round(self.p0 + (value - self.d0) * (self.p1 - self.p0) / width, 1)

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round values within the data's range."""
        width = (self.d1 - self.d0) or 1.0
        power = 10.0 ** math.floor(math.log10(width / most))
        step = next(m * power for m in (1, 2, 5, 10) if m * power * most >= width * 0.999)
        first = math.ceil(self.d0 / step - 1e-9)
        return [k * step for k in range(first, first + most + 2) if k * step <= self.d1 + step * 1e-9]


def chart(width: int, height: int, label: str, *marks: Markup, kind: str) -> Markup:
    """The frame: `label` is what a screen reader says of it."""
    return tag("svg", *marks, viewBox=f"0 0 {width} {height}", class_=f"chart {kind}", role="img", aria_label=label)


def boxplots(boxes: Sequence[Box], title: str, width: int = 300, height: int = 150) -> Markup:
    """One box a channel: whiskers to the extremes, a box over the quartiles, a line at the median (figure 5)."""
    lo, hi = min(b[0] for b in boxes), max(b[4] for b in boxes)
    y, left = Scale(min(lo, 0.0), max(hi, 0.0), height - 6, 18), 42
    pitch = (width - left - 4) / len(boxes)
    half = max(min(pitch * 0.36, 7), 0.6)
    whiskers, bodies, medians = [], [], []
    for index, (least, lower, middle, upper, most) in enumerate(boxes):
        x = round(left + (index + 0.5) * pitch, 1)
        whiskers.append(f"M{x:g} {y(least):g}V{y(most):g}")
        top, depth = y(upper), max(y(lower) - y(upper), 0.5)
        bodies.append(f"M{x - half:.1f} {top:g}h{2 * half:.1f}v{depth:.1f}h{-2 * half:.1f}z")
        medians.append(f"M{x - half:.1f} {y(middle):g}h{2 * half:.1f}")
    marks = [tag("path", d="".join(d), class_=c) for d, c in ((whiskers, "rod"), (bodies, "body"), (medians, "mid"))]
    marks.append(tag("text", title, x=left, y=9, class_="tick"))
    label = f"{title}: {len(boxes)} channels between {number(lo)} and {number(hi)}"
    return chart(width, height, label, *_y_axis(y, left, width, 4), *marks, kind="boxes")


def histogram(seen: Distribution, width: int = 320, height: int = 130) -> Markup:
    """Counts on a logarithmic axis, so that tails can be seen; what the grid clips in another colour."""
    x = Scale(seen.first, seen.last, 4, width - 4)
    base = height - 20
    y = Scale(0, math.log1p(max((*seen.counts, 1))), base, 6)
    step = (seen.last - seen.first) / len(seen.counts)
    kept: list[str] = []
    cut: list[str] = []
    for index, held in enumerate(seen.counts):
        middle = seen.first + (index + 0.5) * step
        left, right = x(seen.first + index * step), x(seen.first + (index + 1) * step)
        if held:
            bar = f"M{left:g} {base}V{y(math.log1p(held)):g}H{max(right - 0.6, left + 0.4):.1f}V{base}z"
            (kept if seen.lo <= middle <= seen.hi else cut).append(bar)
    inside = max(x(seen.hi) - x(seen.lo), 0.5)
    marks = [
        tag("rect", x=x(seen.lo), y=2, width=f"{inside:.1f}", height=base - 2, class_="range"),
        *_x_axis(x, base, 5),
        tag("path", d="".join(kept), class_="bars"),
        tag("path", d="".join(cut), class_="cut"),
        tag("path", d=f"M{x(seen.lo):g} 2V{base}M{x(seen.hi):g} 2V{base}", class_="limit"),
    ]
    label = (
        f"Values between {number(seen.lowest)} and {number(seen.highest)}; the grid reaches from {number(seen.lo)}"
        f" to {number(seen.hi)}"
    )
    return chart(width, height, label, *marks, kind="histogram")


@dataclass(frozen=True)
class Series:
    """style: a CSS class. values: None where there is none. joined: by a line, where neighbours belong together."""

    name: str
    style: str
    values: Sequence[float | None]
    joined: bool = True


def lines(series: Sequence[Series], names: Sequence[str], unit: str, width: int = 1040, height: int = 390) -> Markup:
    """Series along the network, one point a layer; points can be hovered over, and names are on the axis."""
    found = [v for s in series for v in s.values if v is not None]
    left, base = 108, height - 124
    y = Scale(min((*found, 0.0)), max((*found, 10.0)) * 1.05, base, 20)
    x = Scale(-0.5, len(names) - 0.5, left, width - 8)
    marks = [*_y_axis(y, left, width, 6), *_names(x, names, base)]
    for one in series:
        points = [(x(i), y(v), i, v) for i, v in enumerate(one.values) if v is not None]
        if not points:
            continue
        if one.joined:
            path = "M" + "L".join(f"{px:g} {py:g}" for px, py, *_ in points)
            marks.append(tag("path", d=path, class_=f"line {one.style}"))
        radius = 3.5 if len(names) <= 80 else 2 if len(names) <= 250 else 1.2
        for px, py, i, v in points:
            named = names[i] if len(names) <= 500 else "layer"
            hint = tag("title", f"{i + 1}. {named}: {one.name} {decibels(v)} {unit}")
            marks.append(tag("circle", hint, cx=px, cy=py, r=radius, class_=f"dot {one.style}"))
    marks.append(tag("text", unit, x=left - 6, y=9, class_="tick end"))
    label = "; ".join(f"{s.name} of {len(names)} layers in {unit}" for s in series)
    return chart(width, height, label, *marks, kind="lines")


def dumbbell(before: float, after: float, lo: float, hi: float, width: int = 200, height: int = 18) -> Markup:
    """From `before` (hollow) to `after` (full) on an axis [lo, hi] that several charts share."""
    x, middle = Scale(lo, hi, 7, width - 7), height / 2
    worse = "down" if after < before else "up"
    marks = (
        tag("line", x1=2, x2=width - 2, y1=middle, y2=middle, class_="grid"),
        tag("line", x1=x(before), x2=x(after), y1=middle, y2=middle, class_=f"rod {worse}"),
        tag("circle", cx=x(before), cy=middle, r=4, class_="hollow"),
        tag("circle", cx=x(after), cy=middle, r=4.5, class_=f"full {worse}"),
    )
    return chart(width, height, f"from {before:.1f} to {after:.1f} dB", *marks, kind="dumbbell")


def pareto(front: ParetoFront, width: int = 1040, height: int = 340) -> Markup:
    """Score against size; the points that no other one beats are joined by a line. At least one score is finite."""
    points = sorted((p for p in front.points if math.isfinite(p.score)), key=lambda p: (p.size_bytes, -p.score))
    scores, sizes = [p.score for p in points], [p.size_bytes / 2**10 for p in points]
    left, base = 56, height - 36
    margin = (max(scores) - min(scores)) * 0.08 or 1.0
    y = Scale(min(scores) - margin, max(scores) + margin, base, 10)
    x = Scale(min(sizes) * 0.97, max(sizes) * 1.03, left, width - 12)
    marks = [*_y_axis(y, left, width, 6), *_x_axis(x, base, 8)]
    edge: list[str] = []
    best = -math.inf
    for point, size in zip(points, sizes, strict=True):
        if point.score > best:
            best = point.score
            edge.append(f"{x(size):g} {y(point.score):g}")
    marks.append(tag("path", d="M" + "L".join(edge), class_="line s1"))
    for point, size in zip(points, sizes, strict=True):
        hint = tag("title", f"{point.label[:200]}: {number(point.score, 4)} at {number(size)} KiB")
        style = "dot chosen" if point.chosen else "dot s1"
        marks.append(tag("circle", hint, cx=x(size), cy=y(point.score), r=7 if point.chosen else 4, class_=style))
        if point.chosen:
            marks.append(tag("text", "chosen", x=x(size) + 11, y=y(point.score) + 4, class_="note"))
    marks.append(tag("text", "size of the weights, KiB", x=width - 12, y=height - 4, class_="tick end"))
    return chart(width, height, f"{front.score} of {len(points)} choices by size", *marks, kind="pareto")


def _names(x: Scale, names: Sequence[str], base: float, most: int = 24, longest: int = 16) -> list[Markup]:
    """The ends of names below the axis, askew, behind them their places; of many every n-th."""
    every = math.ceil(len(names) / most) or 1
    labels = []
    for index in range(0, len(names), every):
        short = names[index] if len(names[index]) <= longest else f"…{names[index][1 - longest :]}"
        place = f"rotate(-38 {x(index):g} {base + 12:g})"
        text = f"{short} {index + 1}"
        labels.append(tag("text", text, x=x(index), y=base + 12, transform=place, class_="tick end"))
    ticks = "".join(f"M{x(index):g} {base:g}v4" for index in range(0, len(names), every))
    axis = tag("line", x1=x.p0, x2=x.p1, y1=base, y2=base, class_="axis")
    return [axis, tag("path", d=ticks, class_="axis"), *labels]


def _y_axis(y: Scale, left: float, width: float, most: int) -> list[Markup]:
    ticks = y.ticks(most)
    grid = "".join(f"M{left:g} {y(t):g}H{width - 4:g}" for t in ticks)
    labels = [tag("text", number(t), x=left - 6, y=round(y(t) + 3.5, 1), class_="tick end") for t in ticks]
    return [tag("path", d=grid, class_="grid"), *labels]


def _x_axis(x: Scale, base: float, most: int) -> list[Markup]:
    ticks = x.ticks(most)
    labels = [tag("text", number(t), x=x(t), y=base + 14, class_="tick middle") for t in ticks]
    return [tag("line", x1=x.p0, x2=x.p1, y1=base, y2=base, class_="axis"), *labels]
