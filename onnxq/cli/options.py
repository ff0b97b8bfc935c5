"""Options that several commands share, and their way from parsed text to the records of the Python API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..data import Preprocess
from ..encodings import VERSIONS
from ..errors import OutputError, UsageError
from ..numeric.ranges import usage
from ..options import PRESETS, Options
from ..rounding.choice import EFFORTS
from ..rounding.methods import ROUNDINGS
from .config import overrides_of, read_config

CALIB = "Calibration data: a folder of images, .npy, .npz or test_data_set_*/*.pb, or one such file."

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes: 0 done; 2 an option or configuration file makes no sense; 3 the model cannot
be read or quantized; 4 calibration data does not fit; 5 the result failed verification;
6 the output cannot be written; 7 ONNX Runtime or memory failed; 8 the cluster of
--scheduler failed; 70 a bug in onnxq; 130 Ctrl-C, 143 SIGTERM.
Unless the code is 0 no output is written, and an existing output file stays as it was."""


class _Numbers(click.ParamType[Any]):
    """Comma-separated numbers, or a list in a TOML file."""

    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, (int, float)):
            return (float(value),)
        parts = value.split(",") if isinstance(value, str) else value
        try:
            return tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a list of numbers like 0.485,0.456,0.406", param, ctx)


class _Size(click.ParamType[Any]):
    """N or HEIGHTxWIDTH in pixels, or a number or pair in a TOML file."""

    name = "N|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        if isinstance(value, int):
            return value
        parts = value.lower().split("x") if isinstance(value, str) else value
        try:
            sides = tuple(int(part) for part in parts)
        except (TypeError, ValueError):
            sides = ()
        if len(sides) in (1, 2):
            return sides if len(sides) == 2 else sides[0]
        return self.fail(f"{value!r} is not a size like 224 or 240x320", param, ctx)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="TOML file with any of these options by name (image options may stand in a table [preprocess]);"
    " the command line wins over it.",
)

data_options = options(
    click.option("--samples", type=click.IntRange(min=1), help="Use N calibration samples, spread over all [all]."),
    click.option("--seed", type=int, default=0, show_default=True, help="Chooses which samples --samples takes."),
    click.option(
        "--input-key",
        multiple=True,
        metavar="INPUT=KEY",
        help="Name of an input's array in .npz files, where it differs from the input's; repeatable.",
    ),
    click.option("--layout", type=click.Choice(["auto", "nchw", "nhwc"]), default="auto", show_default=True),
    click.option(
        "--color",
        type=click.Choice(["auto", "rgb", "bgr", "gray"]),
        default="auto",
        show_default=True,
        help="Channel order of images; auto: gray for one channel, else rgb.",
    ),
    click.option("--resize", type=_Size(), help="Resize images: shorter side N, or to HxW [the model's size]."),
    click.option("--crop", type=_Size(), help="Then cut this much from the centre [no crop]."),
    click.option("--interpolation", default="bilinear", show_default=True, help="How images are resized."),
    click.option("--scale", type=float, default=1 / 255, show_default="1/255", help="x = (pixel * scale - mean) / std"),
    click.option("--mean", type=_Numbers(), default="0", show_default=True, help="One value, or one a channel."),
    click.option("--std", type=_Numbers(), default="1", show_default=True, help="One value, or one a channel."),
)

