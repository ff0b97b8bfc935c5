"""Runs the notebooks of docs/paper/ and writes their pages: `python docs/make_notebooks.py [NAME...]`.

A notebook is a Python file whose cells begin with `# %%` (code) or `# %% [markdown]` (text, behind `# `), the form that
editors and Jupyter (by jupytext) open. Its page, NAME.md, shows each cell with what it printed and what its last
expression is: a picture (`_repr_svg_`, images/NAME-N.svg), Markdown (`_repr_markdown_`), or its repr. Pages need no
notebook server to be read, and tests run the notebooks and hold the pages current.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "paper"

NEEDS_TORCH = ("training",)
"""Notebooks that are run only where PyTorch is."""

CELL = re.compile(r"^# %%(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """text: Markdown, or Python."""

    is_code: bool
    text: str


@dataclass(frozen=True)
class Output:
    """What a cell of code printed, and its last expression's picture or Markdown."""

    printed: str = ""
    picture: str = ""
    markdown: str = ""


def notebooks() -> list[str]:
    """The names of all notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if CELL.search(path.read_text(encoding="utf-8")))


def cells(name: str) -> list[Cell]:
    """The cells of a notebook, in order."""
    parts = CELL.split((FOLDER / f"{name}.py").read_text(encoding="utf-8"))[1:]
    found = []
    for mark, body in zip(parts[::2], parts[1::2], strict=True):
        is_code = "[markdown]" not in mark
        text = body.strip() if is_code else re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
        found.append(Cell(is_code, text))
    return found


@contextlib.contextmanager
def _in_folder() -> Iterator[None]:
    """The folder of notebooks as the current one, from which they import, as a notebook server has it."""
    before, paths = Path.cwd(), list(sys.path)
    os.chdir(FOLDER)
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = paths


def run(name: str) -> list[Output]:
    """Run the cells of a notebook in one namespace; what each of them shows, nothing for text."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with _in_folder():
        return [_run(cell, f"{name}.py", namespace) if cell.is_code else Output() for cell in cells(name)]


def _run(cell: Cell, name: str, namespace: dict[str, Any]) -> Output:
    body = ast.parse(cell.text, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    if hasattr(value, "_repr_svg_"):
        return Output(printed.getvalue(), picture=value._repr_svg_())
    if hasattr(value, "_repr_markdown_"):
        return Output(printed.getvalue(), markdown=value._repr_markdown_())
    return Output(printed.getvalue() + ("" if value is None else f"{value!r}\n"))


def page(name: str, outputs: list[Output]) -> tuple[str, dict[str, str]]:
    """The page of a notebook, and its pictures by file name."""
    lines, pictures = [], {}
    for cell, output in zip(cells(name), outputs, strict=True):
        if not cell.is_code:
            lines += [cell.text, ""]
            continue
        lines += ["```python", cell.text, "```", ""]
        if output.printed:
            lines += ["```text", output.printed.rstrip(), "```", ""]
        if output.markdown:
            lines += [output.markdown, ""]
        if output.picture:
            file = f"{name}-{len(pictures) + 1}.svg"
            pictures[file] = output.picture
            label = re.search(r'aria-label="([^"]*)"', output.picture)
            lines += [f"![{label[1] if label else ''}](images/{file})", ""]
    mark = f"<!-- not run: made from docs/paper/{name}.py by docs/make_notebooks.py -->"
    text = "\n".join(lines).replace("```python\n", f"{mark}\n```python\n")
    return text, pictures


def write(name: str) -> None:
    """Run a notebook and write its page and pictures."""
    text, pictures = page(name, run(name))
    (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")
    (FOLDER / "images").mkdir(exist_ok=True)
    for old in (FOLDER / "images").glob(f"{name}-*.svg"):
        old.unlink()
    for file, picture in pictures.items():
        (FOLDER / "images" / file).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    for each in sys.argv[1:] or notebooks():
        print(each, flush=True)
        write(each)
