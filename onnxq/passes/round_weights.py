"""Rounding, scale and bias of every weight, layer after layer, so that what the layer computes stays (section 3.4).

For each layer, with x^ its input in the network quantized so far and y its output in the float network, both from
calibration data:

    1. Collect: the Gram matrices of sum |W~ x^ + b~ - y|^2 (`rounding.objective`), every fifth sample's held out.
       Positions are drawn at random where there are many more than the form has unknowns (`Effort.columns`).
    2. Choose: scale, rounding and biases by them (`rounding.choice`).
    3. Write back, unless rounding to nearest is better on the samples held out.

Weights become floats that lie on their grid: all that comes later sees what the integer network will see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..calibration.checkpoint import Checkpoint, key_of
from ..errors import UsageError
from ..execution.layerwise import isolate, planned_layers, visit_layers
from ..graph.model import Model
from ..graph.shapes import tensor_bytes
from ..numeric.blas import one_blas_thread
from ..operators.linear import LinearLayer
from ..operators.matrix import LayerMatrix
from ..report import RoundedLayer
from ..rounding.bias_scale import input_scale
from ..rounding.choice import EFFORTS, Choice, WeightChooser, has_two_candidates, tried_dampings
from ..rounding.layer_statistics import LayerStatistics
from ..rounding.methods import ROUNDINGS
from ..thresholds import HELD_OUT_EVERY, WEIGHT_NOISE
from .base import Context, Outcome, Skip

GRAM_COPIES = 6
"""Matrices of a Gram matrix's size that are held at once at most: of both sets, their sums, the inverse factor."""

COLUMN_COPIES = 8
"""Copies of a layer's columns, float32, that are held at once at most where there are fewer than it has inputs."""

LEAST_DUAL = 64
"""Inputs of a layer up to which its Gram matrix serves in any case."""

KEPT_BYTES = 128 * 2**20
"""Columns of one layer that are kept for minibatches, for methods that read them."""


@dataclass(frozen=True)
class RoundWeights:
    """Optimise all weights that have scales; the activations' quantizers that have any are simulated.

    rounding: a key of `ROUNDINGS`.  effort: a key of `EFFORTS`.  seed: of the positions and minibatches drawn.
    checkpoint: a folder for the result of every layer; layers that it has results of are not optimised again.
    """

    rounding: str = "coordinate-descent"
    effort: str = "default"
    seed: int = 0
    checkpoint: Path | None = None
    preserves: ClassVar[bool | None] = False

    def __post_init__(self) -> None:
        for option, value, known in (("rounding", self.rounding, ROUNDINGS), ("effort", self.effort, EFFORTS)):
            if value not in known:
                raise UsageError(f"`{option}` {value!r} is unknown; expected one of {', '.join(known)}")

    @property
    def title(self) -> str:
        """The method's own name."""
        return ROUNDINGS[self.rounding].title

    def apply(self, model: Model, context: Context) -> Outcome:
        isolate(model)
        layers = planned_layers(model)
        samples = len(context.feeds) if isinstance(context.feeds, Sized) else HELD_OUT_EVERY
        memory = context.services.max_memory
        feed = next((feed.arrays for feed in context.feeds), {})
        sizes = tensor_bytes(model.outline(), (layer.node.outputs[0].name for layer in layers), feed)
        checkpoint = None if self.checkpoint is None else Checkpoint(self.checkpoint, self._key(model, context))
        rounder = _Rounder(model, self, samples, sizes, memory, checkpoint)
        for layer in layers:
            rounder.restore([other for other in layers if other.weight is layer.weight])
        with one_blas_thread():
            traffic = visit_layers(model, context.feeds, context.services, rounder, "rounding weights")
        changed = rounder.changed
        return Outcome(changed, tuple(rounder.skips), (*rounder.notes(), str(traffic)), tuple(rounder.records))

    def _key(self, model: Model, context: Context) -> str:
        """Of all that a layer's result depends on."""
        parts = [model.to_proto().SerializeToString(deterministic=True), repr(replace(self, checkpoint=None)).encode()]
        for quantizer in model.quantizers.values():
            params = quantizer.params
            parts.append(repr(replace(quantizer, params=None)).encode())
            parts += [] if params is None else [params.scale.tobytes(), params.zero_point.tobytes()]
        for feed in context.feeds:
            parts += [repr(feed.rows).encode(), *(array.tobytes() for array in feed.arrays.values())]
            parts = [key_of(*parts).encode()]
        return key_of(*parts)


