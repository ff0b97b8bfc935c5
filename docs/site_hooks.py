"""What the site (mkdocs.yml) is made of beside docs/: README, the tables of bench/results, and the reference.

Pages outside docs/ get an address in the site (`ELSEWHERE`); links between pages, which are relative to files of the
repository so that they work there, too, lead to the same page of the site. Links to files that are no pages, such as
sources, become their names. The reference is written from the code by docs/make_reference.py. Tables of bench/results/
that mkdocs.yml does not name stand at the end of its section on benchmarks.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from make_reference import api_page, cli_page

ROOT = Path(__file__).resolve().parents[1]

ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "models/README.md": "project/models.md",
    **{f"bench/results/{path.name}": f"results/{path.name}" for path in (ROOT / "bench" / "results").glob("*.md")},
}
"""Pages outside docs/: file of the repository -> page of the site."""

REFERENCE = {"reference/cli.md": cli_page, "reference/api.md": api_page}
"""Pages made from the code."""

BENCHMARKS = "Reliability and benchmarks"
"""The section of the navigation that has the tables of bench/results/."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Put tables that the navigation does not name at the end of their section."""
    section = next(entry[BENCHMARKS] for entry in config.nav if BENCHMARKS in entry)
    named = {page for entry in section for page in entry.values()}
    found = sorted(page for page in ELSEWHERE.values() if page.startswith("results/"))
    section += [page for page in found if page not in named]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, make in REFERENCE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links between files of the repository links between pages of the site."""
    sources = {there: here for here, there in ELSEWHERE.items()}
    uri = page.file.src_uri
    source = sources.get(uri, f"docs/{uri}")
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _linked(part, source, uri, files) for part in parts)


def _linked(text: str, source: str, uri: str, files: Files) -> str:
    def link(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = ELSEWHERE.get(there, there.removeprefix("docs/"))
        if files.get_file_from_path(page) is None:
            return words if (ROOT / there).exists() else match[0]
        relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        return f"{image}[{words}]({relative}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)
