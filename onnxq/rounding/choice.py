"""One weight of one or several layers: its scale, its rounding and the layers' biases, from their statistics.

    0. Is it needed? Where rounding to nearest adds less than `WEIGHT_NOISE` to the error that quantized inputs make in
       the layer anyway, the weight stays at nearest, and only step 3 is taken.
    1. Scale: at 8 bits and above, per channel, behind inputs of no fewer bits, the planned one, since no search gained
       anything. Else a factor times
       the planned one, that whose rounding errs least, for each channel or for the tensor (`scale_search`; by GPTQ's
       errors, or by nearest's own). Where channels share a scale, each error counts over the energy of its output
       to the power of `SHARING`: following layers read weak channels with large weights. A scale is no smaller than the
       bias, an integer, allows (`bias_scale`): nothing will have to raise it afterwards.
    2. Rounding at that scale by one of `ROUNDINGS`: where the scale is the planned one, to floor or ceil of W / s,
       AdaRound's two candidates; else to any integer of the grid, which fits more, and needs more data. Inputs of few
       bits differ so much from the float ones that the weights must make up for it: two candidates are too few there.
    3. Bias: the one that takes the mean error (27, 28), exactly, whatever the rounding.
    4. Steps 1 to 3 for several weights lambda of the term lambda |W~ - W|^2 (damping), which keeps weights where the
       data says nothing; with two candidates, for one. Where the largest is the best, ten times as much is tried, too
       (`MOST_DAMPING`). Step 1 is taken once, at lambda = `DAMPING`, but with effort high. The best on the samples held
       out wins, is compared there with rounding to nearest, and then steps 1 to 3 are taken once more on all samples.
       Where nearest is better, or where
       there are too few columns to hold any out, nearest stays: with the best biases, where those are better. With
       fewer columns than half a row's weights, n of them held out, fitted integers must win by the share 1 / sqrt(n).

MobileNetV1, 8 bits, outputs of 400 unseen images per channel and per tensor: 24.7 and 18.3 dB with two candidates and
no search, 24.6 and 18.2 dB with scales searched within half an octave, by GPTQ; coordinate descent 25.1 and 18.2 dB.

Weights of 8 bits per channel behind inputs of 4, outputs of unseen images with two candidates and with free integers:
mobilenet_digits 13.5 and 14.7 dB, resnet_digits 16.1 (dropped for nearest's 16.4) and 17.0 dB.

MobileNetV1, 4 bits per channel, three draws of 160 samples: SQNR of the outputs on other images 9.7, 9.5 and 8.8 dB;
with lambda chosen by GPTQ instead of the rounding itself 9.5, 9.3 and 8.7 dB; with the scale, too, kept from there,
9.4 and 9.1 dB. Without the last fit on all samples, classes are 0.237 rather than 0.231 (KL) from float.

With one search of the scale for all lambdas, and for the last fit, too: MobileNetV1 at 4 bits 53.75 % of 400 images
instead of 54.50 (10.9 and 10.8 dB on samples held out), MiniLM-L3 in blocks of 32 20.2 dB both.

The samples held out choose lambda and decide against nearest. That favours the optimised weight by the luck of the best
of a handful of lambdas, far less than what the errors of nearest and optimised differ by wherever the choice matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..numeric.quant import QuantParams, QuantSpec
from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer
from ..operators.matrix import LayerMatrix
from ..thresholds import WEIGHT_NOISE
from .bias_scale import Vector, lowest_scales
from .dual import SampledForm
from .grid import WeightGrid, rescaled, scale_ids
from .layer_statistics import LayerStatistics, Statistic, added
from .methods import RoundingMethod
from .objective import Array, Columns, Form, Objective
from .scale_search import search_scale

LOW_ENERGY = 1e-3
"""The share of the mean energy that is added to each channel's, so that those of low energy do not rule."""

