"""Figure 8 of the white paper (section 3.6) from top to bottom: a float model becomes a quantized one.

    prepare          normalise, move Transposes, fuse decomposed operators, fold BatchNorm
    equalize         remove dead channels, CLE, absorb biases, SmoothQuant       each kept if better
    set_ranges       add quantizers, weight ranges, activation ranges, fallback of activations
    correct          optimised rounding, or bias correction                      kept if better
    exceptions       wider formats for the few tensors that carry the loss, where it is large: the last resort
    lower            bias scales, fuse activations, QuantizeLinear and DequantizeLinear

What is written is then verified (`verify`). Every function takes a model and returns (model, steps): the next model and
the record of each pass.

One box departs from the figure, which sets activation ranges last: here they come before weights are rounded, since
rounding and bias correction fit what a layer computes on its *quantized* inputs, x^ in sum |W~ x^ + b~ - y|^2. SQNR of
a MobileNet's outputs (models/mobilenet_digits, 128 unseen images, coordinate descent), ranges first and rounding first:
w4a4 8.0 and 6.9 dB, w8a8 29.0 and 28.6 dB, w4a8 25.2 and 25.4 dB. The coarser the activations, the more it matters.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeGuard

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto

from ..calibration.check_data import check_data
from ..calibration.context import Context
from ..data import Feed
from ..encodings import Encoding, encoding_of
from ..errors import DataError, NothingToQuantizeError, UsageError
from ..execution.services import no_progress
from ..graph.dynamic_lstm import with_dynamic_lstms
from ..graph.model import Model
from ..graph.opset import convert_opset, opset_of
from ..graph.precision import stored_as_given
from ..graph.stored_weights import StoredWeights
from ..numeric.quant import QuantSpec
from ..options import Options, bits
from ..passes.absorb_bias import AbsorbBias
from ..passes.add_quantizers import AddQuantizers
from ..passes.add_table_quantizers import AddTableQuantizers
from ..passes.apply_encodings import ApplyEncodings
from ..passes.apply_overrides import ApplyOverrides
from ..passes.base import Pass
from ..passes.choose_storage import ChooseStorage
from ..passes.correct_bias import CorrectBias, input_axes
from ..passes.correct_bias_empirically import CorrectBiasEmpirically
from ..passes.equalize_layers import EqualizeLayers
from ..passes.fallback import Fallback
from ..passes.fit_scales import FitScales
from ..passes.fold_batchnorm import FoldBatchNorm
from ..passes.fuse_activation import FuseActivation
from ..passes.fuse_decomposed import FuseDecomposedOperators
from ..passes.leave_incomplete import LeaveIncompleteOperators
from ..passes.lower_to_qdq import LowerToQdq
from ..passes.make_exceptions import MakeExceptions
from ..passes.move_transposes import MoveTransposes
from ..passes.normalize import Normalize
from ..passes.quantize_dynamically import QuantizeDynamically
from ..passes.refine_weight_ranges import RefineWeightRanges
from ..passes.remove_dead_channels import RemoveDeadChannels
from ..passes.rewrite_einsum import RewriteEinsum
from ..passes.round_weights import RoundWeights
from ..passes.set_activation_ranges import SetActivationRanges
from ..passes.set_bias_scales import SetBiasScales
from ..passes.set_data_free_ranges import SetDataFreeRanges
from ..passes.set_weight_ranges import SetWeightRanges
from ..passes.smoothquant import SmoothQuant
from ..report import Step
from ..targets import find_target
from ..targets.contradictions import FALLBACKS, contradictions, no_fallback
from ..thresholds import (
    BIAS_SHARE,
    CLEAR_DB,
    EXCEPTIONS_BELOW_DB,
    LEAST_GAIN_DB,
    NOISE_FLOOR_DB,
    TOLERANCE_DB,
)  # fmt: skip
from .collect_report import ReportCollector
from .keep_if_better import better_of, keep_if_better
from .log import log_steps
from .node_states import node_states
from .refuse_contradictions import refuse_contradictions
from .run_passes import Steps, not_run, run_passes
from .task import Task


@dataclass(frozen=True)
class Plan:
    """A float model with a quantizer for each tensor that is to be quantized.

    ranged: with all ranges set, weights and biases still those of the equalized float model.
    model: with weights rounded, or biases corrected.  steps: how it came about.
    findings: what is likely wrong with the calibration data.  correction: the last of the steps, which made `model`.
    """

    ranged: Model
    model: Model
    steps: Steps
    findings: tuple[str, ...] = ()
    correction: Steps = ()


@dataclass(frozen=True)
class Quantized:
    """planned: what was lowered.  proto: the result.  steps: all of them.  findings: of the calibration data.
    stored: nodes outside of the plan, or in float there, whose weights are integers in the result.  dynamic: those of
    them that compute in integers, with activations quantized at run time."""

    planned: Model
    proto: ModelProto
    steps: Steps
    findings: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()


def quantize(task: Task, collector: ReportCollector | None = None) -> Quantized:
    """Figure 8. collector: takes down what a detailed report shows. Raises OnnxqError."""
    plan = with_exceptions(make_plan(task, collector), task)
    proto, lowered = lower(plan.model, task.context)
    proto, stored, nodes = store_inner_weights(proto, task.options)
    proto, dynamic = with_dynamic_lstms(proto) if task.options.is_dynamic else (proto, ())
    proto = stored_as_given(proto)
    log_steps(lowered + stored)
    return Quantized(plan.model, proto, plan.steps + lowered + stored, plan.findings, nodes, dynamic)


def make_plan(task: Task, collector: ReportCollector | None = None) -> Plan:
    """All of figure 8 that decides something; what is left is to write it down. Raises OnnxqError."""
    model, prepared = prepare(task.proto, task.origin, task.options, task.context)
    log_steps(prepared)
    refuse_contradictions(model, task, (*placement(task.options), *given_encodings(task)))
    findings = data_findings(model, task)
    if collector is not None:
        collector.start(model)
    model, equalized = equalize(model, task)
    log_steps(equalized)
    ranged, ranges = set_ranges(model, task, collector)
    log_steps(ranges)
    if collector is not None:
        collector.adjusted(ranged)
    model, corrected = correct(ranged, task)
    log_steps(corrected)
    return Plan(ranged, model, prepared + equalized + ranges + corrected, findings, corrected)


# --- prepare ----------------------------------------------------------------------------------------------------------


def prepare(proto: ModelProto, origin: str, options: Options, context: Context) -> tuple[Model, Steps]:
    """From any exporter's model to the one form that the rest works on; the function stays."""
    model = load(proto, origin, options)
    return run_passes(
        (Normalize(), RewriteEinsum(), MoveTransposes(), FuseDecomposedOperators(), FoldBatchNorm()),
        model,
        context,
        proto,
    )


