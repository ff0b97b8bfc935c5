"""What `quantize` would do, found out in seconds: options, model and data are checked as it checks them, quantizers are
placed, and the model is lowered with ranges that mean nothing. Nothing is calibrated, rounded, compared or written.

CPU time is predicted from a run of the float model with all of its float tensors as outputs, as calibration runs
it, t: with n samples to fit, r to report on, and w parameters

    s = START + PASSES (n + r) t + PARAMETER w

with no step tried; what else the options ask for takes a multiple of s, by the network (`thresholds.COST_FACTORS`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import ModelProto

from ..data import Feed
from ..execution.session import Session
from ..graph import large
from ..graph.model import Model
from ..operators.node import is_float
from ..options import Options
from ..pipeline.build_report import float_nodes
from ..pipeline.choose_hard_swish import too_few_products
from ..pipeline.correct import correction
from ..pipeline.equalize import fitting_equalization
from ..pipeline.lower import LOWERING, at_sufficient_opset, store_inner_weights
from ..pipeline.node_states import node_states
from ..pipeline.prepare import data_findings, prepare
from ..pipeline.refuse_contradictions import refuse_contradictions, with_any_ranges
from ..pipeline.run_passes import run_passes
from ..pipeline.set_ranges import completing, given_encodings, placement, ranging, refuse_empty
from ..pipeline.task import Task
from ..report import FloatNode, printable
from ..report.notebook import InNotebook
from ..report.text import because, size
from ..thresholds import CLEAR_DB, COST_FACTORS, COST_PARAMETER, COST_PASSES, COST_START


@dataclass(frozen=True)
class PlannedStep:
    """A pass that would run. note: when it would not, or what decides whether it is kept; empty where it runs."""

    name: str
    title: str
    note: str = ""


@dataclass(frozen=True, repr=False)
class DryRun(InNotebook):
    """What a run would do. samples: to fit, to choose by, to report on. cpu_seconds: least and most, as predicted; None
    where the model did not run. bytes: of the result, as expected. warnings: of the calibration data."""

    model: str
    target: str
    preset: str
    samples: tuple[int, int, int]
    steps: tuple[PlannedStep, ...]
    integer_nodes: int
    weights_only_nodes: int
    quantized_tensors: int
    float_nodes: tuple[FloatNode, ...]
    source_bytes: int
    bytes: int
    cpu_seconds: tuple[float, float] | None
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Strict JSON, keys as the fields here."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def to_text(self, verbose: bool = False) -> str:
        """For a terminal; with `verbose` each node that would stay in float."""
        fitting, choosing, reporting = self.samples
        weights = f", {self.weights_only_nodes} with quantized weights only" * bool(self.weights_only_nodes)
        lines = [
            f"{self.model} for {self.target}, {self.preset}: a dry run, nothing is written",
            f"would quantize: {self.integer_nodes} nodes{weights}, {self.quantized_tensors} tensors;"
            f" {len(self.float_nodes)} nodes in float",
            f"size {size(self.source_bytes)} -> about {size(self.bytes)}"
            f" ({self.source_bytes / max(self.bytes, 1):.2f} times smaller)",
            f"samples: {fitting} to calibrate, {choosing} to choose, {reporting} to report",
        ]
        if self.cpu_seconds is not None:
            least, most = (_rounded(seconds) for seconds in self.cpu_seconds)
            lines.append(f"time: {least} to {most} of CPU time, by how well rounding to nearest does")
        lines.append(f"steps: {', '.join(step.title for step in self.steps)}")
        lines += [f"step {step.title}: {step.note}" for step in self.steps if step.note]
        if verbose:
            lines += [f"in float: {n.node} ({n.op}): {because(n)}" for n in self.float_nodes]
        else:
            groups = Counter((n.op, n.reason) for n in self.float_nodes)
            lines += [f"in float: {count} {op}: {reason}" for (op, reason), count in groups.most_common()]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(printable(line) for line in lines)


def dry_run(task: Task) -> DryRun:
    """What the task would do. Raises OnnxqError as `pipeline.quantize` does before its long work."""
    options = task.options
    model, prepared = prepare(task.proto, task.origin, options, task.context)
    if too_few_products(model, task) is not None:
        options = replace(options, hard_swish="float")
        task = replace(task, options=options)
    placing = (*placement(options), *given_encodings(task))
    refuse_contradictions(model, task, placing)
    warnings = data_findings(model, task)
    plan = with_any_ranges(model, task, placing)
    refuse_empty(plan, task)
    plan, _ = run_passes(completing(options), plan, task.context)
    states = node_states(plan)
    planned = [PlannedStep(step.name, step.title) for step in prepared]
    planned += _steps(task)
    sets = task.samples
    fitting, choosing = (0, 0) if task.has_no_data else (len(sets.fitting.numbers()), len(sets.choosing.numbers()))
    return DryRun(
        model=task.origin,
        target=options.target,
        preset=options.preset,
        samples=(fitting, choosing, len(sets.reporting.numbers())),
        steps=tuple(planned),
        integer_nodes=sum(state.state in ("integers", "dynamic", "simulated") for state in states),
        weights_only_nodes=sum(state.state == "weights only" for state in states),
        quantized_tensors=len(plan.quantizers),
        float_nodes=float_nodes(states),
        source_bytes=task.size or large.nbytes(task.proto),
        bytes=large.nbytes(_lowered(plan, task)),
        cpu_seconds=_cpu_seconds(model, task),
        warnings=warnings,
    )


def _steps(task: Task) -> list[PlannedStep]:
    """Passes behind the preparation, in order, with what becomes of each."""
    options = task.options
    kept = "kept only where outputs are no worse"
    passes, skipped = fitting_equalization(task)
    if task.has_no_data or options.effort == "fast":
        kept = ""
    elif options.effort == "default" and options.per_channel:
        kept = f"tried where outputs are below {CLEAR_DB:g} dB without it, and {kept}"
    found = [PlannedStep(s.name, s.title, "; ".join(s.notes)) for s in skipped]
    found += [PlannedStep(type(p).__name__, p.title, kept) for p in passes]
    found += [PlannedStep(type(p).__name__, p.title) for p in ranging(options, given_encodings(task))]
    if options.fallback != "off":
        found.append(PlannedStep("Fallback", "Fallback of activations", "where a grid costs the outputs too much"))
    if not task.encodings:
        note = "" if task.has_no_data or options.effort == "fast" else "kept only where outputs are no worse"
        if options.optimised_rounding is None and options.rounding == "auto" and note:
            note += f"; below {CLEAR_DB:g} dB weights are rounded by GPTQ or coordinate descent instead"
        found += [PlannedStep(type(p).__name__, p.title, note) for p in correction(options)]
    return [*found, *(PlannedStep(type(p).__name__, p.title) for p in LOWERING), PlannedStep("verify", "Verify")]


def _lowered(plan: Model, task: Task) -> ModelProto:
    plan = at_sufficient_opset(plan, task.options)
    plan, _ = run_passes(LOWERING, plan, dataclasses.replace(task.context, feeds=()))
    return store_inner_weights(plan.to_proto(), task.options)[0]


def _cpu_seconds(model: Model, task: Task) -> tuple[float, float] | None:
    """The least and the most CPU time that is to be expected."""
    if not len(task.feeds):
        return None
    (feed,) = task.feeds.take(1)
    sets = task.samples
    samples = len(sets.reporting) + (0 if task.has_no_data else len(sets.fitting))
    least = COST_START + COST_PASSES * samples * _run_seconds(model, feed)
    least += COST_PARAMETER * sum(int(np.prod(constant.shape)) for constant in model.initializers())
    low, high = COST_FACTORS[_effort(task.options, task.has_no_data)]
    return round(low * least, 2), round(high * least, 2)


def _effort(options: Options, has_no_data: bool) -> str:
    """A key of COST_FACTORS."""
    if has_no_data or (options.effort == "fast" and options.optimised_rounding is None):
        return "fast"
    if options.optimised_rounding == "adaround":
        return "adaround"
    return "rounding" if options.optimised_rounding is not None else options.effort


def _run_seconds(model: Model, feed: Feed) -> float:
    """CPU seconds of a run with all float tensors as outputs."""
    proto = model.to_proto()
    known = {value.name for value in proto.graph.output}
    names = (name for name, tensor in model.graph.tensors().items() if is_float(tensor) and tensor.inputs)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = Session(proto)
    session.run(feed.arrays)
    start = time.process_time()
    session.run(feed.arrays)
    return time.process_time() - start


def _rounded(seconds: float) -> str:
    """Two digits are more than a forecast knows."""
    digits = 1 if seconds < 10 else 0
    return f"{seconds:.{digits}f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
