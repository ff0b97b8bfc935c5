"""`onnxq check`."""

from __future__ import annotations

from typing import Any

import click

from ..api import check
from ..data import Preprocess
from ..data.images import IMAGES
from ..errors import VerificationError
from ..options import TARGET
from .command import Command
from .options import (
    calib_option,
    config_option,
    custom_ops_option,
    from_schema,
    grouped,
    input_key_option,
    output_options,
    take,
    take_input_keys,
    take_toolchain,
    toolchain_options,
)
from .reports import echo_result


@click.command("check", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@grouped(TARGET, "--target", required=True, metavar="NAME|FILE", help="As `onnxq targets` lists them, or a TOML file.")
@toolchain_options
@calib_option(required=False)
@input_key_option
@from_schema(Preprocess, IMAGES)
@custom_ops_option
@output_options("Print each violation, and each node that the tool-chain leaves to the CPU or to float.", quiet=False)
@config_option
@click.pass_context
def check_command(
    ctx: click.Context, /, model: str, target: str, calib: str | None, as_json: bool, verbose: bool, **given: Any
) -> None:
    """Check MODEL, a QDQ model of any tool, against what a target requires; exit code 5 where it breaks a rule, or
    where the tool-chain (--toolchain) refuses it, runs nothing of it, or computes something else.

    The tool-chain runs samples of --calib, or random inputs.
    """
    result = check(
        model,
        target,
        toolchain=take_toolchain(given),
        calibration=calib,
        preprocess=Preprocess(**take(given, Preprocess)),
        input_keys=take_input_keys(given),
        custom_ops=given["custom_ops"],
    )
    echo_result(result.to_text(verbose), result.to_json(), as_json)
    if not result.is_clean:
        ctx.exit(VerificationError.exit_code)