def data_findings(prepared: Model, task: Task) -> tuple[str, ...]:
    """What is likely wrong with the calibration data. Raises DataError for it where `strict` says so."""
    if task.has_random_inputs:
        return ()
    findings = check_data(prepared, task.feeds).findings
    if findings and task.options.strict:
        raise DataError(f"{task.source or 'the calibration data'}: {'; '.join(findings)}; `strict` refuses such data")
    return findings


def load(proto: ModelProto, origin: str, options: Options) -> Model:
    """A model to work on, at an operator set that the target needs: the same one for all grids, so that statistics
    serve all of them."""
    target = find_target(options.target)
    return Model.from_proto(convert_opset(proto, target.min_opset, origin, target.max_opset), origin)


# --- equalize ---------------------------------------------------------------------------------------------------------


def equalization(options: Options) -> tuple[Pass, ...]:
    """Steps that make the float network easier to quantize."""
    weight_bits, activation_bits = bits(options.preset)
    passes: list[Pass] = []
    if options.dead_channels:
        passes.append(RemoveDeadChannels())
    if options.cle != "off":
        method: Literal["range", "noise"] = "range" if options.cle == "range" else "noise"
        passes.append(EqualizeLayers(method, bits=(weight_bits or 16, activation_bits or 16)))
    if options.absorb:
        passes.append(AbsorbBias())
    if options.smoothquant is not None:
        passes.append(SmoothQuant(options.smoothquant))
    return tuple(passes)


