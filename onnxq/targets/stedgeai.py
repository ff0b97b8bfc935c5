"""STM32 by ST Edge AI Core: 8-bit QDQ with symmetric int8 weights, operator set 20 or lower. Not run here: its compiler
is no package that can be installed; everything is from the source named.
"""

from __future__ import annotations

from dataclasses import replace

from .generic import GENERIC_INT8

_DATA_BRIEF = "ST Edge AI Core data brief (8-bit QDQ per tensor, operator sets 7 to 20)"

STEDGEAI = replace(
    GENERIC_INT8,
    name="stedgeai",
    description="STM32 by ST Edge AI Core: symmetric int8 per tensor, operator set 13 to 20",
    source=_DATA_BRIEF,
    weight=replace(GENERIC_INT8.weight, per_channel=False),
    max_opset=20,
    static_shapes=True,
    rules={op: replace(rule, caution=None) for op, rule in GENERIC_INT8.rules.items()},
    requirements={
        **GENERIC_INT8.requirements,
        **dict.fromkeys(("opset", "activation-types", "weight-types", "weight-granularity"), _DATA_BRIEF),
    },
    activation_types=("int8",),
    weight_types=("int8",),
)
