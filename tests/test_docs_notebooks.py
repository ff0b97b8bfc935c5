"""The notebooks of docs/paper/ run, what they found holds, and their pages show what they print."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import onnxruntime
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import make_notebooks  # noqa: E402
import run_blocks  # noqa: E402

SHOWN_WITH = "1.32"
"""The ONNX Runtime whose figures the pages show; others run the notebooks, and may find other figures."""

TEXT = re.compile(r"^```text\n(.*?)^```$|^((?:\|.*\n)+)", re.MULTILINE | re.DOTALL)


def code_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)\n```$", page, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", make_notebooks.notebooks())
def test_a_notebook_runs_and_its_page_is_current(name: str) -> None:
    shown = (make_notebooks.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert code_of(shown) == [cell.text for cell in make_notebooks.cells(name) if cell.is_code]
    if name in make_notebooks.NEEDS_TORCH and importlib.util.find_spec("torch") is None:
        pytest.skip("no PyTorch")
    page, pictures = make_notebooks.page(name, make_notebooks.run(name))
    for file in pictures:
        assert (make_notebooks.FOLDER / "images" / file).exists()
    if onnxruntime.__version__.startswith(SHOWN_WITH):
        pairs = zip(TEXT.findall(shown), TEXT.findall(page), strict=True)
        wrong = [run_blocks.difference("".join(old), "".join(new)) for old, new in pairs]
        assert not any(wrong), "\n".join([*filter(None, wrong), f"python docs/make_notebooks.py {name}"])


def test_the_section_of_every_notebook_is_in_the_overview() -> None:
    index = (make_notebooks.FOLDER / "index.md").read_text(encoding="utf-8")
    assert set(make_notebooks.notebooks()) == set(re.findall(r"\((\w+)\.md\)", index))


def test_what_a_cell_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_notebooks, "FOLDER", tmp_path)
    text = '# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 2\nprint("x is", x)\nx + 1\n'
    (tmp_path / "small.py").write_text(text, encoding="utf-8")
    page, pictures = make_notebooks.page("small", make_notebooks.run("small"))
    assert page.startswith("# Title\n\nText.\n")
    assert "```text\nx is 2\n3\n```" in page
    assert pictures == {}
