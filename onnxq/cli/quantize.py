"""`onnxq quantize`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from ..api import quantize
from ..graph.storage import replacing
from ..progress import Progress
from .options import (
    CALIB,
    config_option,
    data_free_options,
    data_options,
    parse,
    placement_options,
    range_options,
    refuse_same_files,
    run_options,
    step_options,
)


@click.command("quantize")
@click.argument("model", type=click.Path(readable=False))
@click.argument("output", type=click.Path(readable=False))
@click.option("--calib", type=click.Path(readable=False), help=CALIB)
@click.option(
    "--stats",
    multiple=True,
    type=click.Path(readable=False),
    help="Statistics of `onnxq calibrate` instead of running the model; repeatable, they are merged.",
)
@data_options
@data_free_options
@placement_options
@step_options
@range_options
@run_options
@click.option("--report", type=click.Path(dir_okay=False), help="Write everything about the run to this JSON file.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--verbose", "-v", is_flag=True, help="Print each step and each node left in float.")
@config_option
def quantize_command(
    model: str,
    output: str,
    calib: str | None,
    stats: tuple[str, ...],
    report: str | None,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Quantize MODEL with calibration data and write the verified result to OUTPUT."""
    if calib is None and not stats and not given["data_free"]:
        raise click.UsageError("Missing option '--calib' (or '--stats', or '--data-free').")
    preprocess, keys, options = parse(given)
    refuse_same_files(output, report, model, *stats, *([calib] if calib is not None else []))
    with ExitStack() as stack:
        report_file = None if report is None else stack.enter_context(replacing(report))
        progress = stack.enter_context(Progress(enabled=not quiet))
        result = quantize(
            model,
            calib,
            output=output,
            statistics=stats,
            options=options,
            preprocess=preprocess,
            input_keys=keys,
            progress=progress,
        )
        if report_file is not None:
            report_file.write_text(result.report.to_json(), encoding="utf-8")
    if not quiet:
        click.echo(f"{output}: {result.report.to_text(verbose)}")
