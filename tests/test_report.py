"""The forms of a report: the same facts, hostile names harmless, sizes bounded."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from reports import HOSTILE, report

from onnxq.report import Latency, ParetoFront, ParetoPoint, Timing
from onnxq.report.html import page, to_html
from onnxq.report.markup import (
    Cell,
    Column,
    Section,
    count,
    decibels,
    name,
    number,
    percent,
    table,
    tag,
)
from onnxq.report.svg import Scale

EVERYTHING = [
    "summary", "log", "steps", "sqnr", "layers", "weights", "activations", "sensitivity", "pareto", "float", "grids",
    "run",
]  # fmt: skip


class Elements(HTMLParser):
    """What a browser would see: elements in order, and text outside of script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data

    def anchors(self):
        return [a["id"] for e, a in self.found if e == "section"]


def rows_of(markdown):
    """Tables as lists of rows of cells, one list a table."""
    tables = re.findall(r"(?:^\|.*\|\n?)+", markdown, re.M)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in t.splitlines()] for t in tables]


# --- HTML -------------------------------------------------------------------------------------------------------


def test_every_section_is_there_and_can_be_jumped_to():
    page = Elements(report().to_html())
    assert page.anchors() == EVERYTHING
    assert [a["href"] for e, a in page.found if e == "a" and a["href"] != "#main"] == [f"#{x}" for x in EVERYTHING]


def test_sections_without_facts_are_left_out():
    bare = report(layers=0, tensors=0, log=(), sensitivity=None, pareto=None, float_nodes=())
    assert Elements(bare.to_html()).anchors() == ["summary", "steps", "grids", "run"]


def test_further_sections_stand_behind_the_summary():
    own = Section("own", "A <own> one", "lead & all", tag("p", "body"))
    found = Elements(to_html(report(), [own]))
    assert found.anchors()[:3] == ["summary", "own", "log"]
    assert "A <own> one" in found.text
    assert Elements(page("title", tag("h1", "head"), [own])).anchors() == ["own"]


def test_a_model_that_has_grown_is_not_called_smaller():
    grown = report(source=replace(report().source, bytes=1000), result=replace(report().result, bytes=1250))
    for text in (Elements(grown.to_html()).text, grown.to_markdown(), grown.to_text()):
        assert "1.25 times larger" in text
        assert "times smaller" not in text


def test_facts_are_on_the_page():
    text = Elements(report().to_html()).text
    for fact in ("net.onnx", "31.2 dB", "96.9 %", "58.4 %", "float 59.12 %", "18 of 20", "4.00 times smaller",
                 "10.0 → 12.5 dB", "nothing to do", "zero-points: of node", "dropped", "QLinearConv", "Nodes in float",
                 "Output dB", "5.00 % clipped", "W8A8"):  # fmt: skip
        assert fact in text, fact


def test_the_page_asks_for_nothing_and_forbids_it():
    text = report().to_html()
    found = Elements(text).found
    assert not [a for e, a in found if {"src", "data", "action"} & a.keys() or e in ("link", "iframe", "img")]
    assert "default-src 'none'" in next(a["content"] for e, a in found if e == "meta" and "http-equiv" in a)
    assert "//" not in re.sub(r"^\s*//.*|/\*.*?\*/", "", re.sub(r"<svg.*?</svg>", "", text, flags=re.S), flags=re.M)


def test_hostile_names_are_only_text():
    harmless, hostile = (Elements(report(name=n).to_html()) for n in ("x", HOSTILE))
    assert [e for e, _ in hostile.found] == [e for e, _ in harmless.found]
    assert "<img src=x onerror=alert(1)>\\x1b[2J\\n\\u202e" in hostile.text
    assert all(c.isprintable() or c == "\n" for c in hostile.text)
    pasted = re.compile(r"<pre><code>.*?</code></pre>", re.S)  # has names as they are, to work
    assert HOSTILE[-500:] not in pasted.sub("", report(name=HOSTILE).to_html())


def test_attributes_cannot_be_left():
    assert Elements(tag("p", title='"><b onclick=')).found == [("p", {"title": '"><b onclick='})]


def test_a_huge_model_makes_a_small_file():
    text = report(layers=1500, tensors=1500, name="a/very/long/name" * 20, channels=2048).to_html()
    assert len(text) < 3e6
    assert text.count("<svg") > 120
    assert "the JSON report has them all" in text


def test_a_table_sorts_by_keys_not_by_what_is_shown():
    made = table(
        "t", [Column("a"), Column("b", True)], [[Cell("x"), Cell("1.5 M", 1.5e6, 0.5)], [Cell("y"), Cell("–")]]
    )
    cells = [a for e, a in Elements(made).found if e == "td" and "class" in a]
    assert cells == [{"class": "n bar", "data-key": "1.5e+06", "style": "--bar:50%"}, {"class": "n"}]


