"""`onnxq inspect`."""

from __future__ import annotations

from typing import Any

import click

from ..api import inspect
from .command import Command
from .options import (
    calib_option,
    config_option,
    custom_ops_option,
    data_options,
    output_options,
    parse,
    placement_options,
)
from .reports import echo_result


@click.command("inspect", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@calib_option(required=False)
@data_options
@placement_options
@custom_ops_option
@output_options("Print each layer and each node that would stay in float.", quiet=False)
@config_option
def inspect_command(model: str, calib: str | None, as_json: bool, verbose: bool, **given: Any) -> None:
    """Show what MODEL is made of, what of it could be quantized, and what not and why; with --calib also whether these
    data look like those that it was trained on."""
    facts = inspect(model, calib, **parse(given))
    echo_result(facts.to_text(verbose), facts.to_json(), as_json)
