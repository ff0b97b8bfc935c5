"""Figure 12 of the white paper: quantization-aware training. `train` reads top to bottom as the figure.

    pre-trained float model
      -> cross-layer equalization, quantizers, range setting    `pipeline.make_plan`, the post-training steps
      -> learnable quantizers, unless ranges are fixed          `TorchNetwork`, `quantizer`
      -> train                                                  `train.Training`
      -> quantized model, verified against what was trained     lowering, `verify`

`prepare` and `finish` are the parts before and behind the training, for training loops of one's own.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from ..calibration.checkpoint import Checkpoint, key_of
from ..calibration.context import Context
from ..data import Preprocess, Transform, replayable
from ..errors import UsageError
from ..evaluation.labels import read_labels
from ..execution.progress import ProgressLike, called, shows_progress
from ..execution.services import Progress
from ..execution.session import default_threads, running_on
from ..graph import storage
from ..graph.model import Model
from ..graph.scratch import scratch_folder
from ..options import Options, with_settings
from ..pipeline.build_report import build_report
from ..pipeline.collect_report import ReportCollector
from ..pipeline.lower import lower
from ..pipeline.open_inputs import input_specs, open_data, open_model, open_output
from ..pipeline.pipeline import make_plan
from ..pipeline.plan import Plan, Quantized
from ..pipeline.prepare import prepare as prepare_model
from ..pipeline.provenance import provenance, source_digest, stamp
from ..pipeline.task import Task
from ..report import Measure, Report, Step
from ..settings import Settings, Unpack
from ..thresholds import QAT_CALIBRATION_SAMPLES
from .initialize import start_of
from .loss import CrossEntropy, Distillation, TrainingLoss, load_loss
from .network import TorchNetwork
from .recipe import Recipe
from .samples import Augmentation, TrainingSamples, read_samples
from .training import Training
from .verify import WrittenModel, compare_written, rows_of_run


@dataclass(frozen=True, repr=False)
class QatResult:
    """The trained, quantized model, its report, and how closely the file computes what was trained.

    network: as it was trained.
    sqnr_db, same: of the network and the model as ONNX Runtime runs it, over `compared` held-out samples: SQNR, and
    the share with the same best class (None without class scores).
    """

    model: ModelProto
    report: Report
    network: TorchNetwork
    sqnr_db: float | None
    same: float | None
    compared: int

    def __repr__(self) -> str:
        return f"<QatResult: model of {len(self.model.graph.node)} nodes, {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@shows_progress
def train(
    model: str | os.PathLike[str] | ModelProto,
    data: Any,
    *,
    labels: str | os.PathLike[str] | Sequence[int] | None = None,
    output: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    details: bool = False,
    **settings: Unpack[Settings],
) -> QatResult:
    """Quantize a float32 ONNX model and train it with the quantizers in it; verified before `output` is written.

    data: training samples, mostly without labels; see `onnxq.data.CalibrationData`. labels: their classes, as
        `onnxq evaluate` takes them; cross-entropy then takes the place of distillation.
    recipe: how to train. options, settings: how to quantize, as in `onnxq.quantize`; `Options.samples` are those to
        train with, of which the start is calibrated on `QAT_CALIBRATION_SAMPLES`; an interrupted run goes on from
        `Options.checkpoint`. The rest as in `onnxq.quantize`.
    Raises a subclass of OnnxqError.
    """
    begin = time.perf_counter()
    recipe, options = recipe or Recipe(), with_settings(options, settings)
    _refuse_dataless(options)
    with ExitStack() as stack:
        stack.enter_context(running_on(options.provider, custom_ops=options.custom_ops))
        path = open_output(stack, model, output)
        data = replayable(data, options.max_memory * 2**20)
        task = _open_task(model, data, options, preprocess, input_keys, transform, called(progress))
        collector = ReportCollector() if details else None
        stack.enter_context(_threads(options))
        samples = _read(task, data, labels, options, preprocess, input_keys, transform, stack)
        training, plan = _initialized(task, samples, recipe, collector)  # equalization, quantizers, ranges
        started = time.perf_counter()
        training.run()
        trained = _step(training, time.perf_counter() - started)
        planned = training.student.written()
        proto, lowered = lower(planned, task.context)
        made = provenance(task, source_digest(model), _training(recipe, samples)) if options.provenance else None
        stamp(proto, made)
        quantized = Quantized(planned, proto, (*plan.steps, trained, *lowered))
        path = path or stack.enter_context(scratch_folder()) / "model.onnx"
        storage.write(proto, path)
        written = compare_written(training, path, task.context.services.threads)
        seconds = time.perf_counter() - begin
        report = build_report(task, quantized, path, output, seconds, collector=collector)
        report = _completed(report, training, recipe, written)
    return QatResult(proto, report, training.student, written.sqnr_db, written.same, written.compared)


@shows_progress
def prepare(
    model: str | os.PathLike[str] | ModelProto,
    data: Any,
    *,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    learn_ranges: bool = True,
    progress: ProgressLike = None,
    **settings: Unpack[Settings],
) -> TorchNetwork:
    """A float model, quantized after training, as a PyTorch module to train further; `finish` makes it ONNX again.

    data: what the start is calibrated with; this and the rest as `onnxq.quantize` takes them. The module takes the
    model's inputs in order, and returns its outputs. Its `weights` and `quantizers` are what there is to train.
    Raises a subclass of OnnxqError.
    """
    task = _open_task(
        model, data, with_settings(options, settings), preprocess, input_keys, transform, called(progress)
    )
    _, start = start_of(make_plan(task), task.context)
    return TorchNetwork(start, task.context.target, learn_ranges)


def finish(network: TorchNetwork) -> ModelProto:
    """The quantized ONNX model of a network of `prepare`, with weights, biases and grids as they are now.

    It is lowered like every other, but not verified: it has not been compared with the float model.
    """
    return lower(network.written(), Context(target=network.target))[0]


# --- what comes in ---------------------------------------------------------------------------------------------------


def _refuse_dataless(options: Options) -> None:
    if options.data_free or options.from_encodings is not None:
        raise UsageError("training starts from a quantization with data: leave out `data_free` and `from_encodings`")
    if options.weight is None and options.activation is None:
        raise UsageError("nothing is to be quantized")
    if options.latency == "tune":
        raise UsageError("`latency` tune is for `quantize`: take the overrides that it finds, and train with them")


def _open_task(
    model: str | os.PathLike[str] | ModelProto,
    data: Any,
    options: Options,
    preprocess: Preprocess | None,
    input_keys: Mapping[str, str] | None,
    transform: Transform | None,
    progress: Progress | None,
) -> Task:
    proto, origin, size = open_model(model, freeze=options.freeze)
    fewer = replace(options, samples=min(options.samples or QAT_CALIBRATION_SAMPLES, QAT_CALIBRATION_SAMPLES))
    feeds = open_data(data, input_specs(proto), fewer, preprocess, input_keys, proto, transform)
    where = os.fspath(data) if isinstance(data, (str, os.PathLike)) else None
    return Task(proto, origin, feeds, options, where, input_keys or {}, progress=progress, size=size)


def _read(
    task: Task,
    data: Any,
    labels: Any,
    options: Options,
    preprocess: Preprocess | None,
    input_keys: Mapping[str, str] | None,
    transform: Transform | None,
    stack: ExitStack,
) -> TrainingSamples:
    feeds = open_data(data, input_specs(task.proto), options, preprocess, input_keys, task.proto, transform)
    known = None if labels is None else read_labels(labels, feeds)
    return read_samples(feeds, known, options.max_memory * 2**20, stack)


@contextmanager
def _threads(options: Options) -> Iterator[None]:
    """PyTorch on as many threads as the options say, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or default_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the training, ready to run --------------------------------------------------------------------------------------


