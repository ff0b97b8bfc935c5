"""The second box of figure 8: the float network is made easier to quantize, by steps that are each kept if better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Literal, TypeGuard

from ..graph.model import Model
from ..numeric.quant import QuantSpec
from ..options import Options, bits
from ..passes.absorb_bias import AbsorbBias
from ..passes.base import Pass
from ..passes.correct_bias import CorrectBias
from ..passes.equalize_layers import EqualizeLayers
from ..passes.remove_dead_channels import RemoveDeadChannels
from ..passes.round_weights import RoundWeights
from ..passes.smoothquant import SmoothQuant
from ..thresholds import CLEAR_DB, NOISE_FLOOR_DB
from .keep_if_better import keep_if_better
from .quantize_quickly import quantized_quickly
from .run_passes import Steps, not_run, run_passes
from .task import Task
from .wider_weight import wider_weight


def equalization(options: Options) -> tuple[Pass, ...]:
    """Steps that make the float network easier to quantize."""
    weight_bits, activation_bits = bits(options.preset)
    passes: list[Pass] = []
    if options.dead_channels:
        passes.append(RemoveDeadChannels())
    if options.cle != "off":
        method: Literal["range", "noise"] = "range" if options.cle == "range" else "noise"
        per_channel = options.weight is not None and options.weight.per_channel
        passes.append(EqualizeLayers(method, bits=(weight_bits or 16, activation_bits or 16), per_channel=per_channel))
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
    def quality(wider: QuantSpec | None) -> float | None:
        return task.quality.db(quantized_quickly(model.clone(), task, CorrectBias(), wider))

    wider = _wider_channels(task)
    if task.options.effort == "default" and task.options.per_channel and _is_clear(db := quality(wider)):
        bits_too = "" if wider is None else f" and {wider.grid.bits} bits"
        reason = (
            f"with a scale{bits_too} for each channel, outputs are at {db:.1f} dB without it; `effort` high tries it"
        )
        skipped += tuple(not_run(step, reason) for step in passes if isinstance(step, _FOR_UNEVEN_CHANNELS))
        passes = tuple(step for step in passes if not isinstance(step, _FOR_UNEVEN_CHANNELS))
    if not passes:
        return model, skipped
    correction = _quick_correction(partial(quality, None), task)
    model, steps = keep_if_better(
        passes,
        model,
        task.context,
        lambda copy: quantized_quickly(copy, task, correction),
        task.quality,
        few=task.trying if task.samples.is_divided else None,
        before=partial(quality, None) if correction == CorrectBias() else None,
    )
    return model, skipped + steps


_FOR_UNEVEN_CHANNELS = (RemoveDeadChannels, EqualizeLayers, AbsorbBias)
"""Steps that weights with a scale for each channel hardly need: 0.4 dB at most (accuracy-steps.md). Fewer bits than 8
make noise that would hide how even channels are: with 8 EfficientNet-lite0 is at 26 dB, DeepLab at 31; at w4a8 these
steps took half of the time of everything, and changed them by -0.1 dB."""


def _wider_channels(task: Task) -> QuantSpec | None:
    """The 8 bits of weights that have fewer, and a scale for each channel; None of others."""
    return wider_weight(task) if task.options.weight is not None and task.options.weight.block is None else None


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
