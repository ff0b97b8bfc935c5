"""The whole job: Figure 8 of the white paper from top to bottom, checked after every step, verified, then written."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from .data import CalibrationData, InputSpec, Preprocess
from .errors import ModelError, OnnxqError, OutputError, UsageError, VerificationError
from .graph import storage
from .graph.model import Model, Quantizer
from .graph.opset import convert_opset
from .numeric.metrics import Sqnr
from .numeric.quant import Grid, QuantSpec
from .passes.add_quantizers import AddQuantizers
from .passes.base import Context, Outcome, Pass
from .passes.fold_batchnorm import FoldBatchNorm
from .passes.fuse_activation import FuseActivation
from .passes.lower_to_qdq import LowerToQdq
from .passes.normalize import Normalize
from .passes.set_activation_ranges import SetActivationRanges
from .passes.set_bias_scales import SetBiasScales
from .passes.set_weight_ranges import SetWeightRanges
from .report import FloatNode, ModelFacts, QuantizedTensor, Report, Step
from .runtime import Session, default_threads
from .targets import TARGETS, Target
from .verify import SAMPLES, verify

PRESERVED_DB = 60.0
"""A pass that claims to preserve the float function may change its outputs by a thousandth (root mean square)."""


@dataclass(frozen=True)
class Preset:
    """Bit widths of weights and activations."""

    weight_bits: int
    activation_bits: int


PRESETS: Mapping[str, Preset] = {"w8a8": Preset(8, 8)}


@dataclass(frozen=True)
class Options:
    """How to quantize; the fields are the command line's options, documented there.

    tie: operator types (Add, Concat) whose inputs share one grid. batch_size: samples held in memory and run at
    once, 0 for two a thread; threads: 0 for all processors. max_memory: MiB of activations held while calibrating.
    None of these three changes the result.
    """

    target: str = "ort"
    preset: str = "w8a8"
    per_channel: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    samples: int | None = None
    seed: int = 0
    batch_size: int = 0
    threads: int = 0
    max_memory: int = 512

    def __post_init__(self) -> None:
        _one_of("target", self.target, TARGETS)
        _one_of("preset", self.preset, PRESETS)
        for name, lowest in (("batch_size", 0), ("threads", 0), ("max_memory", 1), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UsageError(f"{name.replace('_', '-')} must be at least {lowest}, got {value}")
        for name in ("include", "exclude", "tie"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} must be a list of strings, got {getattr(self, name)!r}")
        for op in self.tie:
            _one_of("tie", op, ("Add", "Concat"))


def _one_of(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise UsageError(f"--{option} {value!r} is unknown; expected one of {', '.join(sorted(known))}")


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; after each, a check that the graph is sound and the float function what it was."""

    passes: tuple[Pass, ...]

    def run(self, model: Model, context: Context, original: ModelProto | None = None) -> tuple[Step, ...]:
        """Apply all passes to `model`. A failing pass names itself. Raises OnnxqError.

        original: the float model that passes must preserve the function of; `model` as it is if None.
        """
        steps = []
        feed = next((f.arrays for f in context.feeds), None) if any(p.preserves for p in self.passes) else None
        before = {} if feed is None else Session(original or model.to_proto()).run(feed)
        for index, step in enumerate(self.passes):
            name = type(step).__name__
            context.progress(name, index, len(self.passes))
            start = time.perf_counter()
            outcome = step.apply(model, context)
            if step.preserves and outcome.changed:
                after = {} if feed is None else Session(model.to_proto()).run(feed)
                _refuse_change(name, before, after)
            steps.append(_step(name, step, outcome, time.perf_counter() - start))
        return tuple(steps)


