"""What users call: quantize a model, or collect statistics for doing so later, verified and written as a whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from . import encodings as encodings_file
from .calibration import statistics as statistics_file
from .calibration.collect import collect_tensors
from .calibration.statistics import Statistics
from .data import CalibrationData, InputSpec, Preprocess
from .errors import DataError, EngineError, ModelError, OutputError, UsageError
from .execution.distributed import open_workers
from .execution.session import Session
from .graph import large, storage
from .graph.import_model import taken_in
from .graph.match import class_logits
from .graph.order import in_order
from .graph.scratch import scratch_folder
from .numeric.histogram import Histogram
from .numeric.logits import Logits
from .operators.linear import is_float
from .options import Options, bits
from .pipeline.build_report import account
from .pipeline.collect_report import Notebook
from .pipeline.job import INVENTED_INPUTS, Job, make_context
from .pipeline.pipeline import load, prepare
from .report import Report

RANDOM_SAMPLES = 32


@dataclass(frozen=True)
class Result:
    """The quantized model, and what is to be said about it."""

    model: ModelProto
    report: Report


def open_model(model: str | os.PathLike[str] | ModelProto, *, quantized: bool = False) -> tuple[ModelProto, str]:
    """The model as a checked protobuf, and what messages call it. Raises ModelError.

    quantized: whether it may be; then it is handed on as it is, else in the form that `graph.intake` describes.
    """
    if isinstance(model, ModelProto):
        proto, origin = in_order(model), "model"
        storage.check(proto, origin, quantized=quantized)
    else:
        proto, origin = storage.read(model, quantized=quantized), str(model)
    return (proto if quantized else taken_in(proto, origin)), origin


def input_specs(proto: ModelProto) -> list[InputSpec]:
    """The inputs that must be fed, in order. ModelError where there are none, or some are no tensors."""
    initializers = {t.name for t in proto.graph.initializer}
    specs = [_input_spec(value) for value in proto.graph.input if value.name not in initializers]
    if not specs:
        raise ModelError("the model has no inputs: it always computes the same, and cannot be calibrated")
    return specs


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"input {value.name!r} is no tensor; such models cannot be calibrated")
    shape = None
    if kind.HasField("shape"):
        shape = tuple(_dimension(d) for d in kind.shape.dim)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    except KeyError:
        raise ModelError(f"input {value.name!r} is of type {kind.elem_type}, unknown to this version of onnx") from None
    return InputSpec(value.name, dtype, shape)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """Old exporters write -1 for a dynamic one."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None


def quantize(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    encodings: str | os.PathLike[str] | None = None,
    statistics: Iterable[str | os.PathLike[str]] = (),
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    details: bool = False,
    before_writing: Callable[[Result], None] | None = None,
    **settings: Any,
) -> Result:
    """Quantize a float32 ONNX model after training; the model is verified before `output` is written.

    model: a path or a loaded model, which is left as it is.
    calibration: a path (folder, .npy, .npz, .pb, image), an array, a mapping input name -> array, or a list of
        mappings; see `onnxq.data.CalibrationData`.
        May be left out with `statistics` or data-free; then the result is compared with the float model on random
        inputs.
    output: where to write the result; an existing file is replaced only by a verified one.
    encodings: where to write scales and offsets in JSON; see `onnxq.encodings` and `Options.encodings_version`.
        With `Options.float_output` the output is the float model that they belong to.
    statistics: files of `calibrate`, merged, instead of running the model; `calibration`, if given, must be data
        that they were collected on.
    options, settings: `Options`, or its fields as keywords (`target="ort", per_channel=False`).
    preprocess: how images become inputs. input_keys: input name -> key in .npz files, where they differ.
    progress: called with (label, done, total).
    details: also report on every layer and activation; this costs one more pass over some samples.
    before_writing: called with the verified result before any file appears; if it raises, none does.

    Returns the quantized model and the report. Raises a subclass of OnnxqError.
    """
    start = time.perf_counter()
    options = with_settings(options, settings)
    with ExitStack() as stack:
        stack.enter_context(large.storing())
        target_path = open_output(stack, model, output)
        encodings_path = None if encodings is None else stack.enter_context(storage.replacing(encodings))
        if options.float_output and encodings_path is None:
            raise UsageError("a float output without its encodings has lost what was found out; name a file for them")
        proto, origin = open_model(model)
        known = _read_statistics(statistics)
        given = () if options.from_encodings is None else encodings_file.read(options.from_encodings)
        if calibration is None:
            if known is None and not options.data_free and options.from_encodings is None:
                raise UsageError("no calibration data and no statistics are given; without any, quantize data-free")
            calibration = _random_inputs(proto, known, given, options, origin)
            where: str | None = INVENTED_INPUTS
        elif options.synthetic:
            raise UsageError("--synthetic makes up calibration data, but some is given")
        else:
            where = os.fspath(calibration) if isinstance(calibration, (str, os.PathLike)) else None
        feeds = open_data(calibration, input_specs(proto), options, preprocess, input_keys)
        if known is not None and where != INVENTED_INPUTS and not known.cover(feeds.sample_hashes()):
            raise DataError(
                f"{where or 'the calibration data'} holds samples that the statistics were not collected on"
            )
        notebook = Notebook() if details else None
        job = Job(proto, origin, feeds, options, progress, input_keys or {}, where, known, notebook, given)
        quantized = job.quantize()
        quantized_path = target_path
        if quantized_path is None or options.float_output:
            quantized_path = stack.enter_context(scratch_folder()) / "model.onnx"
        storage.write(quantized, quantized_path)
        result = quantized
        if encodings_path is not None:
            float_model, found = job.exported()
            text = encodings_file.to_json(found, options.encodings_version, quantizer_arguments(options))
            storage.write_text(text, encodings_path)
            if options.float_output:
                result = float_model
                if target_path is not None:
                    storage.write(result, target_path)
        report = account(job, quantized, quantized_path, output, time.perf_counter() - start, result)
        verified = Result(result, report)
        if before_writing is not None:
            before_writing(verified)
    return verified


