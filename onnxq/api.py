"""What users call. `quantize` and `calibrate` stand here; the others come from the rooms that do their work.

quantize      a float model -> a verified quantized one          figure 8 of the white paper: pipeline/
dry_run       what `quantize` would do, what it costs                evaluation/dry_run.py
calibrate     a float model and data -> a file of statistics for `quantize`
auto_mixed    -> options with bits for every tensor               evaluation/mixed_precision.py
debug         -> options that repair a quantized model            figure 9: debugging/
sensitivity   -> what each quantizer costs the outputs            evaluation/sensitivity.py
compare       a float and a quantized model, tensor by tensor     evaluation/compare.py
evaluate      accuracy and distance of a model over data          evaluation/evaluate.py
inspect       what a model is made of, and what would be quantized
check         a quantized model against a target's requirements   checking/
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
from onnx import ModelProto

from .calibration import statistics as statistics_file
from .calibration.collect import collect_tensors
from .calibration.statistics import Statistics
from .checking import CheckResult
from .checking import check as check_rules
from .data import Feed, Preprocess, Transform
from .debugging.workflow import AccuracyTarget, debug
from .encodings import read as read_encodings
from .encodings import to_json as encodings_json
from .errors import DataError, OutputError, UsageError, VerificationError
from .evaluation import dry_run as dry_runs
from .evaluation import inspect as inspection
from .evaluation.compare import compare
from .evaluation.custom_metric import MetricLike
from .evaluation.dry_run import DryRun
from .evaluation.evaluate import FloatScores, evaluate
from .evaluation.mixed_precision import Limits, auto_mixed
from .evaluation.sensitivity import sensitivity
from .execution.progress import ProgressLike, called, shows_progress
from .execution.services import Progress, open_workers
from .execution.session import running_on, with_custom_ops
from .graph import large, storage
from .graph.patterns import class_logits
from .graph.scratch import scratch_folder
from .numeric.histogram import Histogram
from .numeric.logits import Logits
from .operators.node import is_float
from .options import Options, bits, with_settings
from .pipeline import pipeline
from .pipeline.build_report import build_report
from .pipeline.collect_report import ReportCollector
from .pipeline.log import log_result
from .pipeline.lower import float_model_of
from .pipeline.open_inputs import input_specs, open_data, open_model, open_output, random_inputs, read_statistics
from .pipeline.prepare import prepare
from .pipeline.provenance import call_text, provenance, source_digest, stamp
from .pipeline.task import RANDOM_INPUTS, Task, make_context
from .pipeline.tune_latency import tune_latency
from .report import Report
from .schema import checked_call
from .settings import Settings, Unpack
from .targets import Target, find_target
from .toolchains import ToolchainOptions, check_toolchain, find_toolchain, random_feeds

IN_MEMORY = "data in memory"
"""The source of samples that are no file."""

__all__ = [
    "AccuracyTarget",
    "Limits",
    "Result",
    "ToolchainOptions",
    "auto_mixed",
    "calibrate",
    "check",
    "compare",
    "debug",
    "dry_run",
    "evaluate",
    "inspect",
    "quantize",
    "sensitivity",
]


@dataclass(frozen=True, repr=False)
class Result:
    """The quantized model, and what is to be said about it."""

    model: ModelProto
    report: Report

    def __repr__(self) -> str:
        return f"<Result: model of {len(self.model.graph.node)} nodes, {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@shows_progress
def quantize(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    encodings: str | os.PathLike[str] | None = None,
    statistics: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    details: bool = False,
    eval_data: Any = None,
    labels: str | os.PathLike[str] | Sequence[int] | None = None,
    metric: MetricLike | None = None,
    evaluation_samples: int | None = None,
    toolchain: ToolchainOptions | None = None,
    before_writing: Callable[[Result], None] | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Quantize a float32 ONNX model after training; the model is verified before `output` is written.

    model: a path or a loaded model, which is left as it is.
    calibration: a path (folder, .npy, .npz, .pb, image), an array, a mapping input name -> array, or a list of
        mappings; see `onnxq.data.CalibrationData`.
        May be left out with `statistics`, data-free, or where only weights are quantized; then the result is compared
        with the float model on random inputs.
    output: where to write the result; an existing file is replaced only by a verified one.
    encodings: where to write scales and offsets in JSON; see `onnxq.encodings` and `Options.encodings_version`.
        With `Options.float_output` the output is the float model that they belong to.
    statistics: files of `calibrate`, merged, instead of running the model; `calibration`, if given, must be data
        that they were collected on.
    options, settings: `Options`, or its fields as keywords (`target="ort", per_channel=False`).
    preprocess: how images become inputs. input_keys: input name -> key in .npz files, where they differ.
    transform: called with each item of the data as it is read, such as the pixels of an image; returns the input.
    progress: True for a line on the terminal, a function of (label, done, total), or a class or object like tqdm; see
        `onnxq.execution.progress`.
    details: also report on every layer and activation; this costs one more pass over some samples.
    eval_data: data, given as `calibration` is, to choose between steps and to report on, instead of calibration samples
        that are held out for that.
    labels, metric: of `eval_data`, as `evaluate` takes them: by them the report has a figure of the float model and of
        the quantized one; with labels alone top-1 and top-5 accuracy.
    evaluation_samples: how many samples of `eval_data` the quality in the report is measured on, at most; without such
        data, how many of all calibration samples, instead of those that are held out.
    toolchain: run the target's own tool-chain on the result before it is written, so (`onnxq.ToolchainOptions()`).
    before_writing: called with the verified result before any file appears; if it raises, none does.

    Returns the quantized model and the report. Raises a subclass of OnnxqError.
    """
    start = time.perf_counter()
    statistics = _paths(statistics)
    arguments = {
        "model": model, "calibration": calibration, "output": output, "encodings": encodings, "statistics": statistics,
        "input_keys": input_keys, "transform": transform, "eval_data": eval_data, "labels": labels, "metric": metric,
        "evaluation_samples": evaluation_samples,
    }  # fmt: skip
    options = with_settings(options, settings)
    vendors = None if toolchain is None else find_toolchain(find_target(options.target), toolchain)
    with ExitStack() as stack:
        stack.enter_context(large.storing())
        stack.enter_context(running_on(options.provider, custom_ops=options.custom_ops))
        target_path = open_output(stack, model, output)
        encodings_path = None if encodings is None else stack.enter_context(storage.replacing(encodings))
        if options.float_output and encodings_path is None:
            raise UsageError("a float output without its encodings has lost what was found out; name a file for them")
        if eval_data is None and (labels is not None or metric is not None):
            raise UsageError("`labels` and `metric` are for evaluation data: give it as `eval_data`")
        task = _open_task(
            model, calibration, statistics, options, preprocess, input_keys, transform, called(progress), eval_data,
            evaluation_samples,
        )  # fmt: skip
        proto, where, evaluation = task.proto, task.source, task.evaluation
        collector = ReportCollector() if details else None
        task.feeds.remember_digests()
        if evaluation is not None:
            evaluation.remember_digests()
        scores = None
        if labels is not None or metric is not None:
            scores = FloatScores.of(proto, task.samples.reporting, labels, metric, options, called(progress))
        tuned = tune_latency(task) if options.latency == "tune" else None
        if tuned is not None:
            task = tuned.task
        quantized = pipeline.quantize(task, collector)
        record = provenance(task, source_digest(model)) if options.provenance else None
        stamp(quantized.proto, record)
        quantized_path = target_path
        if quantized_path is None or options.float_output:
            quantized_path = stack.enter_context(scratch_folder()) / "model.onnx"
        storage.write(quantized.proto, quantized_path)
        result = quantized.proto
        if encodings_path is not None:
            float_model, found = float_model_of(quantized.planned, task.context)
            text = encodings_json(found, options.encodings_version, quantizer_arguments(options))
            storage.write_text(text, encodings_path)
            if options.float_output:
                stamp(float_model, record)
                result = float_model
                if target_path is not None:
                    storage.write(result, target_path)
        seconds = time.perf_counter() - start
        drawn = evaluation_samples if evaluation is None else None
        report = build_report(task, quantized, quantized_path, output, seconds, result, drawn, collector, tuned)
        report = replace(report, command=call_text("quantize", arguments, options, preprocess))
        if scores is not None:
            report = replace(report, measures=scores.beside(quantized.proto, report.samples.origin))
        if vendors is not None and toolchain is not None:
            samples = task.samples.reporting.take(toolchain.toolchain_samples)
            source = (where or IN_MEMORY) + ", held out" * task.samples.is_divided
            static = find_target(options.target).static_shapes
            seen = check_toolchain(
                quantized_path, quantized.proto, vendors, toolchain, samples, source, static_shapes=static,
                reference=proto,
            )  # fmt: skip
            if seen.problem:
                raise VerificationError(f"{seen.problem}; the model was not written")
            report = replace(report, toolchain=seen)
        log_result(report)
        verified = Result(result, report)
        if before_writing is not None:
            before_writing(verified)
    return verified


