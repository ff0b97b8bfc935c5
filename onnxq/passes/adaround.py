"""Rounding, scale and bias of every weight, layer after layer, so that what the layer computes stays (section 3.4).

For each layer, with x^ its input in the network quantized so far and y its output in the float network, both from
calibration data:

    1. The quadratic form of sum |W~ x^ + b~ - y|^2 is streamed (`numeric.gram`), from every fifth sample apart.
    2. Scale: a factor times the planned one, that whose rounding by error feedback errs least, for each channel or
       for the tensor (`numeric.rounding.fit_scale`). Where channels share a scale, the error of each counts relative
       to the energy of its output: following layers read weak channels with large weights. (MobileNetV1 with 4 bits
       per tensor: 32.8 % right with plain errors, 43.5 % with relative ones.)
    3. Rounding at that scale by one of `ROUNDINGS`.
    4. Bias: the one that takes the mean error (27, 28), exactly, whatever the rounding.
    5. Steps 2 to 4 for several weights lambda of the term lambda |W~ - W|^2, which keeps weights where the data says
       nothing; the best on the samples held back wins. If rounding to nearest is better than all of them there,
       nearest stays.

Weights become floats that lie on their grid: all that comes later sees what the integer network will see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, key_of
from ..errors import UsageError
from ..graph.matrix import LayerMatrix
from ..graph.model import Model
from ..graph.ops import LinearLayer, clip_bounds
from ..graph.weight_grid import lattice, rescaled, scale_units
from ..layerwise import isolate, planned_layers, visit_layers
from ..numeric.gram import Gram
from ..numeric.quant import QuantParams, QuantSpec
from ..numeric.rounding import ENUMERABLE, Array, ErrorFeedback, Lattice, descend, enumerate_all, fit_scale
from ..numeric.soft_rounding import Columns, Loss, Quadratic, adaround
from .base import Context, Outcome, Skip

HELD_BACK = 5
"""One sample in so many judges."""

EXACT = 1e-12
"""Relative errors that are closer than this are the same."""

FAINT = 1e-3
"""The share of the mean energy that is added to each channel's, so that faint ones do not rule."""

KEPT_BYTES = 128 * 2**20
"""Columns of one layer that are kept for minibatches (`adaround` only)."""


