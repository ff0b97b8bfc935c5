"""Targets: what one vendor's tool-chain runs in integers and requires of a model, as data; one file for each.

`TARGETS` holds those that come with onnxq; `find_target` also reads one that a user has written in TOML.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from ..errors import UsageError
from .generic import GENERIC_INT8
from .opencv import OPENCV
from .openvino import OPENVINO, OPENVINO_NPU
from .ort import ORT, ORT_NO_VNNI
from .qnn import QNN
from .read_toml import read_target
from .requirements import REMEDIES, REQUIREMENTS, Requirement, requirements
from .rknn import RKNN
from .stedgeai import STEDGEAI
from .target import FixedEncoding, OpRule, Shifts, Target
from .tensorrt import TENSORRT
from .tract import TRACT
from .vitis_ai import VITIS_AI

__all__ = [
    "ALIASES",
    "ORT",
    "REMEDIES",
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
    target.name: target
    for target in (
        ORT, ORT_NO_VNNI, OPENVINO, OPENVINO_NPU, TENSORRT, QNN, VITIS_AI, RKNN, STEDGEAI, TRACT, OPENCV, GENERIC_INT8,
    )
}  # fmt: skip

ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("onnxruntime", "onnxruntime-web", "cpu", "ort-cpu", "x86", "arm"), "ort"),
    **dict.fromkeys(("intel", "intel-cpu", "intel-gpu", "openvino-cpu", "openvino-gpu", "ov", "nncf"), "openvino"),
    "intel-npu": "openvino-npu",
    **dict.fromkeys(("trt", "tensorrt-rtx", "nvidia", "jetson", "cuda", "gpu", "trtexec"), "tensorrt"),
    **dict.fromkeys(("qualcomm", "snapdragon", "hexagon", "htp", "qairt", "snpe", "qnn-htp"), "qnn"),
    **dict.fromkeys(("amd", "ryzen-ai", "ryzenai", "xint8", "quark", "vitisai"), "vitis-ai"),
    **dict.fromkeys(("rockchip", "rk3588", "rknn-toolkit2"), "rknn"),
    **dict.fromkeys(("stm32", "st", "stm32cube-ai", "x-cube-ai"), "stedgeai"),
    "cv2": "opencv",
    "int8": "generic-int8",
}
"""Other names of vendors and devices -> the target."""


NO_TARGETS: Mapping[str, str] = {
    **dict.fromkeys(("tflite", "tensorflow", "litert", "coreml", "ncnn", "mnn", "pytorch", "executorch"),
                    "it reads no ONNX models with quantizers in them"),
    **dict.fromkeys(("tvm", "iree", "armnn", "ethos-u", "hailo", "axelera", "kneron"),
                    "there are no rules of this tool-chain: try generic-int8, or write them down (docs/targets.md)"),
}  # fmt: skip
"""Tool-chains that people ask for and that are no targets -> why."""


def find_target(name: str) -> Target:
    """The target of this name or alias, or the one written in the TOML file of this name. Raises UsageError."""
    known = name.lower().replace("_", "-").replace(" ", "-")
    known = ALIASES.get(known, known)
    if known in TARGETS:
        return TARGETS[known]
    if name.endswith(".toml"):
        return read_target(name, TARGETS)
    if (why := NO_TARGETS.get(known)) is not None:
        raise UsageError(f"`target` {name!r}: {why}; expected one of {', '.join(sorted(TARGETS))}, or a .toml file")
    close = _closest(known)
    hint = f"; did you mean {close!r}?" if close else ""
    raise UsageError(
        f"`target` {name!r} is unknown; expected one of {', '.join(sorted(TARGETS))}, or a .toml file{hint}"
    )


def _closest(name: str) -> str | None:
    """The target that is spelled most like this name, or that begins or ends like it; None where none is."""
    names = {**{each: each for each in TARGETS}, **ALIASES}
    ratio = {each: difflib.SequenceMatcher(None, name, each).ratio() for each in names}
    best = max(ratio, key=lambda each: (ratio[each], each in TARGETS))
    if ratio[best] < 0.6:
        within = [each for each in names if min(len(name), len(each)) > 2 and (name in each or each in name)]
        best = max(within, key=lambda each: ratio[each], default="")
    return names.get(best)
