"""One quantization in a process of its own; the last line it prints is its peak memory in KiB.

    python bench/child.py onnxq|calibrate|qat MODEL OUTPUT --calib FOLDER [options of that command; onnxq: `quantize`]
    python bench/child.py quantize_static MODEL OUTPUT --calib FOLDER [MinMax|Percentile [w8a8|w4a8|w8a16]]
    python bench/child.py onnxsim MODEL OUTPUT --calib FOLDER PRESET
    python bench/child.py quark MODEL OUTPUT --calib FOLDER [cle] [bias-correction] [adaround=ITERATIONS]
    python bench/child.py aimet MODEL OUTPUT --calib FOLDER [cle] [percentile] [int4] [adaround=ITERATIONS]

FOLDER holds .npy files of models with one input, or .npz files keyed by the inputs' names. The exit status is the
tool's. Peak memory is VmHWM (Linux). `getrusage` would count what the parent held before this program was started.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATIC_TYPES = {"w8a8": ("QInt8", "QUInt8"), "w4a8": ("QInt4", "QUInt8"), "w8a16": ("QInt8", "QUInt16")}
"""Presets that quantize_static has, with its types of weights and activations."""


def run_onnxq(command: str, arguments: list[str]) -> None:
    """The command line as a user calls it; `qat` has --data for --calib."""
    from onnxq.cli import main

    main([command, *("--data" if command == "qat" and word == "--calib" else word for word in arguments)])


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
    with _elsewhere(model, output, folder) as (source, output, samples):
        converted, prepared = _from_opset_13(proto), "prepared.onnx"
        if converted is not proto:
            source = "converted.onnx"
            onnx.save(converted, source)
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
    proto = _from_opset_13(onnx.load(model))
    ModelQuantizer(config).quantize_model(proto, output, _reader(proto, folder))


def run_quark(model: str, output: str, option: str, folder: str, *steps: str) -> None:
    """AMD Quark: uint8 activations, int8 weights per channel, min-max; before and behind it the steps that are named.

    AdaRound has the settings of Quark's own presets, but for the number of iterations, and reads in this process.
    """
    import onnx
    import torch
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config.algorithm import AdaRoundConfig, BiasCorrectionConfig, CLEConfig
    from quark.onnx.quantization.config.config import QConfig
    from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QLayerConfig, QuantGranularity, UInt8Spec

    torch.set_num_threads(1)
    named = _named(steps, "cle", "bias-correction", "adaround")
    algorithms: list[Any] = []
    if "cle" in named:
        algorithms.append(CLEConfig(cle_steps=-1))  # until it converges
    if "bias-correction" in named:
        algorithms.append(BiasCorrectionConfig())
    if "adaround" in named:
        settings = {"data_size": 1000, "batch_size": 2, "learning_rate": 0.1, "early_stop": True, "num_workers": 0}
        algorithms.append(AdaRoundConfig(num_iterations=int(named["adaround"]), **settings))
    weights = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
    layers = QLayerConfig(activation=UInt8Spec(calibration_method=CalibMethod.MinMax), weight=weights)
    proto = _from_opset_13(onnx.load(model))
    with _elsewhere(output, folder) as (output, folder):
        ModelQuantizer(QConfig(layers, algo_config=algorithms)).quantize_model(proto, output, _reader(proto, folder))


def run_aimet(model: str, output: str, option: str, folder: str, *steps: str) -> None:
    """AIMET: BatchNorm folded, 8-bit activations, int8 weights per channel, min-max, placed by its default rules;
    the steps that are named before, behind, or in place of them. Written as QDQ."""
    import onnx
    import torch
    from aimet_onnx import QuantizationSimModel, apply_adaround
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
    from aimet_onnx.cross_layer_equalization import equalize_model

    torch.set_num_threads(1)
    named = _named(steps, "cle", "percentile", "int4", "adaround")
    proto = _from_opset_13(onnx.load(model))
    reader = _reader(proto, folder)
    feeds = list(iter(reader.get_next, None))
    if "cle" in named:
        equalize_model(proto)  # folds BatchNorm first
    else:
        fold_all_batch_norms_to_weight(proto)
    sim = QuantizationSimModel(
        proto,
        param_type="int4" if "int4" in named else "int8",
        quant_scheme="percentile" if "percentile" in named else "min_max",
        dummy_input=feeds[0],
    )
    if "adaround" in named:
        apply_adaround(sim, feeds, num_iterations=int(named["adaround"]))
    sim.compute_encodings(feeds)
    onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), output)


@contextmanager
def _elsewhere(*paths: str) -> Iterator[list[str]]:
    """In a folder that is removed afterwards, for tools that leave files where they run; the paths, made absolute."""
    absolute, before = [str(Path(path).resolve()) for path in paths], Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            yield absolute
        finally:
            os.chdir(before)


def _named(steps: Sequence[str], *known: str) -> dict[str, str]:
    """`name=value` or `name`, by name. Raises ValueError."""
    named = {name: value for name, _, value in (step.partition("=") for step in steps)}
    if unknown := set(named) - set(known):
        raise ValueError(f"expected steps of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return named


def _from_opset_13(proto: Any) -> Any:
    """Converted where it is older: it takes scales for each channel since then."""
    import onnx

    if next(o.version for o in proto.opset_import if o.domain == "") < 13:
        return onnx.version_converter.convert_version(proto, 13)
    return proto


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
        elif tool == "quark":
            run_quark(*arguments)
        elif tool == "aimet":
            run_aimet(*arguments)
        else:
            run_onnxq("quantize" if tool == "onnxq" else tool, arguments)
    finally:  # onnxq ends by SystemExit
        print(peak_memory())
