"""Bits for every tensor: as few as an allowed drop leaves room for, or the best that limits of cost leave.

    1. Plan the model once for each candidate width (`planned_widths`).
    2. N_u(b): noise over signal of the model's outputs with unit u alone quantized, to b bits (`switchboard`).
    3. A path from the most bits to the fewest, by noise and cost (`bit_allocation`).
    4. Measure points of the path by the real metric; bisection finds the last one within the allowed drop.
       Activations that no product reads get the fewest bits there, if that still keeps the drop.
    5. Write the choice as overrides, quantize with them to the end, and measure again. Where that does not keep the
       allowed drop, go back on the path.

The drop counts from the float model's score. Where that is infinite, as SQNR's is, it counts from the score with the
most bits everywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from onnx import ModelProto

from ..data import Preprocess, Transform
from ..errors import UsageError, VerificationError
from ..execution.progress import ProgressLike, called, shows_progress
from ..execution.session import running_on
from ..execution.switches import Switchboard
from ..graph import large
from ..options import Options, with_settings
from ..pipeline.pipeline import quantize
from ..report import ParetoFront, ParetoPoint
from ..report.notebook import InNotebook
from ..settings import Settings, Unpack
from ..thresholds import EVALUATION_SAMPLES, FRONT_POINTS, ROUNDING_ERROR
from .bit_allocation import Bits, Cost, path
from .custom_metric import MetricLike
from .evaluator import Evaluator, Labels, open_evaluator
from .metric import SqnrMetric
from .planned_widths import Candidates, PlannedWidths, chosen_options, plan


@dataclass(frozen=True)
class Limits:
    """What the choice must keep; None: no limit.  drop: in the metric's unit.  bops: bit operations a sample.
    size: bytes of the layers' weights."""

    drop: float | None = None
    bops: float | None = None
    size: float | None = None

    def __post_init__(self) -> None:
        if self.drop is None and self.bops is None and self.size is None:
            raise UsageError("mixed precision needs a limit: `drop`, `bops` or `size`")

    @property
    def cost(self) -> Cost:
        """What the path saves: bit operations, unless only the size matters."""
        return "size" if self.drop is None and self.bops is None else "bops"


@dataclass(frozen=True, repr=False)
class MixedPrecision(InNotebook):
    """options: to quantize with.  score, drop: of the model that they give, on `samples` of the calibration data.
    reached: whether it keeps all limits."""

    options: Options
    score: float
    drop: float
    samples: int
    reached: bool
    front: ParetoFront
    text: str

    def to_text(self) -> str:
        """The verdict."""
        return self.text


@shows_progress
@large.storing()
def auto_mixed(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    candidates: str,
    limits: Limits,
    *,
    labels: Labels | None = None,
    metric: MetricLike | None = None,
    evaluation_samples: int | None = None,
    eval_data: Any = None,
    closest: bool = False,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    **settings: Unpack[Settings],
) -> MixedPrecision:
    """Options for `quantize`, on the same model and data, that keep the limits; see the module.

    candidates: such as `w4,w8,a8,a16`. What these leave open is as `options` say; the user's overrides stay.
    labels, metric, evaluation_samples: as in `sensitivity`. Without labels and metric, classifiers are measured by
    top-1 agreement with the float model, whose drop is in points, other models by SQNR.
    eval_data: the data that is measured on, and labelled; None: the calibration data.
    closest: where no choice keeps the limits, take the one that comes closest instead of failing.
    Raises VerificationError where none keep them, and whatever OnnxqError `quantize` does.
    """
    widths = Candidates.parse(candidates)
    options = with_settings(options, settings)
    if not isinstance(limits, Limits):
        raise UsageError(
            f"`limits` must be onnxq.Limits(drop=...), (bops=...) or (size=...), got {type(limits).__name__}"
        )
    widths.check(options)
    with running_on(options.provider, custom_ops=options.custom_ops):
        evaluator = open_evaluator(
            model, calibration, options=options, labels=labels, metric=metric, evaluation_samples=evaluation_samples,
            preprocess=preprocess, input_keys=input_keys, transform=transform, progress=called(progress),
            by_classes=True, eval_data=eval_data,
        )  # fmt: skip
        return choose(evaluator, widths, limits, closest)


def choose(evaluator: Evaluator, candidates: Candidates, limits: Limits, closest: bool = False) -> MixedPrecision:
    """The bits that keep the limits; with `closest`, those that come closest where none do.

    Raises VerificationError where none keep them, and whatever OnnxqError `quantize` does.
    """
    found = _BitSearch(evaluator, limits, plan(evaluator.task, candidates)).run()
    if not found.reached and not closest:
        raise VerificationError(f"{candidates} cannot keep the limits; the closest: {found.text}. `closest` takes it")
    return found


