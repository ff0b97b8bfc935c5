"""Is the written model what it claims to be? Asked before it replaces anything.

The full ONNX checker; loading in ONNX Runtime; running with its optimisations off (the arithmetic as written) and on
(integer kernels), which must agree; and the distance of its outputs from the float model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from .errors import EngineError, VerificationError
from .numeric.metrics import Sqnr
from .report import OutputQuality
from .runtime import Session, optimized_graph, parallel_map

AGREEMENT_MARGIN_DB = 3.0
SAMPLES = 32


@dataclass
class _Comparison:
    """One output, streamed: float against written (`quality`), optimisations off against on (`runtime`)."""

    quality: Sqnr = field(default_factory=Sqnr)
    runtime: Sqnr = field(default_factory=Sqnr)
    same_class: int = 0
    rows: int = 0

    def update(self, reference: np.ndarray, plain: np.ndarray, optimised: np.ndarray) -> None:
        self.quality.update(reference, plain)
        self.runtime.update(plain, optimised)
        if _class_scores(reference):
            self.same_class += int((reference.argmax(-1) == optimised.argmax(-1)).sum())
            self.rows += reference.shape[0]

    def record(self, name: str) -> OutputQuality:
        agreement = self.same_class / self.rows if self.rows else None
        return OutputQuality(name, _finite(self.quality.db), _finite(self.runtime.db), agreement)


def _class_scores(output: np.ndarray) -> bool:
    return output.ndim == 2 and output.shape[1] > 1


def _finite(db: float) -> float | None:
    return None if np.isposinf(db) else max(db, -200.0)


def verify(
    written: Path, original: ModelProto, feeds: Iterable[tuple[Mapping[str, np.ndarray], int | None]], threads: int
) -> tuple[tuple[OutputQuality, ...], dict[str, int]]:
    """Check the model file `written` against the float model on some feeds (arrays, rows).

    Returns the quality of each floating-point output, and how many nodes of which operator ONNX Runtime runs.
    Raises VerificationError where the model is invalid, does not load or run, or where ONNX Runtime's rewriting
    changes its outputs by more than quantization did.
    """
    try:
        onnx.checker.check_model(str(written), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"the quantized model is not valid ONNX, and was not written: {error}") from None
    try:
        sessions = Session(original), Session(written), Session(written, optimize=True)
        comparisons = _compare(sessions, feeds, threads)
        operators = Counter(node.op_type for node in optimized_graph(written).node)
    except EngineError as error:
        raise VerificationError(f"the quantized model does not run, and was not written: {error}") from None
    quality = tuple(comparison.record(name) for name, comparison in comparisons.items())
    for output in quality:
        _refuse_disagreement(output)
    return quality, dict(operators.most_common())


def _compare(
    sessions: tuple[Session, Session, Session],
    feeds: Iterable[tuple[Mapping[str, np.ndarray], int | None]],
    threads: int,
) -> dict[str, _Comparison]:
    comparisons: dict[str, _Comparison] = {}
    runs = parallel_map(lambda feed: ([s.run(feed[0]) for s in sessions], feed[1]), feeds, threads)
    for (reference, plain, optimised), rows in runs:
        for name, x in reference.items():
            outputs = [x, plain[name], optimised[name]]
            if all(isinstance(o, np.ndarray) and o.dtype.kind == "f" for o in outputs) and x.ndim:
                outputs = [o[:rows] for o in outputs]
                if len({o.shape for o in outputs}) == 1:  # the number of detections may differ
                    comparisons.setdefault(name, _Comparison()).update(*outputs)
    return comparisons


def _refuse_disagreement(output: OutputQuality) -> None:
    if output.runtime_sqnr_db is None:
        return
    quality = np.inf if output.sqnr_db is None else output.sqnr_db
    if output.runtime_sqnr_db < min(quality, 30.0) - AGREEMENT_MARGIN_DB:
        raise VerificationError(
            f"output {output.output!r}: ONNX Runtime's optimised integer kernels do not agree with the model as"
            f" written (SQNR {output.runtime_sqnr_db:.1f} dB between them, {quality:.1f} dB against float), so the"
            " model was not written; on a CPU without VNNI, int8 products of more than 7 bits saturate"
        )
