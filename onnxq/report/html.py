"""A report as one HTML file that needs no other file and no network: sections in a frame.

`to_html` shows a report; sections that a command adds of its own stand before the details. `page` frames any sections.
The style sheet and the script lie beside this file, and go into the page as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from .markup import Markup, Section, join, name, tag
from .records import ReportData
from .sections import heading, sections

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""What the browser allows the page: its own style and script, and no requests at all."""


def to_html(report: ReportData, extra: Sequence[Section] = ()) -> str:
    """The whole report as one file. extra: further sections, shown behind the summary."""
    first, *rest = sections(report)
    return page(f"{report.source.path or 'model'}: quantization report", heading(report), [first, *extra, *rest])


def page(title: str, head: Markup, parts: Sequence[Section]) -> str:
    """A document: `head` at its top, a list of the sections to jump to, the sections."""
    links = [tag("a", part.title, href=f"#{part.anchor}") for part in parts]
    toggle = tag("button", "Dark", type="button", id="theme", title="Switch between light and dark")
    body = join(
        tag("a", "Skip to the report", href="#main", class_="skip"),
        tag("header", tag("div", head, class_="inner")),
        tag("nav", tag("div", tag("div", *links, class_="links"), toggle, class_="inner"), aria_label="Sections"),
        tag("main", *map(_section, parts), id="main"),
    )
    style, script = _resource("page.css"), _resource("page.js")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        + tag("meta", http_equiv="Content-Security-Policy", content=POLICY)
        + tag("meta", name="viewport", content="width=device-width, initial-scale=1")
        + tag("title", name(title))
        + f"<style>{style}</style></head>\n<body>{body}\n<script>{script}</script></body></html>\n"
    )


def _section(part: Section) -> Markup:
    lead = tag("p", part.lead, class_="lead") if part.lead else Markup("")
    return tag("section", tag("h2", part.title), lead, part.body, id=part.anchor)


def _resource(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
