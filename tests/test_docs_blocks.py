"""Every command that README and docs/ show runs, and prints what the pages show of it."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import run_blocks  # noqa: E402

SHOWN_WITH = "1.32"
"""The ONNX Runtime whose figures the pages show; others run the commands, and may print other figures."""


@pytest.mark.parametrize("page", run_blocks.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run_and_print_what_it_shows(page: Path) -> None:
    wrong = run_blocks.run_page(page)
    if onnxruntime.__version__.startswith(SHOWN_WITH):
        assert not wrong, "\n".join([*wrong, f"python docs/run_blocks.py --write {page.relative_to(ROOT)}"])


PAGE = """
```sh
echo 25.3 dB in 3.1 s; echo more
```

```text
25.9 dB in 9.9 s
...
```

<!-- not run: needs a compiler -->
```sh
trtexec model.onnx && onnxq quantize a.onnx b.onnx --no-such-option
```

<!-- without: trtexec -->
```sh
echo a
trtexec model.onnx
echo b
```

<!-- exit code: 3 -->
```sh
echo failed >&2; exit 3
```

```text
failed
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_blocks, "ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_a_page_is_read(page: Path) -> None:
    ran, only_read, partly, failing = run_blocks.blocks(page)
    assert run_blocks.run(ran, {}) == "25.3 dB in 3.1 s\nmore\n"
    assert ran.shown is not None
    assert run_blocks.difference(ran.shown.text, run_blocks.run(ran, {})) == ""
    assert only_read.not_run == "needs a compiler"
    with pytest.raises(AssertionError, match="onnxq quantize has no --no-such-option"):
        run_blocks.read(only_read)
    assert run_blocks.run(partly, {}) == "a\nb\n"
    assert failing.exit_code == 3
    assert run_blocks.run(failing, {}) == "failed\n"


def test_an_unexpected_exit_code_is_an_error(page: Path) -> None:
    page.write_text("```sh\nfalse\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="exit code 1, expected 0"):
        run_blocks.run(run_blocks.blocks(page)[0], {})


@pytest.mark.parametrize(
    ("shown", "printed", "fine"),
    [
        ("25.3 dB", "26.9 dB", True),
        ("25.3 dB", "33.0 dB", False),
        ("250 samples", "300 samples", True),
        ("3.2 s of work", "99 s of work", True),
        ("kept: a", "kept: b", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("a", "a\nb", False),
        ("a\nlatency: 0.5 of float's", "a\nlatency: 0.9 of float's (busy)\nslower than float: 2 Conv: 1 ms", True),
    ],
)
def test_outputs_are_compared_by_words_and_roughly_by_numbers(shown: str, printed: str, fine: bool) -> None:
    assert (run_blocks.difference(shown, printed) == "") is fine


def test_shown_lines_are_renewed_and_left_out_ones_stay_out() -> None:
    assert run_blocks.renewed("a 1\n...\nd 4\n", "a 9\nb\nd 9\ne\n") == "a 9\n...\nd 9\n"
    assert run_blocks.renewed("a 30 in 2 s\n", "a 31 in 9 s\n") == "a 30 in 2 s\n"
    assert run_blocks.renewed("old\n", "new\n\n") == "new\n"
    assert run_blocks.renewed("a\n", "a\nlatency: 2 (the machine is too busy to tell)\n") == "a\n"
