"""The source distribution holds what its own tests need: helper modules, models and pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxq import cli

ROOT = Path(__file__).parents[1]

FOLDERS = ("bench", "docs", "models", "tests")
"""What tests import and read beside the package."""


@pytest.mark.skipif(not (ROOT / "MANIFEST.in").exists(), reason="MANIFEST.in is not here")
def test_folders_that_tests_read_are_in_the_source_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    egg_info = pytest.importorskip("setuptools.command.egg_info")
    monkeypatch.chdir(ROOT)
    manifest = egg_info.FileList()
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        if line and not line.startswith("#"):
            manifest.process_template_line(line)
    held = {Path(name).as_posix() for name in manifest.files}
    for folder in FOLDERS:
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        assert {path.relative_to(ROOT).as_posix() for path in files} <= held


@pytest.mark.skipif(not (ROOT / "action.yml").exists(), reason="action.yml is not here")
@pytest.mark.parametrize("file", ["action.yml", "Dockerfile", ".github/workflows/tests.yml"])
def test_files_of_other_tools_name_options_that_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    commands = {str(command.name): command for command in cli.COMMANDS}
    calls = re.findall(r"onnxq\"? (\w+)((?: [^|;&\n]*)?)", text)
    known = {name for command in commands.values() for p in command.params for name in p.opts}
    for name, rest in calls:
        if name in commands:
            assert set(re.findall(r"(?<= )--[a-z-]+", rest)) <= known
    if file == "action.yml":
        assert set(re.findall(r"\(--([a-z]+) ", text)) | {"target"} <= {n.removeprefix("--") for n in known}
    assert any(name in commands for name, _ in calls) or file == ".github/workflows/tests.yml"