@dataclass(frozen=True)
class Effort:
    """Time for quality.

    columns: output positions of a layer that statistics are taken of, for each of its inputs (K), drawn evenly from
    all samples; at least 16384, at most 2^18.  dampings: lambda over the mean diagonal of G.  sweeps: of coordinate
    descent.  iterations: of Adam.
    """

    columns: int
    dampings: tuple[float, ...]
    sweeps: int
    iterations: int

    def positions(self, inputs: int, samples: int) -> int:
        """Positions of each sample."""
        return -(-min(max(self.columns * inputs, 2**14), 2**18) // samples)


EFFORTS: Mapping[str, Effort] = {
    "low": Effort(columns=16, dampings=(0.01,), sweeps=3, iterations=500),
    "medium": Effort(columns=64, dampings=(0.001, 0.01, 0.1, 1.0), sweeps=20, iterations=2000),
    "high": Effort(columns=256, dampings=(0.0001, 0.001, 0.01, 0.1, 1.0), sweeps=100, iterations=10000),
}


@dataclass(frozen=True)
class Problem:
    """One weight. form: centred and damped, over all uses.  W: float rows.  loss: with the activation, if possible."""

    form: Gram
    W: Array
    feedback: ErrorFeedback
    effort: Effort
    loss: Loss
    seed: int


def _nearest(problem: Problem, grid: Lattice) -> Array:
    return grid.nearest(problem.W)


def _error_feedback(problem: Problem, grid: Lattice) -> Array:
    return problem.feedback.round(grid)


def _descent(problem: Problem, grid: Lattice) -> Array:
    """Down from what error feedback finds; short rows also from the best of all ways to round them, if that ends
    lower."""
    form = problem.form
    q = descend(form, grid, problem.feedback.round(grid), problem.effort.sweeps)
    if problem.W.shape[2] > ENUMERABLE:
        return q
    other = descend(form, grid, enumerate_all(form, grid, problem.W), problem.effort.sweeps)
    lower = form.error(grid.scale * other) < form.error(grid.scale * q)
    return np.where(lower[:, :, None], other, q)


def _adaround(problem: Problem, grid: Lattice) -> Array:
    return adaround(problem.loss, grid, problem.W, problem.effort.iterations, problem.seed)


ROUNDINGS: Mapping[str, Callable[[Problem, Lattice], Array]] = {
    "nearest": _nearest,
    "error-feedback": _error_feedback,
    "descent": _descent,
    "adaround": _adaround,
}


@dataclass(frozen=True)
class AdaRound:
    """Optimise all weights whose quantizer has an answer; the activations' quantizers that have one are simulated.

    rounding: a key of `ROUNDINGS`.  effort: a key of `EFFORTS`.  seed: of the positions and minibatches drawn.
    checkpoint: a folder for the result of every layer; layers that it has results of are not optimised again.
    """

    rounding: str = "descent"
    effort: str = "medium"
    seed: int = 0
    checkpoint: Path | None = None
    preserves: ClassVar[bool | None] = False

    def __post_init__(self) -> None:
        for option, value, known in (("rounding", self.rounding, ROUNDINGS), ("effort", self.effort, EFFORTS)):
            if value not in known:
                raise UsageError(f"--{option} {value!r} is unknown; expected one of {', '.join(known)}")

    def apply(self, model: Model, context: Context) -> Outcome:
        isolate(model)
        samples = len(context.feeds) if isinstance(context.feeds, Sized) else HELD_BACK
        rounder = _Rounder(model, self, samples, self._checkpoint(model, context))
        traffic = visit_layers(model, context, rounder, "rounding weights")
        notes = (*(str(record) for record in rounder.records), str(traffic))
        return Outcome(sum(record.changed for record in rounder.records), tuple(rounder.skips), notes)

    def _checkpoint(self, model: Model, context: Context) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        options = repr(replace(self, checkpoint=None))
        parts = [model.to_proto().SerializeToString(deterministic=True), options.encode()]
        for quantizer in model.quantizers.values():
            params = quantizer.params
            parts.append(repr(replace(quantizer, params=None)).encode())
            parts += [] if params is None else [params.scale.tobytes(), params.zero_point.tobytes()]
        for arrays, rows in context.arrays():
            parts += [repr(rows).encode(), *(array.tobytes() for array in arrays.values())]
            parts = [key_of(*parts).encode()]
        return Checkpoint(self.checkpoint, key_of(*parts))


@dataclass(frozen=True)
class Rounded:
    """One weight. before, after: squared error over the variance of the output, mean over channels, on the samples
    held back, rounded to nearest and as optimised.  flipped: share of the weights that are not at the integer
    nearest at the new scale."""

    layer: str
    before: float
    after: float
    flipped: float

    @property
    def changed(self) -> bool:
        return self.after + EXACT < self.before

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.layer}: rounded to nearest, error {self.before:.2%} (optimised it would be {self.after:.2%})"
        return f"{self.layer}: error {self.before:.2%} -> {self.after:.2%}, {self.flipped:.1%} of weights flipped"


@dataclass
class _Seen:
    """What was seen of one layer: its forms over the samples to fit and over those held back, and some columns."""

    fit: Gram | None = None
    held: Gram | None = None
    columns: list[tuple[Array, Array]] = field(default_factory=list)

    def take(self, x: NDArray[Any], y: NDArray[Any], held: bool) -> None:
        form = Gram.of(x, y)
        if held:
            self.held = form if self.held is None else self.held + form
        else:
            self.fit = form if self.fit is None else self.fit + form


