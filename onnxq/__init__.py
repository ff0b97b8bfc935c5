"""Post-training quantization of ONNX models: float32 in, verified integer QDQ models out.

import onnxq
result = onnxq.quantize("model.onnx", "calibration/", output="model.int8.onnx")
print(result.report.to_text())
"""

import logging as _logging
from importlib.metadata import version as _version

from . import operators, qat
from .api import (
    AccuracyTarget,
    Limits,
    Result,
    ToolchainOptions,
    auto_mixed,
    calibrate,
    check,
    compare,
    debug,
    dry_run,
    evaluate,
    inspect,
    quantize,
    sensitivity,
)
from .data import CalibrationData, Preprocess
from .errors import OnnxqError
from .options import Options, Override
from .report import Report
from .targets import TARGETS

__version__ = _version("onnxq")

__all__ = [
    "TARGETS",
    "AccuracyTarget",
    "CalibrationData",
    "Limits",
    "OnnxqError",
    "Options",
    "Override",
    "Preprocess",
    "Report",
    "Result",
    "ToolchainOptions",
    "__version__",
    "auto_mixed",
    "calibrate",
    "check",
    "compare",
    "debug",
    "dry_run",
    "evaluate",
    "inspect",
    "operators",
    "qat",
    "quantize",
    "sensitivity",
]

_logging.getLogger("onnxq").addHandler(_logging.NullHandler())


def __dir__() -> list[str]:
    """The public names; without this, the sub-packages that they come from would stand among them."""
    return list(__all__)