placement_options = options(
    click.option(
        "--target",
        default="ort",
        show_default=True,
        metavar="NAME|FILE",
        help="The tool-chain that is to run the result: `onnxq targets` lists them; or a TOML file that describes one.",
    ),
    click.option(
        "--preset",
        default="w8a8",
        show_default=True,
        metavar="wNaM",
        help=f"Bits of weights and activations: {', '.join(PRESETS)}, ...; wN or aM alone: the rest stays float.",
    ),
    click.option(
        "--per-channel/--per-tensor",
        default=True,
        show_default=True,
        help="One weight scale per output channel, or one per weight tensor.",
    ),
    click.option("--symmetric-activations", is_flag=True, help="Zero point 0; unsigned where nothing is negative."),
    click.option("--asymmetric-weights", is_flag=True, help="Weights with zero points."),
    click.option("--power-of-two", is_flag=True, help="All scales are powers of two."),
    click.option("--block-size", type=click.IntRange(min=1), help="One weight scale for each N weights of a channel."),
    click.option(
        "--force-int-kernels", is_flag=True, help="Use integer kernels even where they are slower than float ones."
    ),
    click.option(
        "--include", multiple=True, metavar="GLOB", help="Quantize only these nodes or operators; repeatable."
    ),
    click.option(
        "--exclude", multiple=True, metavar="GLOB", help="Leave these nodes or operators in float; repeatable."
    ),
    click.option(
        "--tie", multiple=True, type=click.Choice(["Add", "Concat"]), help="Inputs of these share a grid; repeatable."
    ),
)

step_options = options(
    click.option("--dead-channels/--no-dead-channels", default=True, help="Empty channels that carry a constant [on]."),
    click.option(
        "--cle",
        type=click.Choice(["noise", "range", "off"]),
        default="noise",
        show_default=True,
        help="Cross-layer equalization, by expected noise or by the white paper's ranges.",
    ),
    click.option("--no-cle", is_flag=True, help="The same as --cle off."),
    click.option("--absorb/--no-absorb", default=True, help="Absorb high biases [on]."),
    click.option(
        "--smoothquant",
        type=click.FloatRange(0, 1),
        metavar="ALPHA",
        help="Move outliers behind LayerNorm into the weights that read them, as SmoothQuant does; 0.5 is usual [off].",
    ),
    click.option(
        "--a16-fallback",
        type=click.Choice(["off", "auto"]),
        default="off",
        show_default=True,
        help="Give activations 16 bits where fewer cost the outputs too much, as few of them as possible.",
    ),
    click.option(
        "--bias-correction",
        type=click.Choice(["analytic", "empirical", "off"]),
        default="analytic",
        show_default=True,
        help="From means of inputs, or layer after layer in the quantized network.",
    ),
    click.option("--no-bias-correction", is_flag=True, help="The same as --bias-correction off."),
    click.option(
        "--rounding",
        type=click.Choice(["auto", *ROUNDINGS]),
        default="auto",
        show_default=True,
        help="How weights are rounded, layer after layer; auto: by descent below 8 bits, and"
        " at 8 bits where nearest leaves less than 25 dB; else to nearest.",
    ),
    click.option(
        "--effort", type=click.Choice(list(EFFORTS)), default="medium", show_default=True, help="Of --rounding."
    ),
    click.option(
        "--checkpoint", type=click.Path(file_okay=False), help="Folder that an interrupted --rounding goes on from."
    ),
)

data_free_options = options(
    click.option("--data-free", is_flag=True, help="Without calibration data: ranges and means from BatchNorm."),
    click.option(
        "--input-range", multiple=True, metavar="INPUT=LO,HI", help="Range of an input, for --data-free; repeatable."
    ),
    click.option("--synthetic", is_flag=True, help="With --data-free: range what BatchNorm cannot on random inputs."),
)

evaluation_options = options(
    click.option(
        "--labels",
        type=click.Path(readable=False),
        help="Class indices of the calibration data: .txt, .csv, .json, .npy or .npz, as `onnxq evaluate` takes them.",
    ),
    click.option(
        "--metric",
        metavar="NAME|MODULE:FUNCTION",
        help="sqnr, agreement, kl, top1, top5, or a function (outputs, labels) -> number, higher is better"
        " [top1 with --labels].",
    ),
    click.option(
        "--evaluation-samples",
        type=click.IntRange(min=1),
        metavar="N",
        help="Calibration samples to measure on [64 for sqnr and kl, else up to 1024].",
    ),
)