@dataclass
class _Rounder:
    """The visitor of all layers. samples: how many there will be.  sizes: of each layer's output for one, in bytes.
    max_memory: bytes that the statistics of one layer may take."""

    model: Model
    options: RoundWeights
    samples: int
    sizes: Mapping[str, int]
    max_memory: int
    checkpoint: Checkpoint | None = None
    statistics: dict[str, LayerStatistics] = field(default_factory=dict)
    restored: dict[str, Choice] = field(default_factory=dict)
    records: list[RoundedLayer] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    largest: tuple[int, str] = (0, "")
    changed: int = 0

    def __post_init__(self) -> None:
        self.effort = EFFORTS[self.options.effort]
        self.method = ROUNDINGS[self.options.rounding].of_effort(self.options.effort, self.options.seed)

    def restore(self, uses: Sequence[LinearLayer]) -> None:
        """Take a weight's result from the checkpoint; one that does not fit its layer is made anew."""
        weight = uses[0].weight
        saved = None if self.checkpoint is None else self.checkpoint.load(weight.name)
        if saved is None:
            return
        params = self.model.quantizers[weight.name].params
        assert params is not None
        with contextlib.suppress(ValueError):
            choice = Choice.of(saved)
            shapes = choice.weight.shape, choice.scale.shape, choice.biases.shape
            if shapes == (weight.values.shape, np.shape(params.scale), (len(uses), uses[0].bias_values.size)):
                self.restored[weight.name] = choice

    @property
    def avoided_by(self) -> str:
        return (
            "`rounding` nearest or `effort` fast avoids it, fewer `samples` take less, `checkpoint` keeps what is done"
        )

    def cost(self, layer: LinearLayer) -> int:
        """Multiplications, roughly: two runs of the layer, products of columns, then for each lambda a factorisation,
        and of each scale that is tried products of the weights with G, and all that is no product of matrices."""
        matrix = LayerMatrix.of(layer)
        g, m, k = matrix.groups, matrix.rows, matrix.columns
        runs = 2 * self.samples * (self.sizes[layer.node.outputs[0].name] // 4) * (k + 100)
        if layer.weight.name in self.restored:
            return runs + g * m * k
        columns = self.samples * self._positions(layer)
        rank = min(k, columns)
        two = has_two_candidates(self.model.quantizers[layer.weight.name].spec, self._input_bits([layer]))
        fits = 1 + len(tried_dampings(self.method, self.effort.dampings, two))  # and one on all samples
        searches = 0 if two else fits if self.effort.scale_each else 1
        solved = fits * 4 * (rank * rank + m * (k + 200)) + searches * m * 70 * (k + 200)
        return runs + g * k * (columns * (rank + m) + solved)

    def memory(self, layer: LinearLayer) -> int:
        """Of its statistics, and what is made of them."""
        matrix = LayerMatrix.of(layer)
        g, m, k = matrix.groups, matrix.rows, matrix.columns
        if layer.weight.name in self.restored:
            return 0
        if self._few(layer):
            return COLUMN_COPIES * 4 * g * (k + m) * self.samples * self._positions(layer)
        return GRAM_COPIES * 8 * g * k * (k + m)

    def _positions(self, layer: LinearLayer) -> int:
        """Output positions of each sample that statistics are taken of."""
        matrix = LayerMatrix.of(layer)
        g, m = matrix.groups, matrix.rows
        return min(self._limit(matrix), self.sizes[layer.node.outputs[0].name] // (4 * g * m))

    def _limit(self, matrix: LayerMatrix) -> int:
        """Positions of a sample, at most. Where Gram matrices are larger than the memory allows, so few that columns
        themselves fit into it."""
        g, m, k = matrix.groups, matrix.rows, matrix.columns
        limit = self.effort.positions(k, self.samples)
        if GRAM_COPIES * 8 * g * k * k > self.max_memory:
            columns = min(self.max_memory // (COLUMN_COPIES * 4 * g * (k + m)), (k - 1) // 2)
            limit = min(limit, max(columns // self.samples, 1))
        return limit

    def _few(self, layer: LinearLayer) -> bool:
        """Whether columns themselves are kept: they are fewer than half a row's weights, for want of data or memory."""
        k, uses = LayerMatrix.of(layer).columns, [u for u in planned_layers(self.model) if u.weight is layer.weight]
        return k > LEAST_DUAL and 2 * self.samples * sum(self._positions(use) for use in uses) < k

    def observe(self, layer: LinearLayer, sample: int, x: NDArray[Any], y: NDArray[Any]) -> Any:
        """Columns of the layer's matrices, at some positions."""
        if layer.weight.name in self.restored:
            return None
        matrix = LayerMatrix.of(layer)
        rows, chosen = matrix.outputs(y), None
        every, wanted = rows.shape[2], self._limit(matrix)
        if wanted < every:
            rng = np.random.default_rng((self.options.seed, sample))
            chosen = np.sort(rng.choice(every, wanted, replace=False))
            rows = rows[..., chosen]
        return matrix.inputs(x, y.shape[2:], chosen), rows, every

    def take(self, layer: LinearLayer, part: Any) -> None:
        """Collect one sample's columns."""
        if part is None:
            return
        x, y, every = part
        statistics = self.statistics.get(layer.node.name)
        if statistics is None:
            statistics = LayerStatistics(self._few(layer), self.samples < HELD_OUT_EVERY)
            self.statistics[layer.node.name] = statistics
        held_out = statistics.add(x, y, every)
        if self.method.reads_columns and not held_out:
            statistics.keep_columns(x, y, KEPT_BYTES // (self.samples * 4 * (x.shape[0] * (x.shape[1] + y.shape[1]))))

    def change(self, uses: Sequence[LinearLayer]) -> str:
        """Choose, and write back."""
        layer = uses[0]
        statistics = [self.statistics.pop(use.node.name, LayerStatistics()).finish() for use in uses]
        reason = _stays_nearest(uses)
        if reason is not None:
            self.skips.append(Skip(layer.node.name, f"{reason}: rounded to nearest"))
            return "rounded to nearest"
        choice = self.restored.get(layer.weight.name)
        if choice is None:
            choice = self._choose(uses, statistics)
            if self.checkpoint is not None:
                self.checkpoint.save(layer.weight.name, choice.arrays())
        self.largest = max(self.largest, (choice.nbytes, layer.node.name))
        record = self._record(uses, choice)
        self.records.append(record)
        if choice.is_better:
            self.changed += 1
            self._write_back(uses, choice)
        return f"{record.nearest:.2%} -> {record.objective:.2%}"

    def _choose(self, uses: Sequence[LinearLayer], statistics: Sequence[LayerStatistics]) -> Choice:
        quantizer = self.model.quantizers[uses[0].weight.name]
        assert quantizer.params is not None
        input_scales = [input_scale(self.model, use) for use in uses]
        bits, spec = self._input_bits(uses), quantizer.spec
        return WeightChooser(
            uses, statistics, input_scales, bits, quantizer.params, spec, self.method, self.effort
        ).choose()

    def _input_bits(self, uses: Sequence[LinearLayer]) -> int | None:
        """The fewest that an input has; None where all are in float."""
        found = (self.model.quantizers.get(use.input.name) for use in uses)
        return min((quantizer.spec.grid.bits for quantizer in found if quantizer is not None), default=None)

    def _record(self, uses: Sequence[LinearLayer], choice: Choice) -> RoundedLayer:
        better, reason = choice.is_better, None
        if choice.noise < WEIGHT_NOISE:
            reason = f"rounding adds {choice.noise:.1%} to the error that quantized inputs make"
        elif not choice.held_out_positions:
            reason = "there are too few columns of data to hold any out"
        elif not choice.optimised:
            reason = "on samples held out, no fitted rounding is better"
        return RoundedLayer(
            layer=uses[0].node.name,
            uses=tuple(use.node.name for use in uses),
            method=self.options.rounding,
            nearest=choice.nearest,
            objective=choice.objective if better else choice.nearest,
            flipped=choice.flipped if better else 0.0,
            samples=choice.samples,
            held_out=choice.held_out,
            positions=choice.positions,
            of_positions=choice.of_positions,
            kept_nearest_because=reason,
        )

    def _write_back(self, uses: Sequence[LinearLayer], choice: Choice) -> None:
        weight = uses[0].weight
        weight.values = choice.weight
        quantizer = self.model.quantizers[weight.name]
        assert quantizer.params is not None
        params = replace(quantizer.params, scale=choice.scale)
        self.model.quantizers[weight.name] = quantizer.with_params(params)
        for use, bias in zip(uses, choice.biases, strict=True):
            assert use.bias is not None
            use.bias.values = bias

    def notes(self) -> list[str]:
        """What holds for all layers."""
        part = [record for record in self.records if record.positions < record.of_positions]
        notes = [f"kept rounded to nearest: {sum(r.kept_nearest_because is not None for r in self.records)} layers"]
        if part:
            share = sum(r.positions for r in part) / sum(r.of_positions for r in part)
            notes.append(f"statistics of {len(part)} layers are from {share:.1%} of their output positions")
        size, name = self.largest
        return [
            *notes,
            f"statistics of one layer: {size / 2**20:.0f} MiB at most, those of {name}, beside `max_memory`",
        ]


def _stays_nearest(uses: Sequence[LinearLayer]) -> str | None:
    """Why the weight cannot be optimised; None where it can."""
    layer, matrix = uses[0], LayerMatrix.of(uses[0])
    if not all(LayerMatrix.of(use).reads_alike(matrix) for use in uses):
        return f"layers that read weight {layer.weight.name!r} in different ways share it"
    if layer.bias_values.size != matrix.groups * matrix.rows:
        return f"weight {layer.weight.name!r} holds several matrices that share a bias"
    return None
