"""One quantization from a checked float model to a quantized one; steps that hurt are dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..calibration.statistics import Statistics
from ..data import CalibrationData, Feed
from ..encodings import Encoding, encoding_of
from ..errors import NothingToQuantizeError, UsageError
from ..execution.services import Here, Services, Workers, no_progress
from ..execution.session import default_threads
from ..graph.model import Model
from ..options import Options
from ..passes.apply_encodings import ApplyEncodings
from ..passes.base import Context, Outcome, Pass
from ..passes.correct_bias import CorrectBias
from ..passes.equalize_layers import EqualizeLayers
from ..passes.round_weights import RoundWeights
from ..passes.set_bias_scales import SetBiasScales
from ..report import Step
from ..targets import find_target
from ..thresholds import CLEAR_DB, NOISE_FLOOR_DB
from .collect_report import ReportCollector
from .keep_if_better import QualityMeasure, keep_if_better, split
from .pipeline import (
    Pipeline,
    adjustments,
    corrections,
    exceptions,
    load,
    lowering,
    prepare,
    raised,
    ranging,
    step_record,
)

INVENTED_INPUTS = "random inputs"
"""Stands for the calibration data where there is none."""


def make_context(
    options: Options,
    feeds: CalibrationData,
    progress: Callable[[str, int, int], None] | None,
    known: Statistics | None = None,
    workers: Workers | None = None,
) -> Context:
    """What passes may use, as the options say."""
    threads = options.threads or default_threads()
    services = Services(
        threads=threads,
        in_flight=options.batch_size or 2 * threads,
        max_memory=options.max_memory * 2**20,
        workers=workers or Here(),
        progress=progress or no_progress,
    )
    return Context(target=find_target(options.target), feeds=feeds, statistics=known, services=services)


@dataclass
class Job:
    """proto: the checked float model. feeds: calibration data, or random inputs where `calibration` says so.
    known: statistics collected before. notebook: takes down what a detailed report shows. encodings: given grids.
    workers: who collects statistics."""

    proto: ModelProto
    origin: str
    feeds: CalibrationData
    options: Options
    progress: Callable[[str, int, int], None] | None
    input_keys: Mapping[str, str]
    calibration: str | None
    known: Statistics | None
    notebook: ReportCollector | None = None
    encodings: tuple[Encoding, ...] = ()
    workers: Workers | None = None
    context: Context = field(init=False)
    steps: tuple[Step, ...] = ()
    planned: Model = field(init=False)

    def __post_init__(self) -> None:
        self.context = make_context(self.options, self.feeds, self.progress, self.known, self.workers)

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
        self.planned = self.corrected(self.ranged(self.adjusted()))
        return self.finished()

    def finished(self) -> ModelProto:
        """What is planned, as a quantized model."""
        model = self.planned.clone()
        self.steps += lowering().run(model, replace(self.context, feeds=()))
        model.graph.producer_name, model.graph.producer_version = "onnxq", version("onnxq")
        return model.to_proto()

    def adjusted(self) -> Model:
        """The float model in the form that the rest works on, and made easier to quantize."""
        model = load(self.proto, self.origin, self.options)
        self.steps += prepare().run(model, self.context, self.proto)
        if self.notebook is not None:
            self.notebook.start(model)
        steps = self._adjustments()
        correction = self._quick_correction(model) if steps else CorrectBias()
        return self._take(model, steps, lambda copy: self._ranged_and_lowered(copy, correction))

    def ranged(self, model: Model) -> Model:
        """An adjusted model, which is changed, with all quantizers planned; weights and biases are float's as yet."""
        learning = self.learning if self.notebook is None else replace(self.learning, ranged=self.notebook.ranged)
        self.steps += ranging(self.options, self._given()).run(model, learning)
        if not model.quantizers:
            raise NothingToQuantizeError(f"{self.origin}: nothing to quantize: {_reasons(self.placed(), model)}")
        self.steps += exceptions(self.options).run(model, learning)
        return raised(model, self.options)

    def corrected(self, model: Model) -> Model:
        """A ranged model, which may be changed, with weights and biases that make up for rounding."""
        if self.notebook is not None:
            self.notebook.adjusted(model)
        return self._take(model, self._corrections(model), self._lowered)

    def exported(self) -> tuple[ModelProto, tuple[Encoding, ...]]:
        """The float model that was quantized at last, and encodings of its tensors: the grids of the quantized one."""
        model = self.planned.clone()
        SetBiasScales().apply(model, self.context)
        tensors = model.graph.tensors()
        answers = [(q.tensor, q.params) for q in model.quantizers.values() if q.params is not None]
        encodings = tuple(encoding_of(n, params, isinstance(tensors[n], gs.Constant)) for n, params in answers)
        model.graph.producer_name, model.graph.producer_version = "onnxq", version("onnxq")
        return model.to_proto(), encodings

    def _given(self) -> tuple[Pass, ...]:
        """What decides grids before any range is set."""
        if not self.encodings:
            return ()
        target, options = self.context.target, self.options
        complete = not self.invented or self.known is not None or options.data_free
        activation, weight = options.activation or target.activation, options.weight or target.weight
        return (ApplyEncodings(self.encodings, activation, weight, complete),)

    def _adjustments(self) -> tuple[Pass, ...]:
        """Statistics belong to the network as it was, and without a judge per-channel grids are left as they are."""
        steps = adjustments(self.options)
        reason = ""
        if self.encodings:
            reason, dropped = "the encodings were made for the network as it is", steps
        elif self.known is not None:
            reason, dropped = "statistics were collected on the network as it was", steps
        elif self.options.data_free and self.options.per_channel:
            reason = "per channel it helps only where data says so"
            dropped = tuple(step for step in steps if isinstance(step, EqualizeLayers))
        else:
            dropped = ()
        self.steps += tuple(_not_run(step, reason) for step in dropped)
        return tuple(step for step in steps if step not in dropped)

    def _corrections(self, model: Model) -> tuple[Pass, ...]:
        """Statistics alone do not tell what layers compute: then only moments can correct biases."""
        steps = corrections(self.options)
        if self.encodings:
            self.steps += tuple(_not_run(s, "the encodings were made for the weights as they are") for s in steps)
            return ()
        if not self.invented or self.options.data_free:
            return self._optimised_where_needed(model, steps)
        blind = [step for step in steps if not isinstance(step, CorrectBias)]
        if blind and (self.options.rounding != "auto" or self.options.bias_correction == "empirical"):
            raise UsageError("optimised rounding and empirical bias correction need calibration data beside statistics")
        self.steps += tuple(_not_run(s, "it needs calibration data beside the statistics") for s in blind)
        return (CorrectBias("moments"),) * (self.options.bias_correction != "off" and self.options.weight is not None)

    def _optimised_where_needed(self, model: Model, steps: tuple[Pass, ...]) -> tuple[Pass, ...]:
        """At 8 bits, too, `auto` rounds by descent where rounding to nearest leaves noise that can be heard."""
        weight = self.options.weight
        if steps != (CorrectBias(),) or self.options.rounding != "auto" or weight is None:
            return steps
        if weight.block is not None or weight.grid.bits > 8:
            return steps
        some, compared = split(self.feeds)
        copy = model.clone()
        CorrectBias().apply(copy, self._quietly(some))
        db = QualityMeasure(self.proto, compared, self.context.services.threads).db(self._lowered(copy))
        if db >= CLEAR_DB:
            return steps
        self.steps += (_not_run(steps[0], f"rounded to nearest, outputs would be at {db:.1f} dB: descent instead"),)
        return corrections(replace(self.options, rounding="coordinate-descent"))

    def _take(self, model: Model, passes: Sequence[Pass], finish: Callable[[Model], ModelProto]) -> Model:
        """Apply passes; with real data, only those after which the quantized model is no worse."""
        if not passes:
            return model
        if self.invented or self.options.data_free:
            self.steps += Pipeline(tuple(passes)).run(model, replace(self.learning, feeds=()))
            return model
        judge = QualityMeasure(self.proto, split(self.feeds)[1], self.context.services.threads)
        model, trials = keep_if_better(model, passes, self.context, finish, judge)
        for trial in trials:
            outcome = trial.outcome or Outcome()
            outcome = replace(outcome, notes=(str(trial), *outcome.notes))
            step = step_record(type(trial.step).__name__, trial.step, outcome, trial.seconds)
            kept = trial.outcome is not None
            self.steps += (replace(step, before_db=trial.before, after_db=trial.after, kept=kept),)
        return model

    def _quick_correction(self, model: Model) -> Pass:
        """What makes up for rounding while steps are compared. Where rounding to nearest drowns the signal, its SQNR
        says nothing about them: there weights are rounded by the quickest of the optimising methods."""
        if self.options.optimised_rounding is None or self.invented:
            return CorrectBias()
        judge = QualityMeasure(self.proto, split(self.feeds)[1], self.context.services.threads)
        clear = judge.db(self._ranged_and_lowered(model.clone(), CorrectBias())) >= NOISE_FLOOR_DB
        return CorrectBias() if clear else RoundWeights("gptq", "low", self.options.seed)

    def _ranged_and_lowered(self, model: Model, correction: Pass) -> ModelProto:
        """What becomes of a float model, by a few samples and a quick correction: good enough to compare steps."""
        few = self._quietly(split(self.feeds)[0])
        ranging(self.options).run(model, few)
        model = raised(model, self.options)
        if self.options.weight is not None:
            correction.apply(model, few)
        return self._lowered(model)

    def _lowered(self, model: Model) -> ModelProto:
        model = raised(model, self.options)
        lowering().run(model, replace(self.context, feeds=()))
        return model.to_proto()

    def _quietly(self, feeds: Sequence[Feed]) -> Context:
        """The context for a trial on some feeds, which shows no progress of its own."""
        return replace(self.context, feeds=feeds, services=replace(self.context.services, progress=no_progress))

    def placed(self) -> Step:
        """The record of where quantizers went."""
        return next(step for step in self.steps if step.name == "AddQuantizers")


def _not_run(step: Pass, reason: str) -> Step:
    record = step_record(type(step).__name__, step, Outcome(notes=(f"not run: {reason}",)), 0.0)
    return replace(record, kept=False)


def _reasons(placed: Step, model: Model) -> str:
    operators = {node.name: node.op for node in model.graph.nodes}
    counts = Counter(f"{operators[where]}: {reason}" for where, reason in placed.skips)
    return "; ".join(f"{count} {text}" for text, count in counts.most_common()) or "no node computes float32"
