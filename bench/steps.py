"""What each step of the white paper's sections 3.2 and 3.3 brings, in the form of its tables 3 and 4: top-1 accuracy.

    python bench/steps.py [MODEL ...] [--samples 64] [--markdown bench/results/accuracy-steps.md]

Steps are run on their own, one after another, with nobody to drop those that hurt; the last rows are what
`onnxq.quantize` makes, which drops them, and optimises rounding where that pays. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cases
import numpy as np
import onnx
import tables
from cases import Case
from scores import Evaluation, outputs
from tables import head, line

import onnxq
from onnxq.graph.model import Model
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.base import Context, Outcome, Pass
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.correct_bias_empirically import CorrectBiasEmpirically
from onnxq.passes.equalize_layers import EqualizeLayers
from onnxq.passes.remove_dead_channels import RemoveDeadChannels
from onnxq.pipeline.lower import at_sufficient_opset, lower
from onnxq.pipeline.open_inputs import input_specs
from onnxq.pipeline.prepare import prepare
from onnxq.pipeline.run_passes import run_passes
from onnxq.pipeline.set_ranges import ranging
from onnxq.pipeline.task import make_context
from onnxq.report import Report

COLUMNS: dict[str, dict[str, Any]] = {
    "per tensor, min-max weights": {"per_channel": False, "weight_range": "minmax"},
    "per tensor": {"per_channel": False},
    "per channel": {"per_channel": True},
}

DEAD, RANGE, NOISE, ABSORB = RemoveDeadChannels(), EqualizeLayers("range"), EqualizeLayers("noise"), AbsorbBias()
ROWS: dict[str, tuple[tuple[Pass, ...], tuple[Pass, ...]]] = {
    "original": ((), ()),
    "bias correction alone": ((), (CorrectBias(),)),
    "dead channels": ((DEAD,), ()),
    "dead channels + CLE (range)": ((DEAD, RANGE), ()),
    "dead channels + CLE (noise)": ((DEAD, NOISE), ()),
    "... + absorption": ((DEAD, NOISE, ABSORB), ()),
    "... + bias correction, analytic": ((DEAD, NOISE, ABSORB), (CorrectBias(),)),
    "... + bias correction, empirical instead": ((DEAD, NOISE, ABSORB), (CorrectBiasEmpirically(),)),
}
"""Row of the table: what is done to the float network, and what behind the setting of ranges."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "default: steps kept if better": {},
    "data-free": {"data_free": True},
    "data-free, synthetic": {"data_free": True, "synthetic": True},
}
STEPS = ("RemoveDeadChannels", "EqualizeLayers", "AbsorbBias", "CorrectBias", "RoundWeights")
NAMES = ("mobilenet_v1_025_imagenet", "mobilenet_digits", "resnet_digits")


@dataclass
class Subject:
    """One model, its calibration samples and evaluation images, and what it makes of the latter in float."""

    case: Case
    samples: int

    def __post_init__(self) -> None:
        self.proto = onnx.load(self.case.model)
        every = self.case.calibration()
        self.input_range = float(np.floor(every.min())), float(np.ceil(every.max()))
        self.calibration = every[np.linspace(0, len(every) - 1, min(self.samples, len(every))).astype(int)]
        self.evaluation = Evaluation(self.case)

    def cell(self, proto: onnx.ModelProto) -> str:
        found = outputs(proto.SerializeToString(), self.evaluation.x)
        top1, error = self.evaluation.top1(found[0]), self.evaluation.error(found[0])
        return f"{top1:.2f} ± {error:.1f} ({self.evaluation.db(found):.1f})"

    def steps(self, name: str) -> tuple[list[str], list[tuple[Pass, Outcome]]]:
        """Cells of a row of `ROWS`, and what became of its adjustments."""
        adjustments, corrections = ROWS[name]
        feeds = onnxq.CalibrationData(self.calibration, input_specs(self.proto))
        options = {column: onnxq.Options(force_int_kernels=True, **settings) for column, settings in COLUMNS.items()}
        some = next(iter(options.values()))
        context = make_context(some, feeds, None)
        model, _ = prepare(self.proto, self.case.name, some, context)
        outcomes = [(step, step.apply(model, context)) for step in adjustments]
        return [self.cell(finish(model.clone(), o, corrections, context)) for o in options.values()], outcomes

    def default(self, name: str) -> Iterator[tuple[str, Report | str]]:
        """Cells of a row of `DEFAULTS`, each with its report, or the reason why there is none."""
        settings, calibration = dict(DEFAULTS[name]), None
        if settings:
            names = [spec.name for spec in input_specs(self.proto)]
            settings["input_ranges"] = tuple((name, *self.input_range) for name in names)
        else:
            calibration = self.calibration
        for column in COLUMNS.values():
            try:
                made = onnxq.quantize(self.proto, calibration, force_int_kernels=True, **settings, **column)
            except onnxq.OnnxqError as error:
                yield "-", str(error)
            else:
                yield self.cell(made.model), made.report


