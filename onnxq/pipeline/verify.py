"""Is the written model what it claims to be? Asked of what will run it, before it replaces anything.

The full ONNX checker; loading and running in ONNX Runtime with its optimisations off, the arithmetic as written; and
the distance of its outputs from the float model's, which must be finite. Of an output behind a selection, what lies in
front of it is compared (`graph.comparable`). Then

    ONNX Runtime will run it    a default session, whose quality is what is reported: its integer kernels must agree
                                with the model as written. Where it multiplies with activations in int8 blocks of its
                                own (MatMulNBits), they must agree with that off, and the report says what it costs
    another tool-chain will     the arithmetic as written is what counts

A default session that fails on its own rewriting of the model, or changes the float model as much by it, is a warning,
which names the option that avoids it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from ..data import Feed
from ..errors import EngineError, VerificationError
from ..execution.compare_outputs import run_models
from ..execution.memory import return_freed_memory
from ..execution.observe import observed
from ..execution.session import CPU, EXACT_PRODUCTS, Session, optimized_graph, runtime_version
from ..graph import large
from ..graph.class_scores import class_score_outputs
from ..graph.comparable import Comparable, comparables
from ..graph.storage import first_line
from ..numeric.metrics import Sqnr, class_scores, comparable, finite, same_class, standard_error
from ..report import OutputQuality
from ..thresholds import FEWEST_OF_ONE_CLASS, LOW_SQNR_DB, RUNTIME_ENOUGH_DB, RUNTIME_MARGIN_DB

_ROUNDS_ACTIVATIONS = "MatMulNBits"
"""ONNX Runtime's product with weights of 4 or 8 bits; a default session has it round activations (accuracy level 4)."""

_BROKEN = "of the float model itself holds infinity or not-a-number: only its finite values were compared"


@dataclass(frozen=True)
class Verdict:
    """quality: of each output, or of what stands for it; which are unknown is said there.  runtime: the graph that ONNX
    Runtime runs in a default session; None where it does not, or another tool-chain will run the model."""

    quality: tuple[OutputQuality, ...]
    runtime: GraphProto | None
    warnings: tuple[str, ...]

    @property
    def operators(self) -> dict[str, int]:
        """How many nodes of which ONNX Runtime runs."""
        nodes = () if self.runtime is None else self.runtime.node
        return dict(Counter(node.op_type for node in nodes).most_common())


@dataclass(frozen=True)
class _Sessions:
    """The float model; the written one with optimisations off; in a default session; and in one that multiplies as
    written where the default one does not. None: not asked."""

    reference: Session
    plain: Session
    default: Session | None = None
    exact: Session | None = None

    @property
    def present(self) -> tuple[Session, ...]:
        return tuple(s for s in (self.reference, self.plain, self.default, self.exact) if s is not None)


@dataclass
class _Comparison:
    """One tensor, streamed: float against what will run (`quality`), of each sample alone (`single`), as written
    (`written`), and in a session that multiplies as written (`with_option`); and as written against a default session
    (`runtime`) and against one that multiplies as written (`exact`)."""

    place: Comparable
    has_classes: bool
    quality: Sqnr = field(default_factory=Sqnr)
    single: list[Sqnr] = field(default_factory=list)
    written: Sqnr = field(default_factory=Sqnr)
    runtime: Sqnr = field(default_factory=Sqnr)
    exact: Sqnr = field(default_factory=Sqnr)
    with_option: Sqnr = field(default_factory=Sqnr)
    same_class: int = 0
    rows: int = 0
    samples: int = 0
    is_finite: bool = True
    classes: set[int] = field(default_factory=set)

    def update(self, feed: Feed, reference: np.ndarray, plain: np.ndarray, others: Sequence[np.ndarray]) -> None:
        """others: of the default session, and of the exact one, where there are any."""
        self.samples += 1
        self.is_finite &= bool(np.isfinite(reference).all())
        runs, one = others[0] if others else plain, Sqnr()
        one.update(reference, runs)
        self.single.append(one)
        self.quality.merge(one)
        self.written.update(reference, plain)
        for distance, other in zip((self.runtime, self.exact), others, strict=False):
            distance.update(plain, other)
        for exact in others[1:]:
            self.with_option.update(reference, exact)
        same = same_class(reference, runs, feed.rows or feed.batch) if self.has_classes else None
        if same is not None:
            self.same_class += int(same.sum())
            self.rows += same.size
            scores = class_scores(reference)
            assert scores is not None
            self.classes.update(np.argmax(scores, axis=1).tolist())

    def agrees(self, distance: Sqnr) -> bool:
        """Whether a session differs from the model as written by no more than quantization did."""
        return distance.db >= min(self.written.db, RUNTIME_ENOUGH_DB) - RUNTIME_MARGIN_DB

    def record(self, *, has_runtime: bool, has_exact: bool) -> OutputQuality:
        agreement = self.same_class / self.rows if self.rows else None
        runtime = finite(self.runtime.db) if has_runtime else None
        record = OutputQuality(
            self.place.output, finite(self.quality.db), runtime, agreement, runs_in_default_session=has_runtime,
            standard_error_db=standard_error(self.single),
        )  # fmt: skip
        if self.place.selection is not None:
            record = replace(record, compared_at=self.place.tensor, in_front_of=self.place.selection)
        if has_exact and round(self.with_option.db, 1) != round(self.quality.db, 1):
            record = replace(record, option=f"{EXACT_PRODUCTS} = 1", option_sqnr_db=finite(self.with_option.db))
        return replace(record, more_outputs=self.place.more, classes=len(self.classes) or None)


