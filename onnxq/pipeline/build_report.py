"""What there is to tell of a finished job: its result verified, held against the target, and all of it together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..check import check
from ..data import Feed
from ..errors import VerificationError
from ..execution.session import saturates
from ..graph import large
from ..graph.model import Model, Quantizer
from ..graph.precision import WIDENED_FROM
from ..report import FloatNode, ModelFacts, QuantizedTensor, Report
from ..thresholds import FEW_SAMPLES, QUALITY_SAMPLES
from .collect_report import ReportCollector
from .job import Job
from .verify import verify

INVENTED_WARNING = (
    "outputs were compared on random inputs; give calibration data to see how far the result is from the float model"
    " on real ones"
)


def account(
    job: Job,
    quantized: ModelProto,
    written: Path,
    output: str | os.PathLike[str] | None,
    seconds: float,
    result: ModelProto | None = None,
) -> Report:
    """Verify the quantized model, written to a file, and say everything about it. Raises VerificationError.

    output: where the result is to be found, the quantized model, or `result` instead of it.
    """
    compared = job.feeds.take(QUALITY_SAMPLES)
    target = job.context.target
    requirements = checked(job, quantized)
    verdict = verify(
        written, job.proto, compared, job.context.services.threads, runs_here=target.runs_here, proto=quantized
    )
    placed = job.placed()
    nodes = {node.name: node.op for node in job.planned.graph.nodes}
    unranged = _unranged(job)
    report = Report(
        onnxq=version("onnxq"),
        onnxruntime=version("onnxruntime"),
        options={
            **asdict(job.options),
            "preprocess": asdict(job.feeds.preprocess),
            "input_keys": dict(job.input_keys),
            "calibration": job.calibration,
        },
        source=_facts(job.proto, job.origin),
        result=_facts(result or quantized, None if output is None else str(output)),
        samples=len(job.known.samples) if job.known is not None else 0 if job.invented else len(job.feeds),
        steps=job.steps,
        integer_nodes=placed.changed - len(unranged),
        float_nodes=(
            *(FloatNode(where, nodes[where], reason) for where, reason in placed.skips),
            *(FloatNode(where, nodes[where], reason) for where, reason in unranged.items()),
        ),
        tensors=tuple(_record(job.planned, q) for q in job.planned.quantizers.values()),
        quality=verdict.quality,
        compared_samples=sum(f.rows or 1 for f in compared),
        runtime_operators=dict(verdict.operators),
        requirements=requirements,
        warnings=_warnings(job) + _saturation(job) + verdict.warnings + (INVENTED_WARNING,) * (job.invented),
        seconds=seconds,
    )
    return report if job.notebook is None else _detailed(job, report, job.notebook, compared)


def _detailed(job: Job, report: Report, notebook: ReportCollector, feeds: Sequence[Feed]) -> Report:
    """The report with all layers, compared on some feeds, and activations."""
    layers = notebook.layers(job.planned, replace(job.context, feeds=feeds))
    return replace(report, layers=layers, distributions=notebook.distributions(job.planned))


def checked(job: Job, quantized: ModelProto) -> tuple[str, ...]:
    """The target's requirements that the model keeps to. Raises VerificationError where it breaks one.

    Nodes that the user keeps in float are as they are on purpose.
    """
    wanted = {where for where, why in job.placed().skips if why.startswith(("excluded by", "not included"))}
    result = check(quantized, job.context.target, job.origin, wanted)
    if result.violations:
        some = "; ".join(str(violation) for violation in result.violations[:3])
        raise VerificationError(
            f"the quantized model breaks {len(result.violations)} requirements of {result.target}, and was not"
            f" written: {some}{'; ...' * (len(result.violations) > 3)}; options that contradict the target, such as"
            " presets, overrides and symmetry, are the usual reason"
        )
    return tuple(f"{requirement.id}: {requirement.text}" for requirement in result.requirements)


def _without_range(job: Job) -> dict[str, str]:
    """Tensors that were to be quantized but have no range, and why."""
    names = ("ApplyEncodings", "SetActivationRanges", "SetDataFreeRanges")
    skips = dict(skip for step in job.steps if step.name in names for skip in step.skips)
    tensors = job.planned.graph.tensors()
    return {n: reason for n, reason in skips.items() if n in tensors and n not in job.planned.quantizers}


def _unmatched(job: Job) -> list[str]:
    """Names in the encodings that mean no tensor of the model."""
    tensors = job.planned.graph.tensors()
    return [e.name for e in job.encodings if e.name not in tensors]


def _unranged(job: Job) -> dict[str, str]:
    """Nodes that compute in float after all, since a tensor that they read has no range, and why."""
    tensors, known = job.planned.graph.tensors(), {where for where, _ in job.placed().skips}
    readers, present = {}, {id(node) for node in job.planned.graph.nodes}  # not in subgraphs, not removed
    for name in _without_range(job):
        for node in tensors[name].outputs if name in tensors else ():
            if node.name not in known and id(node) in present:
                readers[node.name] = f"its input {name!r} has no range"
    return readers


def _saturation(job: Job) -> tuple[str, ...]:
    """A word on 16-bit accumulators, where this machine has them and the weights may reach their ends."""
    weight = job.options.weight
    if not (job.context.target.runs_here and weight is not None and weight.grid.bits == 8 and saturates()):
        return ()
    return ("this CPU has no VNNI: products of 8-bit integers saturate on it; quantize for --target ort-no-vnni",)


def _warnings(job: Job) -> tuple[str, ...]:
    unmatched = _unmatched(job)
    learnt = job.known is None and not job.invented and not job.options.data_free
    warnings: tuple[str, ...] = (
        f"{len(job.feeds)} calibration samples are few: ranges may not hold for other data, and SQNR is measured on"
        " these same samples; some hundreds are usual",
    ) * (learnt and len(job.feeds) < FEW_SAMPLES)
    warnings += (
        f"{len(unmatched)} of {len(job.encodings)} encodings name tensors that the prepared model does not have"
        f" ({', '.join(map(repr, unmatched[:3]))}{', ...' * (len(unmatched) > 3)}); they are not used",
    ) * bool(unmatched)
    widened = next((p.value for p in job.proto.metadata_props if p.key == WIDENED_FROM), None)
    warnings += (f"weights were {widened}: what is not quantized is float32 now",) * (widened is not None)
    missing = _without_range(job)
    if not missing:
        return warnings
    some = "; ".join(f"{name!r}: {reason}" for name, reason in list(missing.items())[:3])
    remedy = "; --input-range, --synthetic or calibration data can range them" * job.options.data_free
    return (
        *warnings,
        f"{len(missing)} tensors have no range and stay in float ({some}{', ...' * (len(missing) > 3)}){remedy}",
    )


def _facts(proto: ModelProto, path: str | None) -> ModelFacts:
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    parameters = sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
    return ModelFacts(path, large.nbytes(proto), opset, len(proto.graph.node), parameters)


def _record(model: Model, quantizer: Quantizer) -> QuantizedTensor:
    params = quantizer.params
    assert params is not None
    tensor = model.graph.tensors()[quantizer.tensor]
    return QuantizedTensor(
        quantizer.tensor,
        "constant" if isinstance(tensor, gs.Constant) else "activation",
        str(params.grid),
        tuple(float(s) for s in np.ravel(params.scale)),
        tuple(int(z) for z in np.ravel(params.zero_point)),
        params.axis,
        quantizer.grid_of,
    )
