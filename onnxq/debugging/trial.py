"""One choice of options, quantized to the end, and what it scores: as a whole, and parts of it alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from onnx import ModelProto

from ..evaluation.metric import SqnrMetric, measure
from ..evaluation.sensitivity import Unit, units_of
from ..evaluation.study import Study
from ..evaluation.switchboard import Group, Switchboard, groups_of
from ..execution.layerwise import isolate
from ..graph.model import Model
from ..options import Options
from ..passes.set_bias_scales import SetBiasScales
from ..pipeline.build_report import checked
from ..thresholds import EVALUATION_SAMPLES, LEAST_GAIN_DB, ROUNDING_ERROR

Part = Literal["weights", "activations"]


@dataclass(frozen=True)
class Standing:
    """score: by the study's metric.  db: SQNR of the outputs, which tells apart what the score cannot."""

    score: float
    db: float


@dataclass
class Gate:
    """Other data than that which fixes are chosen on, which must agree with what is accepted.

    needed: the lowest score there.  scores: of the models that were measured there so far, in order.
    """

    study: Study
    needed: float
    scores: list[float] = field(default_factory=list)

    def passes(self, trial: Trial) -> bool:
        if trial.apart is None:
            trial.apart = self.study.measured(trial.quantized)
            self.scores.append(trial.apart)
        return trial.apart >= self.needed - ROUNDING_ERROR


@dataclass(frozen=True)
class Goal:
    """needed: the lowest score that is accepted.  noise: differences of scores below it are chance: SQNR decides.
    gate: what else a quantized model must pass."""

    needed: float
    noise: float = 0.0
    gate: Gate | None = None

    def accepts(self, trial: Trial) -> bool:
        """Whether the quantized model may be taken. Other data is looked at only where the score allows it."""
        return self.reached(trial.whole) and (self.gate is None or self.gate.passes(trial))

    def reached(self, found: Standing) -> bool:
        return found.score >= self.needed - ROUNDING_ERROR

    def better(self, one: Standing, other: Standing) -> bool:
        """Whether `one` is better than `other` by more than chance."""
        if abs(one.score - other.score) > self.noise + ROUNDING_ERROR:
            return one.score > other.score
        return one.db > other.db + LEAST_GAIN_DB

    def worse_first(self, trial: Trial) -> list[Part]:
        """Weights and activations, in the order in which they are to blame."""
        parts = list(trial.parts)
        return parts[::-1] if self.better(*(trial.parts[part] for part in parts)) else parts


@dataclass
class Trial:
    """base: the float network past the steps that adjust it.  planned: with all grids, weights and biases corrected.
    fitted: the same with weight scales that the biases fit.  quantized: the model as it would be written.
    apart: its score on other data, once it was measured there."""

    study: Study
    options: Options
    base: Model
    planned: Model
    fitted: Model
    quantized: ModelProto
    apart: float | None = None

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """All switches; weights as the biases let them be."""
        return groups_of(self.base, self.fitted)

    @cached_property
    def units(self) -> list[Unit]:
        """All grids, in graph order."""
        return units_of(self.base, self.groups)

    @cached_property
    def whole(self) -> Standing:
        """Of the quantized model."""
        study = self.study
        score = study.measured(self.quantized)
        if isinstance(study.metric, SqnrMetric):
            return Standing(score, score)
        feeds, references = study.feeds[:EVALUATION_SAMPLES], study.references[:EVALUATION_SAMPLES]
        return Standing(
            score, measure(self.quantized, feeds, SqnrMetric(), references, study.job.context.services.threads)
        )

    @cached_property
    def parts(self) -> Mapping[Part, Standing]:
        """All weights on their grids and all activations in float, and the other way round."""
        kinds: Mapping[Part, str] = {"weights": "weights", "activations": "activation"}
        return {part: self.alone(u.name for u in self.units if u.kind == kind) for part, kind in kinds.items()}

    def alone(self, names: Iterable[str]) -> Standing:
        """With these units on their grids, as far as they are on any, and everything else in float."""
        state = {name: self.groups[name] for name in names if name in self.groups}
        db = self._distances.score(state)
        return Standing(db if self._scores is None else self._scores.score(state), db)

    def db_alone(self, name: str) -> float:
        """SQNR of the outputs with one unit on its grid; infinite where it is on none."""
        return self._distances.score({name: self.groups[name]}) if name in self.groups else math.inf

    @cached_property
    def _scores(self) -> Switchboard | None:
        study = self.study
        return None if isinstance(study.metric, SqnrMetric) else study.switchboard(self.base, ())

    @cached_property
    def _distances(self) -> Switchboard:
        return self.study.switchboard(self.base, (), SqnrMetric(), EVALUATION_SAMPLES)


def try_options(study: Study, options: Options) -> Trial:
    """Quantize the study's model with other options. Raises OnnxqError, also where the target refuses the result."""
    job = replace(study.job, options=options, steps=(), notebook=None)
    base = job.ranged(job.adjusted())
    job.planned = job.corrected(base.clone())
    quantized = job.finished()
    checked(job, quantized)
    fitted = job.planned.clone()
    SetBiasScales().apply(fitted, job.context)
    isolate(base)
    return Trial(study, options, base, job.planned, fitted, quantized)
