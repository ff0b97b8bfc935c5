"""`onnxq compare`."""

from __future__ import annotations

from typing import Any

import click

from ..api import compare
from .options import (
    CALIB,
    config_option,
    data_options,
    parse,
    run_options,
    scheduler_option,
)
from .progress import Progress


@click.command("compare")
@click.argument("float_model", metavar="FLOAT", type=click.Path(readable=False))
@click.argument("quantized", metavar="QUANTIZED", type=click.Path(readable=False))
@click.option("--calib", required=True, type=click.Path(readable=False), help=CALIB)
@data_options
@run_options
@scheduler_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verbose", "-v", is_flag=True, help="Print also what was not compared, and why.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress.")
@config_option
def compare_command(
    float_model: str,
    quantized: str,
    calib: str,
    scheduler: str | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Compare QUANTIZED, by any tool, with the FLOAT model, tensor by tensor and layer by layer."""
    preprocess, keys, options = parse(given)
    with Progress(enabled=not quiet) as progress:
        found = compare(
            float_model,
            quantized,
            calib,
            options=options,
            preprocess=preprocess,
            input_keys=keys,
            progress=progress,
            scheduler=scheduler,
        )
    click.echo(found.to_json().rstrip() if as_json else found.to_text(verbose))
