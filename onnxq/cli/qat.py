"""`onnxq qat`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from .options import (
    Command,
    config_option,
    data_options,
    options,
    parse,
    placement_options,
    quiet_option,
    range_options,
    refuse_overwriting,
    run_options,
    step_options,
    verbose_option,
)
from .progress import Progress
from .reports import echo_report, report_option, writing

training_options = options(
    click.option(
        "--steps", type=click.IntRange(min=1), default=2000, show_default=True, help="Training steps, a batch each."
    ),
    click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Samples a step."),
    click.option(
        "--lr",
        type=click.FloatRange(0, 1, min_open=True),
        default=1e-2,
        show_default=True,
        help="Learning rate of weights at its height, in steps of their grids.",
    ),
    click.option(
        "--scale-lr",
        type=click.FloatRange(0, 1, min_open=True),
        default=2e-3,
        show_default=True,
        help="The same of scales and zero points, relative to the range.",
    ),
    click.option(
        "--warmup",
        type=click.FloatRange(0, 1),
        default=0.05,
        show_default=True,
        help="Share of the steps over which the rates rise; then they fall along a cosine.",
    ),
    click.option(
        "--loss",
        metavar="MODULE:FUNCTION",
        help="A loss of your own, (outputs, float model's outputs, labels) -> tensor [distillation; with --labels"
        " cross-entropy].",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        help="Of distillation, where outputs are class scores.",
    ),
    click.option(
        "--distill-tensors",
        "distill",
        multiple=True,
        metavar="GLOB",
        help="Inner tensors to learn from the float model, too; repeatable.",
    ),
    click.option(
        "--augment",
        multiple=True,
        type=click.Choice(["flip", "crop", "none"]),
        default=("crop",),
        show_default=True,
        help="Random views of images: shifted by up to an eighth; mirrored, where that changes no meaning. Repeatable.",
    ),
    click.option(
        "--learn-ranges/--fixed-ranges", default=True, help="Train scales and zero points beside weights [on]."
    ),
    click.option(
        "--held-out",
        type=click.IntRange(min=1),
        default=1000,
        show_default=True,
        help="Held-out samples, at most; one in ten.",
    ),
    click.option(
        "--evaluations",
        type=click.IntRange(min=1),
        default=20,
        show_default=True,
        help="How often to evaluate them.",
    ),
    click.option("--patience", type=click.IntRange(min=1), help="End after N evaluations without progress [never]."),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...; auto: a GPU where there is one."),
)

RECIPE = (
    "steps", "batch", "lr", "scale_lr", "warmup", "loss", "temperature", "distill", "augment", "learn_ranges",
    "held_out", "evaluations", "patience", "device",
)  # fmt: skip


@click.command("qat", cls=Command)
@click.argument("model", type=click.Path(readable=False))
@click.argument("output", type=click.Path(readable=False))
@click.option(
    "--data",
    required=True,
    type=click.Path(readable=False),
    help="Training data, labels not needed: a folder of images, .npy, .npz or .pb, or one such file.",
)
@click.option(
    "--labels",
    type=click.Path(readable=False),
    help="Class indices of the data: .txt, .csv, .json, .npy or .npz, as `onnxq evaluate` takes them.",
)
@training_options
@data_options
@placement_options
@step_options
@range_options
@run_options
@report_option
@quiet_option
@verbose_option("Print each step and each node left in float.")
@config_option
def qat_command(
    model: str,
    output: str,
    data: str,
    labels: str | None,
    reports: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Quantize MODEL and train it with the quantizers in it, write the verified result to OUTPUT.

    Without labels it learns to answer as the float model does. --samples are those to train with; --checkpoint is a
    folder that interrupted training, too, goes on from. Needs PyTorch: pip install 'onnxq[qat]'.
    """
    from ..qat import Recipe, train  # torch is slow to import, and need not be there

    spec = {name: given.pop(name) for name in RECIPE}
    spec["augment"] = tuple(kind for kind in spec["augment"] if kind != "none")
    preprocess, keys, options = parse(given)
    recipe = Recipe(**spec, seed=options.seed)
    refuse_overwriting("OUTPUT", output, data, labels)
    with ExitStack() as stack:
        write_report = stack.enter_context(writing(reports, model, output, data, labels))
        progress = stack.enter_context(Progress(enabled=not quiet))
        result = train(
            model,
            data,
            labels=labels,
            output=output,
            recipe=recipe,
            options=options,
            preprocess=preprocess,
            input_keys=keys,
            progress=progress,
            details=bool(reports),
        )
        write_report(result.report)
    if not quiet:
        trained = next(step for step in result.report.steps if step.name == "Train")
        for note in trained.notes:
            click.echo(note)
        echo_report(output, result.report, verbose)
