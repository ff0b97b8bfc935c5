"""`onnxq compare`."""

from __future__ import annotations

from typing import Any

import click

from ..api import compare
from .options import (
    Command,
    calib_option,
    config_option,
    data_options,
    json_option,
    parse,
    quiet_option,
    run_options,
    scheduler_option,
    verbose_option,
)
from .progress import Progress


@click.command("compare", cls=Command)
@click.argument("float_model", metavar="FLOAT", type=click.Path(readable=False))
@click.argument("quantized", metavar="QUANTIZED", type=click.Path(readable=False))
@calib_option()
@data_options
@run_options
@scheduler_option
@json_option
@verbose_option("Print also what was not compared, and why.")
@quiet_option
@config_option
def compare_command(
    float_model: str, quantized: str, calib: str, as_json: bool, verbose: bool, quiet: bool, **given: Any
) -> None:
    """Compare QUANTIZED, by any tool, with the FLOAT model, tensor by tensor and layer by layer."""
    arguments = parse(given)
    with Progress(enabled=not quiet) as progress:
        found = compare(float_model, quantized, calib, **arguments, **given, progress=progress)
    click.echo(found.to_json().rstrip() if as_json else found.to_text(verbose))
