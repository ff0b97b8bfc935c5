"""Sensitivity analysis: every quantizer alone switched on, and alone switched off (white paper, figure 9).

    only       the metric with this unit quantized and everything else in float
    all but    the metric with this unit in float and everything else quantized
    own        SQNR of the unit's own tensors, quantized against float: it depends on the unit, not on the network. Of
               weights by the mean over channels, since the small channels of a tensor are the first to vanish

A unit is one grid (weights, or an activation with what keeps its grid), or a layer's weights with its output.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..data import Feed, Preprocess, Transform
from ..execution.compare_outputs import Outputs
from ..execution.layerwise import planned_layers
from ..execution.partial import tensor_values
from ..execution.progress import ProgressLike, called, shows_progress
from ..execution.services import Stage, open_workers
from ..execution.session import running_on
from ..execution.switches import Switch, Switchboard
from ..graph import large
from ..graph.model import Model
from ..numeric.metrics import Sqnr
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer
from ..options import Options, with_settings
from ..report import Sensitivity, SensitivityRanking, printable
from ..report.advice import sensitive_kept_float
from ..report.json_format import plain
from ..report.notebook import InNotebook
from ..schema import unknown
from ..settings import Settings, Unpack
from ..thresholds import ACTIVATION_SAMPLES
from .custom_metric import MetricLike
from .evaluator import Evaluator, Labels, open_evaluator
from .metric import Metric, score_outputs

By = Literal["quantizer", "layer"]


@dataclass(frozen=True)
class Unit:
    """What is switched together. name: a tensor, or a layer's node.  kind: weights, activation, or layer."""

    name: str
    kind: str
    switches: tuple[str, ...]


@dataclass(frozen=True)
class UnitEffect:
    """own_db: see the module. only, all_but: the metric; None where the budget did not reach."""

    unit: str
    kind: str
    tensors: tuple[str, ...]
    own_db: float
    only: float | None = None
    all_but: float | None = None

    @property
    def rank(self) -> tuple[float, float, float, str]:
        """The most harmful first: worst alone, then most gained without it, then worst by itself."""
        only = math.inf if self.only is None else self.only
        all_but = -math.inf if self.all_but is None else self.all_but
        return only, -all_but, self.own_db, self.unit


