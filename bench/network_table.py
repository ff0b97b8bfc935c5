"""Tables of trained networks in several configurations: rows of figures, the section of a page that they make.

`networks.py` and `torch_peers.py` measure the rows. What is measured elsewhere is shown beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compare
import cost
import tables

FLOAT, OURS = "float", "w8a8"
"""Columns: what all are compared with, and what other tools are."""


@dataclass(frozen=True)
class Configuration:
    """A column: a tool of `child.py` with its options.

    in_peers: it is in the environment of --peers. module: that this environment must have for it.
    """

    tool: str
    options: tuple[str, ...] = ()
    in_peers: bool = False
    module: str = ""


@dataclass(frozen=True)
class Table:
    """A bench that measures the networks in other configurations, and writes a section of its own to some pages.

    script: its file. columns: None where another bench measures it, which writes to `beside`.
    results: the file of all figures. text: above the tables.
    """

    script: Path
    columns: Mapping[str, Configuration | None]
    results: Path
    pages: tuple[Path, ...]
    text: str
    beside: Path | None = None

    @property
    def configurations(self) -> dict[str, Configuration]:
        """Those that it measures."""
        return {name: each for name, each in self.columns.items() if each is not None}

    @property
    def others(self) -> list[str]:
        """Columns of other tools."""
        tools = {name: each.tool for name, each in self.configurations.items()}
        return [name for name, tool in tools.items() if tool not in (FLOAT, "onnxq", "qat")]

    @property
    def marks(self) -> tuple[str, str]:
        """In front of the section, and behind it."""
        name = f"bench/{self.script.name}"
        return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


@dataclass(frozen=True)
class Row:
    """One network in one configuration.

    outcome: `done`, `ended` at the limit, or `failed`; why: what was said then.
    scores: by name, the first one counts. errors: standard errors, of the float model's scores, or of the differences
    from them. sqnr_db: of the worst float output, on the samples of the scores. ratio, low, high: median and quartiles
    of CPU time over the float model's. wider: what onnxq says of weights that are wider than the preset.
    """

    network: str
    configuration: str
    commit: str
    samples: int = 0
    outcome: str = "done"
    why: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    sqnr_db: float | None = None
    ratio: float | None = None
    low: float = 0.0
    high: float = 0.0
    cpu_seconds: float = 0.0
    mebibytes: float = 0.0
    wider: str = ""

    @property
    def key(self) -> str:
        return f"{self.network}, {self.configuration}"


def load(file: Path) -> dict[str, Row]:
    rows = [Row(**each) for each in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    return {row.key: row for row in rows}


def shown(table: Table, found: Mapping[str, Row], others: Mapping[str, Row], order: Sequence[str]) -> dict[str, Row]:
    """All rows, networks in this order; of the other bench, networks and columns that the table has."""
    names = {row.network for row in found.values()}
    beside = [r for r in others.values() if r.network in names and table.columns.get(r.configuration, r) is None]
    every = sorted(
        [*beside, *found.values()],
        key=lambda row: (order.index(row.network) if row.network in order else len(order), row.network),
    )
    return {row.key: row for row in every}


def page(table: Table, found: Mapping[str, Row], notes: Sequence[str]) -> Iterator[str]:
    """The tables, as lines of Markdown."""
    names = list(dict.fromkeys(row.network for row in found.values()))
    yield table.text
    yield from tables.head("network, score", "samples", *table.columns)
    for name in names:
        base = found.get(f"{name}, {FLOAT}")
        for title in base.scores if base else ():
            cells = [_score(found.get(f"{name}, {c}"), base, title) for c in table.columns]
            yield tables.line(f"{name}, {title}", str(base.samples if base else 0), *cells)
    for title, cell in (
        ("SQNR of the worst output on the same samples, dB", _sqnr),
        ("CPU time of a run over the float model's, one thread, with quartiles", _latency),
        ("CPU seconds and MiB of quantizing, and the commit that was measured", _cost),
    ):
        yield f"\n{title}:\n"
        others = [c for c in table.columns if c != FLOAT]
        yield from tables.head("network", *others)
        for name in names:
            yield tables.line(name, *(_cell(found.get(f"{name}, {c}"), cell) for c in others))
    if slower := [text for name in names if (text := _slower(table, found, name))]:
        yield f"\nWhere another tool's model takes less time than that of {OURS}:\n"
        yield from slower
    remarks = [f"- {row.key}: {row.wider}" for row in found.values() if row.wider]
    remarks += [f"- {row.key}: {row.why}" for row in found.values() if row.why] + [f"- {note}" for note in notes]
    if remarks:
        yield "\nExceptions from the preset's widths, and what is missing:\n"
        yield from remarks


def _cell(row: Row | None, of: Any) -> str:
    if row is None:
        return "not run"
    return str(of(row)) if row.outcome == "done" else row.outcome


def _score(row: Row | None, base: Row | None, title: str) -> str:
    def text(row: Row) -> str:
        score, error = row.scores[title], row.errors[title]
        if row.configuration == FLOAT or base is None:
            return f"{score:.2f} ± {error:.2f}"
        return f"{score:.2f} ({score - base.scores[title]:+.2f} ± {error:.2f})"

    return _cell(row, text)


def _sqnr(row: Row) -> str:
    return cost.decibels(row.sqnr_db)


def _latency(row: Row) -> str:
    return "unknown" if row.ratio is None else f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"


def _cost(row: Row) -> str:
    return f"{row.cpu_seconds:.1f} s, {row.mebibytes:.0f} MiB, {row.commit}"


def _slower(table: Table, found: Mapping[str, Row], name: str) -> str | None:
    """A line where the fastest of the other tools' models has the lower median."""
    own = found.get(f"{name}, {OURS}")
    rows = [row for c in table.others if (row := found.get(f"{name}, {c}")) and row.ratio is not None]
    if own is None or own.ratio is None or not rows:
        return None
    best = min(rows, key=lambda row: row.ratio or 0)
    if (best.ratio or 0) >= own.ratio:
        return None
    near = "" if best.high < own.low else "; their quartiles overlap"
    return f"- {name}: {best.configuration} {_latency(best)}, {OURS} {_latency(own)}{near}"


def write_pages(table: Table, found: Mapping[str, Row], notes: Sequence[str]) -> None:
    """Between the marks of each page; all else on it stays."""
    begin, end = table.marks
    commits = ", ".join(sorted({row.commit for row in found.values()}))
    where = f"Written by `bench/{table.script.name}`; commits {commits}; {tables.made_with(compare.processor())}."
    text = "\n".join([begin, "", where, "", *page(table, found, notes), "", end])
    for file in table.pages:
        before, _, rest = file.read_text(encoding="utf-8").partition(begin)
        file.write_text(before + text + rest.partition(end)[2], encoding="utf-8")


def progress(row: Row, found: Mapping[str, Row]) -> str:
    """A line on what was measured last."""
    base = found.get(f"{row.network}, {FLOAT}")
    scores = ", ".join(f"{title} {_score(row, base, title)}" for title in row.scores)
    return f"{row.key}: {scores or row.why}; {_sqnr(row)} dB, {_latency(row)}, {_cost(row)} {row.wider}"
