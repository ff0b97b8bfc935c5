"""Figure 8 of the white paper from top to bottom, as flat lists of passes, and the check after each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from .errors import VerificationError
from .graph.model import Model
from .graph.opset import convert_opset
from .numeric.metrics import Sqnr
from .options import Options
from .passes.add_quantizers import AddQuantizers
from .passes.apply_overrides import ApplyOverrides
from .passes.base import Context, Outcome, Pass
from .passes.fold_batchnorm import FoldBatchNorm
from .passes.fuse_activation import FuseActivation
from .passes.lower_to_qdq import LowerToQdq
from .passes.normalize import Normalize
from .passes.set_activation_ranges import SetActivationRanges
from .passes.set_bias_scales import SetBiasScales
from .passes.set_weight_ranges import SetWeightRanges
from .report import Step
from .runtime import Session
from .targets import TARGETS

PRESERVED_DB = 60.0
"""A pass that claims to preserve the float function may change its outputs by a thousandth (root mean square)."""


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
            context.progress(name, index, len(self.passes))
            start = time.perf_counter()
            outcome = step.apply(model, context)
            if step.preserves and outcome.changed:
                after = {} if feed is None else Session(model.to_proto()).run(feed)
                _refuse_change(name, before, after)
            steps.append(_step(name, step, outcome, time.perf_counter() - start))
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


def _step(name: str, step: Pass, outcome: Outcome, seconds: float) -> Step:
    options = repr(step).partition("(")[2].removesuffix(")")
    skips = tuple((skip.where, skip.reason) for skip in outcome.skips)
    return Step(name, options, outcome.changed, seconds, outcome.notes, skips)


def load(proto: ModelProto, origin: str, options: Options) -> Model:
    """A model to work on, at an operator set that the target and the grids need."""
    highest = TARGETS[options.target].max_opset
    return Model.from_proto(convert_opset(proto, options.min_opset, origin, highest), origin)


def prepare() -> Pipeline:
    """From any exporter's model to the one form that the rest works on; the function stays."""
    return Pipeline((Normalize(), FoldBatchNorm()))


def placement(options: Options) -> Pipeline:
    """Where quantizers go, and what they are to be like."""
    place = AddQuantizers(
        options.activation,
        options.weight,
        options.every_kernel or not options.has_integer_kernels,
        options.include,
        options.exclude,
        options.tie,
    )
    return Pipeline((place, *(ApplyOverrides(options.overrides),) * bool(options.overrides)))


def ptq(options: Options) -> Pipeline:
    """Post-training quantization, Figure 8."""
    return Pipeline(
        (
            *placement(options).passes,
            SetWeightRanges(options.weight_range),
            SetActivationRanges(options.activation_range, options.logits_range),
            SetBiasScales(),
        )
    )


def lowering() -> Pipeline:
    """From a model with planned quantizers to QuantizeLinear and DequantizeLinear."""
    return Pipeline((FuseActivation(), LowerToQdq()))
