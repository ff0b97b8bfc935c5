"""One quantization in a process of its own; the last line it prints is its peak memory in KiB.

    python bench/child.py onnxq|calibrate MODEL OUTPUT --calib FOLDER [options of `onnxq quantize` or `calibrate`]
    python bench/child.py quantize_static MODEL OUTPUT --calib FOLDER [MinMax|Percentile]

Peak memory is VmHWM (Linux). `getrusage` would count what the parent held before this program was started.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def run_onnxq(command: str, arguments: list[str]) -> None:
    """The command line as a user calls it."""
    from onnxq.cli import main

    main([command, *arguments, "--quiet"], standalone_mode=False)


def run_quantize_static(model: str, output: str, option: str, folder: str, method: str = "MinMax") -> None:
    """What ONNX Runtime's documentation recommends: preprocess, then quantize_static with a reader of samples.

    A model below opset 13 is converted first, for per-channel quantization writes an invalid model there.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        """One sample at a time from files, as in ONNX Runtime's examples."""

        def __init__(self, name: str) -> None:
            self.name, self.files = name, iter(sorted(Path(folder).iterdir()))

        def get_next(self) -> dict[str, np.ndarray] | None:
            file = next(self.files, None)
            return None if file is None else {self.name: np.load(file)}

    proto = onnx.load(model)
    weights = {t.name for t in proto.graph.initializer}
    name = next(value.name for value in proto.graph.input if value.name not in weights)
    with tempfile.TemporaryDirectory() as scratch:
        source, prepared = model, str(Path(scratch) / "prepared.onnx")
        if next(o.version for o in proto.opset_import if o.domain == "") < 13:
            source = str(Path(scratch) / "converted.onnx")
            onnx.save(onnx.version_converter.convert_version(proto, 13), source)
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            output,
            Reader(name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )


def peak_memory() -> int:
    """Of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    tool, *arguments = sys.argv[1:]
    if tool == "quantize_static":
        run_quantize_static(*arguments)
    else:
        run_onnxq("quantize" if tool == "onnxq" else tool, arguments)
    print(peak_memory())
