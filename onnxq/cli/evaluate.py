"""`onnxq evaluate`."""

from __future__ import annotations

from typing import Any

import click

from ..api import evaluate
from ..options import DATA
from .command import Command
from .examples import MEASURING
from .options import (
    config_option,
    data_options,
    grouped,
    output_options,
    parse,
    thread_options,
)
from .progress import show_progress
from .reports import echo_result


@click.command("evaluate", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@grouped(
    DATA,
    "--data",
    required=True,
    type=click.Path(readable=False),
    help="Evaluation data: a folder of images, .npy, .npz or test_data_set_*/*.pb, or one such file.",
)
@grouped(
    MEASURING,
    "--labels",
    type=click.Path(readable=False),
    help="Class indices: .txt or .csv (one a line, or file name and index), .json, .npy, .npz (labels, label or y).",
)
@grouped(
    MEASURING,
    "--metric",
    "metric",
    multiple=True,
    metavar="NAME|MODULE:FUNCTION",
    help="sqnr, agreement, kl, top1, top5, or a function (outputs, labels) -> number, higher is better; repeatable"
    " [all that apply].",
)
@grouped(MEASURING, "--reference", type=click.Path(readable=False), help="Float model to compare with.")
@grouped(MEASURING, "--output", metavar="NAME", help="The output that holds the class scores, where several might.")
@grouped(MEASURING, "--optimized", is_flag=True, help="Run integer kernels, as ONNX Runtime does by default.")
@data_options
@thread_options
@output_options()
@config_option
def evaluate_command(model: str, data: str, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Measure MODEL, float or quantized by any tool, on data: accuracy with --labels, distance with --reference.

    The model runs as it is written; --optimized lets ONNX Runtime rewrite it first.
    """
    arguments = parse(given)
    with show_progress(quiet) as progress:
        found = evaluate(model, data, **arguments, **given, progress=progress)
    echo_result(found.to_text(), found.to_json(), as_json, quiet)
