"""`onnxq quantize`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click

from .. import api
from ..api import Result, quantize
from ..errors import UsageError
from ..evaluation.mixed_precision import MixedPrecision
from ..graph.storage import replacing, write_text
from ..options import DATA, ENCODINGS, OUTPUT
from ..report import Report
from .command import Command, typed
from .config import config_text
from .mixed import mixed_options, take_measuring, take_search
from .options import (
    calib_option,
    config_option,
    data_free_options,
    encodings_options,
    exceptions_option,
    grouped,
    latency_option,
    output_options,
    parse,
    provenance_option,
    quantization_options,
    refuse_overwriting,
    take_toolchain,
    toolchain_options,
)
from .progress import show_progress
from .reports import echo_report, echo_result, report_option, writing


@click.command("quantize", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@click.argument("output", type=click.Path(readable=False))
@calib_option(required=False)
@grouped(
    DATA,
    "--stats",
    multiple=True,
    type=click.Path(readable=False),
    help="Statistics of `onnxq calibrate` instead of running the model; repeatable, they are merged.",
)
@quantization_options
@exceptions_option
@data_free_options
@grouped(
    ENCODINGS,
    "--encodings",
    type=click.Path(dir_okay=False),
    help="Write scales and offsets in AIMET's and QNN's JSON, too.",
)
@encodings_options
@mixed_options
@toolchain_options
@latency_option
@grouped(
    OUTPUT,
    "--dry-run",
    is_flag=True,
    help="Print what would be done, what would stay in float and why, the expected size and time; write nothing.",
)
@provenance_option
@report_option
@output_options("Print each step and each node left in float.")
@config_option
def quantize_command(
    model: str,
    output: str,
    calib: str | None,
    stats: tuple[str, ...],
    encodings: str | None,
    dry_run: bool,
    reports: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Quantize MODEL with calibration data (weights alone, `--preset w8`, without) and write the verified result to
    OUTPUT."""
    measuring = take_measuring(given)
    eval_data = given["eval_data"]
    search, config = take_search(given, calib, stats)
    toolchain = take_toolchain(given)
    arguments = parse(dict(given))
    if calib is None and not stats and arguments["options"].needs_data:
        raise click.UsageError(
            "Missing option '--calib' (or '--stats', '--data-free', '--from-encodings'). Without data, '--preset w8' or"
            f" 'w4' quantizes the weights alone. Write: {typed(click.get_current_context())} --calib images/"
        )
    source = arguments["options"].from_encodings
    refuse_overwriting("OUTPUT", output, calib, eval_data, *stats)
    refuse_overwriting("--encodings", encodings, model, output, calib, source, *stats)
    refuse_overwriting("--write-config", config, model, output, encodings, calib, source, *reports)
    if dry_run:
        if search is not None:
            raise UsageError("--dry-run does not search for bits: leave --auto-mixed out")
        plan = api.dry_run(model, calib, statistics=stats, eval_data=eval_data, **arguments)
        echo_result(plan.to_text(verbose), plan.to_json(), as_json, quiet)
        return
    command = typed(click.get_current_context())
    with ExitStack() as stack:
        files = (model, output, encodings, calib, eval_data, source, *stats)
        write_report = stack.enter_context(writing(reports, *files))
        config_file = None if config is None else stack.enter_context(replacing(config))
        progress = stack.enter_context(show_progress(quiet))
        found = None
        if search is not None:
            found = search(model, calib, **arguments, progress=progress)
            arguments["options"] = found.options
            measuring = measuring or {"evaluation_samples": found.samples}

        def reported(report: Report) -> Report:
            return replace(_with_search(report, found), command=command)

        def finish(result: Result) -> None:
            """The report and the configuration are written first: no model without them."""
            if config_file is not None and found is not None:
                write_text(config_text(quantize_command, given, found.options, found.text), config_file)
            write_report(reported(result.report))

        result = quantize(
            model,
            calib,
            output=output,
            encodings=encodings,
            statistics=stats,
            **arguments,
            progress=progress,
            details=bool(reports),
            **measuring,
            toolchain=toolchain,
            before_writing=finish,
        )
    echo_report(
        output,
        reported(result.report),
        reports=reports,
        as_json=as_json,
        verbose=verbose,
        quiet=quiet,
        before=() if found is None else (found.text,),
    )


def _with_search(report: Report, found: MixedPrecision | None) -> Report:
    """The report with what the search for bits found, which chose on the samples that are reported on."""
    if found is None:
        return report
    samples = report.samples
    if samples.are_unseen:
        samples = replace(samples, origin=f"{samples.origin}, which chose the bits as well", are_unseen=False)
    return replace(report, samples=samples, pareto=found.front)
