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

One session is in memory at a time; what it computes is kept for those that follow, in files beyond `max_memory`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from ..data import Feed
from ..errors import EngineError, VerificationError
from ..execution.compare_outputs import KeptOutputs
from ..execution.memory import return_freed_memory
from ..execution.observe import observed
from ..execution.services import Services
from ..execution.session import CPU, EXACT_PRODUCTS, Session, optimized_graph, runtime_version
from ..graph import large
from ..graph.class_scores import class_score_outputs
from ..graph.comparable import Comparable, comparables
from ..graph.storage import first_line
from ..numeric.metrics import Sqnr, comparable, total
from ..report import OutputQuality
from ..thresholds import FEWEST_OF_ONE_CLASS, LOW_SQNR_DB, RUNTIME_MARGIN_DB
from .session_comparison import SessionComparison, TensorComparison

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


def verify(
    written: Path,
    original: ModelProto,
    feeds: Iterable[Feed],
    services: Services,
    *,
    fitted: Iterable[Feed] = (),
    runs_here: bool = True,
    proto: ModelProto | None = None,
) -> Verdict:
    """Check the model file `written` against the float model on some feeds, which are gone through once.

    fitted: further feeds, which something was fitted to: they may lower the quality, not raise it.
    proto: what was written, if it is in memory: the weights that it maps can be freed between runs.
    runs_here: whether ONNX Runtime's integer kernels are what will run the model, so that they must agree with it.
    Raises VerificationError where the model is invalid, does not load or run as written, gives infinity or not-a-number
    where the float model does not, or where ONNX Runtime's integer kernels change its outputs by more than quantization
    did, and by more than a default session changes those of the float model.
    """
    return_freed_memory()
    _check(written, original)
    places, scores = comparables(original), class_score_outputs(original)
    comparisons = {place.label: TensorComparison(place, place.output in scores) for place in places}
    large_proto = proto if proto is not None and large.references(proto) else None
    reference = Session(observed(original, places), provider=CPU)
    samples = KeptOutputs(reference, feeds, services)
    runs = SessionComparison(samples, len(samples.all), comparisons)
    samples.extend(reference, fitted)
    del reference  # one session at a time
    try:
        runs.as_written(_session(written, large_proto, places, optimize=False), is_last=not runs_here)
    except EngineError as error:
        raise VerificationError(f"the quantized model does not run, and was not written: {error}") from None
    runtime, troubles = _default(runs, written, large_proto, places, compare=runs_here)
    nodes = () if runtime is None or not runs_here else runtime.node
    has_default, has_exact = bool(nodes), any(node.op_type == _ROUNDS_ACTIVATIONS for node in nodes)
    if has_exact:
        runs.exactly(_session(written, large_proto, places, optimize=True, exact=True))
    known = {label: comparison for label, comparison in comparisons.items() if comparison.is_known(default=has_default)}
    for name, comparison in known.items():
        _refuse_infinities(name, comparison)
    kernels = {
        name: comparison.exact_kernels if has_exact else comparison.runtime for name, comparison in known.items()
    }
    disputed = {name: known[name] for name, found in kernels.items() if has_default and not known[name].agrees(found)}
    if disputed:
        troubles += tuple(_rewritten(disputed, kernels, runs, observed(original, places)))
    for name, comparison in known.items() if has_exact else ():
        costs = total(comparison.default.held_out).db < total(comparison.written.held_out).db
        if costs and not comparison.agrees(comparison.runtime):
            troubles += (_rounded_products(name, comparison, runtime),)
    quality = [comparison.record(has_runtime=has_default, has_exact=has_exact) for comparison in known.values()]
    compared_outputs = {name for q in quality for name in (q.output, *q.more_outputs)}
    unknown = [value.name for value in original.graph.output if value.name not in compared_outputs]
    quality += [OutputQuality(name, None, None, None, is_unknown=True) for name in unknown]
    broken = [f"output {name!r} {_BROKEN}" for name, comparison in known.items() if not comparison.is_finite]
    one_class = [_one_class(comparison) for comparison in known.values()]
    warnings = (*troubles, *_warnings(quality), *filter(None, one_class), *broken)
    return Verdict(tuple(quality), runtime if runs_here else None, warnings)