def verify(
    written: Path,
    original: ModelProto,
    feeds: Iterable[Feed],
    threads: int,
    *,
    runs_here: bool = True,
    proto: ModelProto | None = None,
) -> Verdict:
    """Check the model file `written` against the float model on some feeds, which are gone through twice, and once more
    where a default session computes something else.

    proto: what was written, if it is in memory: the weights that it maps can be freed between runs.
    runs_here: whether ONNX Runtime's integer kernels are what will run the model, so that they must agree with it.
    Raises VerificationError where the model is invalid, does not load or run as written, gives infinity or not-a-number
    where the float model does not, or where ONNX Runtime's integer kernels change its outputs by more than quantization
    did, and by more than a default session changes those of the float model.
    """
    return_freed_memory()
    _check(written, original)
    places, scores = comparables(original), class_score_outputs(original)
    comparisons = {place.label: _Comparison(place, place.output in scores) for place in places}
    reference = Session(observed(original, places), provider=CPU)
    large_proto = proto if proto is not None and large.references(proto) else None
    try:
        plain = _session(written, large_proto, places, optimize=False)
        default, runtime, troubles = _default(written, large_proto, places, feeds)
        sessions = _Sessions(reference, plain)
        if runs_here and runtime is not None:
            sessions = replace(sessions, default=default, exact=_exact(written, large_proto, places, runtime))
        del default
        _compare(sessions, feeds, threads, comparisons)
    except EngineError as error:
        raise VerificationError(f"the quantized model does not run, and was not written: {error}") from None
    known = {label: comparison for label, comparison in comparisons.items() if comparison.samples}
    for name, comparison in known.items():
        _refuse_infinities(name, comparison)
    disputed = {name: comparison for name, comparison in known.items() if not _kernels_agree(comparison, sessions)}
    if disputed:
        troubles += tuple(_rewritten(disputed, sessions, observed(original, places), feeds, threads))
    for name, comparison in known.items():
        costs = comparison.quality.db < comparison.written.db and not comparison.agrees(comparison.runtime)
        if sessions.exact is not None and costs:
            troubles += (_rounded_products(name, comparison, sessions, runtime),)
    has = {"has_runtime": sessions.default is not None, "has_exact": sessions.exact is not None}
    quality = [comparison.record(**has) for comparison in known.values()]
    compared_outputs = {name for q in quality for name in (q.output, *q.more_outputs)}
    unknown = [value.name for value in original.graph.output if value.name not in compared_outputs]
    quality += [OutputQuality(name, None, None, None, is_unknown=True) for name in unknown]
    broken = [f"output {name!r} {_BROKEN}" for name, comparison in known.items() if not comparison.is_finite]
    one_class = [_one_class(comparison) for comparison in known.values()]
    warnings = (*troubles, *_warnings(quality), *filter(None, one_class), *broken)
    return Verdict(tuple(quality), runtime if runs_here else None, warnings)


def _one_class(comparison: _Comparison) -> str:
    """What is to be said where the float model sees the same thing in all samples."""
    if len(comparison.classes) != 1 or comparison.rows < FEWEST_OF_ONE_CLASS:
        return ""
    (found,) = comparison.classes
    return (
        f"output {comparison.place.output!r}: the float model puts all {comparison.rows} samples into class {found}, so"
        " agreement of classes says nothing: see whether the data, and their preprocessing, are those of the model"
    )


def _session(
    written: Path, proto: ModelProto | None, places: Sequence[Comparable], *, optimize: bool, exact: bool = False
) -> Session:
    """The written model, with what is compared as its outputs. proto: the same in memory, if it is to be taken."""
    if all(place.selection is None for place in places):
        return Session(
            written if proto is None or optimize else proto, optimize=optimize, exact_products=exact, provider=CPU
        )
    shown = observed(proto or onnx.load(written), places, keep_outputs=True)
    return Session(shown, optimize=optimize, exact_products=exact, provider=CPU)


