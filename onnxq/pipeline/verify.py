"""Is the written model what it claims to be? Asked before it replaces anything.

The full ONNX checker; loading in ONNX Runtime; running with its optimisations off (the arithmetic as written) and on
(integer kernels), which must agree; and the distance of its outputs from the float model's, which must be finite. Of an
output behind a selection, what lies in front of it is compared (`graph.comparable`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from ..data import Feed
from ..errors import EngineError, VerificationError
from ..execution.compare_outputs import run_models
from ..execution.observe import observed
from ..execution.session import Session, optimized_graph, runtime_version
from ..graph import large
from ..graph.class_scores import class_score_outputs
from ..graph.comparable import Comparable, comparables
from ..graph.storage import first_line
from ..numeric.metrics import Sqnr, comparable, finite, same_class
from ..report import OutputQuality
from ..thresholds import LOW_SQNR_DB, RUNTIME_ENOUGH_DB, RUNTIME_MARGIN_DB

_BROKEN = "of the float model itself holds infinity or not-a-number: only its finite values were compared"


@dataclass(frozen=True)
class Verdict:
    """quality: of each output, or of what stands for it; which are unknown is said there.  runtime: the graph that ONNX
    Runtime runs; None where it runs the model without its optimisations only."""

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
    """One tensor, streamed: float against written (`quality`), optimisations off against on (`runtime`)."""

    place: Comparable
    has_classes: bool
    quality: Sqnr = field(default_factory=Sqnr)
    runtime: Sqnr = field(default_factory=Sqnr)
    same_class: int = 0
    rows: int = 0
    samples: int = 0
    is_finite: bool = True

    def update(self, feed: Feed, reference: np.ndarray, plain: np.ndarray, optimised: np.ndarray) -> None:
        self.samples += 1
        self.is_finite &= bool(np.isfinite(reference).all())
        self.quality.update(reference, plain)
        self.runtime.update(plain, optimised)
        same = same_class(reference, optimised, feed.rows or feed.batch) if self.has_classes else None
        if same is not None:
            self.same_class += int(same.sum())
            self.rows += same.size

    def record(self) -> OutputQuality:
        agreement = self.same_class / self.rows if self.rows else None
        record = OutputQuality(self.place.output, finite(self.quality.db), finite(self.runtime.db), agreement)
        if self.place.selection is not None:
            record = replace(record, compared_at=self.place.tensor, in_front_of=self.place.selection)
        return replace(record, more_outputs=self.place.more)


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
    places, scores = comparables(original), class_score_outputs(original)
    comparisons = {place.label: _Comparison(place, place.output in scores) for place in places}
    reference = Session(observed(original, places))
    try:
        large_proto = proto if proto is not None and large.references(proto) else None
        plain = _session(written, large_proto, places, optimize=False)
        optimised, runtime, troubles = _optimised(written, large_proto, places, runs_here)
        _compare((reference, plain, optimised), feeds, threads, comparisons)
    except EngineError as error:
        raise VerificationError(f"the quantized model does not run, and was not written: {error}") from None
    known = {label: comparison for label, comparison in comparisons.items() if comparison.samples}
    for name, comparison in known.items():
        _refuse_damage(name, comparison, runs_here)
    quality = [comparison.record() for comparison in known.values()]
    compared_outputs = {name for q in quality for name in (q.output, *q.more_outputs)}
    unknown = [value.name for value in original.graph.output if value.name not in compared_outputs]
    quality += [OutputQuality(name, None, None, None, is_unknown=True) for name in unknown]
    broken = [f"output {name!r} {_BROKEN}" for name, comparison in known.items() if not comparison.is_finite]
    return Verdict(tuple(quality), runtime, (*troubles, *_warnings(quality), *broken))


def _session(written: Path, proto: ModelProto | None, places: Sequence[Comparable], *, optimize: bool) -> Session:
    """The written model, with what is compared as its outputs. proto: the same in memory, if it is to be taken."""
    if all(place.selection is None for place in places):
        return Session(written if proto is None or optimize else proto, optimize=optimize)
    return Session(observed(proto or onnx.load(written), places, keep_outputs=True), optimize=optimize)


def _optimised(
    written: Path, proto: ModelProto | None, places: Sequence[Comparable], needed: bool
) -> tuple[Session, GraphProto | None, tuple[str, ...]]:
    """ONNX Runtime with its optimisations, the graph that it then runs, and what is to be said of it.

    Where another tool-chain will run the model, it may go without them if they fail: 1.32 fails on data movement
    between signed grids at operator set 21 and up. Raises EngineError.
    """
    try:
        runtime = optimized_graph(written)  # first: it holds the model, too
        session = _session(written, proto, places, optimize=True)
    except EngineError as error:
        if needed:
            raise
        trouble = f"ONNX Runtime runs the model with its optimisations switched off only ({error})"
        return _session(written, proto, places, optimize=False), None, (trouble,)
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


def _compare(
    sessions: tuple[Session, Session, Session],
    feeds: Iterable[Feed],
    threads: int,
    comparisons: Mapping[str, _Comparison],
) -> None:
    for feed, (reference, plain, optimised) in run_models(sessions, feeds, threads):
        for label, comparison in comparisons.items():
            x, y, z = (outputs.get(label) for outputs in (reference, plain, optimised))
            if x is not None and y is not None and z is not None and comparable(x, y) and comparable(x, z):
                comparison.update(feed, x, y, z)


def _warnings(quality: Iterable[OutputQuality]) -> Iterable[str]:
    for each in quality:
        if each.is_unknown:
            yield (
                f"output {each.output!r} was not compared: it holds no floats, or another number of them each time, and"
                " nothing in front of it can be compared either; its quality is unknown: measure the accuracy"
            )
        elif each.sqnr_db is not None and each.sqnr_db < LOW_SQNR_DB:
            at = f" at {each.compared_at!r}, in front of {each.in_front_of}" if each.compared_at is not None else ""
            yield (
                f"output {each.output!r} is far from the float model's (SQNR {each.sqnr_db:.1f} dB{at}): measure the"
                " accuracy"
            )


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
