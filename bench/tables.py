"""What all benchmarks share: their command line's head, lines of Markdown, and where the lines go."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path


def head(*cells: str) -> Iterator[str]:
    """First two lines of a table."""
    yield line(*cells)
    yield "|---|" + "--:|" * (len(cells) - 1)


def line(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def heading(title: str, command: str, text: str, machine: str = "") -> Iterator[str]:
    """What the tables show, by which command and where they were made. machine: more about it."""
    yield f"# {title}\n"
    yield f"Written by `{command}`; do not edit.\n"
    yield f"{made_with(machine)}.\n"
    yield text


def made_with(machine: str = "") -> str:
    """Versions, and the machine."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxq", "onnxruntime", "onnx", "numpy"))
    return f"{packages}, Python {platform.python_version()}, {machine and f'{machine}, '}{os.cpu_count()} cores"


def parser(doc: str, known: Collection[str], default: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A benchmark's command line: models, and a file for the tables. doc: its module's; default: all models."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    models = f"of {', '.join(known)} [{', '.join(default) or 'all'}]"
    made.add_argument("models", nargs="*", metavar="MODEL", help=models)
    made.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    return made


def parsed(made: argparse.ArgumentParser, known: Collection[str]) -> argparse.Namespace:
    """The command line; ends the program where it names an unknown model."""
    args = made.parse_args()
    if unknown := set(args.models) - set(known):
        made.error(f"unknown model {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return args


def show(parts: Iterable[Iterable[str]], markdown: Path | None, by_line: bool = False) -> None:
    """Print every line as soon as it is there, an empty one behind each part; the file, if any,
    has what is complete: parts, or lines where they take long."""
    lines: list[str] = []
    for part in parts:
        for text in chain(part, [""]):
            print(text, flush=True)
            lines.append(text)
            if markdown and by_line:
                markdown.write_text("\n".join([*lines, ""]), encoding="utf-8")
        if markdown:
            markdown.write_text("\n".join(lines), encoding="utf-8")