def _default(
    written: Path, proto: ModelProto | None, places: Sequence[Comparable], feeds: Iterable[Feed]
) -> tuple[Session | None, GraphProto | None, tuple[str, ...]]:
    """A default session, the graph that it runs, and what is to be said of it: None where ONNX Runtime fails on its own
    rewriting. 1.32 does on data movement between signed grids at operator set 21 and up, for one."""
    try:
        runtime = optimized_graph(written)  # first: it holds the model, too
        session = _session(written, proto, places, optimize=True)
        for feed in itertools.islice(feeds, 1):
            session.run(feed.arrays)
    except EngineError as error:
        trouble = (
            "ONNX Runtime fails on its own rewriting of the model in a default session, and runs it with"
            f" SessionOptions.graph_optimization_level = ORT_DISABLE_ALL only ({error})"
        )
        return None, None, (trouble,)
    return session, runtime, ()


def _exact(
    written: Path, proto: ModelProto | None, places: Sequence[Comparable], runtime: GraphProto
) -> Session | None:
    """A session that multiplies as written, where the default one rounds activations to int8 blocks of its own."""
    if not any(node.op_type == _ROUNDS_ACTIVATIONS for node in runtime.node):
        return None
    return _session(written, proto, places, optimize=True, exact=True)


def _rounded_products(output: str, comparison: _Comparison, sessions: _Sessions, runtime: GraphProto | None) -> str:
    count = sum(node.op_type == _ROUNDS_ACTIVATIONS for node in (() if runtime is None else runtime.node))
    return (
        f"output {output!r}: ONNX Runtime rounds the activations of {count} products to 8 bits in blocks of its own"
        f" ({_ROUNDS_ACTIVATIONS}), which leaves {comparison.quality.db:.1f} dB of the {comparison.written.db:.1f} dB"
        f" that the model has as written; the session option {EXACT_PRODUCTS} = 1 computes as written, and slower"
    )


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


def _compare(sessions: _Sessions, feeds: Iterable[Feed], threads: int, comparisons: Mapping[str, _Comparison]) -> None:
    for feed, outputs in run_models(sessions.present, feeds, threads):
        for label, comparison in comparisons.items():
            reference, plain, *others = (each.get(label) for each in outputs)
            found = [y for y in (plain, *others) if y is not None and comparable(reference, y)]
            if reference is not None and len(found) == len(outputs) - 1:
                comparison.update(feed, reference, found[0], found[1:])


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


def _refuse_infinities(output: str, comparison: _Comparison) -> None:
    if not (np.isfinite(comparison.quality.noise) and np.isfinite(comparison.written.noise)):
        raise VerificationError(
            f"output {output!r} of the quantized model holds infinity or not-a-number where the float model's does"
            " not, so the model was not written"
        )


def _kernels_agree(comparison: _Comparison, sessions: _Sessions) -> bool:
    return sessions.default is None or comparison.agrees(_kernels(comparison, sessions))


def _kernels(comparison: _Comparison, sessions: _Sessions) -> Sqnr:
    """How far a default session is from the model as written, apart from the activations that it rounds by itself."""
    return comparison.runtime if sessions.exact is None else comparison.exact


def _rewritten(
    disputed: Mapping[str, _Comparison], sessions: _Sessions, original: ModelProto, feeds: Iterable[Feed], threads: int
) -> Iterator[str]:
    """What is to be said of outputs that a default session computes otherwise than they are written, where the float
    model's differ as much: ONNX Runtime's rewriting of graphs does that, and no kernel for integers.

    Raises VerificationError of an output that only the quantized model gets otherwise.
    """
    own = {name: Sqnr() for name in disputed}
    try:
        optimized = Session(original, optimize=True, provider=CPU)
        for _, (as_written, runs) in run_models((sessions.reference, optimized), feeds, threads):
            for name, distance in own.items():
                if comparable(as_written.get(name), runs.get(name)):
                    distance.update(as_written[name], runs[name])
    except EngineError:
        own = {}  # a float model that does not run there says nothing
    for name, comparison in disputed.items():
        kernels, distance = _kernels(comparison, sessions), own.get(name, Sqnr())
        if kernels.db < distance.db - RUNTIME_MARGIN_DB:
            raise VerificationError(
                f"output {name!r}: ONNX Runtime's optimised integer kernels do not agree with the model as"
                f" written (SQNR {kernels.db:.1f} dB between them, {comparison.written.db:.1f} dB against float), so"
                " the model was not written; some versions of ONNX Runtime have faulty kernels (this is"
                f" {runtime_version()}), and on CPUs without VNNI products of 8-bit integers saturate: quantize for"
                " `target` ort-no-vnni there"
            )
        yield (
            f"output {name!r}: ONNX Runtime {runtime_version()} computes it otherwise in a default session than as"
            f" written, that of the float model, too (SQNR {distance.db:.1f} dB, of the quantized one"
            f" {kernels.db:.1f} dB); SessionOptions.graph_optimization_level = ORT_DISABLE_ALL computes as written"
        )
