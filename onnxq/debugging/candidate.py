"""One choice of options, quantized to the end, and its scores: of the whole model, and of parts of it alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from onnx import ModelProto

from ..evaluation.evaluator import Evaluator
from ..evaluation.metric import SqnrMetric
from ..evaluation.sensitivity import Unit, units_of
from ..execution.layerwise import isolate
from ..execution.switches import Switch, Switchboard, switches_of
from ..graph.model import Model
from ..options import Options
from ..passes.set_bias_scales import SetBiasScales
from ..pipeline.build_report import check_target
from ..pipeline.lower import lower
from ..pipeline.pipeline import make_plan
from ..pipeline.plan import Quantized
from ..thresholds import EVALUATION_SAMPLES, LEAST_GAIN_DB, ROUNDING_ERROR

Part = Literal["weights", "activations"]


@dataclass(frozen=True)
class Score:
    """value: by the evaluator's metric.  db: SQNR of the outputs, which separates models with the same value."""

    value: float
    db: float


@dataclass
class HeldOutCheck:
    """A second condition: the model must also reach a score on data that no remedy was chosen on.

    needed: the lowest score there.  scores: of the models that were measured there so far, in order.
    """

    evaluator: Evaluator
    needed: float
    scores: list[float] = field(default_factory=list)

    def passes(self, candidate: Candidate) -> bool:
        if candidate.held_out_score is None:
            candidate.held_out_score = self.evaluator.measured(candidate.quantized)
            self.scores.append(candidate.held_out_score)
        return candidate.held_out_score >= self.needed - ROUNDING_ERROR


@dataclass(frozen=True)
class Goal:
    """needed: the lowest score that is accepted.  noise: differences of scores below it are chance: SQNR decides.
    held_out_check: what else a quantized model must pass."""

    needed: float
    noise: float = 0.0
    held_out_check: HeldOutCheck | None = None

    def accepts(self, candidate: Candidate) -> bool:
        """Whether the quantized model may be taken. Held-out data is measured only where the score allows it."""
        return self.reached(candidate.whole) and (self.held_out_check is None or self.held_out_check.passes(candidate))

    def reached(self, score: Score) -> bool:
        return score.value >= self.needed - ROUNDING_ERROR

    def better(self, one: Score, other: Score) -> bool:
        """Whether `one` is better than `other` by more than chance."""
        if abs(one.value - other.value) > self.noise + ROUNDING_ERROR:
            return one.value > other.value
        return one.db > other.db + LEAST_GAIN_DB


@dataclass
class Candidate:
    """base: the float network past the steps that adjust it.  planned: with all grids, weights and biases corrected.
    fitted: the same with weight scales that the biases fit.  quantized: the model as it would be written.
    held_out_score: its score on held-out data, once it was measured there."""

    evaluator: Evaluator
    options: Options
    base: Model
    planned: Model
    fitted: Model
    quantized: ModelProto
    held_out_score: float | None = None

    @cached_property
    def switches(self) -> Mapping[str, Switch]:
        """All switches; weights as the biases let them be."""
        return switches_of(self.base, self.fitted)

    @cached_property
    def units(self) -> list[Unit]:
        """All quantizers, in graph order."""
        return units_of(self.base, self.switches)

    @cached_property
    def whole(self) -> Score:
        """Of the quantized model."""
        evaluator = self.evaluator
        value = evaluator.measured(self.quantized)
        if isinstance(evaluator.metric, SqnrMetric):
            return Score(value, value)
        db = evaluator.distance(self.quantized, SqnrMetric(), EVALUATION_SAMPLES)
        return Score(value, db)

    @cached_property
    def parts(self) -> Mapping[Part, Score]:
        """All weights quantized and all activations in float, and the other way round."""
        kinds: Mapping[Part, str] = {"weights": "weights", "activations": "activation"}
        return {part: self.alone(u.name for u in self.units if u.kind == kind) for part, kind in kinds.items()}

    def alone(self, names: Iterable[str]) -> Score:
        """With these units quantized, as far as they have quantizers here, and everything else in float."""
        state = {name: self.switches[name] for name in names if name in self.switches}
        db = self._distances.score(state)
        return Score(db if self._scores is None else self._scores.score(state), db)

    def db_alone(self, name: str) -> float:
        """SQNR of the outputs with one unit quantized; infinite where it is in float."""
        return self._distances.score({name: self.switches[name]}) if name in self.switches else math.inf

    @cached_property
    def _scores(self) -> Switchboard | None:
        evaluator = self.evaluator
        return None if isinstance(evaluator.metric, SqnrMetric) else evaluator.switchboard(self.base, ())

    @cached_property
    def _distances(self) -> Switchboard:
        return self.evaluator.switchboard(self.base, (), SqnrMetric(), EVALUATION_SAMPLES)


def quantized_with(evaluator: Evaluator, options: Options) -> Candidate:
    """Quantize the model with other options. Raises OnnxqError, also where the target refuses the result."""
    task = replace(evaluator.task, options=options)
    plan = make_plan(task)
    quantized, lowered = lower(plan.model, task.context)
    check_target(task, Quantized(plan.model, quantized, plan.steps + lowered))
    fitted, base = plan.model.clone(), plan.ranged.clone()
    SetBiasScales().apply(fitted, task.context)
    isolate(base)
    return Candidate(evaluator, options, base, plan.model, fitted, quantized)
