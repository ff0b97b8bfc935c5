"""The SQNR of what is comparable of a network's outputs, as what switchboards score.

Outputs behind a selection are replaced by the tensors in front of it, and those that hide quality count with what shows
it (`graph.comparable.telling`). Where nothing is comparable
the score is infinite, since that is no reason to change anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from ..data import Feed
from ..graph.comparable import telling
from .compare_outputs import Outputs, output_sqnr, reference_outputs
from .observe import observed
from .services import Services
from .switches import Switch, Switchboard


class OutputScore:
    """Switchboards of one network, whose states are scored against what it computes in float, once and for all.

    proto: the float model.  feeds: what to compare on.  services: how models are run.
    """

    def __init__(self, proto: ModelProto, feeds: Sequence[Feed], services: Services) -> None:
        self._feeds, self._services = feeds, services
        self._compared = telling(proto)
        found = reference_outputs(observed(proto, self._compared), feeds, services.threads)
        wanted = {each.label for each in self._compared}
        self._references = [{name: value for name, value in each.items() if name in wanted} for each in found]

    def board(self, proto: ModelProto, switches: Iterable[Switch]) -> Switchboard:
        """proto: the float model, or one with some quantizers in it, which is changed."""
        return Switchboard(
            observed(proto, self._compared), switches, self._feeds, self._db,
            threads=self._services.threads, max_memory=self._services.max_memory, outputs_quantized=False,
        )  # fmt: skip

    def _db(self, outputs: Iterable[tuple[Feed, Outputs]]) -> float:
        pairs: Any = zip(self._references, (each for _, each in outputs), strict=True)
        found = output_sqnr(pairs, self._compared)
        return np.inf if found is None else found
