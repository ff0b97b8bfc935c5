"""Empirical bias correction (white paper section 3.3, equations 27 and 28), layer after layer.

    b~ = b - (E[W~ x^ + b] - E[y])

E over samples and positions, for each output channel; y: the layer's output in the float network; x^: its input in the
network whose preceding layers are quantized, and corrected, already. W~: the weights on their grid. Only the sums of x^
and y are streamed, exact at borders that padding reaches into.

`adaround` does this by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..execution.layerwise import isolate, planned_layers, visit_layers
from ..graph.model import Model
from ..graph.shapes import tensor_bytes
from ..operators.linear import LinearLayer
from ..operators.matrix import LayerMatrix
from .base import Context, Outcome

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CorrectBiasEmpirically:
    """Correct the biases of all layers with quantized weights; a bias is made where there was none."""

    title: ClassVar[str] = "Empirical bias correction"
    preserves: ClassVar[bool | None] = False

    def apply(self, model: Model, context: Context) -> Outcome:
        isolate(model)
        feed = next((feed.arrays for feed in context.feeds), {})
        outputs = [layer.node.outputs[0].name for layer in planned_layers(model)]
        samples = len(context.feeds) if isinstance(context.feeds, Sized) else 1
        corrector = _Corrector(model, samples, tensor_bytes(model.outline(), outputs, feed))
        traffic = visit_layers(model, context.feeds, context.services, corrector, "correcting biases")
        return Outcome(len(corrector.notes), notes=(*corrector.notes, str(traffic)))


@dataclass
class _Corrector:
    """The visitor. samples: how many there will be. sizes: of each layer's output for one, in bytes.
    sums: of x^ (g, K) and y (g, M), and how many columns, by node."""

    model: Model
    samples: int
    sizes: Mapping[str, int]
    sums: dict[str, tuple[Array, Array, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def observe(self, layer: LinearLayer, sample: int, x: NDArray[Any], y: NDArray[Any]) -> Any:
        matrix = LayerMatrix.of(layer)
        columns, rows = matrix.inputs(x, y.shape[2:]), matrix.outputs(y)
        return columns.sum(2, dtype=np.float64), rows.sum(2, dtype=np.float64), rows.shape[2]

    def take(self, layer: LinearLayer, part: Any) -> None:
        known = self.sums.get(layer.node.name)
        if known is not None:
            part = tuple(a + b for a, b in zip(known, part, strict=True))
        self.sums[layer.node.name] = part

    @property
    def avoided_by(self) -> str:
        return "`bias_correction` analytic avoids it, fewer `samples` take less"

    def cost(self, layer: LinearLayer) -> int:
        """Multiplications of two runs of the layer."""
        return 2 * self.samples * (self.sizes[layer.node.outputs[0].name] // 4) * LayerMatrix.of(layer).columns

    def memory(self, layer: LinearLayer) -> int:
        """Sums of each channel alone."""
        return 0

    def change(self, uses: Sequence[LinearLayer]) -> str:
        shift = 0.0
        for layer in uses:
            x, y, count = self.sums.pop(layer.node.name)
            params = self.model.quantizers[layer.weight.name].params
            if params is None or layer.bias is None or not count:
                continue
            W = LayerMatrix.of(layer).weights(np.asarray(params.fake(np.asarray(layer.weight.values)), np.float64))
            bias = ((y - np.einsum("gmk,gk->gm", W, x)) / count).reshape(-1)
            shift = float(np.abs(bias - layer.bias.values).max(initial=0))
            layer.bias.values = np.asarray(bias, np.float32)
            self.notes.append(f"{layer.node.name}: bias moved by {shift:.3g} at most")
        return f"bias moved by {shift:.3g}"
