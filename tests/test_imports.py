"""Imports run downward only, as the design draws them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import onnxq

ROOT = Path(onnxq.__file__).parent

DESIGN = Path(__file__).parents[1] / "docs" / "design.md"

LEVELS = [
    {"errors", "thresholds"},
    {"schema", "other_tools"},
    {"numeric", "report"},
    {"operators"},
    {"graph"},
    {"data", "encodings", "rounding", "targets"},
    {"execution", "checking"},
    {"calibration", "toolchains"},
    {"options"},
    {"settings"},
    {"passes"},
    {"pipeline"},
    {"evaluation"},
    {"debugging"},
    {"qat"},
    {"api"},
    {"cli"},
]
"""A module imports from lower levels and from its own package; never sideways."""

LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))}


ADAPTERS = {m for m in MODULES if m.startswith("toolchains.adapters.")}
"""Scripts that run in processes of their own, under any interpreter that has a vendor's package."""


def imported(module: str) -> set[str]:
    """Absolute names of what a module imports, anywhere in it, relative ones resolved: `onnxq.graph.model`."""
    package = ["onnxq", *module.split(".")[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            submodules = {f"{source}.{alias.name}" for alias in node.names}
            own = {s for s in submodules if s.removeprefix("onnxq.") in MODULES}
            found.update(own or {source})
    return found


def ours(module: str) -> set[str]:
    """Modules of this package that a module imports, without the package's name."""
    return {name.removeprefix("onnxq.") for name in imported(module) if name.split(".")[0] == "onnxq"}


def top(module: str) -> str:
    return module.split(".")[0]


def level(module: str) -> int:
    return LEVEL.get(module, LEVEL.get(top(module), -1))


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__", "__main__")])
def test_imports_run_downward(module: str) -> None:
    assert level(module) >= 0, f"give {top(module)} a level"
    for name in ours(module):
        if top(name) != top(module):
            source = "api" if name == "onnxq" else name
            assert level(source) < level(module), f"{module} imports {name}, which is not below it"


@pytest.mark.skipif(not DESIGN.exists(), reason="the documentation is not here")
def test_the_design_page_has_these_levels() -> None:
    lines = re.findall(r"^ {4}([a-z_, ]+)$", DESIGN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [set(line.split(", ")) for line in lines] == LEVELS


def is_pass(module: str) -> bool:
    """Whether a class in it has a method `apply`."""
    classes = [n for n in ast.parse(MODULES[module].read_text()).body if isinstance(n, ast.ClassDef)]
    return any(isinstance(n, ast.FunctionDef) and n.name == "apply" for c in classes for n in c.body)


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) == "passes"])
def test_passes_communicate_through_the_model(module: str) -> None:
    others = {name for name in ours(module) if top(name) == "passes" and name != "passes.base" and is_pass(name)}
    assert not others, f"{module} imports {others}"


def test_only_one_module_imports_onnxruntime() -> None:
    importers = {m for m in MODULES if any(top(name) == "onnxruntime" for name in imported(m))}
    assert importers - ADAPTERS == {"execution.session"}


@pytest.mark.parametrize("module", sorted(ADAPTERS))
def test_adapters_run_under_an_interpreter_without_onnxq(module: str) -> None:
    assert not ours(module)


def test_nothing_imports_an_adapter() -> None:
    assert not {m for m in MODULES for name in ours(m) if name in ADAPTERS} - ADAPTERS


@pytest.mark.parametrize("module", [m for m in MODULES if top(m) == "numeric"])
def test_arithmetic_knows_no_graph(module: str) -> None:
    assert not {top(name) for name in imported(module)} & {"onnx", "onnx_graphsurgeon"}


def test_the_walk_sees_imports_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "new.py"
    source.write_text(
        "import os\nimport onnxq.cli\nfrom . import base\nfrom ..execution import session as r\n"
        "def f():\n    from ..graph.model import Model\n    from onnxq.data import images\n"
    )
    monkeypatch.setitem(MODULES, "passes.new", source)
    assert imported("passes.new") == {
        "os", "onnxq.cli", "onnxq.passes.base", "onnxq.execution.session", "onnxq.graph.model", "onnxq.data.images"
    }  # fmt: skip
