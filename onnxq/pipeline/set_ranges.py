"""The third box of figure 8: where quantizers go, and what their scales are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..errors import NothingToQuantizeError
from ..graph.model import Model
from ..options import Options
from ..passes.add_quantizers import AddQuantizers
from ..passes.add_table_quantizers import AddTableQuantizers
from ..passes.apply_encodings import ApplyEncodings
from ..passes.apply_overrides import ApplyOverrides
from ..passes.base import Pass
from ..passes.choose_storage import ChooseStorage
from ..passes.correct_bias import CorrectBias, input_axes
from ..passes.fallback import Fallback
from ..passes.fit_scales import FitScales
from ..passes.leave_incomplete import LeaveIncompleteOperators
from ..passes.quantize_dynamically import QuantizeDynamically
from ..passes.refine_weight_ranges import RefineWeightRanges, weighed_tensors
from ..passes.set_activation_ranges import SetActivationRanges
from ..passes.set_data_free_ranges import SetDataFreeRanges
from ..passes.set_weight_ranges import SetWeightRanges
from ..targets import find_target
from ..targets.contradictions import FALLBACKS, no_fallback
from .collect_report import ReportCollector
from .correct import correction
from .lower import at_sufficient_opset, lowered, stored_weights
from .node_states import node_states
from .run_passes import Steps, run_passes
from .task import Task


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
        "all" if options.narrow_activations == "all" else "products",
        options.hard_swish == "float",
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

    correction: what follows; what bias correction and weighted weight ranges need of channels is measured with the
    ranges of activations, in one pass over the data.
    """
    passes = [*placement(options), *given, SetWeightRanges(options.weight_method)]
    refined = options.weighs_weights and options.weight is not None
    if options.synthetic or not options.data_free:
        corrected = correction == CorrectBias() and options.weight is not None
        needed = (*((weighed_tensors,) if refined else ()), *((input_axes,) if corrected else ()))
        passes.append(SetActivationRanges(options.activation_range, options.logits_range, needed))
    if refined:
        passes.append(RefineWeightRanges())
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
        return task.quality.db(lowered(at_sufficient_opset(planned, options), task))

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


def _reasons(model: Model) -> str:
    """Why nothing is to be quantized, by kinds of nodes."""
    counts = Counter(f"{s.op}: {s.reason.text}" for s in node_states(model) if s.reason is not None)
    return "; ".join(f"{count} {text}" for text, count in counts.most_common()) or "no node computes float32"
