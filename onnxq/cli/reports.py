"""What a command prints in the end, `--report` and `--json`.

Standard output has the result: text, or JSON with `--json`, or with `--report -`, which puts the text on standard
error. With `--log-format json` the result is an event on standard error, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import OutputError, UsageError
from ..graph.storage import replacing, write_text
from ..options import OUTPUT
from ..report import Report
from ..report.json_format import plain
from .flags import as_flags, flags_of
from .options import grouped, refuse_overwriting
from .progress import emit, logs_json

STANDARD_OUTPUT = "-"

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
    metavar="FILE",
    help="Write everything about the run to this file: .html to look at, .json, or .md in short; -: JSON on standard"
    " output, and the rest on standard error; repeatable.",
)


@contextmanager
def writing(reports: Sequence[str], *others: str | None) -> Iterator[Callable[[Report], None]]:
    """A function that writes the report in all forms; the files appear if the block succeeds.

    others: files that the run reads or writes. Raises UsageError for an unknown ending, OutputError for a file that
    is one of the others, or that cannot be written.
    """
    reports = [path for path in reports if path != STANDARD_OUTPUT]
    for index, path in enumerate(reports):
        refuse_overwriting("--report", path, *others)
        if Path(path).resolve() in [Path(other).resolve() for other in reports[:index]]:
            raise OutputError(f"--report {path} is given twice")
        if _ending(path) not in FORMS:
            raise UsageError(f"--report {path}: expected a name that ends in {', '.join(FORMS)}, or -")
    with ExitStack() as stack:
        files = [(FORMS[_ending(path)], stack.enter_context(replacing(path))) for path in reports]

        def write(report: Report) -> None:
            for form, file in files:
                write_text(form(report), file)

        yield write


def echo_report(
    written: str | None,
    report: Report,
    *,
    reports: Sequence[str] = (),
    as_json: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    before: Sequence[str] = (),
) -> None:
    """Print the report: in short, with options named as the flags of this command, or as JSON. before: lines that the
    short form begins with."""
    if prints_json(reports, as_json):
        click.echo(report.to_json().rstrip())
    if quiet:
        return
    name = written or "the model, not written"
    if not as_json:
        _echo("\n".join([*before, f"{name}: {report.to_text(verbose)}"]), err=prints_json(reports, as_json))
    if logs_json(click.get_current_context()):
        emit("result", output=written, **_in_short(report))


def prints_json(reports: Sequence[str], as_json: bool) -> bool:
    """Whether standard output is for JSON."""
    return as_json or STANDARD_OUTPUT in reports


def echo_result(text: str, in_json: str, as_json: bool, quiet: bool = False) -> None:
    """Print what a command found, which is all that it is for: with `quiet`, too."""
    if as_json:
        click.echo(in_json.rstrip())
    else:
        _echo(text)
    if logs_json(click.get_current_context()) and not quiet:
        emit("result", **json.loads(in_json))


def _echo(text: str, err: bool = False) -> None:
    click.echo(as_flags(text, flags_of(click.get_current_context().command)), err=err)


def _in_short(report: Report) -> dict[str, Any]:
    """The report without its long lists."""
    return {
        "seconds": round(report.seconds, 3),
        "bytes": report.result.bytes,
        "source_bytes": report.source.bytes,
        "integer_nodes": report.integer_nodes,
        "float_nodes": len(report.float_nodes),
        "samples": asdict(report.samples),
        "quality": plain([asdict(output) for output in report.quality]),
        "measures": plain([asdict(measure) for measure in report.measures]),
        "warnings": len(report.warnings),
    }


def _ending(path: str) -> str:
    return Path(path).suffix.lower()
