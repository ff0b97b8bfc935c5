"""From the schema of options to the command line's, grouped in the help, and back to records of the Python API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..data import Preprocess
from ..data.images import IMAGES
from ..errors import OutputError, UsageError
from ..options import DATA, DATA_FREE, ENCODINGS, OUTPUT, RANGES, RUNNING, STEPS, TARGET, Options
from ..schema import Option, options_of
from ..thresholds import COUNTED_SAMPLES, EVALUATION_SAMPLES
from ..toolchains import TOOLCHAIN, ToolchainOptions
from .command import GroupedOption
from .config import overrides_of, read_config
from .examples import MEASURING
from .flags import as_flags
from .progress import FORMATS, keep_format
from .values import MULTIPLE, OTHER

CALIB = "Calibration data: a folder of images, .npy, .npz or test_data_set_*/*.pb, or one such file."


F = TypeVar("F", bound=Callable[..., Any])


def grouped(group: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """An option of a command alone, under a heading."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in this order."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


# --- from the schema to click -------------------------------------------------------------------------------------


def from_schema(
    cls: type, *groups: str, names: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """The options of a class that stand in these groups, or of these names; but for some."""
    flags = {each.name: f"--{each.long_name}" for each in options_of(cls)}
    chosen = [each for each in options_of(cls) if each.group in groups or each.name in names]
    chosen = [each for each in chosen if each.name not in without]
    return options(*(decorator for each in chosen for decorator in _decorators(each, flags)))


def _decorators(option: Option, flags: dict[str, str]) -> list[Callable[[F], F]]:
    """The option, and the flag that switches off what has a value `off`."""
    flag = f"--{option.long_name}"
    attributes: dict[str, Any] = {"help": _help(option, flags)}
    if option.kind == "flag":
        off = option.opposite or f"no-{option.long_name}"
        flag = f"{flag}/--{off}" if option.default or option.optional else flag
        attributes |= {"is_flag": True, "default": option.default}
    else:
        many = option.kind == "texts" or option.name in MULTIPLE
        attributes |= {"type": _type(option), "default": _default(option), "multiple": many}
        attributes["metavar"] = option.metavar or {"whole": "N", "number": "X"}.get(option.kind)
    found = [grouped(option.group, flag, option.name, **attributes)]
    if "off" in option.choices and option.default != "off":
        short = f"The same as --{option.long_name} off."
        found.append(grouped(option.group, f"--no-{option.long_name}", is_flag=True, help=short))
    return found


def _help(option: Option, flags: dict[str, str]) -> str:
    repeatable = " Repeatable." if option.kind == "texts" or option.name in MULTIPLE else ""
    default = f"  [{option.default_text}]" if option.default_text else ""
    return as_flags(f"{option.help}{repeatable}{default}", flags)


def _default(option: Option) -> Any:
    return option.default if option.kind != "other" else (None if option.name not in MULTIPLE else ())


def _type(option: Option) -> click.ParamType[Any]:
    if option.name in OTHER:
        return OTHER[option.name]
    if option.path:
        return click.Path(file_okay=option.path == "file", dir_okay=option.path == "folder")
    if option.choices:
        return click.Choice(option.choices)
    if option.kind == "whole":
        return click.INT if not option.bounds_text else click.IntRange(_whole(option.least), _whole(option.most))
    if option.kind == "number":
        low = option.least if option.above is None else option.above
        bounded = click.FloatRange(low, option.most, min_open=option.above is not None)
        return bounded if option.bounds_text else click.FLOAT
    return click.STRING


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


config_option = grouped(
    OUTPUT,
    "--config",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="TOML file with any of these options by name (image options may stand in a table [preprocess]);"
    " the command line wins over it.",
)

input_key_option = grouped(
    DATA,
    "--input-key",
    "input_keys",
    multiple=True,
    metavar="INPUT=KEY",
    help="Name of an input's array in .npz files, where it differs from the input's. Repeatable.",
)
data_options = options(from_schema(Options, DATA), input_key_option, from_schema(Preprocess, IMAGES))
placement_options = from_schema(Options, TARGET)
data_free_options = from_schema(Options, DATA_FREE)
encodings_options = from_schema(Options, ENCODINGS)
thread_options = from_schema(Options, names=("batch_size", "threads", "provider", "custom_ops"))
custom_ops_option = from_schema(Options, names=("custom_ops",))
latency_option = from_schema(Options, names=("latency",))
provenance_option = from_schema(Options, names=("provenance",))
freeze_option = from_schema(Options, names=("freeze",))
run_options = from_schema(Options, RUNNING)
quantization_options = options(
    data_options, placement_options, from_schema(Options, STEPS, RANGES, without=("exceptions",)), run_options
)
exceptions_option = from_schema(Options, names=("exceptions",))

evaluation_options = options(
    grouped(
        MEASURING,
        "--labels",
        type=click.Path(readable=False),
        help="Class indices of the samples measured on: .txt, .csv, .json, .npy or .npz, as for `onnxq evaluate`.",
    ),
    grouped(
        MEASURING,
        "--metric",
        metavar="NAME|MODULE:FUNCTION",
        help="sqnr, agreement, kl, top1, top5, or a function (outputs, labels) -> number, higher is better"
        "  [top1 with --labels].",
    ),
    grouped(
        MEASURING,
        "--evaluation-samples",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Samples to measure on, at most  [{EVALUATION_SAMPLES} for sqnr, kl; else up to {COUNTED_SAMPLES}].",
    ),
)

toolchain_options = options(
    grouped(
        TOOLCHAIN,
        "--toolchain",
        is_flag=True,
        help="Run the target's own parser, compiler and simulator on the result, where the vendor's package is"
        " installed: does it take the model, what of it, and what does it compute?",
    ),
    from_schema(ToolchainOptions, TOOLCHAIN),
)

scheduler_option = grouped(
    RUNNING,
    "--scheduler",
    metavar="local[:N]|ADDRESS",
    help="Spread the work over N processes on this machine, or over the workers of a Dask scheduler, like"
    " tcp://host:8786; never changes the result  [this process].",
)


def calib_option(required: bool = True) -> Callable[[F], F]:
    """--calib, which most commands need."""
    return grouped(DATA, "--calib", required=required, type=click.Path(readable=False), help=CALIB)


def output_options(
    verbose: str = "", *, json: str = "Print JSON instead of text.", quiet: bool = True
) -> Callable[[F], F]:
    """What a command prints, and where. verbose: what -v adds to the result. json: what --json does. quiet: whether
    there is something to be quiet about."""
    silence = grouped(OUTPUT, "--quiet", "-q", is_flag=True, help="Print no progress and no summary of the run.")
    return options(
        grouped(OUTPUT, "--json", "as_json", is_flag=True, help=json),
        *((silence,) if quiet else ()),
        grouped(
            OUTPUT,
            "--verbose",
            "-v",
            is_flag=True,
            help=f"{verbose} Log each step and decision on standard error.".lstrip(),
        ),
        grouped(
            OUTPUT,
            "--log-format",
            type=click.Choice(FORMATS),
            default="text",
            is_eager=True,
            expose_value=False,
            callback=keep_format,
            help="json: all of standard error is JSON, an object a line: steps, progress (step, layer, percentage),"
            " warnings, the result, errors  [text].",
        ),
    )


# --- from parsed options to records -------------------------------------------------------------------------------


def parse(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments `options`, `preprocess` and `input_keys` of the Python API, which are taken out of parsed options;
    what is left has the names of a function's own arguments."""
    keys = take_input_keys(given)
    preprocess = Preprocess(**take(given, Preprocess))
    return {"options": parse_options(given), "preprocess": preprocess, "input_keys": keys}


def take_input_keys(given: dict[str, Any]) -> dict[str, str]:
    """Input name -> key in .npz files, taken out of parsed options."""
    keys = {}
    for pair in given.pop("input_keys"):
        name, equals, key = pair.partition("=")
        if not (name and equals and key):
            raise UsageError(f"`input_keys` {pair!r} is not of the form INPUT=KEY")
        keys[name] = key
    return keys


def parse_options(given: dict[str, Any]) -> Options:
    """The part that says how to quantize, with the overrides of the configuration file."""
    return Options(**take(given, Options), overrides=overrides_of(click.get_current_context()))


def take(given: dict[str, Any], cls: type) -> dict[str, Any]:
    """The fields of a class among parsed options, taken out of them; what is not given keeps its default."""
    found = {}
    for each in options_of(cls):
        off = given.pop(f"no_{each.name}", False)
        if each.name in given:
            value = given.pop(each.name)
            if value is not None or each.optional:
                found[each.name] = "off" if off else value
    return found


def take_toolchain(given: dict[str, Any]) -> ToolchainOptions | None:
    """How the tool-chain is run, taken out of parsed options; None where it is not."""
    wanted = given.pop("toolchain")
    how = ToolchainOptions(**take(given, ToolchainOptions))
    if not wanted and how != ToolchainOptions():
        idle = next(each.name for each in options_of(ToolchainOptions) if getattr(how, each.name) != each.default)
        raise UsageError(f"`{idle}` goes with `toolchain`: give that, too, or leave it out")
    return how if wanted else None


def refuse_overwriting(option: str, written: str | None, *others: str | None) -> None:
    """A file that is written must be none of the others."""
    for path in others:
        if written is not None and path is not None and Path(written).resolve() == Path(path).resolve():
            raise OutputError(f"{option} {written}: this is {path} itself; choose another name")
