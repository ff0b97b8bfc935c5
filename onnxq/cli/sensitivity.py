"""`onnxq sensitivity`."""

from __future__ import annotations

from typing import Any

import click

from ..api import sensitivity
from ..options import OUTPUT
from .command import Command
from .examples import MEASURING
from .options import (
    calib_option,
    config_option,
    evaluation_options,
    grouped,
    output_options,
    parse,
    quantization_options,
    scheduler_option,
)
from .progress import show_progress
from .reports import echo_result


@click.command("sensitivity", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@calib_option()
@evaluation_options
@grouped(
    MEASURING,
    "--by",
    type=click.Choice(["quantizer", "layer"]),
    default="quantizer",
    show_default=True,
    help="What is switched together: one grid, or a layer's weights with its output.",
)
@grouped(
    MEASURING,
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop measuring after so long, those with the lowest SQNR of their own first; planning, before it, is not"
    " counted [no limit].",
)
@quantization_options
@scheduler_option
@grouped(OUTPUT, "--top", type=click.IntRange(min=1), help="Print only the N most sensitive [all].")
@output_options()
@config_option
def sensitivity_command(
    model: str, calib: str, top: int | None, as_json: bool, quiet: bool, verbose: bool, **given: Any
) -> None:
    """Rank what would be quantized in MODEL by what it costs: each alone on its grid, and each alone in float."""
    arguments = parse(given)
    with show_progress(quiet) as progress:
        found = sensitivity(model, calib, **arguments, **given, progress=progress)
    echo_result(found.to_text(top), found.to_json(), as_json, quiet)
