"""What figure 8 hands on: a plan, which is a float model with quantizers, and the quantized model that it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from ..graph.model import Model
from .run_passes import Steps


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