def equalize(model: Model, task: Task) -> tuple[Model, Steps]:
    """The float model, easier to quantize. Without data nothing says what a step is worth: then all are applied, as
    they are where nothing is tried for want of time."""
    passes, skipped = fitting_equalization(task)
    if not passes:
        return model, skipped
    if task.has_no_data or task.options.effort == "fast":
        seen = () if task.has_no_data else task.samples.trial
        model, steps = run_passes(passes, model, replace(task.learning, feeds=seen))
        return model, skipped + steps

    @cache
    def quality() -> float | None:
        return task.quality.db(quantized_quickly(model.clone(), task, CorrectBias()))

    if task.options.effort == "default" and task.options.per_channel and _is_clear(db := quality()):
        reason = f"with a scale for each channel, outputs are at {db:.1f} dB without it; `effort` high tries it"
        skipped += tuple(not_run(step, reason) for step in passes if isinstance(step, _FOR_UNEVEN_CHANNELS))
        passes = tuple(step for step in passes if not isinstance(step, _FOR_UNEVEN_CHANNELS))
    correction = _quick_correction(quality, task)
    model, steps = keep_if_better(
        passes,
        model,
        task.context,
        lambda copy: quantized_quickly(copy, task, correction),
        task.quality,
        few=_silent(task.context, task.samples.trial) if task.samples.is_divided else None,
        before=quality if correction == CorrectBias() else None,
    )
    return model, skipped + steps


_ANALYTIC = CorrectBias()

_FOR_UNEVEN_CHANNELS = (RemoveDeadChannels, EqualizeLayers, AbsorbBias)
"""Steps that weights with a scale for each channel hardly need: 0.4 dB at most (accuracy-steps.md)."""


def fitting_equalization(task: Task) -> tuple[tuple[Pass, ...], Steps]:
    """Statistics and encodings belong to the network as it was; without data, per-channel grids are not equalized."""
    passes = equalization(task.options)
    dropped: tuple[Pass, ...] = ()
    reason = ""
    if task.encodings:
        dropped, reason = passes, "the encodings were made for the network as it is"
    elif task.statistics is not None:
        dropped, reason = passes, "statistics were collected on the network as it was"
    elif task.has_random_inputs and not task.options.data_free:
        dropped, reason = passes, "without data nothing says what it is worth"
    elif task.options.data_free and task.options.per_channel:
        reason = "per channel it helps only where data says so"
        dropped = tuple(step for step in passes if isinstance(step, EqualizeLayers))
    elif task.options.effort == "fast" and task.options.per_channel:
        reason = "with a scale for each channel it may do harm, and `effort` fast tries nothing"
        dropped = tuple(step for step in passes if isinstance(step, _FOR_UNEVEN_CHANNELS))
    return tuple(p for p in passes if p not in dropped), tuple(not_run(p, reason) for p in dropped)


def _is_clear(db: float | None) -> TypeGuard[float]:
    return db is not None and db >= CLEAR_DB


def _quick_correction(quality: Callable[[], float | None], task: Task) -> Pass:
    """What makes up for rounding while equalization is compared. Where rounding to nearest leaves the outputs below the
    noise floor, their SQNR says nothing: there weights are rounded by the quickest of the optimising methods."""
    if task.options.optimised_rounding is None or (db := quality()) is None or db >= NOISE_FLOOR_DB:
        return CorrectBias()
    return RoundWeights("gptq", "fast", task.options.seed)


def quantized_quickly(model: Model, task: Task, correction: Pass = _ANALYTIC) -> ModelProto:
    """A float model quantized with a few samples and a quick correction: good enough to compare steps."""
    return _lowered(plan_quickly(model, task, correction), task)


def plan_quickly(model: Model, task: Task, correction: Pass = _ANALYTIC) -> Model:
    """The same, before it is lowered."""
    few = _silent(task.context, task.samples.trial)
    model, _ = run_passes(ranging(task.options, correction=correction), model, few)
    model = at_sufficient_opset(model, task.options)
    if task.options.weight is not None:
        correction.apply(model, few)
    return model


