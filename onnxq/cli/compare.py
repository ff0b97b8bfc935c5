"""`onnxq compare`."""

from __future__ import annotations

from typing import Any

import click

from ..api import compare
from .command import Command
from .options import (
    calib_option,
    config_option,
    data_options,
    output_options,
    parse,
    run_options,
    scheduler_option,
)
from .progress import show_progress
from .reports import echo_result


@click.command("compare", cls=Command)
@click.argument("float_model", metavar="FLOAT", type=click.Path(readable=False))
@click.argument("quantized", metavar="QUANTIZED", type=click.Path(readable=False))
@calib_option()
@data_options
@run_options
@scheduler_option
@output_options("Print also what was not compared, and why.")
@config_option
def compare_command(
    float_model: str, quantized: str, calib: str, as_json: bool, verbose: bool, quiet: bool, **given: Any
) -> None:
    """Compare QUANTIZED, by any tool, with the FLOAT model, tensor by tensor and layer by layer."""
    arguments = parse(given)
    with show_progress(quiet) as progress:
        found = compare(float_model, quantized, calib, **arguments, **given, progress=progress)
    echo_result(found.to_text(verbose), found.to_json(), as_json, quiet)