encodings_options = options(
    click.option(
        "--encodings-version",
        type=click.Choice(list(VERSIONS)),
        default="1.0.0",
        show_default=True,
        help="The schema of --encodings.",
    ),
    click.option(
        "--float-output",
        is_flag=True,
        help="With --encodings: OUTPUT is the float model that they belong to, for QNN's converter.",
    ),
    click.option(
        "--from-encodings",
        type=click.Path(dir_okay=False),
        help="Take scales and offsets from an encodings file of AIMET, QNN or onnxq; needs no calibration data.",
    ),
)

range_options = options(
    click.option(
        "--weight-range",
        default="auto",
        show_default=True,
        help=f"How weight ranges are set: {usage('weights')}; weighted: mse weighted by what channels contribute, which"
        " auto takes per tensor, and mse per channel.",
    ),
    click.option(
        "--activation-range",
        default="mse",
        show_default=True,
        help=f"How activation ranges are set: {usage('activations')}.",
    ),
    click.option(
        "--logits-range",
        default="cross-entropy",
        show_default=True,
        help=f"How the ranges of a classifier's logits are set: {usage('logits')}.",
    ),
)

scheduler_option = click.option(
    "--scheduler",
    metavar="local[:N]|ADDRESS",
    help="Spread the work over N processes on this machine, or over the workers of a Dask scheduler, like"
    " tcp://host:8786; never changes the result [this process].",
)

thread_options = options(
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Samples held in memory and run at once; never changes the result [two a thread].",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Never changes the result [all processors]."),
)

run_options = options(
    thread_options,
    click.option(
        "--max-memory",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        metavar="MIB",
        help="Activations held while calibrating; less means more passes over the data.",
    ),
)


def parse(given: dict[str, Any]) -> tuple[Preprocess, dict[str, str], Options]:
    """Parsed options as the records that the Python API takes."""
    image = ("layout", "color", "resize", "crop", "interpolation", "scale", "mean", "std")
    preprocess = Preprocess(**{name: given.pop(name) for name in image})
    keys = {}
    for pair in given.pop("input_key"):
        name, equals, key = pair.partition("=")
        if not (name and equals and key):
            raise UsageError(f"--input-key {pair!r} is not of the form INPUT=KEY")
        keys[name] = key
    for flag, name in (("no_cle", "cle"), ("no_bias_correction", "bias_correction")):
        if given.pop(flag, False):
            given[name] = "off"
    if "input_range" in given:
        given["input_ranges"] = tuple(_input_range(text) for text in given.pop("input_range"))
    given["batch_size"], given["threads"] = given["batch_size"] or 0, given["threads"] or 0
    return preprocess, keys, Options(**given, overrides=overrides_of(click.get_current_context()))


def _input_range(text: str) -> tuple[str, float, float]:
    name, _, ends = text.partition("=")
    try:
        lo, hi = (float(end) for end in ends.split(","))
    except ValueError:
        raise UsageError(f"--input-range {text!r} is not of the form INPUT=LO,HI") from None
    if not (name and lo < hi):
        raise UsageError(f"--input-range {text!r}: expected INPUT=LO,HI with LO below HI")
    return name, lo, hi


def refuse_same_files(output: str, report: str | None, model: str, *data: str) -> None:
    """The model itself is left to `quantize`, which knows links."""
    for path in data:
        if Path(output).resolve() == Path(path).resolve():
            raise OutputError(f"{output}: the output is the calibration data itself; choose another name")
    for path in (model, output, *data):
        if report is not None and Path(report).resolve() == Path(path).resolve():
            raise OutputError(f"--report {report}: this is {path} itself; choose another name")


def refuse_overwriting(option: str, written: str | None, *others: str | None) -> None:
    """A file that is written must be none of the others."""
    for path in others:
        if written is not None and path is not None and Path(written).resolve() == Path(path).resolve():
            raise OutputError(f"{option} {written}: this is {path} itself; choose another name")