def _initialized(
    task: Task, samples: TrainingSamples, recipe: Recipe, collector: ReportCollector | None
) -> tuple[Training, Plan]:
    """The post-training result as a network to train; operators and arithmetic are checked before it is computed."""
    specs, target = input_specs(task.proto), task.context.target
    prepared, _ = prepare_model(task.proto, task.origin, task.options, replace(task.context, feeds=()))
    teacher = TorchNetwork(prepared, target)
    rows = rows_of_run(teacher, task.proto, samples, specs, task.origin)
    inner = _inner_tensors(prepared, recipe.distill)
    plan = make_plan(task, collector)
    adjusted, start = start_of(plan, task.context)
    if inner:  # inner tensors are compared with those of the network that was equalized
        teacher = TorchNetwork(adjusted, target)
        missing = set(inner) - {name for step in TorchNetwork(start, target).operations for name in step.writes}
        if missing:
            raise UsageError(f"`distill`: {sorted(missing)[0]!r} is not among what the adjusted model computes")
    device = _device(recipe.device)
    student = TorchNetwork(start, target, recipe.learn_ranges).to(device)
    kept, held_out = samples.split(recipe.held_out)
    training = Training(
        student,
        teacher.to(device),
        _loss(recipe, samples, tuple(teacher.outputs)),
        recipe,
        kept,
        held_out,
        Augmentation.of(recipe.augment, specs),
        inner,
        rows,
    )
    training.progress = task.context.services.progress
    if task.options.checkpoint is not None:
        training.checkpoint = Checkpoint(Path(task.options.checkpoint), _key(task, recipe, samples))
    return training, plan