# --- quantizers and ranges --------------------------------------------------------------------------------------------


def placement(options: Options) -> tuple[Pass, ...]:
    """Where quantizers go, and what they are to be like."""
    place = AddQuantizers(
        options.activation,
        options.weight,
        options.force_int_kernels or not options.has_integer_kernels,
        options.include,
        options.exclude,
        tuple(o.node for o in options.overrides if o.node is not None and o.keep_float),
        options.tie,
    )
    why = "the preset leaves weights in float" if options.weight is None else "`embeddings` float"
    if options.from_encodings is not None:
        why = "the encodings decide what is quantized"
    tables = AddTableQuantizers(options.table, why)
    others = tuple(o for o in options.overrides if o.node is None or not o.keep_float)
    dynamic = (QuantizeDynamically(),) if options.is_dynamic else ()
    return (place, tables, *((ApplyOverrides(others),) if others else ()), *dynamic)


def ranging(options: Options, given: Sequence[Pass] = (), correction: Pass | None = None) -> tuple[Pass, ...]:
    """Where quantizers go, and what their scales are. given: passes that decide some of them beforehand.

    correction: what follows; the means that bias correction needs are measured with the ranges.
    """
    passes = [*placement(options), *given, SetWeightRanges(options.weight_method)]
    if options.weighs_weights and options.weight is not None:
        passes.append(RefineWeightRanges())
    if options.synthetic or not options.data_free:
        channels = input_axes if correction == CorrectBias() and options.weight is not None else None
        passes.append(SetActivationRanges(options.activation_range, options.logits_range, channels))
    if options.data_free:
        passes.append(SetDataFreeRanges(inputs=options.input_ranges))
    if find_target(options.target).fits_scales:
        passes.append(FitScales())
    return (*passes, *completing(options), ChooseStorage(options.store_4bit))


def completing(options: Options) -> tuple[Pass, ...]:
    """What makes operators whole again where a tensor has lost its quantizer."""
    return (LeaveIncompleteOperators(),) if find_target(options.target).runs_whole_operators else ()


def set_ranges(model: Model, task: Task, collector: ReportCollector | None = None) -> tuple[Model, Steps]:
    """The model, which is changed, with all quantizers and their ranges; weights and biases stay as they are."""
    options, context = task.options, task.learning
    shown = context if collector is None else replace(context, ranged=collector.ranged)
    following = next(iter(correction(options)), None)
    model, steps = run_passes(ranging(options, given_encodings(task), following), model, shown)
    context.channel_facts.update(shown.channel_facts)
    refuse_empty(model, task)
    if options.fallback != "off":
        then = (*completing(options), ChooseStorage(options.store_4bit))
        model, fallback = run_passes((_fallback(task), *then), model, context)
        steps += fallback
    return at_sufficient_opset(model, options), steps


def refuse_empty(model: Model, task: Task) -> None:
    """Raise NothingToQuantizeError where the plan quantizes nothing."""
    if not model.quantizers and not stored_weights(task.options).applies(model.outline()):
        raise NothingToQuantizeError(f"{task.origin}: nothing to quantize: {_reasons(model)}")


def _fallback(task: Task) -> Pass:
    """The exceptions that the user allows and the target takes, measured in the arithmetic that will run them."""
    options, target = task.options, task.context.target

    def measure(planned: Model) -> float | None:
        planned, _ = run_passes(completing(options), planned, task.context)
        return task.quality.db(_lowered(at_sufficient_opset(planned, options), task))

    allowed = [kind for kind in FALLBACKS if options.fallback in ("auto", kind)]
    return Fallback(tuple(kind for kind in allowed if no_fallback(target, kind) is None), measure)


def given_encodings(task: Task) -> tuple[Pass, ...]:
    """What decides grids before any range is set."""
    if not task.encodings:
        return ()
    target, options = task.context.target, task.options
    complete = not task.has_random_inputs or task.statistics is not None or options.data_free
    activation, weight = options.activation or target.activation, options.weight or target.weight
    return (ApplyEncodings(task.encodings, activation, weight, complete),)


