"""Sections that look inside the network: its layers, their weights, its activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from .advice import worst_layers
from .markup import (
    Cell,
    Column,
    Markup,
    Section,
    count,
    decibels,
    folded,
    join,
    name,
    number,
    percent,
    tag,
    worst_first,
)
from .records import Box, Distribution, Layer, ReportData
from .svg import Series, boxplots, histogram, lines

OPEN = 6
"""Figures that are shown at once; the others are folded away."""

UNEVEN_DRAWN = 2.0
"""Widest channel's range over the median one's from which on a layer's channels are drawn: below, all boxes look
alike."""

MOST = 120
"""Figures of one kind, so that the file of a huge model stays small; the JSON report has them all."""

ROWS = 1000
"""Of the table of layers, likewise."""

T = TypeVar("T")


def scrolled(chart: Markup) -> Markup:
    """A wide chart, which scrolls by itself on a narrow screen."""
    return tag("div", chart, class_="wide", tabindex="0", role="region", aria_label="chart")


def layers(report: ReportData) -> list[Section]:
    """SQNR along the network, the table of layers, the ranges of their weights."""
    uneven = _weights(report)
    return [_along(report.layers), _table(report), *([uneven] if uneven else [])]


def activations(report: ReportData) -> Section:
    """Histograms with the range that was chosen."""
    seen = report.distributions
    worst = sorted(seen, key=lambda d: 1e9 if d.sqnr_db is None else d.sqnr_db)
    lead = (
        "Values on the calibration data, counted on a logarithmic axis; shaded is what the grid reaches, orange what it"
        " clips. The signal to noise ratio is that of the tensor on its grid alone; lowest first."
    )
    return Section("activations", "Activations", lead, _gallery(worst, _activation, "activations"))


def _along(found: Sequence[Layer]) -> Section:
    computed, weights = [x.sqnr_db for x in found], [x.weight_sqnr_db for x in found]
    lead = (
        "Signal to noise ratio of what each linear layer computes, everything in front of it included, and of its"
        " weights on their grid alone."
    )
    ends = enumerate(pairwise(computed), 1)
    drop, index = max(((a - b, i) for i, (a, b) in ends if a is not None and b is not None), default=(0.0, 0))
    if drop > 0:
        lead += f" The largest drop from one layer to the next one listed, {drop:.1f} dB, is at layer {index + 1},"
        lead += f" {name(found[index].node)}."
    keys = (tag("span", text, class_=f"key {style}") for text, style in (("layers", "s1"), ("weights alone", "s2")))
    series = [Series("weights", "s2", weights, joined=False), Series("output", "s1", computed)]
    chart = lines(series, [name(x.node) for x in found], "dB")
    return Section("sqnr", "Noise along the network", lead, join(tag("p", *keys, class_="legend"), scrolled(chart)))


def _table(report: ReportData) -> Section:
    found = report.layers
    columns = [
        Column("#", True, "position in the network"),
        Column("Layer"),
        Column("Op"),
        Column("Shape", hint="of the weight"),
        Column("Weight grid", hint="and whether each channel has its own scale or the tensor has one"),
        Column("Input grid"),
        Column("Scale", True, "median scale of the weight"),
        Column("Spread", True, "largest over smallest scale of the weight"),
        Column("Weight dB", True, "SQNR of the weight on its grid alone"),
        Column("Output dB", True, "SQNR of what the layer computes, float against quantized"),
        Column("Clipped", True, "share of the input's values beyond its grid"),
        Column("MACs", True, "multiply-accumulates a sample"),
    ]
    most = max(x.sqnr_db or 0.0 for x in found) or 1.0
    rows = [_row(index, layer, most) for index, layer in enumerate(found[:ROWS], 1)]
    worst = [_row(index, layer, most) for index, layer in worst_layers(report)]
    lead = "Linear layers, the noisiest first. A click on a column's head sorts."
    return Section(
        "layers", "Layers", lead, worst_first("Layers", columns, worst, rows, "layers, in the order of the network")
    )


def _row(index: int, layer: Layer, most: float) -> list[Cell]:
    spread = None if layer.scale is None else layer.scale[2] / layer.scale[0]
    return [
        Cell(str(index), index),
        Cell(tag("code", name(layer.node))),
        Cell(layer.op),
        Cell(_shape(layer)),
        Cell(_grid(layer)),
        Cell(layer.input_grid or "float"),
        Cell("–" if layer.scale is None else number(layer.scale[1]), layer.scale and layer.scale[1]),
        Cell("–" if spread is None else f"{number(spread)}×", spread),
        Cell("–" if layer.weight_grid is None else decibels(layer.weight_sqnr_db), layer.weight_sqnr_db),
        Cell(decibels(layer.sqnr_db), 1e9 if layer.sqnr_db is None else layer.sqnr_db, (layer.sqnr_db or most) / most),
        Cell(percent(layer.clipped), layer.clipped),
        Cell(count(layer.macs), layer.macs),
    ]


def _grid(layer: Layer) -> str:
    return (layer.weight_grid or "float").replace(" narrow", "").replace(" per ", " / ")


def _shape(layer: Layer) -> str:
    return "×".join(map(str, layer.shape))


def _weights(report: ReportData) -> Section | None:
    """Layers that equalization changed, or whose channels are uneven; of those that look alike one is drawn."""
    adjusted = any(x.ranges.after for x in report.layers)
    distinct = {(x.ranges.before, x.ranges.after): x for x in reversed(report.layers)}.values()
    drawn = [x for x in distinct if x.ranges.after or _spread(x.ranges.before) >= UNEVEN_DRAWN]
    if not drawn:
        return None
    ordered = sorted(drawn, key=lambda x: (not x.ranges.after, -_spread(x.ranges.before)))
    lead = (
        "Ranges of the weights, one box for each output channel: whiskers from the smallest to the largest weight, the"
        " box over the middle half. Channels far narrower than the widest suffer where the whole tensor shares one"
        " scale. The figure is the widest channel's range over the median one's, and the most uneven layers come first."
    )
    lead += "" if adjusted else " Equalization changed none of them, or was dropped."
    if len(drawn) < len(report.layers):
        lead += f" {len(report.layers) - len(drawn)} layers whose channels are even, or as in another, are not drawn."
    kind = "gallery pairs" if adjusted else "gallery"
    return Section("weights", "Weight ranges", lead, _gallery(ordered, _boxes, "layers", kind))


def _spread(boxes: Sequence[Box]) -> float:
    """The widest channel's range over the median one's."""
    ranges = sorted(b[4] - b[0] for b in boxes)
    return ranges[-1] / (ranges[len(ranges) // 2] or ranges[-1] or 1.0) if ranges else 1.0


def _boxes(layer: Layer) -> Markup:
    ranges = layer.ranges
    plots = [boxplots(ranges.before, "before equalization" if ranges.after else "")] if ranges.before else []
    spreads = f"{number(_spread(ranges.before))}×"
    if ranges.after:
        plots.append(boxplots(ranges.after, "after"))
        spreads += f" → {number(_spread(ranges.after))}×"
    part = f"{len(ranges.shown)} of " if len(ranges.shown) < ranges.channels else ""
    facts = f"{layer.op} {_shape(layer)} · {part}{ranges.channels} channels · {_grid(layer)}"
    return _figure(layer.node, spreads, facts, tag("div", *plots, class_="plots"))


def _activation(seen: Distribution) -> Markup:
    cut = f"{percent(seen.clipped)} clipped" if seen.clipped else "nothing clipped"
    reach = f"{number(seen.lo)} … {number(seen.hi)}"
    facts = f"{seen.grid} {reach} · seen {number(seen.lowest)} … {number(seen.highest)} · {cut}"
    return _figure(seen.tensor, decibels(seen.sqnr_db) + " dB" * (seen.sqnr_db is not None), facts, histogram(seen))


def _figure(title: str, worth: str, facts: str, chart: Markup) -> Markup:
    caption = tag("figcaption", tag("code", name(title)), tag("strong", worth), tag("span", facts))
    return tag("figure", caption, chart)


def _gallery(items: Sequence[T], draw: Callable[[T], Markup], what: str, kind: str = "gallery") -> Markup:
    first = tag("div", *map(draw, items[:OPEN]), class_=kind)
    if len(items) <= OPEN:
        return first
    rest = tag("div", *map(draw, items[OPEN:MOST]), class_=kind)
    left_out = f" (of {len(items)}; the JSON report has them all)" if len(items) > MOST else ""
    text = f"{len(items[OPEN:MOST])} more {what}{left_out}"
    return join(first, folded(text, rest))
