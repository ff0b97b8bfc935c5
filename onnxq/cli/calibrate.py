"""`onnxq calibrate`."""

from __future__ import annotations

from typing import Any

import click

from ..api import calibrate
from .options import (
    CALIB,
    config_option,
    data_options,
    parse,
    refuse_same_files,
    run_options,
    scheduler_option,
)
from .progress import Progress


@click.command("calibrate")
@click.argument("model", type=click.Path(readable=False))
@click.argument("output", type=click.Path(readable=False))
@click.option("--calib", required=True, type=click.Path(readable=False), help=CALIB)
@data_options
@run_options
@scheduler_option
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@config_option
def calibrate_command(model: str, output: str, calib: str, scheduler: str | None, quiet: bool, **given: Any) -> None:
    """Collect statistics of MODEL's activations and write them to OUTPUT, an .npz file for `quantize --stats`.

    Parts of the calibration data may be collected apart, on several machines.
    """
    preprocess, keys, options = parse(given)
    refuse_same_files(output, None, model, calib)
    with Progress(enabled=not quiet) as progress:
        found = calibrate(
            model,
            calib,
            output,
            options=options,
            preprocess=preprocess,
            input_keys=keys,
            progress=progress,
            scheduler=scheduler,
        )
    if not quiet:
        click.echo(
            f"{output}: {len(found.tensors)} tensors over {len(found.samples)} samples, digest {found.digest[:16]}"
        )
