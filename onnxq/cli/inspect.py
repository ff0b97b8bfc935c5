"""`onnxq inspect`."""

from __future__ import annotations

from typing import Any

import click

from ..api import inspect
from .flags import as_flags, flags_of
from .options import (
    Command,
    calib_option,
    config_option,
    custom_ops_option,
    data_options,
    json_option,
    parse,
    placement_options,
    verbose_option,
)


@click.command("inspect", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@calib_option(required=False)
@data_options
@placement_options
@custom_ops_option
@json_option
@verbose_option("Print each layer and each node that would stay in float.")
@config_option
def inspect_command(model: str, calib: str | None, as_json: bool, verbose: bool, **given: Any) -> None:
    """Show what MODEL is made of, what of it could be quantized, and what not and why; with --calib also whether these
    data look like those that it was trained on."""
    facts = inspect(model, calib, **parse(given))
    text = as_flags(facts.to_text(verbose), flags_of(click.get_current_context().command))
    click.echo(facts.to_json().rstrip() if as_json else text)
