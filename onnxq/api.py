"""What users call: quantize a model, or collect statistics for doing so later, verified and written as a whole."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from . import statistics as statistics_file
from .data import CalibrationData, InputSpec, Preprocess
from .errors import DataError, ModelError, OutputError, UsageError
from .graph import storage
from .graph.match import class_logits
from .graph.model import Model, Quantizer
from .graph.ops import is_float
from .numeric.histogram import Histogram
from .numeric.logits import Logits
from .options import Options
from .passes.base import Context
from .passes.collect import collect_tensors
from .pipeline import load, lowering, prepare, ptq
from .report import FloatNode, ModelFacts, QuantizedTensor, Report, Step
from .runtime import default_threads
from .statistics import Statistics
from .targets import TARGETS
from .verify import SAMPLES, verify

RANDOM_INPUTS = "random inputs"
RANDOM_SAMPLES = 8
RANDOM_WARNING = (
    "outputs were compared on random inputs, within the ranges that the statistics tell; give calibration data to"
    " see how far the result is from the float model on real ones"
)


@dataclass(frozen=True)
class Result:
    """The quantized model, and what is to be said about it."""

    model: ModelProto
    report: Report


def open_model(model: str | os.PathLike[str] | ModelProto) -> tuple[ModelProto, str]:
    """The model as a checked protobuf, and what messages call it. Raises ModelError."""
    if isinstance(model, ModelProto):
        storage.check(model, "model")
        return model, "model"
    return storage.read(model), str(model)


def input_specs(proto: ModelProto) -> list[InputSpec]:
    """The inputs that must be fed, in order."""
    initializers = {t.name for t in proto.graph.initializer}
    return [_input_spec(value) for value in proto.graph.input if value.name not in initializers]


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"input {value.name!r} is no tensor; such models cannot be calibrated")
    shape = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return InputSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type), shape)


def quantize(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    statistics: Iterable[str | os.PathLike[str]] = (),
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Result:
    """Quantize a float32 ONNX model after training; the model is verified before `output` is written.

    model: a path or a loaded model, which is left as it is.
    calibration: a path (folder, .npy, .npz, .pb, image), an array, a mapping input name -> array, or a list of
        mappings; see `onnxq.data.CalibrationData`.
        May be left out with `statistics`; then the result is compared with the float model on random inputs.
    output: where to write the result; an existing file is replaced only by a verified one.
    statistics: files of `calibrate`, merged, instead of running the model; `calibration`, if given, must be data
        that they were collected on.
    options, settings: `Options`, or its fields as keywords (`target="ort", per_channel=False`).
    preprocess: how images become inputs. input_keys: input name -> key in .npz files, where they differ.
    progress: called with (label, done, total).

    Returns the quantized model and the report. Raises a subclass of OnnxqError.
    """
    start = time.perf_counter()
    options = _with_settings(options, settings)
    with ExitStack() as stack:
        target_path = _open_output(stack, model, output)
        proto, origin = open_model(model)
        known = _read_statistics(statistics)
        if calibration is None:
            if known is None:
                raise UsageError(
                    "neither calibration data nor statistics are given; activation ranges need one of them"
                )
            calibration = _random_inputs(proto, known, origin)
            where: str | None = RANDOM_INPUTS
        else:
            where = os.fspath(calibration) if isinstance(calibration, (str, os.PathLike)) else None
        feeds = _open_data(calibration, proto, options, preprocess, input_keys)
        if known is not None and where != RANDOM_INPUTS and not known.cover(feeds.sample_hashes()):
            raise DataError(
                f"{where or 'the calibration data'} holds samples that the statistics were not collected on"
            )
        job = _Job(proto, origin, feeds, options, progress, input_keys or {}, where, known)
        quantized = job.quantize()
        if target_path is None:
            folder = stack.enter_context(storage.scratch_folder())
            target_path = folder / "model.onnx"
        storage.write(quantized, target_path)
        report = job.report(quantized, target_path, output, time.perf_counter() - start)
    return Result(quantized, report)


def calibrate(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    output: str | os.PathLike[str],
    *,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Statistics:
    """Collect statistics of every float activation and write them to the .npz file `output`, for `quantize`.

    Arguments are those of `quantize`. Of the options only what concerns the data and the preparation of the float
    model matters: bits, methods and placement may be chosen later. Raises a subclass of OnnxqError.
    """
    options = _with_settings(options, settings)
    with ExitStack() as stack:
        path = _open_output(stack, model, output)
        assert path is not None
        proto, origin = open_model(model)
        feeds = _open_data(calibration, proto, options, preprocess, input_keys)
        context = _context(options, feeds, progress)
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


def _with_settings(options: Options | None, settings: Mapping[str, Any]) -> Options:
    try:
        return replace(options or Options(), **settings)
    except TypeError:
        raise UsageError(f"unknown option among {', '.join(settings)}; known: {', '.join(asdict(Options()))}") from None


def _open_data(
    calibration: Any,
    proto: ModelProto,
    options: Options,
    preprocess: Preprocess | None,
    input_keys: Mapping[str, str] | None,
) -> CalibrationData:
    return CalibrationData(
        calibration,
        input_specs(proto),
        preprocess=preprocess or Preprocess(),
        samples=options.samples,
        keys=input_keys,
        seed=options.seed,
    )


def _read_statistics(paths: Iterable[str | os.PathLike[str]]) -> Statistics | None:
    parts = [(os.fspath(path), statistics_file.load(path)) for path in paths]
    return statistics_file.merge(parts) if parts else None


def _random_inputs(proto: ModelProto, known: Statistics, origin: str) -> list[dict[str, np.ndarray]]:
    """Inputs to verify with where there is no data: uniform over the range that each input was seen to take."""
    random = np.random.default_rng(0)
    feeds = []
    for _ in range(RANDOM_SAMPLES):
        feed = {}
        for spec in input_specs(proto):
            seen = known.tensors.get(spec.name)
            if seen is None or spec.shape is None:
                raise UsageError(
                    f"input {spec.name!r} of {origin} is no float tensor of known rank: give calibration data too"
                )
            samples = seen.samples()
            shape = [n if isinstance(n, int) else 1 for n in spec.shape]
            feed[spec.name] = random.uniform(samples.lo[0], samples.hi[0], shape).astype(spec.dtype)
        feeds.append(feed)
    return feeds


def _context(
    options: Options,
    feeds: CalibrationData,
    progress: Callable[[str, int, int], None] | None,
    known: Statistics | None = None,
) -> Context:
    threads = options.threads or default_threads()
    context = Context(
        target=TARGETS[options.target],
        feeds=feeds,
        statistics=known,
        threads=threads,
        in_flight=options.batch_size or 2 * threads,
        max_memory=options.max_memory * 2**20,
    )
    return context if progress is None else replace(context, progress=progress)


def _open_output(
    stack: ExitStack, model: str | os.PathLike[str] | ModelProto, output: str | os.PathLike[str] | None
) -> Path | None:
    if output is None:
        return None
    path = Path(output)
    if not isinstance(model, ModelProto) and os.path.exists(path) and os.path.exists(model) and path.samefile(model):
        raise OutputError(f"{path}: the output is the input model itself; choose another name")
    return stack.enter_context(storage.replacing(path))


@dataclass
class _Job:
    """One quantization, from checked protobuf to report."""

    proto: ModelProto
    origin: str
    feeds: CalibrationData
    options: Options
    progress: Callable[[str, int, int], None] | None
    input_keys: Mapping[str, str]
    calibration: str | None
    known: Statistics | None
    context: Context = field(init=False)
    steps: tuple[Step, ...] = ()
    planned: Model = field(init=False)

    def __post_init__(self) -> None:
        self.context = _context(self.options, self.feeds, self.progress, self.known)

    def quantize(self) -> ModelProto:
        model = load(self.proto, self.origin, self.options)
        self.steps += prepare().run(model, self.context, self.proto)
        self.steps += ptq(self.options).run(model, self.context)
        if not model.quantizers:
            raise ModelError(f"{self.origin}: nothing to quantize: {_reasons(self._placed(), model)}")
        self.planned = model.clone()
        self.steps += lowering().run(model, replace(self.context, feeds=()))
        model.graph.producer_name, model.graph.producer_version = "onnxq", version("onnxq")
        return model.to_proto()

    def report(
        self, quantized: ModelProto, written: Path, output: str | os.PathLike[str] | None, seconds: float
    ) -> Report:
        compared = self.feeds.take(SAMPLES)
        verdict = verify(written, self.proto, [(f.arrays, f.rows) for f in compared], self.context.threads)
        placed = self._placed()
        nodes = {node.name: node.op for node in self.planned.graph.nodes}
        return Report(
            onnxq=version("onnxq"),
            onnxruntime=version("onnxruntime"),
            options={
                **asdict(self.options),
                "preprocess": asdict(self.feeds.preprocess),
                "input_keys": dict(self.input_keys),
                "calibration": self.calibration,
            },
            source=_facts(self.proto, self.origin),
            result=_facts(quantized, None if output is None else str(output)),
            samples=len(self.feeds if self.known is None else self.known.samples),
            steps=self.steps,
            integer_nodes=placed.changed,
            float_nodes=tuple(FloatNode(where, nodes[where], reason) for where, reason in placed.skips),
            tensors=tuple(_record(self.planned, q) for q in self.planned.quantizers.values()),
            quality=verdict.quality,
            compared_samples=sum(f.rows or 1 for f in compared),
            runtime_operators=dict(verdict.operators),
            warnings=verdict.warnings + (RANDOM_WARNING,) * (self.calibration == RANDOM_INPUTS),
            seconds=seconds,
        )

    def _placed(self) -> Step:
        return next(step for step in self.steps if step.name == "AddQuantizers")


def _reasons(placed: Step, model: Model) -> str:
    operators = {node.name: node.op for node in model.graph.nodes}
    counts = Counter(f"{operators[where]}: {reason}" for where, reason in placed.skips)
    return "; ".join(f"{count} {text}" for text, count in counts.most_common()) or "no node computes float32"


def _facts(proto: ModelProto, path: str | None) -> ModelFacts:
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    parameters = sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
    return ModelFacts(path, proto.ByteSize(), opset, len(proto.graph.node), parameters)


def _record(model: Model, quantizer: Quantizer) -> QuantizedTensor:
    params = quantizer.params
    assert params is not None
    tensor = model.graph.tensors()[quantizer.tensor]
    return QuantizedTensor(
        quantizer.tensor,
        "constant" if isinstance(tensor, gs.Constant) else "activation",
        str(params.grid),
        tuple(float(s) for s in np.ravel(params.scale)),
        tuple(int(z) for z in np.ravel(params.zero_point)),
        params.axis,
        quantizer.grid_of,
    )
