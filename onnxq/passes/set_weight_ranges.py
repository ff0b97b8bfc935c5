"""Scales of weights, and of the constants that elementwise operators read, from their values (section 3.1)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import ModelError
from ..execution.session import parallel_map
from ..graph.model import Model, Quantizer
from ..numeric.quant import QuantParams, QuantSpec
from ..numeric.range_search import Range
from ..numeric.ranges import set_range
from ..numeric.samples import Samples
from ..operators.linear import linear_layers
from .base import Context, Outcome

AT_ONCE = 2**22
"""Weights whose range is searched at a time: they are copied."""


@dataclass(frozen=True)
class SetWeightRanges:
    """Give every quantizer of a constant its scales. method: a name of `numeric.ranges.RANGE_METHODS`."""

    method: str = "mse"
    title: ClassVar[str] = "Set weight ranges"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        constants = [c for c in model.initializers() if c.name in model.quantizers]
        constants = [c for c in constants if not model.quantizers[c.name].given]
        for constant in constants:
            quantizer = model.quantizers[constant.name]
            layers = linear_layers(node for node in constant.outputs if node.name in quantizer.readers)
            biases = [layer.bias for layer in layers if layer.bias is not None]
            for part, kind in ((constant, "weight"), *((bias, "bias") for bias in biases)):
                if not np.isfinite(part.values).all():
                    raise ModelError(
                        f"{model.origin}: {kind} {part.name!r} of node {', '.join(quantizer.readers)!r} holds"
                        " not-a-number or infinity, which have no integer; exclude the node or repair the model"
                    )

        def find(constant: gs.Constant) -> tuple[str, QuantParams]:
            return constant.name, self._params(np.asarray(constant.values), model.quantizers[constant.name], context)

        for name, params in parallel_map(find, constants, context.services.threads):
            model.quantizers[name] = model.quantizers[name].with_params(params)
        return Outcome(len(constants))

    def _params(self, values: np.ndarray, quantizer: Quantizer, context: Context) -> QuantParams:
        spec, axis = quantizer.spec, quantizer.axis
        if quantizer.fixed is not None:
            lo, hi = np.asarray(quantizer.fixed[0]), np.asarray(quantizer.fixed[1])
            shape: tuple[int, ...] = () if axis is None else (values.shape[axis],)
        else:
            method = quantizer.method or self.method
            key = (repr((method, spec, axis)), id(values))
            known, found = context.weight_ranges.get(key, (None, None))
            if found is None or known is None or known() is not values:
                found = _range_of(values, axis, spec, method)
                context.weight_ranges[key] = weakref.ref(values), found
            lo, hi = found
            shape = () if axis is None else lo.shape
        if spec.block is not None and axis is not None:
            shape = tuple(-(-n // spec.block) if i == axis else n for i, n in enumerate(values.shape))
        lo, hi = (np.broadcast_to(end, shape) if end.ndim == 0 else end.reshape(shape) for end in (lo, hi))
        return QuantParams.from_range(lo, hi, spec, axis)


def _range_of(values: np.ndarray, axis: int | None, spec: QuantSpec, method: str) -> Range:
    """The range of each channel or block, some of these at a time; the last of them may be smaller."""
    if axis is None:
        return set_range(method, Samples.of_weights(values, None), spec)
    if method == "minmax" and spec.block is not None and values.shape[axis] % spec.block == 0:
        axis %= values.ndim
        blocks = values.reshape(*values.shape[:axis], -1, spec.block, *values.shape[axis + 1 :])
        lo, hi = blocks.min(axis=axis + 1, initial=0.0), blocks.max(axis=axis + 1, initial=0.0)
        return np.asarray(lo, np.float64).ravel(), np.asarray(hi, np.float64).ravel()
    along, unit = (axis, 1) if spec.block is None else (0, spec.block if axis == 0 else 1)
    length = values.shape[along]
    step = max(AT_ONCE * length // max(values.size, 1) // unit, 1) * unit
    parts = (values[(slice(None),) * along + (slice(i, i + step),)] for i in range(0, max(length, 1), step))
    found = [set_range(method, Samples.of_weights(part, axis, spec.block), spec) for part in parts]
    return np.concatenate([lo for lo, _ in found]), np.concatenate([hi for _, hi in found])
