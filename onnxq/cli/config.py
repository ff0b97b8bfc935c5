"""Configuration files in TOML: any option of a command by name, and overrides, which only files can hold.

A file serves all commands: keys that only another command has are passed over. `read_config` reads one for `--config`,
`config_text` writes one for `--write-config`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import click

from ..errors import UsageError
from ..options import Options, Override
from ..schema import toml, toml_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_OVERRIDES = "onnxq.overrides"

RUN_ONLY = ("batch_size", "threads", "provider", "max_memory", "checkpoint")
"""Options that do not change the result, and are not written."""


def read_config(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Make the values of a TOML file the defaults of this command: the command line wins over the file."""
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or UnicodeDecodeError
        raise click.UsageError(f"--config {path}: not valid TOML: {error}") from None
    ctx.meta[_OVERRIDES] = _overrides(table.pop("override", []), f"--config {path}")
    preprocess = table.pop("preprocess", {})
    if not isinstance(preprocess, dict):
        raise click.UsageError(f"--config {path}: 'preprocess' must be a table, [preprocess]")
    known = _long_names(ctx.command)
    elsewhere = _names_of_other_commands(ctx)
    defaults = {}
    for key, value in (table | preprocess).items():
        name = key.replace("_", "-")
        if name not in known and name in elsewhere:
            continue
        if name not in known:
            close = difflib.get_close_matches(name, [*known, *elsewhere], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"--config {path}: unknown key {key!r}{hint}")
        option, negated = known[name]
        assert option.name is not None
        defaults[option.name] = _as_typed(option, negated, value, f"--config {path}: {key!r}")
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _long_names(command: click.Command) -> dict[str, tuple[click.Option, bool]]:
    """Names of long options without dashes -> option, and whether the name switches it off."""
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in ("config", "help")]
    return {
        name[2:]: (option, negated)
        for option in options
        for negated, names in ((False, option.opts), (True, option.secondary_opts))
        for name in names
        if name.startswith("--")
    }


def _names_of_other_commands(ctx: click.Context) -> set[str]:
    group = ctx.parent.command if ctx.parent is not None else None
    commands = group.commands.values() if isinstance(group, click.Group) else ()
    return {name for command in commands for name in _long_names(command)}


def overrides_of(ctx: click.Context) -> tuple[Override, ...]:
    """What the configuration file said about single tensors."""
    found: tuple[Override, ...] = ctx.meta.get(_OVERRIDES, ())
    return found


def _overrides(tables: Any, where: str) -> tuple[Override, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise click.UsageError(f"{where}: overrides must be written as tables, [[override]]")
    found = []
    for table in tables:
        fields: Any = {key.replace("-", "_"): tuple(v) if isinstance(v, list) else v for key, v in table.items()}
        try:
            found.append(Override(**fields))
        except TypeError:
            known = ", ".join(Override.__dataclass_fields__)
            raise click.UsageError(f"{where}: [[override]] {dict(table)}: expected keys among {known}") from None
        except UsageError as error:
            raise click.UsageError(f"{where}: {error}") from None
    return tuple(found)


def _as_typed(option: click.Option, negated: bool, value: Any, where: str) -> Any:
    """A TOML value as it would stand on the command line, so that it is parsed and refused alike."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{where} must be true or false, got {value!r}")
        return value != negated
    if option.multiple and isinstance(value, dict):  # of input names
        value = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in value.items()]
    values = value if isinstance(value, list) else [value]
    if isinstance(value, dict) or any(isinstance(v, (dict, list, bool)) for v in values):
        raise click.UsageError(f"{where} cannot be {value!r}")
    texts = [str(v) for v in values]
    return texts if option.multiple or isinstance(value, list) else texts[0]


def config_text(command: click.Command, given: Mapping[str, Any], options: Options, comment: str) -> str:
    """A TOML file that makes `command` quantize with `options`; what only says how to run is left out.

    given: the options of a command line, of which those for data and images are written as they are. comment: for
    people.
    """
    chosen = {f.name: getattr(options, f.name) for f in fields(Options)}
    values = {name: chosen.get(name, value) for name, value in given.items() if name not in RUN_ONLY}
    lines = [f"# {line}" for line in comment.splitlines()]
    defaults = command.make_context(command.name, ["model", "output"]).params
    for option in command.params:
        if not isinstance(option, click.Option) or option.name not in values or _is_short(option.name, chosen):
            continue
        value = values[option.name]
        if value is not None and value != defaults[option.name]:
            lines.append(f"{_long_name(option)} = {toml(value)}")
    for override in options.overrides:
        lines += ["", toml_table("override", override)]
    return "\n".join(lines) + "\n"


def _is_short(name: str, chosen: Mapping[str, Any]) -> bool:
    """Whether it is a flag like --no-cle, which says what another option says, too."""
    return name.startswith("no_") and name.removeprefix("no_") in chosen


def _long_name(option: click.Option) -> str:
    return next(name for name in option.opts if name.startswith("--")).removeprefix("--")
