"""Post-training quantization of ONNX models: float32 in, verified integer QDQ models out.

import onnxq
result = onnxq.quantize("model.onnx", "calibration/", output="model.int8.onnx")
print(result.report.to_text())
"""

from importlib.metadata import version as _version

from .api import Result, calibrate, quantize
from .data import CalibrationData, Preprocess
from .errors import OnnxqError
from .evaluation.compare import compare
from .evaluation.evaluate import evaluate
from .options import Options, Override
from .report import Report
from .targets import TARGETS

__version__ = _version("onnxq")

__all__ = [
    "TARGETS",
    "CalibrationData",
    "OnnxqError",
    "Options",
    "Override",
    "Preprocess",
    "Report",
    "Result",
    "__version__",
    "calibrate",
    "compare",
    "evaluate",
    "quantize",
]