def _refuse_change(name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    for output, x in before.items():
        if output in after and isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.shape == after[output].shape:
            distance = Sqnr()
            distance.update(x, after[output])
            if distance.db < PRESERVED_DB and distance.noise > np.finfo(np.float32).tiny:
                raise VerificationError(
                    f"{name} changed the float model's output {output!r} (SQNR {distance.db:.1f} dB, expected at"
                    f" least {PRESERVED_DB:.0f}); this is a bug in onnxq, or the model is numerically unstable"
                )


def _step(name: str, step: Pass, outcome: Outcome, seconds: float) -> Step:
    options = repr(step).partition("(")[2].removesuffix(")")
    skips = tuple((skip.where, skip.reason) for skip in outcome.skips)
    return Step(name, options, outcome.changed, seconds, outcome.notes, skips)


def prepare() -> Pipeline:
    """From any exporter's model to the one form that the rest works on; the function stays."""
    return Pipeline((Normalize(), FoldBatchNorm()))


def placement(options: Options) -> Pipeline:
    """Where quantizers go."""
    activation, weight = specs(options)
    return Pipeline((AddQuantizers(activation, weight, options.include, options.exclude, options.tie),))


def ptq(options: Options) -> Pipeline:
    """Post-training quantization, Figure 8."""
    return Pipeline((*placement(options).passes, SetWeightRanges(), SetActivationRanges(), SetBiasScales()))


def lowering() -> Pipeline:
    """From a model with planned quantizers to QuantizeLinear and DequantizeLinear."""
    return Pipeline((FuseActivation(), LowerToQdq()))


def specs(options: Options) -> tuple[QuantSpec, QuantSpec]:
    """What the target wants, at the preset's widths: (activations, weights)."""
    target, preset = TARGETS[options.target], PRESETS[options.preset]
    activation = _with_bits(target.activation, preset.activation_bits)
    weight = _with_bits(target.weight, preset.weight_bits)
    return activation, replace(weight, per_channel=weight.per_channel and options.per_channel)


def _with_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    return replace(spec, grid=Grid(bits, spec.grid.signed, spec.grid.narrow))


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
    calibration: Any,
    *,
    output: str | os.PathLike[str] | None = None,
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
    output: where to write the result; an existing file is replaced only by a verified one.
    options, settings: `Options`, or its fields as keywords (`target="ort", per_channel=False`).
    preprocess: how images become inputs. input_keys: input name -> key in .npz files, where they differ.
    progress: called with (label, done, total).

    Returns the quantized model and the report. Raises a subclass of OnnxqError.
    """
    start = time.perf_counter()
    try:
        options = replace(options or Options(), **settings)
    except TypeError:
        raise UsageError(f"unknown option among {', '.join(settings)}; known: {', '.join(asdict(Options()))}") from None
    with ExitStack() as stack:
        target_path = _open_output(stack, model, output)
        proto, origin = open_model(model)
        feeds = CalibrationData(
            calibration,
            input_specs(proto),
            preprocess=preprocess or Preprocess(),
            samples=options.samples,
            keys=input_keys,
            seed=options.seed,
        )
        where = os.fspath(calibration) if isinstance(calibration, (str, os.PathLike)) else None
        job = _Job(proto, origin, feeds, options, progress, input_keys or {}, where)
        quantized = job.quantize()
        if target_path is None:
            folder = stack.enter_context(storage.scratch_folder())
            target_path = folder / "model.onnx"
        storage.write(quantized, target_path)
        report = job.report(quantized, target_path, output, time.perf_counter() - start)
    return Result(quantized, report)


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
    context: Context = field(init=False)
    steps: tuple[Step, ...] = ()
    planned: Model = field(init=False)

    def __post_init__(self) -> None:
        threads = self.options.threads or default_threads()
        self.context = Context(
            target=TARGETS[self.options.target],
            feeds=self.feeds,
            threads=threads,
            in_flight=self.options.batch_size or 2 * threads,
            max_memory=self.options.max_memory * 2**20,
        )
        if self.progress is not None:
            self.context = replace(self.context, progress=self.progress)

    def quantize(self) -> ModelProto:
        model = load(self.proto, self.origin, self.context.target)
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
            samples=len(self.feeds),
            steps=self.steps,
            integer_nodes=placed.changed,
            float_nodes=tuple(FloatNode(where, nodes[where], reason) for where, reason in placed.skips),
            tensors=tuple(_record(self.planned, q) for q in self.planned.quantizers.values()),
            quality=verdict.quality,
            compared_samples=sum(f.rows or 1 for f in compared),
            runtime_operators=dict(verdict.operators),
            warnings=verdict.warnings,
            seconds=seconds,
        )

    def _placed(self) -> Step:
        return next(step for step in self.steps if step.name == "AddQuantizers")


def _reasons(placed: Step, model: Model) -> str:
    operators = {node.name: node.op for node in model.graph.nodes}
    counts = Counter(f"{operators[where]}: {reason}" for where, reason in placed.skips)
    return "; ".join(f"{count} {text}" for text, count in counts.most_common()) or "no node computes float32"


def load(proto: ModelProto, origin: str, target: Target) -> Model:
    """A model to work on, at an operator set that the target's quantized operators need."""
    return Model.from_proto(convert_opset(proto, target.min_opset, origin, target.max_opset), origin)


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


__all__ = ["PRESETS", "OnnxqError", "Options", "Pipeline", "Result", "lowering", "prepare", "ptq", "quantize"]