@dataclass
class _Rounder:
    """The visitor of all layers. samples: how many there will be."""

    model: Model
    options: AdaRound
    samples: int
    checkpoint: Checkpoint | None = None
    seen: dict[str, _Seen] = field(default_factory=dict)
    restored: dict[str, _Choice] = field(default_factory=dict)
    records: list[Rounded] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            for layer in planned_layers(self.model):
                saved = self.checkpoint.load(layer.weight.name)
                if saved is not None:
                    self.restored[layer.weight.name] = _Choice.of(saved)

    @property
    def effort(self) -> Effort:
        return EFFORTS[self.options.effort]

    def observe(self, layer: LinearLayer, sample: int, x: NDArray[Any], y: NDArray[Any]) -> Any:
        """Columns of the layer's matrices, at some positions."""
        if layer.weight.name in self.restored:
            return None
        matrix = LayerMatrix.of(layer)
        rows, chosen = matrix.outputs(y), None
        wanted = self.effort.positions(matrix.columns, self.samples)
        if wanted < rows.shape[2]:
            rng = np.random.default_rng((self.options.seed, sample))
            chosen = np.sort(rng.choice(rows.shape[2], wanted, replace=False))
            rows = rows[..., chosen]
        return sample, matrix.inputs(x, y.shape[2:], chosen), rows

    def take(self, layer: LinearLayer, part: Any) -> None:
        if part is None:
            return
        sample, x, y = part
        seen = self.seen.setdefault(layer.node.name, _Seen())
        held = self.samples >= HELD_BACK and sample % HELD_BACK == HELD_BACK - 1
        seen.take(x, y, held)
        if self.options.rounding == "adaround" and not held:
            size = max(KEPT_BYTES // (self.samples * 4 * (x.shape[0] * (x.shape[1] + y.shape[1]))), 1)
            step = -(-x.shape[2] // size)
            seen.columns.append((x[..., ::step].copy(), y[..., ::step].copy()))

    def change(self, uses: Sequence[LinearLayer]) -> None:
        layer, matrix = uses[0], LayerMatrix.of(uses[0])
        seen = [self.seen.pop(use.node.name, _Seen()) for use in uses]
        if not all(LayerMatrix.of(use).reads_alike(matrix) for use in uses):
            reason = f"layers that read weight {layer.weight.name!r} in different ways share it: rounded to nearest"
            self.skips.append(Skip(layer.node.name, reason))
            return
        choice = self.restored.get(layer.weight.name)
        if choice is None:
            params = self.model.quantizers[layer.weight.name].params
            assert params is not None
            task = _Task(matrix, params, self.model.quantizers[layer.weight.name].spec, uses, seen, self.options)
            choice = task.best()
            if self.checkpoint is not None:
                self.checkpoint.save(layer.weight.name, choice.arrays())
        self.records.append(Rounded(layer.node.name, choice.before, choice.after, choice.flipped))
        if self.records[-1].changed:
            self._apply(uses, choice)

    def _apply(self, uses: Sequence[LinearLayer], choice: _Choice) -> None:
        weight = uses[0].weight
        weight.values = choice.weight
        quantizer = self.model.quantizers[weight.name]
        assert quantizer.params is not None
        params = replace(quantizer.params, scale=choice.scale)
        self.model.quantizers[weight.name] = quantizer.answered(params)
        for use, bias in zip(uses, choice.biases, strict=True):
            assert use.bias is not None
            use.bias.values = bias


@dataclass(frozen=True)
class _Choice:
    """What becomes of one weight: the tensor and its scale, a row of biases for each use, and a record's figures."""

    weight: NDArray[np.float32]
    scale: NDArray[np.floating]
    biases: NDArray[np.float32]
    before: float
    after: float
    flipped: float

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> _Choice:
        weight, scale, biases, *figures = (arrays[name] for name in cls.__dataclass_fields__)
        return cls(weight, scale, biases, *(float(figure) for figure in figures))


@dataclass
class _Task:
    """Steps 2 to 5 for one weight, over all its uses."""

    matrix: LayerMatrix
    params: QuantParams
    spec: QuantSpec
    uses: Sequence[LinearLayer]
    seen: Sequence[_Seen]
    options: AdaRound

    def __post_init__(self) -> None:
        self.W = np.asarray(self.matrix.weights(np.asarray(self.uses[0].weight.values)), np.float64)
        self.grid = lattice(self.matrix, self.params)
        self.fit = [seen.fit for seen in self.seen if seen.fit is not None]
        self.held = [seen.held or seen.fit for seen in self.seen if seen.fit is not None]
        self.total = reduce(add, (form.centred() for form in self.fit))
        self.weights = _importance(self.total)

    def nearest(self) -> float:
        """Error of rounding to nearest, scale and biases as they are."""
        rows = self.grid.scale * self.grid.nearest(self.W)
        biases = [
            np.asarray(use.bias.values, np.float64).reshape(rows.shape[:2]) for use in self.uses if use.bias is not None
        ]
        return self._error(rows, biases)

    def best(self) -> _Choice:
        """The choice of least error on the samples held back."""
        dampings = EFFORTS[self.options.effort].dampings
        if self.options.rounding in ("nearest", "adaround"):  # they stay near the float weights by themselves
            dampings = dampings[:1]
        return min((self._solve(self.total.damped(self.W, d)) for d in dampings), key=lambda choice: choice.after)

    def _solve(self, form: Gram) -> _Choice:
        options, feedback = self.options, ErrorFeedback(form)
        problem = Problem(form, self.W, feedback, EFFORTS[options.effort], self._loss(form), options.seed)
        draft = ROUNDINGS["nearest" if options.rounding == "nearest" else "error-feedback"]
        units = scale_units(self.matrix, self.params)
        octaves = self.spec.power_of_two
        factor = fit_scale(form, self.grid, units, lambda grid: draft(problem, grid), _importance(form), octaves)
        grid = self.grid.scaled(factor)
        q = ROUNDINGS[options.rounding](problem, grid)
        rows = grid.scale * q
        biases = [form.bias(rows) for form in self.fit]
        return _Choice(
            weight=np.asarray(self.matrix.restore(rows), np.float32),
            scale=rescaled(self.matrix, self.params, factor).scale,
            biases=np.asarray([bias.reshape(-1) for bias in biases], np.float32),
            before=self.nearest(),
            after=self._error(rows, biases),
            flipped=float((q != grid.nearest(self.W)).mean()),
        )

    def _error(self, rows: Array, biases: Sequence[Array]) -> float:
        """On the samples held back, the mean over channels of the squared error relative to the channel's energy."""
        errors = sum(form.error(rows, bias) for form, bias in zip(self.held, biases, strict=True))
        return float((self.weights * errors).mean() * self.total.count / max(sum(form.count for form in self.held), 1))

    def _loss(self, form: Gram) -> Loss:
        """With the activation in it, where columns were kept and there is one."""
        if len(self.uses) > 1 or not self.seen[0].columns:
            return Quadratic(form)
        layer = self.uses[0]
        readers = layer.output.outputs
        bounds = clip_bounds(readers[0]) if len(readers) == 1 else None
        assert layer.bias is not None
        bias = np.asarray(layer.bias.values, np.float64).reshape(self.W.shape[:2])
        x, y = (np.concatenate(part, axis=2) for part in zip(*self.seen[0].columns, strict=True))
        return Columns(x, y, bias, *(bounds or (-np.inf, np.inf)))


def _importance(form: Gram) -> Array:
    """One over each channel's energy, (g, M). That of a damped form has the damping in it, as its errors have: a
    channel whose input is dead, and whose weights may be huge, must not decide about the scale of all others."""
    return np.asarray(1 / np.maximum(form.yy + FAINT * form.yy.mean(), np.finfo(np.float32).tiny))