def test_figures_that_are_not_finite_do_no_harm():
    steps = (replace(report().steps[1], before_db=float("-inf"), after_db=float("inf")),)
    front = ParetoFront("SQNR", (ParetoPoint(8, 9.0, float("inf"), "float", False),))
    text = report(steps=steps, pareto=front).to_html()
    assert "−inf → inf dB" in Elements(text).text
    assert "nan" not in text
    assert json.loads(report(steps=steps).to_json())["steps"][0]["before_db"] is None


# --- Markdown and JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", HOSTILE])
def test_markdown_tables_are_sound(name):
    text = report(name=name).to_markdown()
    tables = rows_of(text)
    assert len(tables) == 7
    for rows in tables:
        assert len({len(row) for row in rows}) == 1, rows
    text = re.sub(r"^ *```toml\n.*?^ *```$", "", text, flags=re.S | re.M)  # a name in it cannot begin a line
    assert "<img" not in re.sub(r"`[^`\n]*`", "", text.replace("\\<", ""))
    assert all(c.isprintable() or c == "\n" for c in text)


def test_markdown_keeps_sentences_whole():
    text = report(measures=(), quality=(replace(report().quality[0], sqnr_db=12.0),)).to_markdown()
    head, _, rest = text.partition("## Pipeline")
    assert rest
    assert "…" not in head


def test_the_page_shows_no_ratio_where_the_machine_was_busy():
    busy = Latency("CPUExecutionProvider", 4, (Timing(1, 2.0, 1.0, 2.0, 0.5, 9.0, 5),))
    text = Elements(report(latency=busy).to_html()).text
    assert "unsure" in text
    assert "the machine was too busy to tell" in text


def test_markdown_holds_the_facts_in_short():
    text = report(layers=200).to_markdown()
    for fact in ("SQNR 31.2 dB", "3.81 MiB → 976.6 KiB", "| Cross-layer equalization | 10.0 → 12.5 |",
                 "11.0, dropped",
                 "| SmoothQuant |  | nothing to do |",
                 "`conv29`", "150 more are in the JSON report", "Softmax", "**Look**",
                 "chosen", "**warning**"):  # fmt: skip
        assert fact in text, fact
    assert "`conv0`" not in text  # one of the best


def test_json_has_everything_and_numbers_share_a_line():
    made = report(layers=60, channels=64)
    text = made.to_json()
    found = json.loads(text)
    assert found["layers"][59]["ranges"]["after"][3] == list(made.layers[59].ranges.after[3])
    assert found["distributions"][3]["counts"] == list(made.distributions[3].counts)
    assert found["pareto"]["points"][0]["chosen"] is True
    assert found["sensitivity"]["ranking"][1]["only"] is None
    assert re.search(r'"counts": \[ 3, \d+, [-\d, ]*\]', text)


def test_names_with_brackets_and_digits_stay_as_they_are():
    hostile = "[\n 1,\n 2 ]"
    assert json.loads(report(name=hostile).to_json())["float_nodes"][0]["node"] == hostile


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(1234.5), "1234"), (number(-0.00123), "−0.00123"), (number(1.5e-7), "1.5e-7"), (number(0.0), "0"),
        (number(2.5e9), "2.5e9"), (number(None), "–"), (number(99.96, 4), "99.96"), (percent(0.0), "0 %"),
        (percent(1e-6), "< 0.01 %"), (percent(0.0123), "1.23 %"), (percent(0.5), "50.0 %"), (percent(None), "–"),
        (decibels(None), "lossless"), (decibels(-3.0), "−3.0"), (count(1234567), "1.23 M"), (count(12.0), "12"),
    ],
)  # fmt: skip
def test_numbers_for_people(shown, expected):
    assert shown.replace("e−", "e-") == expected


def test_long_names_lose_their_middle():
    assert len(name("a" * 1000 + "end")) < 130
    assert name("a" * 1000 + "end").endswith("end")


@pytest.mark.parametrize(("lo", "hi"), [(0, 1), (-3.7, 9.2), (0, 1e-9), (-1e6, 2e7), (5, 5)])
def test_ticks_are_round_and_inside(lo, hi):
    scale = Scale(lo, hi, 0, 100)
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 7
    width = (hi - lo) or 1
    assert all(lo - 1e-6 * width <= t <= hi + width * 1e-6 for t in ticks)
    assert [scale(lo), scale(hi)] == ([0, 100] if hi > lo else [0, 0])
