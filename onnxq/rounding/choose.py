"""One weight of one or several layers: its scale, its rounding and the layers' biases, from what was seen of them.

    1. Scale: a factor times the planned one, that whose rounding by error feedback errs least, for each channel or
       for the tensor (`numeric.rounding.fit_scale`). Where channels share a scale, the error of each counts over the
       energy of its output to the power of `SHARING`: following layers read weak channels with large weights. A scale
       is no smaller than the bias, an integer, allows (`graph.bias_scale`): nothing will have to raise it afterwards.
    2. Rounding at that scale by one of `ROUNDINGS`.
    3. Bias: the one that takes the mean error (27, 28), exactly, whatever the rounding.
    4. Steps 1 to 3 for several weights lambda of the term lambda |W~ - W|^2, which keeps weights where the data says
       nothing; the best on the samples held back wins, is compared there with rounding to nearest, and then steps 1
       to 3 are taken once more on all samples.

MobileNetV1, 4 bits per channel, three draws of 160 samples: SQNR of the outputs on other images 9.7, 9.5 and 8.8 dB;
with lambda chosen by error feedback instead of the rounding itself 9.5, 9.3 and 8.7 dB; with the scale, too, kept from
there, 9.4 and 9.1 dB. Without the last fit on all samples, classes are 0.237 rather than 0.231 (KL) from float.

The samples held back both choose lambda and judge. That favours the optimised weight by the luck of the best of a
handful of lambdas, far less than what the errors of nearest and optimised differ by wherever the choice matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..numeric.quant import QuantParams, QuantSpec
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer
from ..operators.matrix import LayerMatrix
from .adaround import Columns, Loss, Quadratic, adaround
from .bias_scale import Vector, lowest_scales
from .gptq import (
    ENUMERABLE,
    Array,
    Gptq,
    Lattice,
    descend,
    enumerate_all,
    fit_scale,
)
from .gram import Gram
from .weight_grid import lattice, rescaled, scale_units

FAINT = 1e-3
"""The share of the mean energy that is added to each channel's, so that faint ones do not rule."""

SHARING = 0.7
"""0: channels that share a scale count by their errors; 1: by their errors relative to their energies. MobileNetV1
with 4 bits per tensor, without equalization: KL divergence of the classes 0.64 with 0.7, 0.70 with 1."""

GATHERED = 1024
"""Columns that are gathered from several samples before their products are taken: adding up (K, K) takes its time."""

MARGIN = 1.001
"""Scales are so much larger than a bias asks for, where it does: the bias depends on the scale in turn."""


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
    feedback: Gptq
    effort: Effort
    loss: Loss
    seed: int

    def nearest_errors(self, grids: Lattice) -> Array:
        """Of rounding to nearest on n stacked lattices, (g, n M)."""
        rows = np.split(grids.scale * grids.nearest(self.W), grids.scale.shape[1] // self.W.shape[1], axis=1)
        return np.concatenate([self.form.error(part) for part in rows], axis=1)


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
    "gptq": _error_feedback,
    "coordinate-descent": _descent,
    "adaround": _adaround,
}