@shows_progress
def dry_run(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any = None,
    *,
    statistics: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    eval_data: Any = None,
    progress: ProgressLike = None,
    **settings: Unpack[Settings],
) -> DryRun:
    """What `quantize` would do with these arguments, which are its own, without doing it: the steps, what would stay in
    float and why, the size to expect, and what it will cost. Raises what `quantize` raises before its long work."""
    options = with_settings(options, settings)
    with large.storing(), running_on(options.provider, custom_ops=options.custom_ops):
        task = _open_task(
            model, calibration, statistics, options, preprocess, input_keys, transform, called(progress), eval_data,
            None,
        )  # fmt: skip
        return dry_runs.dry_run(task)


def _open_task(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    statistics: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    options: Options,
    preprocess: Preprocess | None,
    input_keys: Mapping[str, str] | None,
    transform: Transform | None,
    progress: Progress,
    eval_data: Any,
    evaluation_samples: int | None,
) -> Task:
    """What `quantize` works on, opened and checked; arguments as there."""
    proto, origin, size = open_model(model, freeze=options.freeze)
    known = read_statistics(_paths(statistics))
    given = () if options.from_encodings is None else read_encodings(options.from_encodings)
    if calibration is None:
        if known is None and options.needs_data:
            raise UsageError(
                "no calibration data and no statistics are given; without any, quantize the weights alone (`preset` w8"
                " or w4), or data-free"
            )
        calibration = random_inputs(proto, known, given, options, origin)
        where: str | None = RANDOM_INPUTS
    elif options.synthetic:
        raise UsageError("`synthetic` makes up calibration data, but some is given")
    else:
        where = os.fspath(calibration) if isinstance(calibration, (str, os.PathLike)) else None
    feeds = open_data(
        calibration, input_specs(proto), options, preprocess, input_keys, proto, transform,
        may_be_empty=where == RANDOM_INPUTS,
    )  # fmt: skip
    if known is not None and where != RANDOM_INPUTS and not known.cover(feeds.sample_hashes()):
        raise DataError(f"{where or 'the calibration data'} holds samples that the statistics were not collected on")
    evaluation = None
    if eval_data is not None:
        every = replace(options, samples=None)
        evaluation = open_data(eval_data, input_specs(proto), every, preprocess, input_keys, proto, transform)
    return Task(
        proto, origin, feeds, options, where, input_keys or {}, known, given, progress=progress,
        evaluation=evaluation, evaluation_samples=None if evaluation is None else evaluation_samples, size=size,
    )  # fmt: skip