@dataclass(frozen=True, repr=False)
class SensitivityAnalysis(InNotebook):
    """float_score: of the original model; off: all switches off, which must be the same; on: all on.

    measured: the most harmful first; not_measured: what the budget did not reach, those with the lowest own SQNR first.
    passes: runs of the whole network a sample that the evaluations were worth, of `evaluations`.
    """

    model: str
    metric: str
    unit: str
    samples: int
    float_score: float
    off: float
    on: float
    measured: tuple[UnitEffect, ...]
    not_measured: tuple[UnitEffect, ...]
    budget: float | None
    evaluations: int
    passes: float
    seconds: float

    @property
    def ranking(self) -> SensitivityRanking:
        """What a report shows."""
        found = (Sensitivity(e.unit, e.kind, e.only, e.all_but) for e in self.measured)
        return SensitivityRanking(self.metric, self.unit, tuple(found))

    def to_json(self) -> str:
        """Strict JSON, keys as the fields here; what is infinite (two models agree in every bit) is null."""
        return json.dumps(plain(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    def to_text(self, top: int | None = None) -> str:
        """A table for a terminal, of the first `top` units."""
        lines = [
            f"{self.model}: {self.metric} on {self.samples} samples: float {self._score(self.float_score)},"
            f" all switched off {self._score(self.off)}, all on {self._score(self.on)}",
            f"{'alone':>12}  {'all but it':>12}  {'own SQNR':>9}  {'what':<10}  unit",
        ]
        for effect in self.measured[:top]:
            lines.append(
                f"{self._score(effect.only):>12}  {self._score(effect.all_but):>12}  {effect.own_db:>6.1f} dB"
                f"  {effect.kind:<10}  {effect.unit}"
            )
        if self.not_measured:
            some = ", ".join(effect.unit for effect in self.not_measured[:5])
            lines.append(
                f"not measured within {self.budget:g} s: {len(self.not_measured)} units, whose own SQNR is better than"
                f" that of those measured: {some}{', ...' * (len(self.not_measured) > 5)}"
            )
        lines.append(
            f"{self.evaluations} evaluations for the work of {self.passes:.1f} passes through the network,"
            f" {self.seconds:.1f} s"
        )
        if self.measured:
            lines += ["", "the most sensitive in float, to paste into the file of `onnxq quantize --config`:"]
            lines += sensitive_kept_float(self.ranking.ranking[:top]).splitlines()
        return "\n".join(printable(line) for line in lines)

    def _score(self, value: float | None) -> str:
        if value is None:
            return ""
        if math.isinf(value):
            return "identical" if value > 0 else "not finite"
        return f"{value:.2f} {self.unit}" if self.unit in ("dB", "%") else f"{value:.5g} {self.unit}".rstrip()


@shows_progress
@large.storing()
def sensitivity(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    *,
    labels: Labels | None = None,
    metric: MetricLike | None = None,
    by: By = "quantizer",
    budget: float | None = None,
    evaluation_samples: int | None = None,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    scheduler: str | None = None,
    **settings: Unpack[Settings],
) -> SensitivityAnalysis:
    """Rank what `quantize` with these options would quantize by what it costs.

    labels, metric: as `evaluate` takes them, the labels being those of the calibration data; SQNR by default.
    by: what is switched together. budget: seconds for the evaluations, once the model is planned; units are then
    visited by their own SQNR, the worst first, and what was measured does not depend on the budget.
    evaluation_samples: how many calibration samples the metric is measured on. scheduler: as for `calibrate`; workers
        finish what they have begun when the budget is spent. The rest as in `quantize`. Raises OnnxqError.
    """
    options = with_settings(options, settings)
    if by not in get_args(By):
        raise unknown("`by`", by, get_args(By))
    with running_on(options.provider, scheduler, options.custom_ops), open_workers(scheduler) as workers:
        evaluator = open_evaluator(
            model, calibration, options=options, labels=labels, metric=metric,
            evaluation_samples=evaluation_samples, preprocess=preprocess,
            input_keys=input_keys, transform=transform, progress=called(progress), workers=workers,
        )  # fmt: skip
        base, switches = evaluator.planned()
        return rank(evaluator, base, switches, units_of(base, switches, by), budget)


def rank(
    evaluator: Evaluator,
    base: Model,
    switches: Mapping[str, Switch],
    units: Sequence[Unit],
    budget: float | None = None,
) -> SensitivityAnalysis:
    """Measure units of a planned model. Raises OnnxqError."""
    start = time.perf_counter()
    own = own_sqnr(evaluator, base, switches)
    effects = [_not_measured(unit, own) for unit in units]
    if budget is not None:
        effects.sort(key=lambda effect: (effect.own_db, effect.unit))
    begin, float_score, context = time.perf_counter(), evaluator.float_score, evaluator.task.context

    def due() -> Iterator[Collection[str]]:
        """All switches, and units as long as there is time for one more."""
        last, durations = begin, list[float]()
        for done, names in enumerate([tuple(switches), *(effect.tensors for effect in effects)]):
            if done and budget is not None and not _fits(budget, start, durations):
                return
            yield names
            durations.append(time.perf_counter() - last)
            last = time.perf_counter()
            context.services.progress("switching quantizers", done, len(effects))

    of = (evaluator.feeds, evaluator.metric, evaluator.references, context.services.max_memory)
    proto = evaluator.shown(base.to_proto(), evaluator.metric)
    whole, *alone = context.services.workers.run(
        partial(_scorer, proto, switches, *of), due(), context.services.threads, most=1
    )
    measured = [replace(e, only=one.on, all_but=one.off) for e, one in zip(effects, alone, strict=False)]
    passes = [work for one in alone for work in one.passes if work]
    return SensitivityAnalysis(
        model=evaluator.task.origin,
        metric=evaluator.metric.name,
        unit=evaluator.metric.unit,
        samples=sum(feed.rows or 1 for feed in evaluator.feeds),
        float_score=float_score,
        off=whole.off,
        on=whole.on,
        measured=tuple(sorted(measured, key=lambda effect: effect.rank)),
        not_measured=tuple(effects[len(measured) :]),
        budget=budget,
        evaluations=2 + len(passes),
        passes=sum(passes, 2.0),
        seconds=time.perf_counter() - start,
    )


def _fits(budget: float, start: float, durations: Sequence[float]) -> bool:
    """Whether there is time for one more, if that takes as long as the ones so far; or, as the first, as long as
    the scores of the whole network, whose duration comes before theirs."""
    expected = durations[0] if len(durations) == 1 else sum(durations[1:]) / (len(durations) - 1)
    return time.perf_counter() - start + expected <= budget


@dataclass(frozen=True)
class _Scores:
    """Of some switches: on with everything else off; off with everything else on; and what computing that was worth."""

    on: float
    off: float
    passes: tuple[float, float]


def _scorer(
    proto: ModelProto,
    switches: Mapping[str, Switch],
    feeds: Sequence[Feed],
    metric: Metric,
    references: Sequence[Outputs],
    max_memory: int,
    threads: int,
) -> Stage[Collection[str], _Scores]:
    score = partial(score_outputs, metric, references)
    board = Switchboard(proto, switches.values(), feeds, score, threads=threads, max_memory=max_memory)
    board.hold({})
    board.hold(switches)
    return lambda units: (_measured(board, switches, names) for names in units)


def _measured(board: Switchboard, switches: Mapping[str, Switch], names: Collection[str]) -> _Scores:
    on = {name: switches[name] for name in names}
    off = {name: switch for name, switch in switches.items() if name not in names}
    return _Scores(board.score(on), board.score(off), (board.passes(on), board.passes(off)))


def units_of(base: Model, switches: Mapping[str, Switch], by: By = "quantizer") -> list[Unit]:
    """What is switched together, in graph order."""
    tensors = base.graph.tensors()
    if by == "layer":
        return _layers(base, switches)
    kinds = {name: "weights" if isinstance(tensors[name], gs.Constant) else "activation" for name in switches}
    return [Unit(name, kinds[name], (name,)) for name in switches]


def _layers(base: Model, switches: Mapping[str, Switch]) -> list[Unit]:
    """Layers with the grid of their output; what is left, such as the model's inputs, alone."""
    units, taken = [], set[str]()
    for layer in planned_layers(base):
        names = [name for name in (layer.weight.name, _output(base, layer)) if name in switches and name not in taken]
        if names:
            units.append(Unit(layer.node.name, "layer", tuple(names)))
            taken.update(names)
    return units + [unit for unit in units_of(base, switches) if unit.name not in taken]


def _output(base: Model, layer: LinearLayer) -> str:
    """The tensor that carries what the layer computes to the next ones, behind its activation function."""
    tensor = layer.output
    while tensor.name not in base.quantizers and (reader := base.sole_consumer(tensor)) is not None:
        if clip_bounds(reader) is None:
            break
        tensor = reader.outputs[0]
    return str(tensor.name)


def own_sqnr(evaluator: Evaluator, base: Model, switches: Mapping[str, Switch]) -> dict[str, float]:
    """SQNR in dB of what each switch holds, in the float network."""
    found = _weights_sqnr(base, switches)
    left = {name: switch.quantizers for name, switch in switches.items() if name not in found}
    roots = {name: next(q for q in quantizers if q.tensor == name) for name, quantizers in left.items()}
    tensors = base.graph.tensors()
    for name, quantizer in roots.items():
        assert quantizer.params is not None
        constant = tensors[name]
        if isinstance(constant, gs.Constant):
            found[name] = _db(np.asarray(constant.values), quantizer.params.fake(constant.values))
    totals = {name: Sqnr() for name in roots if name not in found}
    for values in tensor_values(base.to_proto(), totals, evaluator.feeds[:ACTIVATION_SAMPLES]):
        for name, total in totals.items():
            params = roots[name].params
            assert params is not None
            total.update(values[name], params.fake(values[name]))
    return found | {name: total.db for name, total in totals.items()}


def _weights_sqnr(base: Model, switches: Mapping[str, Switch]) -> dict[str, float]:
    """Of linear layers' weights: mean over channels of noise to signal, in dB."""
    found = {}
    for layer in planned_layers(base):
        switch = switches.get(layer.weight.name)
        if switch is None or switch.name in found:
            continue
        weight = np.asarray(layer.weight.values, np.float64)
        error = weight - large.array(switch.constants[layer.weight.name])
        axes = tuple(i for i in range(weight.ndim) if i != layer.axis)
        signal, noise = np.square(weight).sum(axes), np.square(error).sum(axes)
        share = (noise / np.where(signal > 0, signal, 1))[signal > 0]
        ratio = float(np.minimum(share, 1.0).mean()) if share.size else 0.0
        found[switch.name] = -10 * math.log10(ratio) if ratio > 0 else math.inf
    return found


def _db(x: np.ndarray, y: np.ndarray) -> float:
    total = Sqnr()
    total.update(x, y)
    return total.db


def _not_measured(unit: Unit, own: Mapping[str, float]) -> UnitEffect:
    """Before anything is measured. The own SQNR of a layer is that of its worst grid."""
    return UnitEffect(unit.name, unit.kind, unit.switches, min(own[name] for name in unit.switches))
