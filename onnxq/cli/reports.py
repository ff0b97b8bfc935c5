"""`--report`: everything about a run, in the form that the file's ending names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from ..errors import OutputError, UsageError
from ..graph.storage import replacing, write_text
from ..report import Report
from .flags import as_flags, flags_of
from .options import OUTPUT, grouped, refuse_overwriting

FORMS: dict[str, Callable[[Report], str]] = {
    ".html": Report.to_html,
    ".json": Report.to_json,
    ".md": Report.to_markdown,
}

report_option = grouped(
    OUTPUT,
    "--report",
    "reports",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Write everything about the run to this file: .html to look at, .json, or .md in short; repeatable.",
)


@contextmanager
def writing(reports: Sequence[str], *others: str | None) -> Iterator[Callable[[Report], None]]:
    """A function that writes the report in all forms; the files appear if the block succeeds.

    others: files that the run reads or writes. Raises UsageError for an unknown ending, OutputError for a file that
    is one of the others, or that cannot be written.
    """
    for index, path in enumerate(reports):
        refuse_overwriting("--report", path, *others)
        if Path(path).resolve() in [Path(other).resolve() for other in reports[:index]]:
            raise OutputError(f"--report {path} is given twice")
        if _ending(path) not in FORMS:
            raise UsageError(f"--report {path}: expected a name that ends in {', '.join(FORMS)}")
    with ExitStack() as stack:
        files = [(FORMS[_ending(path)], stack.enter_context(replacing(path))) for path in reports]

        def write(report: Report) -> None:
            for form, file in files:
                write_text(form(report), file)

        yield write


def echo_report(written: str, report: Report, verbose: bool) -> None:
    """Print the report in short, with options named as the flags of this command."""
    text = f"{written}: {report.to_text(verbose)}"
    click.echo(as_flags(text, flags_of(click.get_current_context().command)))


def _ending(path: str) -> str:
    return Path(path).suffix.lower()