def at_sufficient_opset(model: Model, options: Options) -> Model:
    """The planned model at an operator set that has its grids; itself where its own has them."""
    proto, target = model.outline(), find_target(options.target)
    needed = max([target.min_opset, *(quantizer.spec.min_opset for quantizer in model.quantizers.values())])
    inner = stored_weights(options)
    if inner.weight is not None and inner.applies(proto):
        needed = max(needed, inner.weight.min_opset)
    if opset_of(proto) == opset_of(convert_opset(proto, needed, model.origin, target.max_opset)):
        return model
    return model.converted(lambda outline: convert_opset(outline, needed, model.origin, target.max_opset))


def _reasons(model: Model) -> str:
    """Why nothing is to be quantized, by kinds of nodes."""
    counts = Counter(f"{s.op}: {s.reason.text}" for s in node_states(model) if s.reason is not None)
    return "; ".join(f"{count} {text}" for text, count in counts.most_common()) or "no node computes float32"


# --- rounding and bias correction -------------------------------------------------------------------------------------


def correction(options: Options) -> tuple[Pass, ...]:
    """The step that takes back what rounding the weights does to a layer's output. Optimised rounding re-centres
    biases by itself."""
    if options.optimised_rounding is not None:
        folder = None if options.checkpoint is None else Path(options.checkpoint)
        return (RoundWeights(options.optimised_rounding, options.effort, options.seed, folder),)
    if options.bias_correction == "off" or options.weight is None:
        return ()
    if options.bias_correction == "empirical":
        return (CorrectBiasEmpirically(),)
    return (CorrectBias("moments" if options.data_free else "data"),)


def correct(model: Model, task: Task) -> tuple[Model, Steps]:
    """A model like the ranged one, which stays as it is, with weights and biases that make up for rounding."""
    passes, skipped = _fitting_correction(model, task)
    if not passes:
        return model, skipped
    if task.has_no_data:
        model, steps = run_passes(passes, model.clone(), replace(task.learning, feeds=()))
    elif task.options.effort == "fast":
        model, steps = run_passes(passes, model.clone(), task.context)
    else:
        finish = partial(_lowered, task=task)
        corrected, steps = keep_if_better(passes, model, task.context, finish, task.quality)
        rounded = any(isinstance(step, RoundWeights) for step in passes)
        if task.options.bias_correction == "analytic" and not (rounded and any(s.status == "kept" for s in steps)):
            corrected, more = _best_bias_correction(model, corrected, task, rounded)
            steps += more
        model = corrected
    return model, skipped + steps


def _best_bias_correction(model: Model, best: Model, task: Task, untried: bool) -> tuple[Model, Steps]:
    """Of a ranged model whose weights are rounded to nearest, and the best that was made of it, the best with its
    biases corrected. untried: whether the analytic correction has to be tried yet.

    The empirical one sees what comes in from layers before, too. It takes two passes over the data, and is tried where
    a bias makes a part of the outputs' noise that counts.
    """
    quality, context = task.quality, task.context
    steps: Steps = ()
    finish = partial(_lowered, task=task)
    if untried:
        best, record = better_of(best, CorrectBias(), model, context, finish, quality, 0.0)
        steps = (record,)
    share = quality.bias_share(finish(best.clone()))
    if share < BIAS_SHARE:
        return best, steps
    best, record = better_of(best, CorrectBiasEmpirically(), model, context, finish, quality, TOLERANCE_DB)
    return best, (*steps, replace(record, notes=(*record.notes, f"{share:.0%} of the outputs' noise was a bias")))


