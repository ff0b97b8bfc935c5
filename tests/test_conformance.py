"""A sample of ONNX's operator tests goes through `quantize`: verified or refused. bench/conformance.py runs all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import conformance
from isolation import Lost, Worker

FAMILIES = (
    "test_conv_with", "test_basic_conv", "test_gemm", "test_matmul", "test_convtranspose", "test_batchnorm",
    "test_maxpool_2d", "test_averagepool_2d", "test_if", "test_loop", "test_scan", "test_sequence", "test_optional",
    "test_attention_4d_gqa_expanded", "test_layer_normalization_2d", "test_softmax", "test_lstm", "test_cast_FLOAT16",
    "test_reshape", "test_constant", "test_sparse", "test_flexattention_fp16", "test_string",
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str, str], conformance.Outcome]:
    chosen = [case for case in conformance.load_cases(["node", "simple"]) if case.name.startswith(FAMILIES)]
    changed = [conformance.constant(case) if case.feed else None for case in chosen]
    cases = [("as it is", case) for case in chosen] + [("constant", case) for case in changed if case is not None]
    return conformance.survey(cases, ["onnxq"], conformance.PLAIN, seconds=60)


def test_nothing_fails_without_a_reason(outcomes: Any) -> None:
    assert len(outcomes) > 250
    allowed = {"quantized", "nothing to quantize", "refused"}
    assert {key: a for key, a in outcomes.items() if a.outcome not in allowed} == {}
    assert all(a.reason for a in outcomes.values())


def test_linear_operators_with_constant_weights_are_quantized(outcomes: Any) -> None:
    found = {name for (_, variant, name), a in outcomes.items() if a.outcome == "quantized" and variant == "constant"}
    assert {"test_conv_with_autopad_same", "test_gemm_transposeB", "test_matmul_2d", "test_basic_conv_with_padding",
            "test_attention_4d_gqa_expanded"} <= found  # fmt: skip


def test_the_table_names_every_outcome(outcomes: Any) -> None:
    text = conformance.markdown(outcomes, conformance.PLAIN)
    assert all(f"| {outcome} |" in text for outcome in conformance.OUTCOMES)


def test_a_process_that_dies_or_hangs_is_distinguished_from_one_that_returns() -> None:
    import os
    import signal
    import time

    def act(case: str) -> str:
        if case == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if case == "hang":
            time.sleep(60)
        return case

    with Worker(act, seconds=0.5) as worker:
        assert [worker.run(case) for case in ("a", "die", "b", "hang", "c")] == [
            "a", Lost("crash", "SIGSEGV"), "b", Lost("hang", "0.5 s"), "c",
        ]  # fmt: skip


def test_what_a_case_leaves_behind_goes_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def act(name: str) -> str:
        Path(name).touch()
        return str(Path(name).absolute())

    with Worker(act) as worker:
        left = Path(worker.run("sym_shape_infer_temp.onnx"))
        assert left.exists()
    assert not left.parent.exists()
    assert list(tmp_path.iterdir()) == []