def _loss(recipe: Recipe, samples: TrainingSamples, outputs: tuple[str, ...]) -> TrainingLoss:
    if recipe.loss is not None:
        return load_loss(recipe.loss)
    return CrossEntropy() if samples.labels is not None else Distillation(outputs, recipe.temperature)


def _inner_tensors(model: Model, globs: Sequence[str]) -> tuple[str, ...]:
    """Inner tensors that the patterns name. Raises UsageError."""
    outputs = {t.name for t in model.graph.outputs}
    names = [t.name for node in model.graph.nodes for t in node.outputs if t.name and t.name not in outputs]
    floats = {n for n, t in model.graph.tensors().items() if t.dtype == np.float32}
    chosen: dict[str, None] = {}
    for glob in globs:
        found = [n for n in names if n in floats and fnmatch.fnmatchcase(n, glob)]
        if not found:
            raise UsageError(f"`distill` {glob!r} matches no inner float tensor; `onnxq inspect` lists them")
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`device` {name!r} cannot be used: {' '.join(str(error).split())[:200]}") from None


def _training(recipe: Recipe, samples: TrainingSamples) -> dict[str, Any]:
    """What differs from the defaults, for the model's metadata; and which samples, with their labels."""
    plain, left_out = Recipe(), ("device", "seed")
    found = {name: value for name, value in vars(recipe).items() if value != getattr(plain, name)}
    found = {name: value for name, value in found.items() if name not in left_out}
    return {**found, "samples_sha256": samples.digest().hex()}


def _key(task: Task, recipe: Recipe, samples: TrainingSamples) -> str:
    """Of all that the training depends on."""
    options = replace(task.options, threads=0, batch_size=0, max_memory=512, checkpoint=None)
    return key_of(task.proto.SerializeToString(deterministic=True), repr((options, recipe)).encode(), samples.digest())


# --- the report ------------------------------------------------------------------------------------------------------


def _step(training: Training, seconds: float) -> Step:
    start, best, last = training.history[0], training.best, training.history[-1]
    notes = (
        f"held-out samples: {start} at the start, {best} at step {best.step}, which is kept",
        f"steps: {last.step} of {training.recipe.steps}; {len(training.samples)} samples to train on,"
        f" {len(training.held_out)} held out",
    )
    options = repr(training.recipe).partition("(")[2].removesuffix(")")
    return Step("Train", "Training", options, last.step, seconds, notes, status="kept" if best.step > 0 else "dropped")


def _completed(report: Report, training: Training, recipe: Recipe, written: WrittenModel) -> Report:
    start, best = training.history[0], training.best
    measures: tuple[Measure, ...] = ()
    if best.same is not None:
        measures = (Measure("top-1 agreement, held-out samples", "%", 100.0, 100 * best.same),)
    steps = tuple(replace(s, notes=(*s.notes, written.to_text())) if s.name == "Train" else s for s in report.steps)
    warnings = report.warnings
    if best.step == 0:
        warnings += (f"training made nothing better ({start} on held-out samples): this is the start",)
    origin = f"on {report.samples.reporting} samples of the training data"
    samples = replace(report.samples, origin=origin, are_unseen=False)
    return replace(
        report, samples=samples, steps=steps, measures=measures, warnings=warnings,
        options={**report.options, "training": vars(recipe)},
    )  # fmt: skip
