"""One quantization in a process of its own; the last line it prints is its peak memory in KiB.

    python bench/child.py onnxq|calibrate MODEL OUTPUT --calib FOLDER [options of `onnxq quantize` or `calibrate`]
    python bench/child.py quantize_static MODEL OUTPUT --calib FOLDER [MinMax|Percentile [w8a8|w4a8|w8a16]]
    python bench/child.py onnxsim MODEL OUTPUT --calib FOLDER PRESET

FOLDER holds .npy files of models with one input, or .npz files keyed by the inputs' names. The exit status is the
tool's. Peak memory is VmHWM (Linux). `getrusage` would count what the parent held before this program was started.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

STATIC_TYPES = {"w8a8": ("QInt8", "QUInt8"), "w4a8": ("QInt4", "QUInt8"), "w8a16": ("QInt8", "QUInt16")}
"""Presets that quantize_static has, with its types of weights and activations."""


def run_onnxq(command: str, arguments: list[str]) -> None:
    """The command line as a user calls it."""
    from onnxq.cli import main

    main([command, *arguments])


def run_quantize_static(
    model: str, output: str, option: str, folder: str, method: str = "MinMax", preset: str = "w8a8"
) -> None:
    """What ONNX Runtime's documentation recommends: preprocess, then quantize_static with a reader of samples.

    A model below opset 13 is converted first, for per-channel quantization writes an invalid model there. Where
    symbolic shape inference fails, preprocessing goes without.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    weights_as, activations_as = (QuantType[name] for name in STATIC_TYPES[preset])
    proto = onnx.load(model)
    model, output, samples = (str(Path(path).resolve()) for path in (model, output, folder))
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # shape inference leaves files where it fails
        source, prepared = model, str(Path(scratch) / "prepared.onnx")
        if next(o.version for o in proto.opset_import if o.domain == "") < 13:
            source = str(Path(scratch) / "converted.onnx")
            onnx.save(onnx.version_converter.convert_version(proto, 13), source)
        try:
            quant_pre_process(source, prepared)
        except ImportError:  # sympy
            raise
        except Exception:  # it fails on many models, and recommends this
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            output,
            _reader(proto, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=activations_as,
            weight_type=weights_as,
            calibrate_method=CalibrationMethod[method],
        )


def run_onnxsim(model: str, output: str, option: str, folder: str, preset: str) -> None:
    """onnxsim's quantizer by its interface of AMD Quark, with one of Quark's presets, per channel."""
    import onnx
    from onnxsim.quark_compat import ModelQuantizer, QConfig

    config = QConfig.get_default_config(preset)
    config.extra_options["PerChannel"] = True
    proto = onnx.load(model)
    if next(o.version for o in proto.opset_import if o.domain == "") < 13:
        proto = onnx.version_converter.convert_version(proto, 13)
    ModelQuantizer(config).quantize_model(proto, output, _reader(proto, folder))


def _reader(proto: Any, samples: str) -> Any:
    """One sample at a time from files, as in ONNX Runtime's examples."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader

    weights = {t.name for t in proto.graph.initializer}
    name = next(value.name for value in proto.graph.input if value.name not in weights)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.files = iter(sorted(Path(samples).iterdir()))

        def get_next(self) -> dict[str, Any] | None:
            file = next(self.files, None)
            if file is None:
                return None
            loaded = np.load(file)
            feed = dict(loaded) if file.suffix == ".npz" else {name: loaded}
            return {key: x.astype(object) if x.dtype.kind == "U" else x for key, x in feed.items()}

    return Reader()


def peak_memory(process: int | str = "self") -> int:
    """Of a process, in KiB; 0 once it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    tool, *arguments = sys.argv[1:]
    try:
        if tool == "quantize_static":
            run_quantize_static(*arguments)
        elif tool == "onnxsim":
            run_onnxsim(*arguments)
        else:
            run_onnxq("quantize" if tool == "onnxq" else tool, arguments)
    finally:  # onnxq ends by SystemExit
        print(peak_memory())
