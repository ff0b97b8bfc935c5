"""Runs the commands that README and the pages of docs/ show: `python docs/run_blocks.py [--write] [PAGE...]`.

The fenced blocks of a page run from top to bottom in one scratch folder, so that a later one may read what an earlier
one wrote. The language of a block says how:

    ```sh        by bash; every command must succeed
    ```python    in one namespace for the whole page
    ```text      directly behind one of these: what it prints. A line `...` stands for any number of lines.

A comment in front of a block changes that:

    <!-- not run: why -->    it is only read: python must compile, lines of `onnxq` must have options that exist
    <!-- without: NAME -->   lines of this program, a vendor's, are left out
    <!-- exit code: N -->    the last command ends with this code, and what it writes on standard error is shown

The scratch folder holds what docs/prepare.py puts there: a model, images to calibrate and to judge on, labels.

What is shown and what is printed are the same where their words are, and their numbers nearly: other processors, and
other versions of ONNX Runtime, round otherwise. Times are not compared. `--write` puts what was printed into the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prepare import prepare

from onnxq import cli

ROOT = Path(__file__).resolve().parents[1]

FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)

COMMENT = re.compile(r"<!-- (not run|without|exit code): ([^\n]*?) -->\s*\Z")

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

MEASURED = re.compile(r"(latency|slower than float): |next: Integers are no faster")
"""Lines that depend on the machine and on what else it does: they are shown where it was idle, and not compared."""

TIME = re.compile(r"\d+(?:\.\d+)? (?:s|ms|min|seconds|minutes)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; start, end: where its text lies there; shown: the output that the page shows of it."""

    page: Path
    line: int
    language: str
    text: str
    start: int
    end: int
    not_run: str = ""
    without: str = ""
    exit_code: int = 0
    shown: Block | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """The pages with commands for users."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in found if blocks(page))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that run, in order, each with the output that is shown behind it."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    last_end = -1
    for match in FENCE.finditer(text):
        indent, language, body = match[1], match[2].strip(), match[3]
        body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        block = Block(page, text.count("\n", 0, match.start()) + 1, language, body, match.start(3), match.end(3))
        if language == "text" and found and not text[last_end : match.start()].strip():
            found[-1] = replace(found[-1], shown=block)
        elif language in ("sh", "python"):
            found.append(_with_comment(block, text[: match.start()]))
            last_end = match.end()
    return found


def _with_comment(block: Block, before: str) -> Block:
    comment = COMMENT.search(before)
    if comment is None:
        return block
    if comment[1] == "exit code":
        return replace(block, exit_code=int(comment[2]))
    return replace(block, not_run=comment[2]) if comment[1] == "not run" else replace(block, without=comment[2])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder with what a user would have, as the current one."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="onnxq-docs-") as place:
        folder = Path(place)
        prepare(folder)
        (folder / "bin").mkdir()
        command = folder / "bin" / "onnxq"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m onnxq "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        known, paths = set(sys.modules), list(sys.path)
        try:
            os.chdir(folder)
            yield folder
        finally:
            os.chdir(before)
            sys.path[:] = paths
            for name in set(sys.modules) - known:  # what a page imported from here would be found by another one
                if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                    del sys.modules[name]


def run(block: Block, namespace: dict[str, Any]) -> str:
    """What a block prints, run in the current folder. Raises AssertionError where it fails."""
    if block.language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, str(block), "exec"), namespace)
        return printed.getvalue()
    text = block.text
    if block.without:
        text = re.sub(rf"^{re.escape(block.without)}\b.*\n", "", text, flags=re.MULTILINE)
        assert text != block.text, f"{block}: no line of {block.without}"
    paths = {"PATH": f"{Path.cwd() / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **paths, "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = f"{block}: exit code {done.returncode}, expected {block.exit_code}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == block.exit_code, said
    return done.stdout if block.exit_code == 0 else done.stdout + done.stderr


def read(block: Block) -> None:
    """Check what is not run: python compiles, and each line of `onnxq` names a command and options that exist."""
    if block.language == "python":
        compile(block.text, str(block), "exec")
        return
    for words in commands(block.text):
        if words[0] == "onnxq" and len(words) > 1 and not words[1].startswith("-"):
            command = next((c for c in cli.COMMANDS if c.name == words[1]), None)
            assert command is not None, f"{block}: no command {words[1]}"
            known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"-h", "--help"}
            given = {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
            assert given <= known, f"{block}: onnxq {words[1]} has no {', '.join(sorted(given - known))}"


def commands(text: str) -> list[list[str]]:
    """The commands of a block of sh, each as its words."""
    joined = text.replace("\\\n", " ")
    lines = (part for line in joined.splitlines() for part in re.split(r"&&|\||;", line))
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def difference(shown: str, printed: str) -> str:
    """What the page shows and the command did not print: the first such line; empty: none."""
    lines, at = [line for line in printed.splitlines() if not MEASURED.match(line)], 0
    anywhere = False
    for line in shown.splitlines():
        if MEASURED.match(line):
            continue
        if line.strip() == "...":
            anywhere = True
            continue
        last = len(lines) if anywhere else at + 1
        found = next((n for n in range(at, min(last, len(lines))) if same(line, lines[n])), None)
        if found is None:
            return f"shown:   {line}\nprinted: " + "\n         ".join(lines[at : at + 12])
        at, anywhere = found + 1, False
    rest = [] if anywhere else [line for line in lines[at:] if line.strip()]
    return f"printed and not shown: {rest[0]}" if rest else ""


def same(shown: str, printed: str) -> bool:
    """Two lines with the same words, and numbers that differ by a quarter or by 2 at most; times by anything."""
    shown, printed = (TIME.sub("T", line) for line in (shown, printed))
    if _words(shown) != _words(printed):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= max(2.0, 0.25 * abs(float(a))) for a, b in pairs)


def _words(line: str) -> str:
    return " ".join(NUMBER.sub("N", line).split())


def renewed(shown: str, printed: str) -> str:
    """What the page is to show: all that was printed, or, of a text with lines `...`, the shown lines, renewed.

    What is the same but for chance and times stays as it is.
    """
    if shown.strip() and not difference(shown, printed):
        return shown
    printed = "\n".join(line for line in printed.splitlines() if "too busy to tell" not in line)
    if not any(line.strip() == "..." for line in shown.splitlines()):
        return printed.rstrip() + "\n"
    lines, at, new = printed.splitlines(), 0, []
    for line in shown.splitlines():
        alike = (n for n in range(at, len(lines)) if _words(TIME.sub("T", lines[n])) == _words(TIME.sub("T", line)))
        found = None if line.strip() == "..." else next(alike, None)
        new.append(line if found is None else lines[found])
        at = at if found is None else found + 1
    return "\n".join(new) + "\n"


def run_page(page: Path, *, write: bool = False) -> list[str]:
    """Run a page's blocks. Returns what is wrong with the outputs that it shows; write: puts the new ones there."""
    wrong, changes = [], []
    before = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with scratch():
        for block in blocks(page):
            if block.not_run:
                read(block)
                continue
            printed = run(block, namespace)
            if block.shown is None:
                continue
            if said := difference(block.shown.text, printed):
                wrong.append(f"{block.shown}\n{said}")
            changes.append((block.shown, renewed(block.shown.text, printed)))
    if write:
        text = page.read_text(encoding="utf-8")
        if text != before:
            raise SystemExit(f"{page} was edited while its commands ran: run them again")
        for shown, new in reversed(changes):
            text = text[: shown.start] + new + text[shown.end :]
        page.write_text(text, encoding="utf-8")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pages named, or all."""
    parser = argparse.ArgumentParser(description="Run the commands that the documentation shows.")
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE")
    parser.add_argument("--write", action="store_true", help="put what the commands print into the pages")
    given = parser.parse_args(arguments)
    failed = 0
    for page in [page.resolve() for page in given.pages] or pages():
        print(page.relative_to(ROOT), flush=True)
        for said in run_page(page, write=given.write):
            failed += 1
            print(said)
    return 0 if given.write else min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