def _one_class(comparison: TensorComparison) -> str:
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
    runs: SessionComparison, written: Path, proto: ModelProto | None, places: Sequence[Comparable], *, compare: bool
) -> tuple[GraphProto | None, tuple[str, ...]]:
    """The graph that a default session runs, which is compared, or only tried once, and what is to be said of it: None
    where ONNX Runtime fails on its own rewriting. 1.32 does on data movement between signed grids at operator
    set 21 and up, for one."""
    try:
        runtime = optimized_graph(written)  # first: it holds the model, too
        session = _session(written, proto, places, optimize=True)
        if compare:
            runs.default(session)
        else:
            runs.attempt(session)
    except EngineError as error:
        trouble = (
            "ONNX Runtime fails on its own rewriting of the model in a default session, and runs it with"
            f" SessionOptions.graph_optimization_level = ORT_DISABLE_ALL only ({error})"
        )
        return None, (trouble,)
    return runtime, ()


def _rounded_products(output: str, comparison: TensorComparison, runtime: GraphProto | None) -> str:
    as_written = comparison.exact.db
    count = sum(node.op_type == _ROUNDS_ACTIVATIONS for node in (() if runtime is None else runtime.node))
    return (
        f"output {output!r}: ONNX Runtime rounds the activations of {count} products to 8 bits in blocks of its own"
        f" ({_ROUNDS_ACTIVATIONS}), which leaves {comparison.default.db:.1f} dB of the {as_written:.1f} dB"
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


def _refuse_infinities(output: str, comparison: TensorComparison) -> None:
    compared = (*comparison.default.all, *comparison.written.all)
    if not all(np.isfinite(one.noise) for one in compared):
        raise VerificationError(
            f"output {output!r} of the quantized model holds infinity or not-a-number where the float model's does"
            " not, so the model was not written"
        )


def _rewritten(
    disputed: Mapping[str, TensorComparison], kernels: Mapping[str, Sqnr], runs: SessionComparison, original: ModelProto
) -> Iterator[str]:
    """What is to be said of outputs that a default session computes otherwise than they are written, where the float
    model's differ as much: ONNX Runtime's rewriting of graphs does that, and no kernel for integers.

    Raises VerificationError of an output that only the quantized model gets otherwise.
    """
    own = {name: Sqnr() for name in disputed}
    try:
        for as_written, rewritten in runs.of_float_model(Session(original, optimize=True, provider=CPU)):
            for name, distance in own.items():
                if comparable(as_written.get(name), rewritten.get(name)):
                    distance.update(as_written[name], rewritten[name])
    except EngineError:
        own = {}  # a float model that does not run there says nothing
    for name, comparison in disputed.items():
        apart, distance = kernels[name], own.get(name, Sqnr())
        written = total(comparison.written.held_out).db
        if apart.db < distance.db - RUNTIME_MARGIN_DB:
            raise VerificationError(
                f"output {name!r}: ONNX Runtime's optimised integer kernels do not agree with the model as"
                f" written (SQNR {apart.db:.1f} dB between them, {written:.1f} dB against float), so"
                " the model was not written; some versions of ONNX Runtime have faulty kernels (this is"
                f" {runtime_version()}), and on CPUs without VNNI products of 8-bit integers saturate: quantize for"
                " `target` ort-no-vnni there"
            )
        yield (
            f"output {name!r}: ONNX Runtime {runtime_version()} computes it otherwise in a default session than as"
            f" written, that of the float model, too (SQNR {distance.db:.1f} dB, of the quantized one"
            f" {apart.db:.1f} dB); SessionOptions.graph_optimization_level = ORT_DISABLE_ALL computes as written"
        )
