"""What there is to tell of a finished job: its result verified, held against the target, and all of it together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..checking import check
from ..data import CalibrationData
from ..errors import VerificationError
from ..execution.session import saturates
from ..graph import large
from ..graph.model import Model, Quantizer
from ..graph.precision import WIDENED_FROM
from ..graph.shapes import dynamic_inputs
from ..options import Options
from ..report import FloatNode, ModelFacts, QuantizedTensor, Reason, Report, SampleSets
from ..thresholds import DETAIL_SAMPLES, FEW_SAMPLES, QUALITY_SAMPLES
from .collect_report import ReportCollector
from .keep_if_better import UNKNOWN, WORSE
from .measure_latency import measure_latency
from .node_states import NodeState, State, node_states
from .plan import Quantized
from .stored_floats import float_constants
from .task import Task
from .tune_latency import Tuned
from .verify import verify

REQUESTS = {
    "smoothquant": "SmoothQuant",
    "fallback": "Fallback",
    "rounding": "RoundWeights",
    "bias_correction": "CorrectBiasEmpirically",
}
"""Options, and the step that does what they ask for."""

RANDOM_INPUTS_WARNING = (
    "outputs were compared on random inputs; give calibration data to see how far the result is from the float model"
    " on real ones"
)

_UNPAID = Reason("slow", "measured: its integer kernel does not pay on this machine")

NOTHING_RAN_WARNING = (
    "outputs were not compared: the model runs on none of the random inputs that were tried; give calibration data to"
    " see how far the result is from the float model"
)


def build_report(
    task: Task,
    quantized: Quantized,
    written: Path,
    output: str | os.PathLike[str] | None,
    seconds: float,
    result: ModelProto | None = None,
    evaluation_samples: int | None = None,
    collector: ReportCollector | None = None,
    tuned: Tuned | None = None,
) -> Report:
    """Verify the quantized model, written to a file, and say everything about it. Raises VerificationError.

    output: where the result is to be found, the quantized model, or `result` instead of it.
    evaluation_samples: how many of all samples the outputs are compared on; None: those that were held out for it.
    collector: what a detailed report shows. tuned: what was left in float for the sake of latency.
    """
    reporting = task.samples.reporting
    if evaluation_samples is not None:
        reporting = task.feeds.drawn(evaluation_samples)
    target, planned = task.context.target, quantized.planned
    requirements = check_target(task, quantized)
    limiting = _limiting(task, reporting)
    verdict = verify(
        written, task.proto, reporting, task.context.services, fitted=limiting or (), runs_here=target.runs_here,
        proto=quantized.proto,
    )  # fmt: skip
    states = node_states(planned, verdict.runtime if target.runs_here else None)
    states = tuple(replace(s, state="weights only") if s.node in quantized.stored else s for s in states)
    states = tuple(replace(s, state="dynamic") if s.node in quantized.dynamic else s for s in states)
    if tuned is not None:
        states = tuple(
            replace(s, reason=_UNPAID) if s.node in tuned.nodes and s.state == "float" else s for s in states
        )
    report = Report(
        onnxq=version("onnxq"),
        onnxruntime=version("onnxruntime"),
        options={
            **asdict(task.options),
            "preprocess": asdict(task.feeds.preprocess),
            "input_keys": dict(task.input_keys),
            "calibration": task.source,
        },
        source=_facts(task.proto, task.origin, task.size),
        result=_facts(result or quantized.proto, None if output is None else str(output)),
        samples=sample_sets(task, reporting),
        steps=quantized.steps,
        integer_nodes=_count(states, "integers"),
        simulated_nodes=_count(states, "simulated"),
        weights_only_nodes=_count(states, "weights only"),
        dynamic_nodes=tuple(s.node for s in states if s.state == "dynamic"),
        float_nodes=float_nodes(states),
        float_constants=float_constants(result or quantized.proto, planned),
        tensors=tuple(_record(planned, q) for q in planned.quantizers.values()),
        quality=verdict.quality,
        runtime_operators=dict(verdict.operators),
        requirements=requirements,
        warnings=_warnings(task, quantized) + verdict.warnings,
        seconds=seconds,
    )
    if task.options.latency != "off":
        latency = measure_latency(task, written, quantized.proto, planned, seconds)
        if tuned is not None:
            latency = replace(latency, left_in_float=tuned.nodes, notes=tuned.notes)
        report = replace(report, latency=latency)
    if collector is None:
        return report
    layers = collector.layers(planned, replace(task.context, feeds=reporting.few(DETAIL_SAMPLES)))
    return replace(report, layers=layers, distributions=collector.distributions(planned))


def _limiting(task: Task, reporting: CalibrationData) -> CalibrationData | None:
    """Samples beside the held-out ones that the quality is no better than; none where all were asked for, and where
    `effort` fast leaves out what takes time."""
    sets = task.samples
    if reporting is not sets.reporting or sets.limiting is None or task.statistics is not None:
        return None
    rest = QUALITY_SAMPLES - len(reporting) if task.options.effort == "fast" else len(sets.limiting)
    return sets.limiting.few(rest) if rest > 0 and len(sets.limiting) else None


def sample_sets(task: Task, reporting: CalibrationData) -> SampleSets:
    """How many samples were for what. reporting: those that the quality was measured on."""
    sets, statistics = task.samples, task.statistics
    fitting = 0 if task.has_no_data else len(sets.fitting.numbers())
    if statistics is not None:
        fitting = len(statistics.samples)
    choosing = 0 if task.has_no_data else len(sets.choosing.numbers())
    compared = len(reporting.numbers())
    some, unseen = f"on {compared} sample{'s' * (compared != 1)}", False
    if reporting is not sets.reporting:
        origin = f"{some}, among them those it was calibrated with"
    elif sets.is_evaluated:
        origin, unseen = f"{some} of the evaluation data", sets.is_divided or task.has_no_data
        origin += "" if unseen else ", which chose the steps as well"
    elif task.has_random_inputs:
        origin = f"on {compared} random input{'s' * (compared != 1)}"
    elif task.options.data_free:
        origin, unseen = f"{some}, from which nothing was learnt", True
    elif statistics is not None:
        origin = f"{some} that the statistics were collected on"
    elif sets.is_divided:
        origin, unseen = f"{some} held out", True
        if limiting := _limiting(task, reporting):
            origin += f", or on all {compared + len(limiting.numbers())} where it is lower there"
    elif compared < fitting:
        origin = f"on {compared} of the {fitting} samples it was calibrated with"
    else:
        origin = f"on the {f'{fitting} samples' if fitting > 1 else 'sample'} it was calibrated with"
    return SampleSets(fitting, choosing, compared, origin, unseen)


def check_target(task: Task, quantized: Quantized) -> tuple[str, ...]:
    """The target's requirements that the model keeps to. Raises VerificationError where it breaks one: options that
    contradict the target are refused before any work, so that this is a fault of onnxq."""
    checked = ("QuantizeLinear", "DequantizeLinear", "MatMulInteger")
    if not any(node.op_type in checked for node in quantized.proto.graph.node):
        return ()  # tables, or weights inside of branches, are stored as integers: targets require nothing of these
    result = check(quantized.proto, task.context.target, task.origin)
    if result.violations:
        some = "; ".join(str(violation) for violation in result.violations[:3])
        raise VerificationError(
            f"the quantized model breaks {len(result.violations)} requirements of {result.target}, and was not"
            f" written: {some}{'; ...' * (len(result.violations) > 3)}; this is a fault of onnxq: please report it"
        )
    return tuple(f"{requirement.id}: {requirement.text}" for requirement in result.requirements)


def float_nodes(states: Iterable[NodeState]) -> tuple[FloatNode, ...]:
    """What is reported of the nodes that stay in float."""
    return tuple(
        FloatNode(s.node, s.op, s.reason.text, s.reason.kind, s.reason.cause)
        for s in states
        if s.state == "float" and s.reason is not None
    )


def _count(states: Iterable[NodeState], state: State) -> int:
    return sum(s.state == state for s in states)


def _warnings(task: Task, quantized: Quantized) -> tuple[str, ...]:
    """What a reader of the report should not miss."""
    found = [
        *quantized.findings,
        *(warning for step in quantized.steps for warning in step.warnings),
        *_idle_requests(task, quantized),
        _few_samples(task),
        _unmatched_encodings(task, quantized),
        _widened_weights(task),
        _missing_ranges(task, quantized),
        _saturating_cpu(task),
        _dynamic_shapes(task, quantized),
        _random_inputs(task),
    ]
    return tuple(warning for warning in found if warning)


def _random_inputs(task: Task) -> str:
    if not task.has_random_inputs:
        return ""
    return RANDOM_INPUTS_WARNING if len(task.feeds) else NOTHING_RAN_WARNING


def _idle_requests(task: Task, quantized: Quantized) -> Iterator[str]:
    """Options that the user gave, and that changed nothing."""
    steps = {step.name: step for step in quantized.steps}
    for option, requested in REQUESTS.items():
        step = steps.get(requested)
        if getattr(task.options, option) == getattr(Options(), option) or step is None:
            continue
        name, value = f"`{option}`", getattr(task.options, option)
        if step.status == "dropped":
            yield f"{name} {value} was left out: {UNKNOWN if step.before_db is None else WORSE}"
        elif step.status == "nothing to do":
            why = f": {step.skips[0][1]}" if step.skips else ""
            yield f"{name} {value} did nothing{why}"


def _few_samples(task: Task) -> str:
    rows, samples = task.feeds.rows(), len(task.feeds.numbers())
    learnt = task.statistics is None and not task.has_no_data
    if not learnt or rows >= FEW_SAMPLES:
        return ""
    what = f"{samples} calibration samples" + f" with {rows} rows" * (rows > samples)
    held_out = "" if task.samples.is_divided or task.evaluation is not None else ", and none are held out to report on"
    return (
        f"{what} are few: ranges may not hold for other data{held_out}; give {FEW_SAMPLES} at least, some hundreds are"
        " usual"
    )


def _unmatched_encodings(task: Task, quantized: Quantized) -> str:
    """Names in the encodings that mean no tensor of the model."""
    tensors = quantized.planned.graph.tensors()
    unmatched = [e.name for e in task.encodings if e.name not in tensors]
    if not unmatched:
        return ""
    return (
        f"{len(unmatched)} of {len(task.encodings)} encodings name tensors that the prepared model does not have"
        f" ({', '.join(map(repr, unmatched[:3]))}{', ...' * (len(unmatched) > 3)}); they are not used"
    )


def _widened_weights(task: Task) -> str:
    widened = next((p.value for p in task.proto.metadata_props if p.key == WIDENED_FROM), None)
    return "" if widened is None else f"weights were {widened}: what is not quantized computes in float32 now"


def _missing_ranges(task: Task, quantized: Quantized) -> str:
    reasons = quantized.planned.placement.tensors
    missing = {name: reason.text for name, reason in reasons.items() if reason.kind == "range" and reason.cause is None}
    if not missing:
        return ""
    some = "; ".join(f"{name!r}: {text}" for name, text in list(missing.items())[:3])
    remedy = "; `input_ranges`, `synthetic` or calibration data can range them" if task.options.data_free else ""
    return f"{len(missing)} tensors have no range and stay in float ({some}{', ...' * (len(missing) > 3)}){remedy}"


def _saturating_cpu(task: Task) -> str:
    """Of 16-bit accumulators, where this machine has them and the weights may reach their ends."""
    weight = task.options.weight
    if not (task.context.target.runs_here and weight is not None and weight.grid.bits == 8 and saturates()):
        return ""
    return "this CPU has no VNNI: products of 8-bit integers saturate on it; quantize for `target` ort-no-vnni"


def _dynamic_shapes(task: Task, quantized: Quantized) -> str:
    """What a target that needs static shapes will say to this model."""
    target = task.context.target
    if not target.static_shapes:
        return ""
    (feed,) = task.feeds.take(1)
    dynamic = dynamic_inputs(quantized.proto, feed.arrays)
    return dynamic and f"{target.name} runs nothing of a model with dynamic shapes, and {dynamic}"


def _facts(proto: ModelProto, path: str | None, size: int | None = None) -> ModelFacts:
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    parameters = sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
    return ModelFacts(path, large.nbytes(proto) if size is None else size, opset, len(proto.graph.node), parameters)


def _record(model: Model, quantizer: Quantizer) -> QuantizedTensor:
    params = quantizer.params
    assert params is not None
    tensor = model.graph.tensors()[quantizer.tensor]
    return QuantizedTensor(
        quantizer.tensor,
        "constant" if isinstance(tensor, gs.Constant) else "activation",
        str(params.grid),
        tuple(np.ravel(np.asarray(params.scale, np.float64)).tolist()),
        tuple(np.ravel(params.zero_point).tolist()),
        params.axis,
        quantizer.grid_of,
    )
