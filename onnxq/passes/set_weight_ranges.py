"""Scales of weights, and of the constants that elementwise operators read, from their values (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ModelError
from ..graph.model import Model
from ..numeric.quant import QuantParams
from ..numeric.ranges import METHODS
from ..numeric.samples import Samples
from .base import Context, Outcome


@dataclass(frozen=True)
class SetWeightRanges:
    """Answer every quantizer of a constant. method: a key of `numeric.ranges.METHODS`."""

    method: str = "minmax"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        changed = 0
        for constant in model.initializers():
            quantizer = model.quantizers.get(constant.name)
            if quantizer is None:
                continue
            values = np.asarray(constant.values)
            if not np.isfinite(values).all():
                raise ModelError(
                    f"{model.origin}: weight {constant.name!r} of node {', '.join(quantizer.readers)!r} holds"
                    " not-a-number or infinity, which have no integer; exclude the node or repair the model"
                )
            lo, hi = METHODS[self.method](Samples.of_weights(values, quantizer.axis), quantizer.spec)
            if quantizer.axis is None:
                lo, hi = lo[0], hi[0]
            params = QuantParams.from_range(lo, hi, quantizer.spec, quantizer.axis)
            model.quantizers[constant.name] = quantizer.answered(params)
            changed += 1
        return Outcome(changed)
