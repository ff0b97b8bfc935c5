"""Targets: what one vendor's tool-chain runs in integers and requires of a model, as data; one file for each.

`TARGETS` holds those that come with onnxq; `find_target` also reads one that a user has written in TOML.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from ..errors import UsageError
from .generic import GENERIC_INT8
from .openvino import OPENVINO, OPENVINO_NPU
from .ort import ORT, ORT_NO_VNNI
from .qnn import QNN
from .read_toml import read_target
from .requirements import REQUIREMENTS, Requirement, requirements
from .target import FixedEncoding, OpRule, Shifts, Target
from .tensorrt import TENSORRT
from .vitis_ai import VITIS_AI

__all__ = [
    "ORT",
    "REQUIREMENTS",
    "TARGETS",
    "FixedEncoding",
    "OpRule",
    "Requirement",
    "Shifts",
    "Target",
    "find_target",
    "requirements",
]

TARGETS: Mapping[str, Target] = {
    target.name: target for target in (ORT, ORT_NO_VNNI, OPENVINO, OPENVINO_NPU, TENSORRT, QNN, VITIS_AI, GENERIC_INT8)
}


def find_target(name: str) -> Target:
    """The target of this name, or the one written in the TOML file of this name. Raises UsageError."""
    if name in TARGETS:
        return TARGETS[name]
    if name.endswith(".toml"):
        return read_target(name, TARGETS)
    close = difflib.get_close_matches(name, TARGETS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(
        f"`target` {name!r} is unknown; expected one of {', '.join(sorted(TARGETS))}, or a .toml file{hint}"
    )