@dataclass
class _BitSearch:
    """scores: of points of the path, by their place on it."""

    evaluator: Evaluator
    limits: Limits
    planned: PlannedWidths
    scores: dict[int, float] = field(default_factory=dict)

    def run(self) -> MixedPrecision:
        for shown in range(FRONT_POINTS):
            self._score(round(shown * (len(self.path) - 1) / (FRONT_POINTS - 1)))
        first = next((i for i, bits in enumerate(self.path) if self._is_cheap(bits)), None)
        if first is None:
            return self._quantized(len(self.path) - 1)
        last = first if self.limits.drop is None else self._last_allowed(first)
        back = 1
        while not (found := self._quantized(last)).reached and last > first:
            last, back = max(last - back, first), 2 * back
        return found

    @cached_property
    def path(self) -> list[Bits]:
        return path(self._noise(), self.planned.costs, self.limits.cost)

    @cached_property
    def board(self) -> Switchboard:
        """Switches for the metric, the state with the most bits held."""
        switches = [switch for widths in self.planned.switches.values() for switch in widths.values()]
        board = self.evaluator.switchboard(self.planned.base, switches)
        self.scores[0] = board.hold(self.planned.state(self.path[0]))
        return board

    @cached_property
    def reference(self) -> float:
        """What the drop counts from."""
        score = self.evaluator.float_score
        return score if math.isfinite(score) else self._score(0)

    def _noise(self) -> dict[str, dict[int, float]]:
        """N_u(b) of all units with all their bits."""
        units = self.planned.switches
        switches = [switch for widths in units.values() for switch in widths.values()]
        board = self.evaluator.switchboard(self.planned.base, switches, SqnrMetric(), EVALUATION_SAMPLES)
        board.hold({})
        found: dict[str, dict[int, float]] = {}
        for done, (unit, widths) in enumerate(units.items(), 1):
            found[unit] = {bits: 10 ** (-board.score({unit: switch}) / 10) for bits, switch in widths.items()}
            self.evaluator.task.context.services.progress("measuring widths", done, len(units))
        return found

    def _score(self, place: int) -> float:
        board = self.board
        if place not in self.scores:
            self.scores[place] = board.score(self.planned.state(self.path[place]))
        return self.scores[place]

    def _is_cheap(self, bits: Bits) -> bool:
        costs, limits = self.planned.costs, self.limits
        bops = limits.bops is None or costs.bops(bits) <= limits.bops
        return bops and (limits.size is None or costs.size(bits) <= limits.size)

    def _is_allowed(self, score: float) -> bool:
        return self.limits.drop is None or self.reference - score <= self.limits.drop + ROUNDING_ERROR

    def _last_allowed(self, first: int) -> int:
        """The cheapest place found to be within the allowed drop, if drops grow along the path; else `first`."""
        low, high = first, len(self.path) - 1
        if self._is_allowed(self._score(high)):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            if self._is_allowed(self._score(middle)):
                low = middle
            else:
                high = middle
        return low

    def _frugal(self, bits: Bits) -> Bits:
        """The same with the fewest bits for what costs no operations, where a drop is allowed and that keeps it."""
        fewer = {**bits, **{unit: min(self.planned.switches[unit]) for unit in self.planned.costs.idle}}
        if self.limits.drop is None or fewer == bits:
            return bits
        return fewer if self._is_allowed(self.board.score(self.planned.state(fewer))) else bits

    def _quantized(self, place: int) -> MixedPrecision:
        """The choice at a place, quantized to the end."""
        task, bits, costs = self.evaluator.task, self._frugal(self.path[place]), self.planned.costs
        options = chosen_options(task.options, self.planned, bits)
        score = self.evaluator.measured(quantize(replace(task, options=options)).proto)
        metric, drop = self.evaluator.metric, self.reference - score
        text = (
            f"{costs.mean_bits(bits)} bits on average, weights {costs.size(bits) / 2**20:.3g} MiB,"
            f" {costs.bops(bits) / 1e9:.4g} G bit operations, {metric.name} {score:.2f} {metric.unit}"
            f" (a drop of {drop:.2f} from {self.reference:.2f})"
        )
        samples = sum(feed.rows or 1 for feed in self.evaluator.feeds)
        reached = self._is_allowed(score) and self._is_cheap(bits)
        return MixedPrecision(options, score, drop, samples, reached, self._front(place, score), text)

    def _front(self, chosen: int, score: float) -> ParetoFront:
        """What was measured, without points that others beat in cost and score; the chosen one as it came out."""
        costs, metric = self.planned.costs, self.evaluator.metric
        points: list[ParetoPoint] = []
        for place, found in sorted({**self.scores, chosen: score}.items(), reverse=True):
            bits, best = self.path[place], max((p.score for p in points), default=-math.inf)
            if place == chosen or found > best:
                label = costs.mean_bits(bits)
                points.append(ParetoPoint(costs.size(bits), costs.bops(bits), found, label, place == chosen))
        return ParetoFront(f"{metric.name} ({metric.unit})" if metric.unit else metric.name, tuple(points))
