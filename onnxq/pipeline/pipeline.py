"""Figure 8 of the white paper from top to bottom, as flat lists of passes, and the check after each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto

from ..errors import VerificationError
from ..execution.session import Session
from ..graph.model import Model
from ..graph.opset import convert_opset
from ..numeric.metrics import Sqnr
from ..options import Options, bits
from ..passes.absorb_bias import AbsorbBias
from ..passes.add_quantizers import AddQuantizers
from ..passes.apply_overrides import ApplyOverrides
from ..passes.base import Context, Outcome, Pass
from ..passes.correct_bias import CorrectBias
from ..passes.correct_bias_empirically import CorrectBiasEmpirically
from ..passes.equalize_layers import EqualizeLayers
from ..passes.fallback_to_16_bits import FallbackTo16Bits
from ..passes.fit_scales import FitScales
from ..passes.fold_batchnorm import FoldBatchNorm
from ..passes.fuse_activation import FuseActivation
from ..passes.fuse_decomposed import FuseDecomposedOperators
from ..passes.lower_to_qdq import LowerToQdq
from ..passes.normalize import Normalize
from ..passes.refine_weight_ranges import RefineWeightRanges
from ..passes.remove_dead_channels import RemoveDeadChannels
from ..passes.round_weights import RoundWeights
from ..passes.set_activation_ranges import SetActivationRanges
from ..passes.set_bias_scales import SetBiasScales
from ..passes.set_data_free_ranges import SetDataFreeRanges
from ..passes.set_weight_ranges import SetWeightRanges
from ..passes.smoothquant import SmoothQuant
from ..report import Step
from ..targets import find_target
from ..thresholds import PRESERVED_DB


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; after each, a check that the graph is sound and the float function what it was."""

    passes: tuple[Pass, ...]

    def run(self, model: Model, context: Context, original: ModelProto | None = None) -> tuple[Step, ...]:
        """Apply all passes to `model`. A failing pass names itself. Raises OnnxqError.

        original: the float model that passes must preserve the function of; `model` as it is if None.
        """
        steps = []
        feed = next((f.arrays for f in context.feeds), None) if any(p.preserves for p in self.passes) else None
        before = {} if feed is None else Session(original or model.to_proto()).run(feed)
        for index, step in enumerate(self.passes):
            name = type(step).__name__
            context.services.progress(name, index, len(self.passes))
            start = time.perf_counter()
            outcome = step.apply(model, context)
            if step.preserves and outcome.changed:
                after = {} if feed is None else Session(model.to_proto()).run(feed)
                _refuse_change(name, before, after)
            steps.append(step_record(name, step, outcome, time.perf_counter() - start))
        return tuple(steps)


def _refuse_change(name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    for output, x in before.items():
        if output in after and isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.shape == after[output].shape:
            distance = Sqnr()
            distance.update(x, after[output])
            if distance.db < PRESERVED_DB and distance.noise > np.finfo(np.float32).tiny:
                raise VerificationError(
                    f"{name} changed the float model's output {output!r} (SQNR {distance.db:.1f} dB, expected at"
                    f" least {PRESERVED_DB:.0f}); this is a bug in onnxq, or the model is numerically unstable"
                )


def step_record(name: str, step: Pass, outcome: Outcome, seconds: float) -> Step:
    options = repr(step).partition("(")[2].removesuffix(")")
    skips = tuple((skip.where, skip.reason) for skip in outcome.skips)
    return Step(name, options, outcome.changed, seconds, outcome.notes, skips, rounded=outcome.rounded)


def load(proto: ModelProto, origin: str, options: Options) -> Model:
    """A model to work on, at an operator set that the target needs: the same one for all grids, so that statistics
    serve all of them."""
    target = find_target(options.target)
    return Model.from_proto(convert_opset(proto, target.min_opset, origin, target.max_opset), origin)


def raised(model: Model, options: Options) -> Model:
    """The planned model at an operator set that its grids need, ready for `lowering`."""
    proto = model.to_proto()
    specs = [q.spec for q in model.quantizers.values()]
    wide = any(spec.grid.stored_bits in (4, 16) or spec.block is not None for spec in specs)
    needed = max(options.min_opset, 21 if wide else 0)
    converted = convert_opset(proto, needed, model.origin, find_target(options.target).max_opset)
    if converted is proto:
        return model
    copy = Model.from_proto(converted, model.origin)
    copy.quantizers, copy.moments = dict(model.quantizers), dict(model.moments)
    return copy


def prepare() -> Pipeline:
    """From any exporter's model to the one form that the rest works on; the function stays."""
    return Pipeline((Normalize(), FuseDecomposedOperators(), FoldBatchNorm()))


def placement(options: Options) -> Pipeline:
    """Where quantizers go, and what they are to be like."""
    place = AddQuantizers(
        options.activation,
        options.weight,
        options.force_int_kernels or not options.has_integer_kernels,
        options.include,
        options.exclude,
        options.tie,
    )
    return Pipeline((place, *(ApplyOverrides(options.overrides),) * bool(options.overrides)))


def adjustments(options: Options) -> tuple[Pass, ...]:
    """Steps that make the float network easier to quantize; each may be dropped where the result says so."""
    weight_bits, activation_bits = bits(options.preset)
    steps: list[Pass] = []
    if options.dead_channels:
        steps.append(RemoveDeadChannels())
    if options.cle != "off":
        method: Literal["range", "noise"] = "range" if options.cle == "range" else "noise"
        steps.append(EqualizeLayers(method, bits=(weight_bits or 16, activation_bits or 16)))
    if options.absorb:
        steps.append(AbsorbBias())
    if options.smoothquant is not None:
        steps.append(SmoothQuant(options.smoothquant))
    return tuple(steps)


def ranging(options: Options, given: tuple[Pass, ...] = ()) -> Pipeline:
    """Where quantizers go, and what their scales are. given: passes that know some of them beforehand."""
    weigh = (RefineWeightRanges(),) * (options.weighs_weights and options.weight is not None)
    ranges: tuple[Pass, ...] = (SetActivationRanges(options.activation_range, options.logits_range),)
    if options.data_free:
        ranges = (*ranges * options.synthetic, SetDataFreeRanges(inputs=options.input_ranges))
    fit = (FitScales(),) * find_target(options.target).fits_scales
    return Pipeline((*placement(options).passes, *given, SetWeightRanges(options.weight_method), *weigh, *ranges, *fit))


def exceptions(options: Options) -> Pipeline:
    """Grids that turn out too coarse, once all have their scales."""
    return Pipeline((FallbackTo16Bits(),) * (options.a16_fallback == "auto" and options.activation is not None))


def corrections(options: Options) -> tuple[Pass, ...]:
    """Steps that take back what rounding the weights does to a layer's output; dropped where they do not help."""
    if options.optimised_rounding is not None:  # it re-centres biases by itself
        folder = None if options.checkpoint is None else Path(options.checkpoint)
        return (RoundWeights(options.optimised_rounding, options.effort, options.seed, folder),)
    if options.bias_correction == "off" or options.weight is None:
        return ()
    if options.bias_correction == "empirical":
        return (CorrectBiasEmpirically(),)
    return (CorrectBias("moments" if options.data_free else "data"),)


def lowering() -> Pipeline:
    """From a model with planned quantizers to QuantizeLinear and DequantizeLinear."""
    return Pipeline((SetBiasScales(), FuseActivation(), LowerToQdq()))
