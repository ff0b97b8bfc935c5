"""`onnxq qat`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click

from ..options import DATA
from ..qat.recipe import TRAINING, Recipe
from .command import Command, typed
from .options import (
    config_option,
    from_schema,
    grouped,
    latency_option,
    output_options,
    parse,
    provenance_option,
    quantization_options,
    refuse_overwriting,
    take,
)
from .progress import show_progress
from .reports import echo_report, report_option, writing


@click.command("qat", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@click.argument("output", type=click.Path(readable=False))
@grouped(
    DATA,
    "--data",
    required=True,
    type=click.Path(readable=False),
    help="Training data, labels not needed: a folder of images, .npy, .npz or .pb, or one such file.",
)
@grouped(
    DATA,
    "--labels",
    type=click.Path(readable=False),
    help="Class indices of the data: .txt, .csv, .json, .npy or .npz, as `onnxq evaluate` takes them.",
)
@from_schema(Recipe, TRAINING)
@quantization_options
@latency_option
@provenance_option
@report_option
@output_options("Print each step and each node left in float.")
@config_option
def qat_command(
    model: str,
    output: str,
    data: str,
    labels: str | None,
    reports: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Quantize MODEL and train it with the quantizers in it, write the verified result to OUTPUT.

    Without labels it learns to compute what the float model does. --samples are those to train with; --checkpoint is a
    folder that interrupted training, too, goes on from. Needs PyTorch: pip install 'onnxq[qat]'.
    """
    from ..qat import train  # torch is slow to import, and need not be there

    chosen = take(given, Recipe)
    arguments = parse(given)
    recipe = Recipe(**chosen, seed=arguments["options"].seed)
    refuse_overwriting("OUTPUT", output, data, labels)
    with ExitStack() as stack:
        write_report = stack.enter_context(writing(reports, model, output, data, labels))
        progress = stack.enter_context(show_progress(quiet))
        result = train(
            model,
            data,
            labels=labels,
            output=output,
            recipe=recipe,
            **arguments,
            progress=progress,
            details=bool(reports),
        )
        report = replace(result.report, command=typed(click.get_current_context()))
        write_report(report)
    trained = next(step for step in result.report.steps if step.name == "Train")
    echo_report(output, report, reports=reports, as_json=as_json, verbose=verbose, quiet=quiet, before=trained.notes)
