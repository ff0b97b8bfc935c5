"""Options as Python names them, and as the command line does."""

from __future__ import annotations

import re

import click

from ..data import Preprocess
from ..options import Options
from ..schema import options_of
from ..toolchains import ToolchainOptions

_ARGUMENTS = {
    "calibration": "--calib",
    "candidates": "--auto-mixed",
    "drop": "--target-drop",
    "bops": "--max-bops",
    "size": "--max-size",
    "evaluation": "--eval",
    "statistics": "--stats",
}
"""Arguments of functions whose flags have other names."""


def as_flags(text: str, flags: dict[str, str]) -> str:
    """Text that names options as Python does, in backquotes, with the command line's flags instead."""
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)


def flags_of(command: click.Command) -> dict[str, str]:
    """Names in Python -> flags, of all options of a command, and of those of the shared classes."""
    shared = {
        each.name: f"--{each.long_name}" for cls in (Options, Preprocess, ToolchainOptions) for each in options_of(cls)
    }
    own = {
        str(p.name): next((name for name in p.opts if name.startswith("--")), p.opts[0])
        for p in command.params
        if isinstance(p, click.Option)
    }
    return _ARGUMENTS | shared | own