def _fitting_correction(model: Model, task: Task) -> tuple[tuple[Pass, ...], Steps]:
    """What corrects weights and biases, given what there is to learn from."""
    passes = correction(task.options)
    if task.encodings:
        return (), tuple(not_run(step, "the encodings were made for the weights as they are") for step in passes)
    if not task.has_random_inputs or task.options.data_free:
        return _optimised_where_needed(model, task, passes)
    # statistics, if there are any, do not say what layers compute: then only moments can correct biases
    need_data = [step for step in passes if not isinstance(step, CorrectBias)]
    beside = "" if task.statistics is None else " beside statistics"
    if need_data and (task.options.rounding != "auto" or task.options.bias_correction == "empirical"):
        raise UsageError(f"optimised rounding and empirical bias correction need calibration data{beside}")
    skipped = tuple(not_run(step, f"it needs calibration data{beside}") for step in need_data)
    corrects = task.options.bias_correction != "off" and task.options.weight is not None
    return (CorrectBias("moments"),) if corrects else (), skipped


def _optimised_where_needed(model: Model, task: Task, passes: tuple[Pass, ...]) -> tuple[tuple[Pass, ...], Steps]:
    """At 8 bits, too, `auto` rounds optimally where nearest leaves outputs below `CLEAR_DB`: per channel by GPTQ, which
    has two candidates for each weight there; per tensor, and where activations have fewer bits, by coordinate descent.
    """
    weight = task.options.weight
    if passes != (CorrectBias(),) or task.options.rounding != "auto" or weight is None:
        return passes, ()
    if task.options.effort == "fast":
        return passes, ()
    if weight.block is not None or weight.grid.bits > 8:
        return passes, ()
    copy = model.clone()
    CorrectBias().apply(copy, task.context)
    db = task.quality.db(_lowered(copy, task))
    if db is None or db >= CLEAR_DB:
        return passes, ()
    activation = task.options.activation
    has_two_candidates = weight.per_channel and (activation is None or activation.grid.bits >= 8)
    method, name = ("gptq", "GPTQ") if has_two_candidates else ("coordinate-descent", "coordinate descent")
    reason = f"rounded to nearest, outputs would be at {db:.1f} dB: {name} instead"
    return correction(replace(task.options, rounding=method)), (not_run(passes[0], reason),)


# --- exceptions -------------------------------------------------------------------------------------------------------


def with_exceptions(plan: Plan, task: Task) -> Plan:
    """The plan, or where its outputs are far from the float ones, and nearer so, one with wider formats for the few
    tensors that carry the loss, and weights rounded, or biases corrected, once more."""
    options, start = task.options, time.perf_counter()
    decided = options.overrides or task.encodings or task.has_no_data or task.statistics is not None
    if not options.exceptions or options.effort == "fast" or decided:
        return plan
    before = _db_of(plan.model, plan.correction, task)
    if before is None or before >= EXCEPTIONS_BELOW_DB:
        return plan

    def measure(planned: Model) -> float | None:
        planned, _ = run_passes(completing(options), planned, task.context)
        return task.quality.db(_lowered(planned, task))

    kinds = [kind for kind in FALLBACKS if options.fallback in ("off", "auto", kind)]
    kinds = [kind for kind in kinds if no_fallback(task.context.target, kind) is None]
    step = MakeExceptions(options.exceptions / 100, _wider_weight(task), tuple(kinds), measure)
    then = (*completing(options), ChooseStorage(options.store_4bit))
    ranged, (record, *others) = run_passes((step, *then), plan.ranged.clone(), task.context)
    if not record.changed:
        return replace(plan, steps=(*plan.steps, record))
    ranged = at_sufficient_opset(ranged, options)
    model, correction = correct(ranged, task)
    after = _db_of(model, correction, task)
    kept = after is not None and after >= before + LEAST_GAIN_DB
    notes = (f"outputs at {before:.1f} dB, then {after:.1f} dB; {'kept' if kept else 'dropped: they gain too little'}",)
    record = replace(
        record, before_db=before, after_db=after, seconds=time.perf_counter() - start,
        notes=notes + record.notes * kept, changed=record.changed * kept, status="kept" if kept else "dropped",
    )  # fmt: skip
    log_steps((record,))
    if not kept:
        return replace(plan, steps=(*plan.steps, record))
    earlier = plan.steps[: len(plan.steps) - len(plan.correction)]
    return replace(
        plan, ranged=ranged, model=model, steps=(*earlier, record, *others, *correction), correction=correction
    )


