"""A command: its help in two lengths, arguments as people write them, and answers to what they get wrong.

`--help` shows the options that most people need, under their headings, with an example for each heading; `--help-all`
shows all. An option that another tool has, an argument too many or too few: the message says how to write it, and ends
in the command line that would do.
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Any

import click

from ..other_tools import EXPLAINED, RENAMED, key_of
from .examples import LOOKS
from .flags import as_flags, flags_of
from .progress import show_log, watch_format
from .values import joined

EXIT_CODES = """\b
Exit codes: 0 done; 2 an option or configuration file makes no sense; 3 the model cannot
be read or quantized; 4 calibration data does not fit; 5 the result failed verification;
6 the output cannot be written; 7 ONNX Runtime or memory failed; 8 the cluster of
--scheduler failed; 70 a bug in onnxq; 130 Ctrl-C, 143 SIGTERM.
Unless the code is 0 no output is written, and an existing output file stays as it was."""

_ALL = "onnxq.help-all"
_ARGUMENTS = "onnxq.arguments"


class GroupedOption(click.Option):
    """An option under a heading of the help."""

    def __init__(self, *names: Any, group: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.group = group


def _normalized(token: str) -> str:
    """Of names of options and of values to choose from, so that case and underscores do not count."""
    return token if len(token) == 1 else token.lower().replace("_", "-")


class Command(click.Command):
    """A command of `onnxq`; `examples.LOOKS` says what its help shows."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        attributes.setdefault("context_settings", {})["token_normalize_func"] = _normalized
        super().__init__(*arguments, **attributes)
        look = LOOKS.get(self.name or "", {})
        self.usual: str = look.get("usual", "")
        self.common: tuple[str, ...] = look.get("common", ())
        self.examples: dict[str, str] = look.get("examples", {})

    # --- help ---------------------------------------------------------------------------------------------------------

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        found = super().get_params(ctx)
        option = click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_all,
            help="Show all options.",
        )
        return [*found[:-1], option, *found[-1:]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        everything = not self.common or ctx.meta.get(_ALL, False)
        groups: dict[str, list[tuple[str, str]]] = {}
        hidden = 0
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is None:
                continue
            if everything:
                groups.setdefault(getattr(parameter, "group", "Help"), []).append(record)
            elif parameter.name in self.common:
                groups.setdefault(getattr(parameter, "group", ""), []).append((record[0], _in_short(record[1])))
            elif parameter.name not in ("help", "help_all"):
                hidden += 1
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
                if self.examples.get(group):
                    formatter.write(f"  e.g. {self.examples[group]}\n")
        if hidden:
            formatter.write_paragraph()
            formatter.write_text(f"{hidden} more options: onnxq {self.name} --help-all")

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_usage(ctx, formatter)
        if self.usual:
            formatter.write(f"  e.g. onnxq {self.name} {self.usual}\n")

    # --- arguments ----------------------------------------------------------------------------------------------------

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = given = list(args)
        watch_format(ctx, given)
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, joined(given, self))
        except click.NoSuchOption as error:
            raise self._other_name(ctx, given, error) from None
        except click.MissingParameter as error:
            raise self._missing(ctx, given, error) from None
        if rest and not ctx.resilient_parsing:
            raise self._too_many(ctx, given, rest)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        show_log(ctx, verbose=ctx.params.get("verbose", False), quiet=ctx.params.get("quiet", False))
        return super().invoke(ctx)

    def _other_name(self, ctx: click.Context, given: list[str], error: click.NoSuchOption) -> click.UsageError:
        """The error for an option that is none of ours, with ours."""
        name, key = error.option_name, key_of(error.option_name)
        own = {option for p in self.params for option in p.opts}
        flags = flags_of(self) | {"calibration": "--data" if "--data" in own else "--calib"}
        flag = flags.get(RENAMED.get(key, ""), "")
        if flag in own:
            right = [_renamed(argument, name, flag) for argument in given]
            return _usage(ctx, f"No such option '{name}': it is {flag} here. {_write(self, right)}")
        if key in EXPLAINED:
            text = as_flags(EXPLAINED[key], flags).replace(", in Python `output`", "")
            right = _respelled(given) if "argument" in text or "widths" in text else _without(given, name)
            hint = (
                f" {_write(self, right)}"
                if right and not any(key_of(a.partition("=")[0]) == key for a in right)
                else ""
            )
            return _usage(ctx, f"No such option '{name}': {text}.{hint}")
        known = [option for p in self.params for option in (*p.opts, *p.secondary_opts) if option.startswith("--")]
        close = difflib.get_close_matches(name.lower().replace("_", "-"), known, 1)
        if not close:
            return _usage(ctx, f"No such option '{name}'; `onnxq {self.name} --help-all` lists them.")
        right = [_renamed(argument, name, close[0]) for argument in given]
        return _usage(ctx, f"No such option '{name}': did you mean {close[0]}? {_write(self, right)}")

    def _too_many(self, ctx: click.Context, given: list[str], rest: list[str]) -> click.UsageError:
        """The error for arguments behind the last; one behind the result is mostly the calibration data."""
        places = " ".join(p.make_metavar(ctx) for p in self.params if isinstance(p, click.Argument))
        text = f"Unexpected argument{'s' * (len(rest) > 1)} {' '.join(rest)}: {self.name} takes {places or 'none'}."
        own = {name for p in self.params for name in p.opts}
        wanted = ("--reference", "--output") if rest[0].endswith(".onnx") else ("--calib", "--data")
        data = next((flag for flag in wanted if flag in own), None)
        if len(rest) == 1 and data is not None and data not in given and given.count(rest[0]) == 1:
            at = given.index(rest[0])
            text += f" {_write(self, [*given[:at], data, *given[at:]])}"
        return _usage(ctx, text)

    def _missing(self, ctx: click.Context, given: list[str], error: click.MissingParameter) -> click.UsageError:
        """The error for an argument that is not there, with a command line that has it."""
        name = "" if error.param is None or error.param.name is None else error.param.name
        wanted = {"output": "", "calib": "--calib images/", "data": "--data images/", "target": "--target ort"}
        if name not in wanted or not self.usual:
            return error
        text = error.format_message().rstrip(".")
        first = next((a for a in given if a.endswith(".onnx")), None)
        if name == "output" and first is not None:
            output = f"{first.removesuffix('.onnx')}.int8.onnx" if self.name != "calibrate" else "statistics.npz"
            at = given.index(first) + 1
            return _usage(ctx, f"{text}. {_write(self, [*given[:at], output, *given[at:]])}")
        if isinstance(error.param, click.Option):
            return _usage(ctx, f"{text}. {_write(self, [*given, *wanted[name].split()])}")
        return error