def finish(model: Model, options: onnxq.Options, corrections: tuple[Pass, ...], context: Context) -> onnx.ModelProto:
    """The adjusted float model, quantized to the end."""
    model, _ = run_passes(ranging(options), model, context)
    for step in corrections:
        step.apply(model, context)
    return lower(at_sufficient_opset(model, options), context)[0]


def measured(subject: Subject) -> Iterator[str]:
    """All tables of one model, as lines of Markdown."""
    folded = not any(node.op_type == "BatchNormalization" for node in subject.proto.graph.node)
    yield f"## {subject.case.name}\n"
    yield (
        f"{subject.evaluation.float_model()} {len(subject.calibration)} calibration"
        f" samples. BatchNorm: {'folded by the exporter, no moments' if folded else 'in the model'}.\n"
    )
    yield from head("W8A8", *COLUMNS)
    done: dict[Pass, Outcome] = {}
    for name in ROWS:
        cells, outcomes = subject.steps(name)
        done |= dict(outcomes)
        yield line(name, *cells)
    notes: list[str] = []
    for name in DEFAULTS:
        found = list(subject.default(name))
        yield line(name, *(cell for cell, _ in found))
        notes += [step_note(name, column, reported) for column, (_, reported) in zip(COLUMNS, found, strict=True)]
    yield "\nSteps of the last rows, SQNR in dB as measured on calibration samples:\n"
    yield from notes
    yield "\n### Range of channels: largest over smallest per layer\n"
    yield from spreads(done)
    yield "\nLeft alone, by number of layers or channels:\n"
    for step, outcome in done.items():
        reasons: dict[str, int] = {}
        for skip in outcome.skips:
            reason = re.sub(r"^(\d+ of \d+ channels kept: |\S+: |\d+ )", "", skip.reason)
            reasons[reason] = reasons.get(reason, 0) + 1
        yield f"- {label(step)}: {outcome.changed} channels changed" + "".join(
            f"; {count} layers: {reason}" for reason, count in reasons.items()
        )


def step_note(name: str, column: str, report: Report | str) -> str:
    """What was kept and dropped."""
    if isinstance(report, str):
        return f"- {name}, {column}: refused: {report}"
    verdicts = []
    for step in report.steps:
        if step.name in STEPS:
            note = next((n for n in step.notes if re.match(r"not run: |outputs at ", n)), f"{step.changed} changed")
            verdicts.append(f"{step.name}: " + note)
    activations = sum(tensor.kind == "activation" for tensor in report.tensors)
    blind = sum(len(step.skips) for step in report.steps if step.name == "SetDataFreeRanges")
    missing = f", {blind} tensors without moments" if blind else ""
    return f"- {name}, {column}: {activations} activations quantized{missing}. " + ". ".join(verdicts)


def spreads(done: dict[Pass, Outcome]) -> Iterator[str]:
    """Before and after both ways of CLE, as `EqualizeLayers` notes it."""
    pattern = re.compile(r"(.*): largest over smallest channel range (\S+), then (\S+)$")
    found: dict[str, dict[Pass, tuple[str, str]]] = {}
    for step in (RANGE, NOISE):
        for note in done[step].notes:
            if match := pattern.match(note):
                found.setdefault(match[1], {})[step] = match[2], match[3]
    yield from head("layer", "before", "after CLE (range)", "after CLE (noise)")
    for layer, by_step in found.items():
        before = next(iter(by_step.values()))[0]
        yield line(layer, before, *(by_step[step][1] if step in by_step else before for step in (RANGE, NOISE)))
    for index, title, step in ((0, "\nBefore", RANGE), (1, label(RANGE), RANGE), (1, label(NOISE), NOISE)):
        if values := [float(pairs[step][index]) for pairs in found.values() if step in pairs]:
            yield f"{title}: median {np.median(values):.3g}, largest {max(values):.3g}.  "


def label(step: Pass) -> str:
    return f"CLE ({step.method})" if isinstance(step, EqualizeLayers) else type(step).__name__


TEXT = """Cells: top-1 % ± standard error of its difference from float, on the same images (SQNR in dB of the output
against the float model's). All layers take part (`force_int_kernels`). Rows without `default` or `data-free`
apply the named steps and no others, kept or not; steps measure on the calibration samples.
Activations: mse; data-free: moments. Weights per tensor: mse weighted by sensitivity, or min-max, as in
the paper; per channel: mse. Run by ONNX Runtime, its optimisations on.
"""


def main() -> None:
    """Print the tables, and write them to a file if asked."""
    known = {case.name: case for case in cases.all_cases() if case.name in NAMES}
    parser = tables.parser(__doc__, known)
    parser.add_argument("--samples", type=int, default=64, help="calibration samples at most, evenly spread [64]")
    args = tables.parsed(parser, known)

    def parts() -> Iterator[Iterable[str]]:
        command = "python bench/steps.py --markdown bench/results/accuracy-steps.md"
        yield tables.heading("What equalization, absorption and bias correction bring", command, TEXT)
        for name in args.models or [name for name in NAMES if name in known]:
            yield measured(Subject(known[name], args.samples))

    tables.show(parts(), args.markdown)


if __name__ == "__main__":
    main()
