"""One quantization from a checked float model to a verified result and its report; steps that hurt are dropped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from .data import CalibrationData
from .errors import ModelError, UsageError
from .graph.model import Model, Quantizer
from .judge import SAMPLES as JUDGED
from .judge import Judge, try_steps
from .options import Options
from .passes.base import Context, Outcome, Pass
from .passes.correct_bias import CorrectBias
from .passes.equalize_layers import EqualizeLayers
from .pipeline import Pipeline, adjustments, corrections, load, lowering, prepare, raised, ranging, step_record
from .report import FloatNode, ModelFacts, QuantizedTensor, Report, Step
from .runtime import default_threads
from .statistics import Statistics
from .targets import TARGETS
from .verify import SAMPLES, verify

INVENTED_INPUTS = "random inputs"
"""Stands for the calibration data where there is none."""

INVENTED_WARNING = (
    "outputs were compared on random inputs; give calibration data to see how far the result is from the float model"
    " on real ones"
)


def make_context(
    options: Options,
    feeds: CalibrationData,
    progress: Callable[[str, int, int], None] | None,
    known: Statistics | None = None,
) -> Context:
    """What passes may use, as the options say."""
    threads = options.threads or default_threads()
    context = Context(
        target=TARGETS[options.target],
        feeds=feeds,
        statistics=known,
        threads=threads,
        in_flight=options.batch_size or 2 * threads,
        max_memory=options.max_memory * 2**20,
    )
    return context if progress is None else replace(context, progress=progress)


@dataclass
class Job:
    """proto: the checked float model. feeds: calibration data, or random inputs where `calibration` says so.
    known: statistics collected before."""

    proto: ModelProto
    origin: str
    feeds: CalibrationData
    options: Options
    progress: Callable[[str, int, int], None] | None
    input_keys: Mapping[str, str]
    calibration: str | None
    known: Statistics | None
    context: Context = field(init=False)
    steps: tuple[Step, ...] = ()
    planned: Model = field(init=False)

    def __post_init__(self) -> None:
        self.context = make_context(self.options, self.feeds, self.progress, self.known)

    @property
    def invented(self) -> bool:
        """Whether the feeds are random inputs, of which nothing may be learnt but whether the model runs."""
        return self.calibration == INVENTED_INPUTS

    @property
    def learning(self) -> Context:
        """The context for passes that learn from data."""
        blind = self.options.data_free or self.invented
        return replace(self.context, feeds=()) if blind and not self.options.synthetic else self.context

    def quantize(self) -> ModelProto:
        """The quantized model. Raises OnnxqError."""
        model = load(self.proto, self.origin, self.options)
        self.steps += prepare().run(model, self.context, self.proto)
        model = self._take(model, self._adjustments(), self._ranged_and_lowered)
        self.steps += ranging(self.options).run(model, self.learning)
        if not model.quantizers:
            raise ModelError(f"{self.origin}: nothing to quantize: {_reasons(self._placed(), model)}")
        model = self._take(raised(model, self.options), self._corrections(), self._lowered)
        self.planned, model = model, model.clone()
        self.steps += lowering().run(model, replace(self.context, feeds=()))
        model.graph.producer_name, model.graph.producer_version = "onnxq", version("onnxq")
        return model.to_proto()

    def _adjustments(self) -> tuple[Pass, ...]:
        """Statistics belong to the network as it was, and without a judge per-channel grids are left as they are."""
        steps = adjustments(self.options)
        reason = ""
        if self.known is not None:
            reason, dropped = "statistics were collected on the network as it was", steps
        elif self.options.data_free and self.options.per_channel:
            reason = "per channel it helps only where data says so"
            dropped = tuple(step for step in steps if isinstance(step, EqualizeLayers))
        else:
            dropped = ()
        for step in dropped:
            self.steps += (step_record(type(step).__name__, step, Outcome(notes=(f"not run: {reason}",)), 0.0),)
        return tuple(step for step in steps if step not in dropped)

    def _corrections(self) -> tuple[Pass, ...]:
        """Statistics alone do not tell what layers compute: then only moments can correct biases."""
        steps = corrections(self.options)
        if not self.invented or self.options.data_free:
            return steps
        blind = [step for step in steps if not isinstance(step, CorrectBias)]
        if blind and (self.options.rounding != "auto" or self.options.bias_correction == "empirical"):
            raise UsageError("optimised rounding and empirical bias correction need calibration data beside statistics")
        for step in blind:
            outcome = Outcome(notes=("not run: it needs calibration data beside the statistics",))
            self.steps += (step_record(type(step).__name__, step, outcome, 0.0),)
        return (CorrectBias("moments"),) * (self.options.bias_correction != "off" and self.options.weight is not None)

    def _take(self, model: Model, passes: Sequence[Pass], finish: Callable[[Model], ModelProto]) -> Model:
        """Apply passes; with real data, only those after which the quantized model is no worse."""
        if not passes:
            return model
        if self.invented or self.options.data_free:
            self.steps += Pipeline(tuple(passes)).run(model, replace(self.learning, feeds=()))
            return model
        judge = Judge(self.proto, self.feeds.take(JUDGED), self.context.threads)
        model, trials = try_steps(model, passes, self.context, finish, judge)
        for trial in trials:
            outcome = trial.outcome or Outcome()
            outcome = replace(outcome, notes=(str(trial), *outcome.notes))
            self.steps += (step_record(type(trial.step).__name__, trial.step, outcome, trial.seconds),)
        return model

    def _ranged_and_lowered(self, model: Model) -> ModelProto:
        """What becomes of a float model, by a few samples and the quick correction: good enough to compare steps."""
        few = replace(self.context, feeds=self.feeds.take(JUDGED), progress=Context().progress)
        ranging(self.options).run(model, few)
        if self.options.weight is not None:
            CorrectBias().apply(model, few)
        return self._lowered(model)

    def _lowered(self, model: Model) -> ModelProto:
        model = raised(model, self.options)
        lowering().run(model, replace(self.context, feeds=()))
        return model.to_proto()

    def report(
        self, quantized: ModelProto, written: Path, output: str | os.PathLike[str] | None, seconds: float
    ) -> Report:
        """Verify the written model and say everything about it. Raises VerificationError."""
        compared = self.feeds.take(SAMPLES)
        verdict = verify(written, self.proto, [(f.arrays, f.rows) for f in compared], self.context.threads)
        placed = self._placed()
        nodes = {node.name: node.op for node in self.planned.graph.nodes}
        unranged = self._unranged()
        return Report(
            onnxq=version("onnxq"),
            onnxruntime=version("onnxruntime"),
            options={
                **asdict(self.options),
                "preprocess": asdict(self.feeds.preprocess),
                "input_keys": dict(self.input_keys),
                "calibration": self.calibration,
            },
            source=_facts(self.proto, self.origin),
            result=_facts(quantized, None if output is None else str(output)),
            samples=len(self.known.samples) if self.known is not None else 0 if self.invented else len(self.feeds),
            steps=self.steps,
            integer_nodes=placed.changed - len(unranged),
            float_nodes=(
                *(FloatNode(where, nodes[where], reason) for where, reason in placed.skips),
                *(FloatNode(where, nodes[where], reason) for where, reason in unranged.items()),
            ),
            tensors=tuple(_record(self.planned, q) for q in self.planned.quantizers.values()),
            quality=verdict.quality,
            compared_samples=sum(f.rows or 1 for f in compared),
            runtime_operators=dict(verdict.operators),
            warnings=self._warnings() + verdict.warnings + (INVENTED_WARNING,) * (self.invented),
            seconds=seconds,
        )

    def _without_range(self) -> dict[str, str]:
        """Tensors that were to be quantized but have no range, and why."""
        steps = [s for s in self.steps if s.name in ("SetActivationRanges", "ForeseeActivationRanges")]
        skips = dict(skip for step in steps for skip in step.skips)
        return {name: reason for name, reason in skips.items() if name not in self.planned.quantizers}

    def _unranged(self) -> dict[str, str]:
        """Nodes that compute in float after all, since a tensor that they read has no range, and why."""
        tensors, known = self.planned.graph.tensors(), {where for where, _ in self._placed().skips}
        readers = {}
        for name in self._without_range():
            for node in tensors[name].outputs if name in tensors else ():
                if node.name not in known:
                    readers[node.name] = f"its input {name!r} has no range"
        return readers

    def _warnings(self) -> tuple[str, ...]:
        missing = self._without_range()
        if not missing:
            return ()
        some = "; ".join(f"{name!r}: {reason}" for name, reason in list(missing.items())[:3])
        remedy = "; --input-range, --synthetic or calibration data can range them" * self.options.data_free
        return (
            f"{len(missing)} tensors have no range and stay in float ({some}{', ...' * (len(missing) > 3)}){remedy}",
        )

    def _placed(self) -> Step:
        return next(step for step in self.steps if step.name == "AddQuantizers")


def _reasons(placed: Step, model: Model) -> str:
    operators = {node.name: node.op for node in model.graph.nodes}
    counts = Counter(f"{operators[where]}: {reason}" for where, reason in placed.skips)
    return "; ".join(f"{count} {text}" for text, count in counts.most_common()) or "no node computes float32"


def _facts(proto: ModelProto, path: str | None) -> ModelFacts:
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    parameters = sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
    return ModelFacts(path, proto.ByteSize(), opset, len(proto.graph.node), parameters)


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