def _in_short(help: str) -> str:
    """The first sentence, and the default behind it."""
    default = re.search(r"(\s+\[[^\]]*\])+$", help)
    first = help[: default.start()] if default else help
    return first.partition(". ")[0].rstrip(".") + "." + (default[0] if default else "")


def arguments_of(ctx: click.Context) -> list[str]:
    """What was typed behind the name of the command."""
    found: list[str] = ctx.meta.get(_ARGUMENTS, [])
    return found


def typed(ctx: click.Context) -> str:
    """The command line that runs, quoted for a shell."""
    return shlex.join(["onnxq", ctx.info_name or "", *arguments_of(ctx)])


def _show_all(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _usage(ctx: click.Context, text: str) -> click.UsageError:
    return click.UsageError(text, ctx)


def _write(command: click.Command, arguments: list[str]) -> str:
    return f"Write: {shlex.join(['onnxq', command.name or '', *arguments])}"


def _renamed(argument: str, name: str, flag: str) -> str:
    """The argument with the flag instead of the name, whichever way it was spelled."""
    head, equals, value = argument.partition("=")
    return f"{flag}{equals}{value}" if key_of(head) == key_of(name) and head.startswith("-") else argument


def _without(arguments: list[str], name: str) -> list[str]:
    """The command line without a flag that needs no other; empty where what stands behind it may be its value."""
    for index, argument in enumerate(arguments):
        if key_of(argument) == key_of(name) and argument.startswith("-"):
            rest = arguments[index + 1 :]
            return [*arguments[:index], *rest] if not rest or rest[0].startswith("-") else []
    return []


def _respelled(arguments: list[str]) -> list[str]:
    """The command line with models, results and widths, which other tools have options for, as ours has them; empty
    where a value is missing."""
    places: dict[str, str] = {}
    widths: dict[str, str] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        head, equals, value = left.pop(0).partition("=")
        key = key_of(head) if head.startswith("-") else ""
        kind = "model" if "first argument" in EXPLAINED.get(key, "") else ""
        kind = "output" if "second argument" in EXPLAINED.get(key, "") else kind
        if not kind and not EXPLAINED.get(key, "").startswith("widths"):
            rest.append(f"{head}{equals}{value}")
            continue
        if not equals:
            if not left or left[0].startswith("-"):
                return []
            value = left.pop(0)
        if kind:
            places[kind] = value
        elif (digits := re.search(r"\d+", value)) is not None:
            widths["a" if key.startswith(("a", "default_a", "default_o")) else "w"] = digits[0]
    positional = [
        a for i, a in enumerate(rest) if (a.endswith(".onnx") and not rest[i - 1].startswith("--")) or a == rest[0]
    ]
    models = [a for a in positional if a.endswith(".onnx")]
    others = [a for a in rest if a not in models]
    found = [places.get("model", ""), *models, places.get("output", "")]
    preset = [] if not widths else ["--preset", f"w{widths.get('w', '8')}a{widths.get('a', '8')}"]
    return [*filter(None, found), *others, *preset]
