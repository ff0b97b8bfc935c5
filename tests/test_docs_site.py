"""The documentation site: it builds without a warning, its reference is complete, its pictures are current."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import onnxq
from onnxq import cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import make_figures  # noqa: E402
import make_reference  # noqa: E402


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: a page outside the navigation, a link or an anchor that leads nowhere, ends the build."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "reference/cli.html", "reference/api.html", "results/cost.html", "tutorials/cnn.html"):
        assert (tmp_path / page).exists()
    assert "https://" not in (tmp_path / "index.html").read_text().split("<body")[0]  # nothing is loaded from elsewhere


def test_every_command_and_option_is_in_the_reference() -> None:
    page = make_reference.cli_page()
    for command in cli.COMMANDS:
        assert f"## onnxq {command.name}\n" in page
        for parameter in command.params:
            assert all(name in page for name in parameter.opts if name.startswith("--"))


def test_every_public_name_is_in_the_reference() -> None:
    page = make_reference.api_page()
    modules = {"operators", "qat"}
    for name in set(onnxq.__all__) - {"__version__", "TARGETS", "OnnxqError"} - modules:
        assert f"### onnxq.{name}\n" in page
    for name in ("onnxq.qat.train", "onnxq.qat.prepare", "onnxq.qat.finish", "onnxq.operators.register"):
        assert f"### {name}\n" in page
    assert "`onnxq.errors.VerificationError` | 5 |" in page


def test_entries_of_a_docstring_become_a_list() -> None:
    doc = "What it does.\n\none, two: numbers\n    that are given. three: another. Raises an error.\nelse: text"
    lines = list(filter(None, make_reference._text(doc, ["one", "two", "three"])))
    assert lines[:3] == ["What it does.", "- `one`, `two`: numbers that are given.", "- `three`: another."]
    assert lines[3:] == ["Raises an error. else: text"]


@pytest.mark.parametrize("name", make_figures.FIGURES)
def test_pictures_are_current(name: str) -> None:
    drawn = make_figures.FIGURES[name]()._repr_svg_()
    assert (make_figures.IMAGES / name).read_text(encoding="utf-8") == drawn, "python docs/make_figures.py"
