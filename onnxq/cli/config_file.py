"""`--write-config`: what a search chose, as a file for `--config`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import click

from ..options import Options, Override

_SHORT_FOR = ("no_cle", "no_bias_correction")
"""Flags that say what another option says, too."""

RUN_ONLY = ("batch_size", "threads", "max_memory", "checkpoint")
"""Options that do not change the result."""


def config_text(command: click.Command, given: Mapping[str, Any], options: Options, comment: str) -> str:
    """A TOML file that makes `command` quantize with `options`, apart from what is no matter of the result.

    given: the options of a command line, of which those for data and images are told as they are. comment: for people.
    """
    chosen = {f.name: getattr(options, f.name) for f in fields(Options)}
    values = {name: chosen.get(name, value) for name, value in given.items() if name not in RUN_ONLY}
    lines = [f"# {line}" for line in comment.splitlines()]
    defaults = command.make_context(command.name, ["model", "output"]).params
    for option in command.params:
        if not isinstance(option, click.Option) or option.name not in values or option.name in _SHORT_FOR:
            continue
        value = values[option.name]
        if value is not None and value != defaults[option.name]:
            lines.append(f"{_long_name(option)} = {_toml(value)}")
    for override in options.overrides:
        lines += ["", "[[override]]", *_override(override)]
    return "\n".join(lines) + "\n"


def _long_name(option: click.Option) -> str:
    return next(name for name in option.opts if name.startswith("--")).removeprefix("--")


def _override(override: Override) -> list[str]:
    values = {f.name: getattr(override, f.name) for f in fields(override) if getattr(override, f.name) != f.default}
    return [f"{name} = {_toml(value)}" for name, value in values.items()]


def _toml(value: Any) -> str:
    """A value of an option; strings as JSON writes them, which TOML reads, but for one character."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
