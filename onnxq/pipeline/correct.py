"""The fourth box of figure 8: weights are rounded, or biases corrected, and layers compute what they did."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import UsageError
from ..graph.model import Model
from ..options import Options
from ..passes.base import Pass
from ..passes.correct_bias import CorrectBias
from ..passes.correct_bias_empirically import CorrectBiasEmpirically
from ..passes.round_weights import RoundWeights
from ..thresholds import BIAS_SHARE, CLEAR_DB, TOLERANCE_DB
from .keep_if_better import better_of, keep_if_better
from .lower import lowered
from .run_passes import Steps, not_run, run_passes
from .task import Task


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
        finish = partial(lowered, task=task)
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
    finish = partial(lowered, task=task)
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
    db = task.quality.db(lowered(copy, task))
    if db is None or db >= CLEAR_DB:
        return passes, ()
    activation = task.options.activation
    has_two_candidates = weight.per_channel and (activation is None or activation.grid.bits >= 8)
    method, name = ("gptq", "GPTQ") if has_two_candidates else ("coordinate-descent", "coordinate descent")
    reason = f"rounded to nearest, outputs would be at {db:.1f} dB: {name} instead"
    return correction(replace(task.options, rounding=method)), (not_run(passes[0], reason),)
