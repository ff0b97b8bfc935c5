"""Behind figure 8, as the last resort: wider formats for the few tensors that carry the loss."""

from __future__ import annotations

import time
from dataclasses import replace

from ..graph.model import Model
from ..passes.choose_storage import ChooseStorage
from ..passes.make_exceptions import MakeExceptions
from ..targets.contradictions import FALLBACKS, no_fallback
from ..thresholds import EXCEPTION_ERRORS, EXCEPTIONS_BELOW_DB, TOLERANCE_DB
from .correct import correct
from .log import log_steps
from .lower import at_sufficient_opset, lowered
from .plan import Plan
from .run_passes import Steps, run_passes
from .set_ranges import completing
from .task import Task
from .wider_weight import wider_weight


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
        return task.quality.db(lowered(planned, task))

    kinds = [kind for kind in FALLBACKS if options.fallback in ("off", "auto", kind)]
    kinds = [kind for kind in kinds if no_fallback(task.context.target, kind) is None]
    if options.fallback in ("off", "auto") and options.activation is not None and options.activation.grid.bits < 8:
        kinds = ["a8"]
    was_rounded = any(step.name == "RoundWeights" and step.status == "kept" for step in plan.correction)
    rounded = plan.model if was_rounded else None
    step = MakeExceptions(options.exceptions / 100, wider_weight(task), tuple(kinds), measure, rounded)
    then = (*completing(options), ChooseStorage(options.store_4bit))
    ranged, (record, *others) = run_passes((step, *then), plan.ranged.clone(), task.context)
    if not record.changed:
        return replace(plan, steps=(*plan.steps, record))
    ranged = at_sufficient_opset(ranged, options)
    model, correction = correct(ranged, task)
    after = _db_of(model, correction, task)
    gain = task.quality.gain(lowered(plan.model.clone(), task), lowered(model.clone(), task))
    least = 1 - 10 ** (-TOLERANCE_DB / 10)
    kept = gain is not None and gain[0] >= max(EXCEPTION_ERRORS * gain[1], least)
    outputs = "outputs at " + ", then ".join("unknown" if db is None else f"{db:.1f} dB" for db in (before, after))
    why = "" if gain is None else f": what is lost falls by {gain[0]:.0%}, with a standard error of {gain[1]:.0%}"
    notes = (f"{outputs}; {'kept' if kept else 'dropped'}{why}",)
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
    return task.quality.db(lowered(model.clone(), task))
