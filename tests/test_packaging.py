"""The wheel and the source distribution work from their files alone, the latter with its own tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
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


def built(kind: str, source: Path) -> Path:
    """The file that the build backend makes of a tree: kind is `wheel` or `sdist`."""
    pytest.importorskip("setuptools", minversion="77")  # the first that reads the licence in pyproject.toml
    build = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    (source / "dist").mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


def run(arguments: list[str], folder: Path, packages: Path) -> str:
    """A Python command in a folder, with the packages of another one in front of all others."""
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, as a fresh clone has it."""
    if not (ROOT / "MANIFEST.in").exists():
        pytest.skip("this is no source tree")
    copy = tmp_path_factory.mktemp("tree") / "onnxq"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    return Path(shutil.copytree(ROOT, copy, ignore=ignored))


def test_the_wheel_quantizes_outside_of_the_repository(tree: Path, tmp_path: Path) -> None:
    packages, folder = tmp_path / "packages", tmp_path / "elsewhere"
    with zipfile.ZipFile(built("wheel", tree)) as wheel:
        wheel.extractall(packages)
    shutil.copytree(ROOT / "models" / "resnet_digits", folder)
    (scripts,) = packages.glob("onnxq-*.dist-info/entry_points.txt")
    assert "onnxq = onnxq.cli:main" in scripts.read_text()
    where = run(["-c", "import onnxq; print(onnxq.__file__, onnxq.__version__)"], folder, packages)
    assert where.startswith(str(packages))
    run(
        ["-m", "onnxq", "quantize", "model.onnx", "int8.onnx", "--calib", "calib", "--effort", "fast"], folder, packages
    )
    assert (folder / "int8.onnx").stat().st_size < 0.4 * (folder / "model.onnx").stat().st_size


def test_the_source_distribution_builds_and_runs_its_tests(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tree)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    with zipfile.ZipFile(built("wheel", source)) as wheel:
        modules = {name for name in wheel.namelist() if name.endswith(".py")}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "onnxq").rglob("*.py")} <= modules
    tests = ["tests/test_docs_links.py", "tests/test_quant.py"]
    assert " passed" in run(["-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", *tests], source, source)


def test_an_editable_install_is_found_from_the_parent_of_the_clone(tree: Path, tmp_path: Path) -> None:
    """There the clone's folder, which is called as the package is, would be a namespace package with nothing in it."""
    with zipfile.ZipFile(built("editable", tree)) as wheel:
        wheel.extractall(tmp_path)
    find = "import importlib.util, site, sys; site.addsitedir(sys.argv[1]); sys.path.insert(0, '')"
    find += "; print(importlib.util.find_spec('onnxq').origin)"
    for folder in (tree.parent, tree, tree / "onnxq"):
        command = [sys.executable, "-E", "-S", "-c", find, str(tmp_path)]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        assert Path(found).resolve() == tree / "onnxq" / "__init__.py", folder
