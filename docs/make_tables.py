"""Writes the pages of docs/ that are made from the code: `python docs/make_tables.py`. A test holds them current."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from onnxq import thresholds as thresholds_module

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


PAGES = {"thresholds.md": thresholds_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
