"""Every relative link of the documentation leads to a file, and every anchor to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PAGES = sorted([
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md")),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "bench" / "results").glob("*.md"),
])  # fmt: skip

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

PATH = re.compile(r"`((?:onnxq|bench|docs|tests|models)/[\w./-]+\.(?:py|md|toml))`")
"""A file of the repository that a page names without a link."""


def without_code(text: str) -> str:
    """A page without its fenced blocks and indented ones, where brackets are no links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere, and files that it names and that do not exist."""
    text = without_code(page.read_text(encoding="utf-8"))
    found = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found + [name for name in PATH.findall(text) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](#a-heading) [b](#no-heading) [c](missing.md) [d](https://x.y) `onnxq/no.py`\n")
    assert broken(page) == ["#no-heading", "missing.md", "onnxq/no.py"]
