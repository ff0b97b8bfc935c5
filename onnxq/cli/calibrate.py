"""`onnxq calibrate`."""

from __future__ import annotations

import json
from typing import Any

import click

from ..api import calibrate
from .command import Command
from .options import (
    calib_option,
    config_option,
    data_options,
    freeze_option,
    output_options,
    parse,
    refuse_overwriting,
    run_options,
    scheduler_option,
)
from .progress import show_progress
from .reports import echo_result


@click.command("calibrate", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@click.argument("output", type=click.Path(readable=False))
@calib_option()
@data_options
@freeze_option
@run_options
@scheduler_option
@output_options()
@config_option
def calibrate_command(
    model: str, output: str, calib: str, as_json: bool, quiet: bool, verbose: bool, **given: Any
) -> None:
    """Collect statistics of MODEL's activations and write them to OUTPUT, an .npz file for `quantize --stats`.

    Parts of the calibration data may be collected separately, on several machines.
    """
    arguments = parse(given)
    refuse_overwriting("OUTPUT", output, calib)
    with show_progress(quiet) as progress:
        found = calibrate(model, calib, output, **arguments, **given, progress=progress)
    facts = {"output": output, "tensors": len(found.tensors), "samples": len(found.samples), "digest": found.digest}
    text = f"{output}: {len(found.tensors)} tensors over {len(found.samples)} samples, digest {found.digest[:16]}"
    if as_json or not quiet:
        echo_result(text, json.dumps(facts, indent=2), as_json, quiet)
