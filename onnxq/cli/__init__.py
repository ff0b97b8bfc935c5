"""The command line: parse, call, print; a file for each command. Exit codes are those of `onnxq.errors`."""

from __future__ import annotations

from typing import Any

import click

from .. import __version__
from ..errors import OnnxqError
from ..report import printable
from .calibrate import calibrate_command
from .check import check_command
from .compare import compare_command
from .evaluate import evaluate_command
from .inspect import inspect_command
from .options import EXIT_CODES
from .quantize import quantize_command
from .sensitivity import sensitivity_command
from .targets import targets_command


class _Group(click.Group):
    """Turns the errors of this package into one message and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OnnxqError as error:
            click.echo(f"onnxq: error: {printable(str(error))}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("onnxq: interrupted, nothing was written", err=True)
            ctx.exit(130)


@click.group(cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxq")
def main() -> None:
    """Quantize trained ONNX models: float32 in, verified integer QDQ models out."""


COMMANDS = (
    quantize_command,
    calibrate_command,
    inspect_command,
    evaluate_command,
    compare_command,
    sensitivity_command,
    targets_command,
    check_command,
)

for command in COMMANDS:
    command.epilog = EXIT_CODES
    main.add_command(command)