def _paths(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str | os.PathLike[str], ...]:
    """One path, or several."""
    return (paths,) if isinstance(paths, (str, os.PathLike)) else tuple(paths)


def quantizer_arguments(options: Options) -> dict[str, Any]:
    """How encodings were found, in AIMET's words: for people who look into the file, not for converters."""
    weight_bits, activation_bits = bits(options.preset)
    return {
        "activation_bitwidth": activation_bits or 32,
        "dtype": "int",
        "is_symmetric": options.weight is None or options.weight.symmetric,
        "param_bitwidth": weight_bits or 32,
        "per_channel_quantization": options.per_channel,
        "quant_scheme": "post_training_tf" if options.activation_range == "minmax" else "post_training_tf_enhanced",
    }


@shows_progress
def calibrate(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any,
    output: str | os.PathLike[str],
    *,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    scheduler: str | None = None,
    **settings: Unpack[Settings],
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
        stack.enter_context(running_on(options.provider, scheduler, options.custom_ops))
        path = open_output(stack, model, output)
        assert path is not None
        proto, origin, _ = open_model(model, freeze=options.freeze)
        feeds = open_data(calibration, input_specs(proto), options, preprocess, input_keys, proto, transform)
        workers = stack.enter_context(open_workers(scheduler))
        context = make_context(options, feeds, called(progress), workers=workers)
        prepared, _ = prepare(proto, origin, options, context)
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


@checked_call
def inspect(
    model: str | os.PathLike[str] | ModelProto,
    calibration: Any = None,
    *,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    **settings: Unpack[Settings],
) -> inspection.Inspection:
    """What a float model is made of, what of it `quantize` would quantize with these options, and what not and why.

    Arguments are those of `quantize`. calibration: data to look at, too: do they look like those of training? Raises a
    subclass of OnnxqError.
    """
    options = with_settings(options, settings)
    with running_on(options.provider, custom_ops=options.custom_ops):
        proto, origin, _ = open_model(model, freeze=options.freeze)
        data = None
        if calibration is not None:
            data = open_data(calibration, input_specs(proto), options, preprocess, input_keys, proto, transform)
        return inspection.inspect(proto, origin, options, data)


@checked_call
def check(
    model: str | os.PathLike[str] | ModelProto,
    target: str | Target,
    *,
    toolchain: ToolchainOptions | None = None,
    calibration: Any = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    custom_ops: Iterable[str] = (),
) -> CheckResult:
    """Check a QDQ model, written by any tool, against what a target requires.

    target: a key of `TARGETS`, a TOML file, or a `Target`.
    toolchain: run the target's own tool-chain on the model, too, so (`onnxq.ToolchainOptions()`).
    calibration, preprocess, input_keys: samples for it, as `quantize` takes them; random inputs by default.
    custom_ops: libraries of custom operators for ONNX Runtime, whose outputs the tool-chain's are compared with.

    Raises ModelError where nothing in the model is quantized, UsageError for an unknown target, or where its tool-chain
    is not installed.
    """
    target = find_target(target) if isinstance(target, str) else target
    if toolchain is None and calibration is not None:
        raise UsageError("`calibration` has samples for the tool-chain: give `toolchain`, too, or leave it out")
    vendors = None if toolchain is None else find_toolchain(target, toolchain)
    with ExitStack() as stack:
        stack.enter_context(large.storing())
        stack.enter_context(with_custom_ops(custom_ops))
        proto, origin, _ = open_model(model, quantized=True)
        result = check_rules(proto, target, origin)
        if vendors is None or toolchain is None:
            return result
        if isinstance(model, ModelProto):
            path = stack.enter_context(scratch_folder()) / "model.onnx"
            storage.write(proto, path)
        else:
            path = Path(model)
        inputs, count = input_specs(proto), toolchain.toolchain_samples
        source = os.fspath(calibration) if isinstance(calibration, (str, os.PathLike)) else IN_MEMORY
        if calibration is None:
            calibration, source = random_feeds(proto, inputs, count), RANDOM_INPUTS
        samples: list[Feed] = []
        if not (isinstance(calibration, list) and not calibration):  # integers cannot be made up
            samples = open_data(calibration, inputs, Options(), preprocess, input_keys, proto, transform).draw(count)
        static = target.static_shapes
        found = check_toolchain(path, proto, vendors, toolchain, samples, source, static_shapes=static)
        return replace(result, toolchain=found)
