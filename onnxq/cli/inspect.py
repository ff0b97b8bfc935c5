"""`onnxq inspect`."""

from __future__ import annotations

from typing import Any

import click

from ..api import inspect
from .options import Command, config_option, json_option, parse_options, placement_options, verbose_option


@click.command("inspect", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@placement_options
@json_option
@verbose_option("Print each layer and each node that would stay in float.")
@config_option
def inspect_command(model: str, as_json: bool, verbose: bool, **given: Any) -> None:
    """Show what MODEL is made of, what of it could be quantized, and what not and why."""
    facts = inspect(model, options=parse_options(given))
    click.echo(facts.to_json().rstrip() if as_json else facts.to_text(verbose))
