"""Writes the pages of docs/ that are made from the code: `python docs/make_tables.py`. A test holds them current."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from onnxq import Options, Override, Preprocess, ToolchainOptions, cli
from onnxq import thresholds as thresholds_module
from onnxq.qat.recipe import Recipe
from onnxq.schema import Option, options_of

DOCS = Path(__file__).parent


@dataclass(frozen=True)
class Threshold:
    """One constant of `onnxq.thresholds`; value as it is written there. section: the comment above its group."""

    name: str
    value: str
    meaning: str
    source: str
    option: str
    section: str


def thresholds() -> list[Threshold]:
    """The constants in the file's order, with their docstrings taken apart."""
    text = inspect.getsource(thresholds_module)
    sections = {number: match[1] for number, line in enumerate(text.splitlines(), 1) if (match := _section(line))}
    found, body = [], ast.parse(text).body
    for statement, following in pairwise(body):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            assert isinstance(following, ast.Expr), "each constant has a docstring"
            meaning, source, option = _parts(" ".join(ast.literal_eval(following.value).split()))
            section = sections[max(number for number in sections if number < statement.lineno)]
            name, value = statement.targets[0].id, ast.unparse(statement.value).removeprefix("math.")
            found.append(Threshold(name, value, meaning, source, option, section))
    return found


def _section(line: str) -> re.Match[str] | None:
    return re.match(r"# --- (.+?) -+$", line)


def _parts(words: str) -> tuple[str, str, str]:
    words, _, option = words.partition(" Option: ")
    parts = re.split(r" (?=(?:Measured|By definition|Chosen): )", words, maxsplit=1)
    return parts[0], parts[1] if len(parts) > 1 else "", option.rstrip(".")


def thresholds_page() -> str:
    """docs/thresholds.md."""
    lines = [
        "# Thresholds",
        "",
        "Every dB, count and share that decides something. This page is made from `onnxq/thresholds.py` by",
        "`python docs/make_tables.py`; the last column names the option that sets it, where there is one.",
    ]
    section = ""
    for each in thresholds():
        if each.section != section:
            section = each.section
            lines += ["", f"## {section[0].upper()}{section[1:]}", ""]
            lines += ["| Name | Value | Meaning | Source | Option |", "|---|---:|---|---|---|"]
        option = f"`{each.option}`" if each.option else ""
        lines.append(f"| `{each.name}` | {each.value} | {each.meaning} | {each.source} | {option} |")
    return "\n".join(lines) + "\n"


CLASSES = {
    Options: "How to quantize: `onnxq.Options`, or keywords of `onnxq.quantize` and its like",
    Preprocess: "How images become inputs: `onnxq.Preprocess`; in TOML also in a table `[preprocess]`",
    ToolchainOptions: "How a vendor's tool-chain is run, with `--toolchain`: `onnxq.ToolchainOptions`",
    Recipe: "How to train: `onnxq.qat.Recipe`",
    Override: "Exceptions for single tensors: `onnxq.Override`; in TOML tables `[[override]]`",
}


def options_page() -> str:
    """docs/options.md."""
    lines = [
        "# Options",
        "",
        "Every option that says how to quantize, to read images or to train. This page is made from the schema in",
        "`onnxq/options.py`, `onnxq/data/images.py` and `onnxq/qat/recipe.py` by `python docs/make_tables.py`. In",
        "Python an option is a field; on the command line it has the flag in the second column, whose name without",
        "dashes is its key in the file of `--config`. `onnxq COMMAND --help-all` lists those of a command alone, too.",
    ]
    for cls, title in CLASSES.items():
        lines += ["", f"## {title}"]
        groups: dict[str, list[Option]] = {}
        for each in options_of(cls):
            groups.setdefault(each.group, []).append(each)
        for group, members in groups.items():
            if cls is not Override:
                commands = ", ".join(f"`{name}`" for name in _commands(members))
                lines += ["", f"### {group}", "", f"Taken by {commands}."]
            lines += ["", "| Option | Flag | Values | Default | Meaning |", "|---|---|---|---|---|"]
            lines += [_row(each, cls is not Override) for each in members]
    return "\n".join(lines) + "\n"


def _row(option: Option, on_command_line: bool) -> str:
    flags = _flags(option) if on_command_line else ""
    cells = [f"`{option.name}`", flags, _values(option), option.default_text, option.help]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flags(option: Option) -> str:
    names = [f"--{option.long_name}"]
    if option.kind == "flag" and option.default:
        names.append(f"--{option.opposite or f'no-{option.long_name}'}")
    if "off" in option.choices and option.default != "off":
        names.append(f"--no-{option.long_name}")
    return ", ".join(f"`{name}`" for name in names)


def _values(option: Option) -> str:
    """What a value is: its kind, bounds and unit; empty for a flag."""
    kinds = {"flag": "", "whole": "whole number", "number": "number", "texts": "texts", "text": "text", "other": ""}
    kind = option.path or (kinds[option.kind] if option.kind in ("whole", "number") else option.metavar)
    kind = "" if option.choices else kind or kinds[option.kind]
    return " ".join(word for word in (kind, option.bounds_text, option.unit) if word)


def _commands(options: list[Option]) -> list[str]:
    """Names of the commands that have all of these options."""
    flags = {f"--{each.long_name}" for each in options}
    return [str(c.name) for c in cli.COMMANDS if flags <= {name for p in c.params for name in p.opts}]


PAGES: dict[str, Callable[[], str]] = {"options.md": options_page, "thresholds.md": thresholds_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