@dataclass
class Seen:
    """What was seen of one layer: its forms over the samples to fit and over those held back, and some columns.

    positions, of_positions: columns that were taken, and that there are. samples, held_back: how many there were.
    """

    fit: Gram | None = None
    held: Gram | None = None
    columns: list[tuple[Array, Array]] = field(default_factory=list)
    positions: int = 0
    of_positions: int = 0
    samples: int = 0
    held_back: int = 0
    waiting: dict[bool, list[tuple[Array, Array]]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def all(self) -> Gram:
        """Of all samples; there must be some to fit."""
        assert self.fit is not None
        return self.fit if self.held is None else self.fit + self.held

    def take(self, x: NDArray[Any], y: NDArray[Any], of: int, held: bool) -> None:
        """Columns x (g, K, P) and y (g, M, P) of one sample, chosen from `of`."""
        self.positions, self.of_positions = self.positions + x.shape[2], self.of_positions + of
        self.samples, self.held_back = self.samples + 1, self.held_back + held
        self.waiting[held].append((x, y))
        if sum(part.shape[2] for part, _ in self.waiting[held]) >= GATHERED:
            self._add_up(held)

    def finish(self) -> Seen:
        """Nothing is left waiting."""
        for held in (False, True):
            self._add_up(held)
        return self

    def _add_up(self, held: bool) -> None:
        if not self.waiting[held]:
            return
        x, y = (np.concatenate(parts, axis=2) for parts in zip(*self.waiting[held], strict=True))
        self.waiting[held].clear()
        form, known = Gram.of(x, y), self.held if held else self.fit
        form = form if known is None else known + form
        self.fit, self.held = (self.fit, form) if held else (form, self.held)


@dataclass(frozen=True)
class Choice:
    """What becomes of one weight: the tensor and its scale, a row of biases for each use, and what is reported of it
    (`report.RoundedLayer`)."""

    weight: NDArray[np.float32]
    scale: NDArray[np.floating]
    biases: NDArray[np.float32]
    nearest: float
    objective: float
    flipped: float
    samples: int
    held_back: int
    positions: int
    of_positions: int
    nbytes: int

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As a checkpoint holds it."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Choice:
        """From a checkpoint. Raises ValueError where that holds anything else."""
        if arrays.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(f"expected {', '.join(cls.__dataclass_fields__)}, got {', '.join(arrays)}")
        if not all(array.dtype.kind in "fiu" and np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("expected finite numbers")
        values: dict[str, Any] = {
            name: a if name in ("weight", "scale", "biases") else a.item() for name, a in arrays.items()
        }
        return cls(**values)


@dataclass
class Task:
    """The steps above. seen: of each use.  input_scales: s_x of each use whose bias becomes integers, else None."""

    matrix: LayerMatrix
    params: QuantParams
    spec: QuantSpec
    uses: Sequence[LinearLayer]
    seen: Sequence[Seen]
    input_scales: Sequence[Vector | None]
    rounding: str
    effort: Effort
    seed: int

    def __post_init__(self) -> None:
        self.W = np.asarray(self.matrix.weights(np.asarray(self.uses[0].weight.values)), np.float64)
        self.grid = lattice(self.matrix, self.params)
        self.units = scale_units(self.matrix, self.params)
        self.fit = [seen.fit for seen in self.seen if seen.fit is not None]
        self.held = [seen.held or seen.fit for seen in self.seen if seen.fit is not None]
        self.total = reduce(add, (form.centred() for form in self.fit))
        self.energy, self.count = _importance(self.total), self.total.count

    def best(self) -> Choice:
        """The best lambda, judged, and with it the choice made once more on all samples."""
        # Nearest and AdaRound stay near the float weights by themselves.
        dampings = self.effort.dampings[:1] if self.rounding in ("nearest", "adaround") else self.effort.dampings
        tried = []
        for damping in dampings:
            factor, q, biases = self._solve(self.fit, damping)
            tried.append((self._error(self.grid.scaled(factor).scale * q, biases), damping, factor, q, biases))
        objective, damping, factor, q, biases = min(tried, key=lambda found: found[0])
        if any(seen.held is not None for seen in self.seen):
            every = [seen.all for seen in self.seen if seen.fit is not None]
            self.total = reduce(add, (form.centred() for form in every))
            factor, q, biases = self._solve(every, damping)
        grid = self.grid.scaled(factor)
        first = self.seen[0]
        return Choice(
            weight=np.asarray(self.matrix.restore(grid.scale * q), np.float32),
            scale=rescaled(self.matrix, self.params, factor).scale,
            biases=np.asarray([bias.reshape(-1) for bias in biases], np.float32),
            nearest=self._nearest(),
            objective=objective,
            flipped=float((q != grid.nearest(self.W)).mean()),
            samples=first.samples,
            held_back=first.held_back,
            positions=sum(seen.positions for seen in self.seen),
            of_positions=sum(seen.of_positions for seen in self.seen),
            nbytes=sum(form.nbytes for form in (*self.fit, *self.held, self.total)),
        )

    def _solve(self, parts: Sequence[Gram], damping: float) -> tuple[Array, Array, list[Array]]:
        """Factors on the scales (g, M), q (g, M, K) and the biases."""
        form = self.total.damped(self.W, damping)
        problem = Problem(form, self.W, Gptq(form), self.effort, self._loss(form), self.seed)
        octaves, weights = self.spec.power_of_two, _importance(form) ** SHARING

        def cost(grids: Lattice) -> Array:
            errors = problem.nearest_errors(grids) if self.rounding == "nearest" else problem.feedback.solve(grids)[1]
            return errors * np.tile(weights, (1, errors.shape[1] // weights.shape[1]))

        factor = fit_scale(cost, self.grid, self.units, octaves)
        while True:
            grid = self.grid.scaled(factor)
            q = ROUNDINGS[self.rounding](problem, grid)
            biases = [part.means.bias(grid.scale * q) for part in parts]
            least = self._least_factor(biases)
            if (factor >= least).all():
                return factor, q, biases
            factor = np.maximum(factor, least * (1 if octaves else MARGIN))

    def _least_factor(self, biases: Sequence[Array]) -> Array:
        """(g, M), by which scales must be multiplied at least for the biases to fit 32 bits; 0 where none have to."""
        least = np.zeros(self.W.shape[:2])
        for bias, s_x in zip(biases, self.input_scales, strict=True):
            if s_x is not None:
                least = np.maximum(least, lowest_scales(bias.reshape(-1), s_x).reshape(least.shape))
        shared = np.zeros(int(self.units.max(initial=0)) + 1)
        np.maximum.at(shared, self.units.ravel(), (least / self.grid.scale[:, :, 0]).ravel())
        if self.spec.power_of_two:
            shared[shared > 0] = 2.0 ** np.ceil(np.log2(shared[shared > 0]))
        return np.asarray(shared[self.units])

    def _nearest(self) -> float:
        """Error of rounding to nearest, scale and biases as they are."""
        rows = self.grid.scale * self.grid.nearest(self.W)
        biases = [
            np.asarray(use.bias.values, np.float64).reshape(rows.shape[:2]) for use in self.uses if use.bias is not None
        ]
        return self._error(rows, biases)

    def _error(self, rows: Array, biases: Sequence[Array]) -> float:
        """On the samples held back, the mean over channels of the squared error relative to the channel's energy."""
        errors = sum(form.error(rows, bias) for form, bias in zip(self.held, biases, strict=True))
        return float((self.energy * errors).mean() * self.count / max(sum(form.count for form in self.held), 1))

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
