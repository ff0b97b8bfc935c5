"""`onnxq check`."""

from __future__ import annotations

import click

from ..api import check_model
from ..errors import VerificationError
from ..options import TARGET
from .options import Command, config_option, grouped, json_option


@click.command("check", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@grouped(TARGET, "--target", required=True, metavar="NAME|FILE", help="As `onnxq targets` lists them, or a TOML file.")
@json_option
@config_option
@click.pass_context
def check_command(ctx: click.Context, model: str, target: str, as_json: bool) -> None:
    """Check MODEL, a QDQ model of any tool, against what a target requires; exit code 5 where it breaks a rule."""
    result = check_model(model, target)
    click.echo(result.to_json().rstrip() if as_json else result.to_text())
    if result.violations:
        ctx.exit(VerificationError.exit_code)
