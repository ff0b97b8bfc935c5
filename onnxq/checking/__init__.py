"""Does a QDQ model of any tool keep to a target's requirements? Each violation is named, with its source.

The checks read the QDQ graph itself, not how onnxq places quantizers; both share the target's data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from onnx import ModelProto

from ..errors import ModelError
from ..graph.model import Model
from ..report import ToolchainResult, printable, toolchain_lines
from ..report.notebook import InNotebook
from ..targets import REMEDIES, Requirement, Target, requirements
from . import placement, values
from .qdq_reader import QdqGraph
from .shifts import shifts
from .violation import Check, Violation

CHECKS: Mapping[str, Check] = {
    "opset": values.opset,
    "activation-types": values.activation_types,
    "weight-types": values.weight_types,
    "activation-zero-point": values.activation_zero_point,
    "weight-zero-point": values.weight_zero_point,
    "weight-range": values.weight_range,
    "activation-granularity": values.activation_granularity,
    "weight-granularity": values.weight_granularity,
    "power-of-two": values.power_of_two,
    "smallest-range": values.smallest_range,
    "bias": values.bias,
    "fused-activation": placement.fused_activation,
    "same-grid": placement.same_grid,
    "shared-grid": placement.shared_grid,
    "fixed-encoding": placement.fixed_encoding,
    "integer-readers": placement.integer_readers,
    "float-outputs": placement.float_outputs,
    "residual-add": placement.residual_add,
    "whole-operators": placement.whole_operators,
    "one-width": placement.one_width,
    "shifts": shifts,
}
"""A check for each of `targets.REQUIREMENTS`."""


@dataclass(frozen=True, repr=False)
class CheckResult(InNotebook):
    """What was checked of which model, and what was found. toolchain: what the vendor's own one said, if asked."""

    model: str
    target: str
    requirements: tuple[Requirement, ...]
    violations: tuple[Violation, ...]
    toolchain: ToolchainResult | None = None

    @property
    def is_clean(self) -> bool:
        """Whether no rule is broken, and the tool-chain, where it was asked, has no problem with the model."""
        return not self.violations and (self.toolchain is None or not self.toolchain.problem)

    def to_json(self) -> str:
        """JSON, keys as the fields here."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_text(self, verbose: bool = False) -> str:
        """What is broken, requirement by requirement: how often, an example, and what to do; a line that sums up; and
        what the tool-chain said. verbose: each violation, and each node that falls back there."""
        counts = Counter(violation.requirement for violation in self.violations)
        lines = [line for id in counts for line in self._broken(id, verbose)]
        if counts:
            found = ", ".join(f"{count} of {id}" for id, count in counts.items())
            lines.append(f"{self.model} breaks {len(counts)} of {len(self.requirements)} requirements: {found}")
        else:
            lines.append(f"{self.model} keeps to all {len(self.requirements)} requirements of {self.target}")
        said = [] if self.toolchain is None else toolchain_lines(self.toolchain, verbose)
        return "\n".join([*(printable(line) for line in lines), *said])

    def _broken(self, id: str, verbose: bool) -> list[str]:
        """Lines on one requirement that the model breaks."""
        found = [violation for violation in self.violations if violation.requirement == id]
        text = next(requirement.text for requirement in self.requirements if requirement.id == id)
        count = f"{len(found)} place{'s' * (len(found) > 1)}"
        shown = found if verbose else found[:1]
        rest = "" if len(shown) == len(found) else f"; {len(found) - 1} more, -v lists them"
        places = [f"    {violation.place}" for violation in shown]
        return [
            f"{id} is broken in {count}: {text} ({found[0].source})",
            *places[:-1],
            f"{places[-1]}{rest}",
            f"    what to do: {REMEDIES[id]}",
        ]


def check(proto: ModelProto, target: Target, origin: str = "model") -> CheckResult:
    """What of the target's requirements a QDQ model breaks. Raises ModelError where nothing in it is quantized."""
    graph = QdqGraph(Model.from_proto(proto, origin), proto)
    if not graph.is_quantized:
        raise ModelError(
            f"{origin}: holds no QuantizeLinear, DequantizeLinear or MatMulInteger, so there is nothing to check;"
            " `onnxq quantize` writes such models"
        )
    checked = requirements(target)
    violations = tuple(
        replace(violation, requirement=requirement.id, source=requirement.source)
        for requirement in checked
        for violation in CHECKS[requirement.id](graph, target)
        if violation.node not in graph.exempt
    )
    return CheckResult(origin, target.name, checked, violations)