def _db_of(model: Model, correction: Steps, task: Task) -> float | None:
    """What the outputs of a planned model are at, as the last of the steps that corrected it found where one did."""
    for step in reversed(correction):
        if step.before_db is not None:
            return step.after_db if step.status == "kept" else step.before_db
    return task.quality.db(_lowered(model.clone(), task))


def _wider_weight(task: Task) -> QuantSpec | None:
    """What weights of fewer bits may get; None where the target has nothing wider for them."""
    options, target = task.options, task.context.target
    if options.weight is None or options.weight.grid.bits >= 8:
        return None
    wider = target.weight_of(8)
    refused = any(contradictions(target, replace(options.weight, grid=wider.grid), options.activation))
    return None if refused else wider


# --- lower ------------------------------------------------------------------------------------------------------------


def lower(model: Model, context: Context) -> tuple[ModelProto, Steps]:
    """A plan, which stays as it is, as a model with QuantizeLinear and DequantizeLinear."""
    model, steps = run_passes(LOWERING, model.clone(), replace(context, feeds=()))
    return _signed(model), steps


def stored_weights(options: Options) -> StoredWeights:
    """What is stored of weights that passes do not reach: those of recurrent operators, branches and loops, and of
    layers that the target computes in float only. These have 8 bits at least, since they are rounded to nearest.
    """

    def keeps_float(node: NodeProto) -> bool:
        def matches(pattern: str) -> bool:
            return fnmatchcase(node.name, pattern) or fnmatchcase(node.op_type, pattern)

        kept = (*options.exclude, *(o.node for o in options.overrides if o.node is not None and o.keep_float))
        return any(map(matches, kept)) or bool(options.include and not any(map(matches, options.include)))

    weight = None if options.from_encodings is not None else options.weight
    target, computed = find_target(options.target), None
    if weight is not None and target.runs_here:  # elsewhere nobody has seen that such layers read integers
        grid = target.weight_of(max(weight.grid.bits, 8)).grid
        computed = replace(weight, grid=grid, symmetric=True, per_channel=options.per_channel, block=None)
    return StoredWeights(
        weight, options.table, options.weight_method, keeps_float, computed, lambda node: node.op_type in target.rules
    )


def store_inner_weights(proto: ModelProto, options: Options) -> tuple[ModelProto, Steps, tuple[str, ...]]:
    """The model with what is stored of weights that passes do not reach."""
    start = time.perf_counter()
    proto, nodes = stored_weights(options).store(proto)
    if not nodes:
        return proto, (), ()
    title = "Store weights of recurrent operators, branches, loops and layers without integer kernels"
    return proto, (Step("StoredWeights", title, "", len(nodes), time.perf_counter() - start),), nodes


LOWERING: tuple[Pass, ...] = (SetBiasScales(), FuseActivation(), LowerToQdq())


def float_model_of(plan: Model, context: Context) -> tuple[ModelProto, tuple[Encoding, ...]]:
    """The float model that was quantized at last, and encodings of its tensors: the grids of the quantized one."""
    model = plan.clone()
    SetBiasScales().apply(model, context)
    tensors = model.graph.tensors()
    found = [(q.tensor, q.params) for q in model.quantizers.values() if q.params is not None]
    return _signed(model), tuple(encoding_of(n, params, isinstance(tensors[n], gs.Constant)) for n, params in found)


def _signed(model: Model) -> ModelProto:
    model.graph.producer_name, model.graph.producer_version = "onnxq", version("onnxq")
    return model.to_proto()


# --- measuring --------------------------------------------------------------------------------------------------------


def _lowered(model: Model, task: Task) -> ModelProto:
    """A plan, which may be changed, as a quantized model to compare."""
    model = at_sufficient_opset(model, task.options)
    model, _ = run_passes(LOWERING, model, replace(task.context, feeds=()))
    return model.to_proto()


def _silent(context: Context, feeds: Iterable[Feed]) -> Context:
    """The context for a trial on some feeds, which shows no progress of its own."""
    return replace(context, feeds=feeds, services=replace(context.services, progress=no_progress))
