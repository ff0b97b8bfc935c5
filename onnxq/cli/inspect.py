"""`onnxq inspect`."""

from __future__ import annotations

from typing import Any

import click

from ..api import inspect
from ..options import Options
from .config import overrides_of
from .options import config_option, placement_options


@click.command("inspect")
@click.argument("model", type=click.Path(readable=False))
@placement_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verbose", "-v", is_flag=True, help="Print each layer and each node that would stay in float.")
@config_option
def inspect_command(model: str, as_json: bool, verbose: bool, **given: Any) -> None:
    """Show what MODEL is made of, what of it could be quantized, and what not and why."""
    options = Options(**given, overrides=overrides_of(click.get_current_context()))
    facts = inspect(model, options=options)
    click.echo(facts.to_json().rstrip() if as_json else facts.to_text(verbose))
