"""Is the written model what it claims to be? Asked before it replaces anything.

The full ONNX checker; loading in ONNX Runtime; running with its optimisations off (the arithmetic as written) and on
(integer kernels), which must agree; and the distance of its outputs from the float model's, which must be finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from ..data import Feed
from ..errors import EngineError, VerificationError
from ..execution.compare_outputs import run_models
from ..execution.session import Session, optimized_graph, runtime_version
from ..graph import large
from ..graph.storage import first_line
from ..numeric.metrics import Sqnr, comparable, finite, same_class
from ..report import OutputQuality
from ..thresholds import LOW_SQNR_DB, RUNTIME_ENOUGH_DB, RUNTIME_MARGIN_DB

_BROKEN = "of the float model itself holds infinity or not-a-number: only its finite values were compared"


@dataclass(frozen=True)
class Verdict:
    """quality: of each output that can be compared.  runtime: the graph that ONNX Runtime runs; None where it runs the
    model without its optimisations only."""

    quality: tuple[OutputQuality, ...]
    runtime: GraphProto | None
    warnings: tuple[str, ...]

    @property
    def operators(self) -> dict[str, int]:
        """How many nodes of which ONNX Runtime runs."""
        nodes = () if self.runtime is None else self.runtime.node
        return dict(Counter(node.op_type for node in nodes).most_common())


@dataclass
class _Comparison:
    """One output, streamed: float against written (`quality`), optimisations off against on (`runtime`)."""

    quality: Sqnr = field(default_factory=Sqnr)
    runtime: Sqnr = field(default_factory=Sqnr)
    same_class: int = 0
    rows: int = 0
    is_finite: bool = True

    def update(self, reference: np.ndarray, plain: np.ndarray, optimised: np.ndarray) -> None:
        self.is_finite &= bool(np.isfinite(reference).all())
        self.quality.update(reference, plain)
        self.runtime.update(plain, optimised)
        same = same_class(reference, optimised)
        if same is not None:
            self.same_class += int(same.sum())
            self.rows += same.size

    def record(self, name: str) -> OutputQuality:
        agreement = self.same_class / self.rows if self.rows else None
        return OutputQuality(name, finite(self.quality.db), finite(self.runtime.db), agreement)


def verify(
    written: Path,
    original: ModelProto,
    feeds: Iterable[Feed],
    threads: int,
    *,
    runs_here: bool = True,
    proto: ModelProto | None = None,
) -> Verdict:
    """Check the model file `written` against the float model on some feeds.

    proto: what was written, if it is in memory: the weights that it maps can be freed between runs.
    runs_here: whether ONNX Runtime's integer kernels are what will run the model, so that they must agree with it.
    Raises VerificationError where the model is invalid, does not load or run, gives infinity or not-a-number where
    the float model does not, or where ONNX Runtime's rewriting changes its outputs by more than quantization did.
    """
    _check(written, original)
    reference = Session(original)
    try:
        plain = Session(proto if proto is not None and large.references(proto) else written)
        optimised, runtime, troubles = _optimised(written, runs_here)
        comparisons = _compare((reference, plain, optimised), feeds, threads)
    except EngineError as error:
        raise VerificationError(f"the quantized model does not run, and was not written: {error}") from None
    for name, comparison in comparisons.items():
        _refuse_damage(name, comparison, runs_here)
    quality = tuple(comparison.record(name) for name, comparison in comparisons.items())
    broken = [f"output {name!r} {_BROKEN}" for name, comparison in comparisons.items() if not comparison.is_finite]
    return Verdict(quality, runtime, (*troubles, *_warnings(reference.outputs, quality), *broken))


def _optimised(written: Path, needed: bool) -> tuple[Session, GraphProto | None, tuple[str, ...]]:
    """ONNX Runtime with its optimisations, the graph that it then runs, and what is to be said of it.

    Where another tool-chain will run the model, it may go without them if they fail: 1.32 fails on data movement
    between signed grids at operator set 21 and up. Raises EngineError.
    """
    try:
        runtime = optimized_graph(written)  # first: it holds the model, too
        session = Session(written, optimize=True)
    except EngineError as error:
        if needed:
            raise
        trouble = f"ONNX Runtime runs the model with its optimisations switched off only ({error})"
        return Session(written), None, (trouble,)
    return session, runtime, ()


def _check(written: Path, original: ModelProto) -> None:
    try:
        onnx.checker.check_model(str(written), full_check=True)
    except onnx.checker.ValidationError as error:
        raise VerificationError(
            f"the quantized model is not valid ONNX, and was not written: {first_line(error)}"
        ) from None
    except onnx.shape_inference.InferenceError as error:
        if _infers(original):  # models that declare wrong shapes are common, and run
            raise VerificationError(
                f"the quantized model's shapes do not fit, so it was not written: {first_line(error)}"
            ) from None


def _infers(proto: ModelProto) -> bool:
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _compare(sessions: tuple[Session, Session, Session], feeds: Iterable[Feed], threads: int) -> dict[str, _Comparison]:
    comparisons: dict[str, _Comparison] = {}
    for _, (reference, plain, optimised) in run_models(sessions, feeds, threads):
        for name, x in reference.items():
            if comparable(x, plain[name]) and comparable(x, optimised[name]):
                comparisons.setdefault(name, _Comparison()).update(x, plain[name], optimised[name])
    return comparisons


def _warnings(outputs: Iterable[str], quality: Iterable[OutputQuality]) -> Iterable[str]:
    compared = {output.output: output.sqnr_db for output in quality}
    for name in outputs:
        if name not in compared:
            yield f"output {name!r} was not compared: it holds no floats, or another number of them each time"
    for name, db in compared.items():
        if db is not None and db < LOW_SQNR_DB:
            yield f"output {name!r} is far from the float model's (SQNR {db:.1f} dB): measure the accuracy"


def _refuse_damage(output: str, comparison: _Comparison, runs_here: bool) -> None:
    quality, runtime = comparison.quality, comparison.runtime
    if not np.isfinite(quality.noise):
        raise VerificationError(
            f"output {output!r} of the quantized model holds infinity or not-a-number where the float model's does"
            " not, so the model was not written"
        )
    if runs_here and runtime.db < min(quality.db, RUNTIME_ENOUGH_DB) - RUNTIME_MARGIN_DB:
        raise VerificationError(
            f"output {output!r}: ONNX Runtime's optimised integer kernels do not agree with the model as"
            f" written (SQNR {runtime.db:.1f} dB between them, {quality.db:.1f} dB against float), so the"
            " model was not written; some versions of ONNX Runtime have faulty kernels (this is"
            f" {runtime_version()}), and on CPUs without VNNI products of 8-bit integers saturate: quantize for"
            " `target` ort-no-vnni there"
        )
