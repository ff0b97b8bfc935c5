"""The report that users hold: the record of a run, and the forms that it can be written in."""

from __future__ import annotations

from . import advice, html, json_format, markdown, text
from .notebook import page
from .records import ReportData


class Report(ReportData):
    """A run's record, with a method for each form; a notebook shows the HTML page."""

    def __repr__(self) -> str:
        return f"<Report: {self.to_text().partition(chr(10))[0]}>"

    def _repr_html_(self) -> str:
        return page(self.to_html())

    def to_json(self) -> str:
        """Strict JSON (no NaN or Infinity), keys as the fields here."""
        return json_format.to_json(self)

    def to_text(self, verbose: bool = False) -> str:
        """The summary for a terminal, a few lines; with `verbose` each step and each node left in float."""
        return "\n".join([text.to_text(self, verbose), *advice.to_lines(self, verbose)])

    def to_markdown(self) -> str:
        """The same facts in short, as Markdown."""
        return markdown.to_markdown(self)

    def to_html(self) -> str:
        """One HTML file that needs nothing else, with charts and sortable tables."""
        return html.to_html(self)