def quantizer_arguments(options: Options) -> dict[str, Any]:
    """How encodings were found, in AIMET's words: for people who look into the file, not for converters."""
    weight_bits, activation_bits = bits(options.preset)
    return {
        "activation_bitwidth": activation_bits or 32,
        "dtype": "int",
        "is_symmetric": not options.asymmetric_weights,
        "param_bitwidth": weight_bits or 32,
        "per_channel_quantization": options.per_channel,
        "quant_scheme": "post_training_tf" if options.activation_range == "minmax" else "post_training_tf_enhanced",
    }


def calibrate(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    output: str | os.PathLike[str],
    *,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    scheduler: str | None = None,
    **settings: Any,
) -> Statistics:
    """Collect statistics of every float activation and write them to the .npz file `output`, for `quantize`.

    Arguments are those of `quantize`. Of the options only what concerns the data and the preparation of the float
    model matters: bits, methods and placement may be chosen later. Raises a subclass of OnnxqError.

    scheduler: `local`, `local:N` or the address of a Dask scheduler, whose workers are then sent the model and the
        samples; the result is the same bytes. A script that says `local` must do so under `if __name__ == "__main__"`.
    """
    options = with_settings(options, settings)
    with ExitStack() as stack:
        stack.enter_context(large.storing())
        path = open_output(stack, model, output)
        assert path is not None
        proto, origin = open_model(model)
        feeds = open_data(calibration, input_specs(proto), options, preprocess, input_keys)
        workers = stack.enter_context(open_workers(scheduler))
        context = make_context(options, feeds, progress, workers=workers)
        prepared = load(proto, origin, options)
        prepare().run(prepared, context, proto)
        logits = class_logits(prepared)
        names = [t.name for t in prepared.graph.tensors().values() if isinstance(t, gs.Variable) and is_float(t)]
        tensors = collect_tensors(prepared, names, context, lambda name: Logits() if name in logits else Histogram())
        result = Statistics(
            {name: t for name, t in tensors.items() if isinstance(t, (Logits, Histogram))},
            statistics_file.graph_hash(prepared.to_proto()),
            tuple(feeds.sample_hashes()),
        )
        try:
            statistics_file.save(result, path)
        except OSError as error:
            raise OutputError(f"{output}: cannot be written: {error.strerror}") from None
    return result


def with_settings(options: Options | None, settings: Mapping[str, Any]) -> Options:
    """`options` with single fields replaced. Raises UsageError."""
    try:
        return replace(options or Options(), **settings)
    except TypeError:
        raise UsageError(f"unknown option among {', '.join(settings)}; known: {', '.join(asdict(Options()))}") from None


def open_data(
    calibration: Any,
    inputs: Sequence[InputSpec],
    options: Options,
    preprocess: Preprocess | None,
    input_keys: Mapping[str, str] | None,
) -> CalibrationData:
    """Data for a model with these inputs, as the options choose from it. Raises DataError or UsageError."""
    return CalibrationData(
        calibration,
        inputs,
        preprocess=preprocess or Preprocess(),
        samples=options.samples,
        keys=input_keys,
        seed=options.seed,
    )


def _read_statistics(paths: Iterable[str | os.PathLike[str]]) -> Statistics | None:
    parts = [(os.fspath(path), statistics_file.load(path)) for path in paths]
    return statistics_file.merge(parts) if parts else None


def _random_inputs(
    proto: ModelProto,
    known: Statistics | None,
    encodings: Iterable[encodings_file.Encoding],
    options: Options,
    origin: str,
) -> list[dict[str, np.ndarray]]:
    """Inputs to verify with where there is no data: uniform over the range that each input is known to take."""
    ranges = {e.name: e.range for e in encodings if e.bits is not None}
    ranges |= {name: (lo, hi) for name, lo, hi in options.input_ranges}
    for spec in input_specs(proto):
        if known is not None and spec.name in known.tensors:
            samples = known.tensors[spec.name].samples()
            ranges.setdefault(spec.name, (float(samples.lo[0]), float(samples.hi[0])))
        if spec.dtype.kind != "f" or spec.shape is None:
            raise UsageError(f"{spec} of {origin} is no float tensor of known rank: give calibration data too")
    random = np.random.default_rng(options.seed)
    feeds = []
    for _ in range(RANDOM_SAMPLES):
        feed = {}
        for spec in input_specs(proto):
            lo, hi = ranges.get(spec.name, (-1.0, 1.0))
            shape = [n if isinstance(n, int) else 1 for n in spec.shape or ()]
            feed[spec.name] = random.uniform(lo, hi, shape).astype(spec.dtype)
        feeds.append(feed)
    if any(not isinstance(n, int) for spec in input_specs(proto) for n in (spec.shape or ())[1:]):
        try:
            Session(proto).run(feeds[0])
        except EngineError as error:
            raise UsageError(
                f"{origin} does not run on inputs whose dynamic dimensions are 1: give calibration data too ({error})"
            ) from None
    return feeds


def open_output(
    stack: ExitStack, model: str | os.PathLike[str] | ModelProto, output: str | os.PathLike[str] | None
) -> Path | None:
    if output is None:
        return None
    path = Path(output)
    if not isinstance(model, ModelProto) and os.path.exists(path) and os.path.exists(model) and path.samefile(model):
        raise OutputError(f"{path}: the output is the input model itself; choose another name")
    return stack.enter_context(storage.replacing(path))
