"""Rounding, scale and bias of every weight, layer after layer, so that what the layer computes stays (section 3.4).

For each layer, with x^ its input in the network quantized so far and y its output in the float network, both from
calibration data:

    1. The quadratic form of sum |W~ x^ + b~ - y|^2 is streamed (`numeric.gram`), from every fifth sample apart.
       Positions are drawn at random where there are many more than the form has unknowns (`Effort.columns`).
    2. Scale, rounding and biases are chosen on it (`round_weight`).
    3. If rounding to nearest is better on the samples held back, nearest stays.

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
from ..operators.linear import LinearLayer
from ..operators.matrix import LayerMatrix
from ..report import RoundedLayer
from ..rounding.bias_scale import input_scale
from ..rounding.choose import EFFORTS, ROUNDINGS, Choice, Effort, Seen, Task
from ..thresholds import HELD_OUT_EVERY
from .base import Context, Outcome, Skip

__all__ = ["EFFORTS", "ROUNDINGS", "RoundWeights"]

EXACT = 1e-12
"""Relative errors that are closer than this are the same."""

KEPT_BYTES = 128 * 2**20
"""Columns of one layer that are kept for minibatches (`adaround` only)."""


@dataclass(frozen=True)
class RoundWeights:
    """Optimise all weights whose quantizer has an answer; the activations' quantizers that have one are simulated.

    rounding: a key of `ROUNDINGS`.  effort: a key of `EFFORTS`.  seed: of the positions and minibatches drawn.
    checkpoint: a folder for the result of every layer; layers that it has results of are not optimised again.
    """

    rounding: str = "coordinate-descent"
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
        samples = len(context.feeds) if isinstance(context.feeds, Sized) else HELD_OUT_EVERY
        feed = next((feed.arrays for feed in context.feeds), {})
        sizes = tensor_bytes(model.to_proto(), (layer.node.outputs[0].name for layer in planned_layers(model)), feed)
        rounder = _Rounder(model, self, samples, sizes, self._checkpoint(model, context))
        traffic = visit_layers(model, context.feeds, context.services, rounder, "rounding weights")
        changed = sum(record.kept_nearest_because is None for record in rounder.records)
        return Outcome(changed, tuple(rounder.skips), (*rounder.notes(), str(traffic)), tuple(rounder.records))

    def _checkpoint(self, model: Model, context: Context) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        options = repr(replace(self, checkpoint=None))
        parts = [model.to_proto().SerializeToString(deterministic=True), options.encode()]
        for quantizer in model.quantizers.values():
            params = quantizer.params
            parts.append(repr(replace(quantizer, params=None)).encode())
            parts += [] if params is None else [params.scale.tobytes(), params.zero_point.tobytes()]
        for feed in context.feeds:
            parts += [repr(feed.rows).encode(), *(array.tobytes() for array in feed.arrays.values())]
            parts = [key_of(*parts).encode()]
        return Checkpoint(self.checkpoint, key_of(*parts))


@dataclass
class _Rounder:
    """The visitor of all layers. samples: how many there will be.  sizes: of each layer's output for one, in bytes."""

    model: Model
    options: RoundWeights
    samples: int
    sizes: Mapping[str, int]
    checkpoint: Checkpoint | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    restored: dict[str, Choice] = field(default_factory=dict)
    records: list[RoundedLayer] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    largest: tuple[int, str] = (0, "")

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            layers = planned_layers(self.model)
            for layer in layers:
                saved = self.checkpoint.load(layer.weight.name)
                if saved is not None:
                    self._restore(layer, [other for other in layers if other.weight is layer.weight], saved)

    def _restore(self, layer: LinearLayer, uses: Sequence[LinearLayer], saved: Mapping[str, NDArray[Any]]) -> None:
        """A result that does not fit the layer is none of ours, and made anew."""
        params = self.model.quantizers[layer.weight.name].params
        assert params is not None
        with contextlib.suppress(ValueError):
            choice = Choice.of(saved)
            shapes = choice.weight.shape, choice.scale.shape, choice.biases.shape
            if shapes == (layer.weight.values.shape, np.shape(params.scale), (len(uses), layer.bias_values.size)):
                self.restored[layer.weight.name] = choice

    @property
    def effort(self) -> Effort:
        return EFFORTS[self.options.effort]

    def cost(self, layer: LinearLayer) -> int:
        """Multiplications, roughly: products of columns, then for each lambda a factorisation and about 70 products of
        the weights with G, and as much again for all that is no product of matrices."""
        matrix = LayerMatrix.of(layer)
        g, m, k = matrix.groups, matrix.rows, matrix.columns
        if layer.weight.name in self.restored:
            return g * m * k
        every = self.sizes[layer.node.outputs[0].name] // (4 * g * m)
        columns = self.samples * min(self.effort.positions(k, self.samples), every)
        return g * k * (columns * (k + m) + len(self.effort.dampings) * (4 * k * k + m * (70 * k + 3000)))

    def observe(self, layer: LinearLayer, sample: int, x: NDArray[Any], y: NDArray[Any]) -> Any:
        """Columns of the layer's matrices, at some positions."""
        if layer.weight.name in self.restored:
            return None
        matrix = LayerMatrix.of(layer)
        rows, chosen = matrix.outputs(y), None
        every, wanted = rows.shape[2], self.effort.positions(matrix.columns, self.samples)
        if wanted < every:
            rng = np.random.default_rng((self.options.seed, sample))
            chosen = np.sort(rng.choice(every, wanted, replace=False))
            rows = rows[..., chosen]
        return sample, matrix.inputs(x, y.shape[2:], chosen), rows, every

    def take(self, layer: LinearLayer, part: Any) -> None:
        if part is None:
            return
        sample, x, y, every = part
        seen = self.seen.setdefault(layer.node.name, Seen())
        held = self.samples >= HELD_OUT_EVERY and sample % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        seen.take(x, y, every, held)
        if self.options.rounding == "adaround" and not held:
            size = max(KEPT_BYTES // (self.samples * 4 * (x.shape[0] * (x.shape[1] + y.shape[1]))), 1)
            step = -(-x.shape[2] // size)
            seen.columns.append((x[..., ::step].copy(), y[..., ::step].copy()))

    def change(self, uses: Sequence[LinearLayer]) -> str:
        layer, matrix = uses[0], LayerMatrix.of(uses[0])
        seen = [self.seen.pop(use.node.name, Seen()).finish() for use in uses]
        if not all(LayerMatrix.of(use).reads_alike(matrix) for use in uses):
            reason = f"layers that read weight {layer.weight.name!r} in different ways share it: rounded to nearest"
            self.skips.append(Skip(layer.node.name, reason))
            return "rounded to nearest"
        if layer.bias_values.size != matrix.groups * matrix.rows:
            reason = f"weight {layer.weight.name!r} holds several matrices that share a bias: rounded to nearest"
            self.skips.append(Skip(layer.node.name, reason))
            return "rounded to nearest"
        choice = self.restored.get(layer.weight.name)
        if choice is None:
            choice = self._chosen(matrix, uses, seen)
            if self.checkpoint is not None:
                self.checkpoint.save(layer.weight.name, choice.arrays())
        self.largest = max(self.largest, (choice.nbytes, layer.node.name))
        record = self._record(uses, choice)
        self.records.append(record)
        if record.kept_nearest_because is None:
            self._apply(uses, choice)
        return f"{record.nearest:.2%} -> {record.objective:.2%}"

    def _chosen(self, matrix: LayerMatrix, uses: Sequence[LinearLayer], seen: Sequence[Seen]) -> Choice:
        quantizer, options = self.model.quantizers[uses[0].weight.name], self.options
        assert quantizer.params is not None
        scales = [input_scale(self.model, use) for use in uses]
        spec, effort = quantizer.spec, self.effort
        return Task(matrix, quantizer.params, spec, uses, seen, scales, options.rounding, effort, options.seed).best()

    def _record(self, uses: Sequence[LinearLayer], choice: Choice) -> RoundedLayer:
        worse = choice.objective + EXACT >= choice.nearest
        return RoundedLayer(
            layer=uses[0].node.name,
            uses=tuple(use.node.name for use in uses),
            solver=self.options.rounding,
            nearest=choice.nearest,
            objective=choice.nearest if worse else choice.objective,
            flipped=0.0 if worse else choice.flipped,
            samples=choice.samples,
            held_back=choice.held_back,
            positions=choice.positions,
            of_positions=choice.of_positions,
            kept_nearest_because=f"optimised, the error would be {choice.objective:.2%}" if worse else None,
        )

    def _apply(self, uses: Sequence[LinearLayer], choice: Choice) -> None:
        weight = uses[0].weight
        weight.values = choice.weight
        quantizer = self.model.quantizers[weight.name]
        assert quantizer.params is not None
        params = replace(quantizer.params, scale=choice.scale)
        self.model.quantizers[weight.name] = quantizer.answered(params)
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
            f"statistics of one layer: {size / 2**20:.0f} MiB at most, those of {name}, beside --max-memory",
        ]
