"""`onnxq debug`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import click

from ..api import quantize
from ..debugging.remedies import NAMES
from ..debugging.workflow import AccuracyTarget, DebugResult, debug
from ..graph.storage import replacing, write_text
from ..options import OUTPUT
from ..report import LogEntry, Report, printable
from ..thresholds import LEAST_DB
from .command import Command, typed
from .config import config_text
from .examples import DEBUGGING
from .options import (
    calib_option,
    config_option,
    evaluation_options,
    grouped,
    options,
    output_options,
    parse,
    provenance_option,
    quantization_options,
    refuse_overwriting,
)
from .progress import emit, logs_json, show_progress
from .quantize import quantize_command
from .reports import echo_report, echo_result, prints_json, report_option, writing

target_options = options(
    grouped(
        DEBUGGING,
        "--target-drop",
        type=click.FloatRange(min=0),
        default=AccuracyTarget.drop,
        show_default=True,
        metavar="X",
        help="Allowed loss of --metric: points of top-1 with --labels, else points of agreement with the float model's"
        " top-1.",
    ),
    grouped(
        DEBUGGING,
        "--target-score",
        type=float,
        metavar="X",
        help=f"The score to reach instead, as for sqnr  [{LEAST_DB:g} dB for sqnr].",
    ),
    grouped(
        DEBUGGING,
        "--eval",
        "evaluation",
        type=click.Path(readable=False),
        help="Other data, as --calib: the target must be reached on it, too, before a model is accepted.",
    ),
    grouped(
        DEBUGGING,
        "--eval-labels",
        "evaluation_labels",
        type=click.Path(readable=False),
        help="Class indices of --eval, as --labels.",
    ),
    grouped(
        DEBUGGING, "--without", multiple=True, type=click.Choice(NAMES), help="Do not try this remedy; repeatable."
    ),
    grouped(
        DEBUGGING,
        "--budget",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Time for each ranking of the quantizers, those with the lowest SQNR of their own first [no limit].",
    ),
    grouped(DEBUGGING, "--closest", is_flag=True, help="Where the target is not reached, take what comes closest."),
)


@click.command("debug", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@calib_option()
@grouped(OUTPUT, "-o", "--output", type=click.Path(readable=False), help="Write the accepted model here.")
@evaluation_options
@target_options
@quantization_options
@grouped(
    OUTPUT,
    "--write-config",
    type=click.Path(dir_okay=False),
    help="Write a file for `onnxq quantize --config`: the same model.",
)
@provenance_option
@report_option
@output_options("Print each step and each node left in float.")
@config_option
def debug_command(
    model: str,
    calib: str,
    output: str | None,
    labels: str | None,
    metric: str | None,
    evaluation_samples: int | None,
    target_drop: float,
    target_score: float | None,
    evaluation: str | None,
    evaluation_labels: str | None,
    without: tuple[str, ...],
    budget: float | None,
    closest: bool,
    write_config: str | None,
    reports: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Find out what quantization breaks in MODEL, and repair it: the white paper's figure 9.

    The other options set what to start from. The log says what was found, tried and kept, and why. Exit code 5: the
    target was not reached, and nothing was written.
    """
    arguments = parse(dict(given))
    refuse_overwriting("--output", output, calib, evaluation)
    refuse_overwriting(
        "--write-config", write_config, model, output, calib, evaluation, labels, evaluation_labels, *reports
    )
    with ExitStack() as stack:
        write_report = stack.enter_context(
            writing(reports, model, output, calib, evaluation, labels, evaluation_labels)
        )
        config_file = None if write_config is None else stack.enter_context(replacing(write_config))
        progress = stack.enter_context(show_progress(quiet))
        found = debug(
            model,
            calib,
            goal=AccuracyTarget(target_drop, target_score),
            labels=labels,
            metric=metric,
            evaluation_samples=evaluation_samples,
            evaluation=evaluation,
            evaluation_labels=evaluation_labels,
            without=without,
            budget=budget,
            closest=closest,
            **arguments,
            progress=progress,
            on_entry=None if quiet else partial(_say, err=prints_json(reports, as_json)),
        )
        if output is not None or reports:
            result = quantize(
                model,
                calib,
                output=output,
                **{**arguments, "options": found.options},
                progress=progress,
                details=bool(reports),
                evaluation_samples=found.samples,
                before_writing=lambda result: write_report(_with_log(result.report, found)),
            )
        if config_file is not None:
            text = config_text(quantize_command, given, found.options, found.text)
            write_text(text, config_file)
    if output is not None or reports:
        echo_report(
            output,
            _with_log(result.report, found),
            reports=reports,
            as_json=as_json,
            verbose=verbose,
            quiet=quiet or output is None,
        )
    elif as_json:
        echo_result(found.to_text(), found.to_json(), as_json, quiet)
    if found.changes and not quiet:
        text = "The same again: paste this into the file of onnxq quantize --config, over which flags win"
        _say(LogEntry(text, found.changes), err=prints_json(reports, as_json))


def _say(entry: LogEntry, err: bool) -> None:
    if logs_json(click.get_current_context()):
        emit("finding", **asdict(entry))
        return
    click.echo(printable(entry.title), err=err)
    for line in entry.text.splitlines():
        click.echo(f"    {printable(line)}", err=err)


def _with_log(report: Report, found: DebugResult) -> Report:
    return replace(
        report,
        command=typed(click.get_current_context()),
        log=found.log,
        measures=found.measures,
        sensitivity=found.ranking,
        changes=found.changes,
    )
