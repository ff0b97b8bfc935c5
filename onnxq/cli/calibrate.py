"""`onnxq calibrate`."""

from __future__ import annotations

from typing import Any

import click

from ..api import calibrate
from .options import (
    Command,
    calib_option,
    config_option,
    data_options,
    freeze_option,
    parse,
    quiet_option,
    refuse_overwriting,
    run_options,
    scheduler_option,
    verbose_option,
)
from .progress import Progress


@click.command("calibrate", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@click.argument("output", type=click.Path(readable=False))
@calib_option()
@data_options
@freeze_option
@run_options
@scheduler_option
@quiet_option
@verbose_option("")
@config_option
def calibrate_command(model: str, output: str, calib: str, quiet: bool, verbose: bool, **given: Any) -> None:
    """Collect statistics of MODEL's activations and write them to OUTPUT, an .npz file for `quantize --stats`.

    Parts of the calibration data may be collected separately, on several machines.
    """
    arguments = parse(given)
    refuse_overwriting("OUTPUT", output, calib)
    with Progress(enabled=not quiet) as progress:
        found = calibrate(model, calib, output, **arguments, **given, progress=progress)
    if not quiet:
        click.echo(
            f"{output}: {len(found.tensors)} tensors over {len(found.samples)} samples, digest {found.digest[:16]}"
        )
