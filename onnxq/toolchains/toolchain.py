"""Which tool-chains there are, and how they are to be run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..schema import check_fields, documented, option
from ..targets import Target
from ..targets.target import ToolchainName

TOOLCHAIN = "The vendor's own tool-chain"
"""Heading of the options."""

PYTHON_VARIABLE = "ONNXQ_TOOLCHAIN_PYTHON"


@dataclass(frozen=True)
class Toolchain:
    """One of them. title: what messages call it. install: what to install, for pip.

    runs_models: it can run here, too, what it has compiled.
    """

    name: ToolchainName
    title: str
    install: str
    runs_models: bool = True

    @property
    def script(self) -> Path:
        """The adapter."""
        return Path(__file__).parent / "adapters" / f"run_{self.name}.py"


TOOLCHAINS: Mapping[str, Toolchain] = {
    toolchain.name: toolchain
    for toolchain in (
        Toolchain("tensorrt", "TensorRT", "tensorrt-rtx (works without a GPU), or tensorrt", runs_models=False),
        Toolchain("qnn", "Qualcomm QNN (HTP)", "onnxruntime onnxruntime-qnn"),
        Toolchain("openvino", "OpenVINO (CPU)", "openvino"),
        Toolchain("rknn", "RKNN-Toolkit2 (RK3588)", "rknn-toolkit2"),
        Toolchain("tract", "tract", "tract"),
        Toolchain("opencv", "OpenCV (new engine)", "opencv-python-headless>=5 onnx"),
    )
}


def toolchain_of(target: Target) -> Toolchain | None:
    """The tool-chain that runs what is made for a target; None where none can be run here."""
    return TOOLCHAINS.get(target.toolchain)


@documented
@dataclass(frozen=True)
class ToolchainOptions:
    """How the vendor's own tool-chain is run. Raises UsageError for values that make no sense."""

    toolchain_python: str | None = option(
        None,
        "The interpreter that has the vendor's package (and numpy), where it is not the one that runs onnxq; else"
        f" {PYTHON_VARIABLE} names it.",
        TOOLCHAIN, path="file", shown="this one",
    )  # fmt: skip
    toolchain_limit: float = option(
        600.0, "Time after which the tool-chain is ended.", TOOLCHAIN, above=0, unit="seconds", metavar="SECONDS"
    )
    toolchain_samples: int = option(
        8, "Samples that are run in the tool-chain, spread over all; simulators are slow.", TOOLCHAIN, least=1,
        metavar="N",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def interpreter(self) -> str:
        """Path of the interpreter."""
        return self.toolchain_python or os.environ.get(PYTHON_VARIABLE) or sys.executable