SHARING = 0.7
"""0: channels that share a scale count by their errors; 1: by their errors relative to their energies. MobileNetV1
with 4 bits per tensor, without equalization: KL divergence of the classes 0.64 with 0.7, 0.70 with 1."""

MARGIN = 1.001
"""Scales are so much larger than a bias asks for, where it does: the bias depends on the scale in turn."""

DAMPING = 0.01
"""lambda over the mean diagonal of G where weights have two candidates, and where a scale serves all lambdas."""

MOST_DAMPING = 100.0
"""lambda over the mean diagonal of G up to which tenfold values are tried, as long as the largest so far is the best: a
classifier has one column a sample. MobileNetV1 with 4-bit weights, 135 columns of 256 inputs: error of its 1000 classes
on unseen images 7.2 % with float weights, 8.14 % with lambda = 1, 7.72 % with 10, 7.96 % with 100."""

EXACT = 1e-12
"""Relative errors that are closer than this are the same."""


@dataclass(frozen=True)
class Effort:
    """Time for quality, whatever the method; each method has its own schedule beside it (`of_effort`).

    columns: output positions of a layer that statistics are taken of, for each of its inputs (K), drawn evenly from
    all samples; at least 16384, at most 2^18.  dampings: lambda over the mean diagonal of G.  scale_each: whether the
    scale is searched for every lambda, and again on all samples; else once, at `DAMPING`, in a fifth of the time.
    """

    columns: int
    dampings: tuple[float, ...]
    scale_each: bool = False

    def positions(self, inputs: int, samples: int) -> int:
        """Positions of each sample."""
        return -(-min(max(self.columns * inputs, 2**14), 2**18) // samples)


EFFORTS: Mapping[str, Effort] = {
    "fast": Effort(columns=16, dampings=(0.01,)),
    "default": Effort(columns=64, dampings=(0.001, 0.01, 0.1, 1.0)),
    "high": Effort(columns=256, dampings=(0.0001, 0.001, 0.01, 0.1, 1.0), scale_each=True),
}


@dataclass(frozen=True)
class Choice:
    """What becomes of one weight: the tensor and its scale, a row of biases for each use, and what is reported of it
    (`report.RoundedLayer`). noise: what rounding to nearest adds to the error there, over that error.
    optimised: whether the integers were fitted; else they are the nearest, and only biases differ."""

    weight: NDArray[np.float32]
    scale: NDArray[np.floating]
    biases: NDArray[np.float32]
    nearest: float
    objective: float
    flipped: float
    samples: int
    held_out: int
    positions: int
    of_positions: int
    nbytes: int
    noise: float
    optimised: int
    held_out_positions: int

    @property
    def is_better(self) -> bool:
        """Whether the error is smaller than that of rounding to nearest, on samples held out; else nearest stays."""
        return self.objective + EXACT < self.nearest

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
class WeightChooser:
    """The steps above for one weight. uses: the layers that read it, with the statistics of each, and s_x of each whose
    bias becomes integers, else None (input_scales). input_bits: the fewest that an input has; None where all are in
    float."""

    uses: Sequence[LinearLayer]
    statistics: Sequence[LayerStatistics]
    input_scales: Sequence[Vector | None]
    input_bits: int | None
    params: QuantParams
    spec: QuantSpec
    method: RoundingMethod
    effort: Effort

    def __post_init__(self) -> None:
        self.matrix = LayerMatrix.of(self.uses[0])
        self.W = np.asarray(self.matrix.weights(np.asarray(self.uses[0].weight.values)), np.float64)
        self.grid = WeightGrid.of(self.matrix, self.params)
        self.ids = scale_ids(self.matrix, self.params)
        pairs = [(each.fit, each.held_out) for each in self.statistics if each.fit is not None]
        self.fit = [fit for fit, _ in pairs]
        self.held_out = [held_out or fit for fit, held_out in pairs]
        self.has_held_out = any(held_out is not None for _, held_out in pairs)
        self.two_candidates = has_two_candidates(self.spec, self.input_bits)
        total = _total(self.fit)
        self.energy, self.count = _importance(total), total.count
        self.columns = self._columns()

    def choose(self) -> Choice:
        """The best lambda, compared with nearest, and with it scale, rounding and biases once more on all samples."""
        nearest, recentred = self._nearest_errors()
        noise = self._noise(min(nearest, recentred))
        columns = int(sum(form.count for form in self.held_out)) if self.has_held_out else 0
        few = any(isinstance(form, SampledForm) for form in self.fit)
        sure = 1 - columns**-0.5 if few and columns else 1.0  # chance may make the rest on few columns
        stays = min(recentred, nearest) if columns else nearest
        # free integers gain so much from the last fit on all samples that only few columns leave biases alone a chance
        found, damping, common = sure * stays if few or self.two_candidates else nearest, None, None
        if columns and noise >= WEIGHT_NOISE:
            total = _total(self.fit)
            common = None if self.effort.scale_each else self._factor(self._objective(total, DAMPING))
            waiting = list(tried_dampings(self.method, self.effort.dampings, self.two_candidates))
            goes_on = len(waiting) > 1
            while waiting:  # in increasing order
                tried = waiting.pop(0)
                factor, q, biases = self._rounded(self.fit, total, tried, common)
                error = self._error(self.grid.scaled(factor).scale * q, biases)
                if error < found:
                    found, damping = error, tried
                    if goes_on and not waiting and tried < MOST_DAMPING:
                        waiting.append(10 * tried)
        every = [each.all for each in self.statistics if each.fit is not None]
        factor, q = np.ones(self.W.shape[:2]), self.grid.nearest(self.W)
        if damping is None:
            biases = [form.bias(self.grid.scale * q) for form in every]
            found = stays if (self._least_factor(biases) <= 1).all() else nearest
        else:
            factor, q, biases = self._rounded(every, _total(every), damping, common)
        grid, first = self.grid.scaled(factor), self.statistics[0]
        return Choice(
            weight=np.asarray(self.matrix.restore(grid.scale * q), np.float32),
            scale=rescaled(self.matrix, self.params, factor).scale,
            biases=np.asarray([bias.reshape(-1) for bias in biases], np.float32),
            nearest=nearest,
            objective=found,
            flipped=float((q != grid.nearest(self.W)).mean()),
            samples=first.samples,
            held_out=first.samples_held_out,
            positions=sum(each.positions for each in self.statistics),
            of_positions=sum(each.of_positions for each in self.statistics),
            nbytes=sum(form.nbytes for form in (*self.fit, *self.held_out, *every)),
            noise=noise,
            optimised=int(damping is not None),
            held_out_positions=columns,
        )

    def _noise(self, nearest: float) -> float:
        """What rounding to nearest adds to the error that the layer has with float weights, whose inputs are quantized,
        over that error; on the samples held out."""
        if not self.fit:
            return 0.0
        there = self._error(self.W, [form.bias(self.W) for form in self.fit])
        return (nearest - there) / max(there, EXACT)

    def _objective(self, total: Form, damping: float) -> Objective:
        return Objective(total.damped(self.W, damping), self.W, self.columns)

    def _factor(self, objective: Objective) -> Array:
        """Step 1: factors on the scales (g, M)."""
        if self.two_candidates:
            return np.ones(self.W.shape[:2])
        weights = _importance(objective.form) ** SHARING

        def cost(grids: WeightGrid) -> Array:
            errors = self.method.scale_cost(objective, grids)
            return errors * np.tile(weights, (1, errors.shape[1] // weights.shape[1]))

        return search_scale(cost, self.grid, self.ids, self.spec.power_of_two)

    def _rounded(
        self, forms: Sequence[Statistic], total: Form, damping: float, factor: Array | None
    ) -> tuple[Array, Array, list[Array]]:
        """Steps 1 to 3 on the Gram matrices of each use and their total: factors on the scales (g, M), q (g, M, K), and
        biases (g, M). factor: what step 1 would find, if it was taken before."""
        objective = self._objective(total, damping)
        if factor is None:
            factor = self._factor(objective)
        while True:
            grid = self.grid.scaled(factor)
            q = self.method.round(objective, grid.between(self.W) if self.two_candidates else grid)
            biases = [form.bias(grid.scale * q) for form in forms]
            least = self._least_factor(biases)
            if (factor >= least).all():
                return factor, q, biases
            factor = np.maximum(factor, least if self.spec.power_of_two else least * MARGIN)

    def _least_factor(self, biases: Sequence[Array]) -> Array:
        """(g, M), by which scales must be multiplied at least for the biases to fit 32 bits; 0 where none have to."""
        least = np.zeros(self.W.shape[:2])
        for bias, s_x in zip(biases, self.input_scales, strict=True):
            if s_x is not None:
                least = np.maximum(least, lowest_scales(bias.reshape(-1), s_x).reshape(least.shape))
        shared = np.zeros(int(self.ids.max(initial=0)) + 1)
        np.maximum.at(shared, self.ids.ravel(), (least / self.grid.scale[:, :, 0]).ravel())
        if self.spec.power_of_two:
            shared[shared > 0] = 2.0 ** np.ceil(np.log2(shared[shared > 0]))
        return np.asarray(shared[self.ids])

    def _nearest_errors(self) -> tuple[float, float]:
        """Error of rounding to nearest at the planned scale, with the biases as they are and with the best ones."""
        rows = self.grid.scale * self.grid.nearest(self.W)
        biases = [
            np.asarray(use.bias.values, np.float64).reshape(rows.shape[:2]) for use in self.uses if use.bias is not None
        ]
        best = [form.bias(rows) for form in self.fit]
        return self._error(rows, biases), self._error(rows, best)

    def _error(self, rows: Array, biases: Sequence[Array]) -> float:
        """On the samples held out, the mean over channels of the squared error relative to the channel's energy."""
        errors = sum(form.error(rows, bias) for form, bias in zip(self.held_out, biases, strict=True))
        return float((self.energy * errors).mean() * self.count / max(sum(form.count for form in self.held_out), 1))

    def _columns(self) -> Columns | None:
        """The error with the activation in it, where columns were kept and one layer alone reads the weight."""
        if len(self.uses) > 1 or not self.statistics[0].columns:
            return None
        layer = self.uses[0]
        readers = layer.output.outputs
        bounds = clip_bounds(readers[0]) if len(readers) == 1 else None
        assert layer.bias is not None
        bias = np.asarray(layer.bias.values, np.float64).reshape(self.W.shape[:2])
        x, y = (np.concatenate(part, axis=2) for part in zip(*self.statistics[0].columns, strict=True))
        return Columns(x, y, bias, *(bounds or (-np.inf, np.inf)))


def has_two_candidates(spec: QuantSpec, input_bits: int | None) -> bool:
    """Whether a weight is rounded to floor or ceil alone. One scale for all channels is coarse for most of them: there
    free integers are worth 1 dB (MobileNetV1)."""
    return spec.per_channel and min(spec.grid.bits, input_bits or 8) >= 8


def tried_dampings(method: RoundingMethod, dampings: Sequence[float], two_candidates: bool) -> Sequence[float]:
    """Values of lambda to try: with two candidates, which keep weights near their float values anyway, `DAMPING`."""
    if two_candidates:
        return (DAMPING,)
    return dampings if method.tries_dampings else dampings[:1]


def _total(forms: Sequence[Statistic]) -> Statistic:
    """The form over all uses, with the best bias for each of them."""
    return reduce(added, (form.centred() for form in forms))


def _importance(form: Form) -> Array:
    """One over each channel's energy, (g, M). That of a damped form has the damping in it, as its errors have: a
    channel whose input is dead, and whose weights may be huge, must not decide about the scale of all others."""
    return np.asarray(1 / np.maximum(form.yy + LOW_ENERGY * form.yy.mean(), np.finfo(np.float32).tiny))
