"""The source distribution holds what its own tests need: helper modules, models and pages."""

from __future__ import annotations

from pathlib import Path

import pytest

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
