"""Range-setting methods by top-1 accuracy, in the form of the white paper's tables 1 and 2; cost of calibration.

    python bench/ranges.py [MODEL ...] [--images 2000] [--cost] [--markdown bench/results/accuracy.md]

Statistics are collected once for each model and serve all widths and methods. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cases
import compare
import numpy as np
import onnx
import tables
from cases import Case
from numpy.typing import NDArray
from scores import Evaluation, Outputs, outputs
from tables import head, line

import onnxq
from onnxq.calibration.statistics import load
from onnxq.numeric.logits import Logits
from onnxq.numeric.quant import QuantParams
from onnxq.numeric.ranges import set_range

RANGES_ALONE: dict[str, Any] = {
    "dead_channels": False, "cle": "off", "absorb": False, "bias_correction": "off", "rounding": "nearest",
    "weight_range": "mse",
}  # fmt: skip
"""No step that would make up for what ranges lose."""

WEIGHT_WIDTHS = (8, 6, 4, 3)
ACTIVATION_WIDTHS = (8, 6, 4)
LOGIT_WIDTHS = (8, 6, 4, 3)
WEIGHT_METHODS = ("minmax", "mse", "percentile:99.99", "entropy")
ACTIVATION_METHODS = {
    "minmax": ("minmax", "minmax"),
    "mse": ("mse", "mse"),
    "mse, logits cross-entropy": ("mse", "cross-entropy"),
    "bn:6": ("bn:6", "mse"),
    "percentile:99.99": ("percentile:99.99", "percentile:99.99"),
    "entropy": ("entropy", "entropy"),
}
"""Row of the table: methods for activations and for the logits."""


@dataclass
class Subject:
    """One model with its evaluation images, what it makes of them in float, and files of statistics by preset."""

    case: Case
    images: int
    scratch: Path
    known: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.calibration = self.case.calibration()
        self.evaluation = Evaluation(self.case, self.images)

    def cell(self, preset: str, **settings: Any) -> str:
        """Top-1 and SQNR of the model quantized with these options."""
        output = self.scratch / "quantized.onnx"
        onnxq.quantize(
            self.case.model,
            self.calibration[:1],
            output=output,
            statistics=[self.statistics(preset)],
            preset=preset,
            force_int_kernels=True,
            **{**RANGES_ALONE, **settings},
        )
        found = outputs(output, self.evaluation.x)
        return f"{self.evaluation.top1(found[0]):.2f} ({self.evaluation.db(found):.1f})"

    def statistics(self, preset: str) -> Path:
        """Collected once for each operator set that grids need."""
        needs = f"opset{onnxq.Options(preset=preset).min_opset}"
        if needs not in self.known:
            self.known[needs] = self.scratch / f"{needs}.npz"
            onnxq.calibrate(self.case.model, self.calibration, self.known[needs], preset=preset)
        return self.known[needs]


def measured(subject: Subject) -> Iterator[str]:
    """All tables of one model, as lines of Markdown."""
    yield f"## {subject.case.name}\n"
    yield (
        f"{subject.evaluation.float_model()} Differences between two rows have less, the images being the same."
        f" {len(subject.calibration)} calibration"
        f" samples; data: {subject.case.data}.\n"
    )
    yield from weight_table(subject)
    yield from activation_table(subject)
    yield from logit_table(subject)


def weight_table(subject: Subject) -> Iterator[str]:
    """Only weights are quantized."""
    yield "### Weights only (table 1)\n"
    yield from head("method, scales", *(f"W{bits}" for bits in WEIGHT_WIDTHS))
    for scales, per_channel in (("per tensor", False), ("per channel", True)):
        for method in WEIGHT_METHODS:
            cells = (subject.cell(f"w{bits}", weight_range=method, per_channel=per_channel) for bits in WEIGHT_WIDTHS)
            yield line(f"{method}, {scales}", *cells)


def activation_table(subject: Subject) -> Iterator[str]:
    """Only activations are quantized, per tensor."""
    yield "\n### Activations only (table 2)\n"
    yield from head("method", *(f"A{bits}" for bits in ACTIVATION_WIDTHS))
    for name, (method, logits) in ACTIVATION_METHODS.items():
        cells = (subject.cell(f"a{bits}", activation_range=method, logits_range=logits) for bits in ACTIVATION_WIDTHS)
        yield line(name, *cells)


def logit_table(subject: Subject) -> Iterator[str]:
    """The logits of the float model rounded to grids, ranges from the calibration data: the last layer by itself."""
    known = load(subject.statistics("a8"))
    name, statistic = next((n, s) for n, s in known.tensors.items() if isinstance(s, Logits))
    proto = onnx.load(subject.case.model)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    x, top1 = subject.evaluation.x, subject.evaluation.top1
    logits = outputs(proto.SerializeToString(), x)[0].reshape(len(x), -1)
    samples = statistic.samples()
    truth = np.exp(_log_softmax(logits))

    yield f"\n### The logits `{name}` alone: top-1 %, cross-entropy with the float probabilities\n"
    yield from head("method", *(f"A{bits}" for bits in LOGIT_WIDTHS))
    entropy = -(truth * _log_softmax(logits)).sum(axis=1).mean()
    yield line("float", *[f"{top1(logits):.2f}, {entropy:.3f}"] * len(LOGIT_WIDTHS))
    for method in ("minmax", "mse", "cross-entropy"):
        cells = []
        for bits in LOGIT_WIDTHS:
            spec = onnxq.Options(preset=f"a{bits}").activation
            assert spec is not None
            low, high = set_range(method, samples, spec)
            rounded = QuantParams.from_range(low[0], high[0], spec).fake(logits)
            entropy = -(truth * _log_softmax(rounded)).sum(axis=1).mean()
            cells.append(f"{top1(rounded):.2f}, {entropy:.3f} [{low[0]:.1f}, {high[0]:.1f}]")
        yield line(method, *cells)


def _log_softmax(x: Outputs) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


NOTES = """## What they show

- **Weights, ResNet-20.** Per tensor, MSE beats min-max at 3 bits, as in the paper. At 4 bits it does so only on grids
  without their lowest integer (73.65 %). With it the error on the weights is smaller (17.45 against 17.31 dB), but
  positive weights are clipped further than negative ones, which shifts means, and in this table nothing corrects
  biases. Per channel MSE does not beat min-max at 3 bits, either, though its error on the weights is the smaller one
  (12.5 against 9.7 dB, without the lowest integer): clipping shrinks every channel (gain <w, Q(w)> / <w, w> 0.95 a
  layer against 1.00), and over 20 layers the spread of the logits falls to 0.50 of the float model's, against 0.75.
  At 4 bits the gain is 0.987, and the difference is within the standard error.
- **Weights, MobileNet.** Per tensor nothing is right at any width and by any method: BatchNorm folding leaves
  channels that dominate their layer (largest to median channel 209 in `conv1`, 170 in `conv_dw_13`; the median
  channel of `conv1` keeps 1 dB at 8 bits), and no single range serves both. Per channel MSE is ahead at 8 and 6
  bits; at 4 bits not even the pointwise layers alone survive (0.25 %).
- **Percentile 99.99 of weights** clips nothing where a channel has fewer than 10000 weights: it is min-max.
- **Activations, ResNet-20.** MSE beats min-max at 4 bits, percentile is ahead of both.
- **Activations, MobileNet.** ReLU6 has cut the tails already: at 4 bits MSE ends at 5.6 to 6 of 6, so all methods
  make nearly the same grids.
- **Entropy** is made for 8 bits. With fewer the divergence of a narrow range is small whatever it clips, and it clips
  nearly everything (ResNet-20 at A6 and A4). MSE has no such solution.
- **Logits.** Cross-entropy beats MSE, the fewer bits the more: MSE spends steps on the many negative logits and
  clips the largest, cross-entropy gives up the negative ones. In a model whose every activation has 4 bits the
  MobileNet has lost the classes before the last layer. Target `ort` leaves the ResNet's logits in float, so that
  its two rows agree.
"""


SEE_ALSO = """Further tables: [equalization, absorption and bias correction](accuracy-steps.md),
[rounding of weights](accuracy-rounding.md), [quantization-aware training](accuracy-qat.md),
[families of networks on every target](accuracy-families.md)."""


def cost(repeats: int, scratch: Path) -> Iterator[str]:
    """Peak memory of `onnxq calibrate` by the number of images; time beside quantize_static with Percentile."""
    case = cases.real("mobilenet_v1_025_imagenet")
    photos, options = sorted((case.model.parent / "calib").glob("*.jpg")), ("--scale", str(1 / 127.5), "--mean", "1")
    runs: dict[int, list[compare.Run]] = {100: [], 1000: []}
    for count in runs:
        compare.copy_photos(scratch / f"photos{count}", photos, count)
    for _ in range(repeats):
        for count, found in runs.items():
            folder, output = scratch / f"photos{count}", scratch / "statistics.npz"
            found.append(compare.quantize("calibrate", case.model, folder, output, *options))

    yield "## Calibration: memory and time\n"
    yield (
        f"{case.name}, whole processes. First: `onnxq calibrate`, histograms of all activation tensors, JPEG files"
        f" ({len(photos)} photographs, again and again). Medians of {repeats} runs.\n"
    )
    yield from head("", *(f"{count} images" for count in runs), "ratio")
    for name, values in (
        ("peak memory, MiB", [[run.mebibytes for run in found] for found in runs.values()]),
        ("time, s", [[run.seconds for run in found] for found in runs.values()]),
    ):
        few, many = (statistics.median(found) for found in values)
        yield line(name, f"{few:.1f}", f"{many:.1f}", f"{many / few:.2f}")

    compare.write_samples(scratch / "samples", case.calibration(), 200)
    pairs: list[tuple[compare.Run, compare.Run]] = []
    for _ in range(repeats):
        theirs, ours = (
            compare.quantize(tool, case.model, scratch / "samples", scratch / "quantized.onnx", *extra)
            for tool, extra in (("quantize_static", ("Percentile",)), ("onnxq", compare.STEPS_OFF))
        )
        pairs.append((theirs, ours))
    yield (
        "\nSecond: quantization from 200 .npy files, by turns. quantize_static keeps every activation of every sample"
        " for Percentile,\nwhich is why it gets no more of them; ratios are medians of pairs.\n"
    )
    yield from head("", "quantize_static, Percentile", "onnxq, mse", "ratio")
    for name, values in (
        ("time, s", [(a.seconds, b.seconds) for a, b in pairs]),
        ("peak memory, MiB", [(a.mebibytes, b.mebibytes) for a, b in pairs]),
    ):
        their, our = (statistics.median(column) for column in zip(*values, strict=True))
        ratio = statistics.median(a / b for a, b in values)
        yield line(name, f"{their:.1f}", f"{our:.1f}", f"{ratio:.2f}")


TEXT = """Cells: top-1 % (SQNR in dB of the output against the float model's, over the evaluation images). All layers
take part (`force_int_kernels`), the first and the last too; nothing else is done for accuracy (no equalization,
no bias correction, no AdaRound). Weights symmetric, activations asymmetric and per tensor; widths that
ONNX Runtime does not have are simulated exactly. Classes that tie for the first place share the hit.
"""


def main() -> None:
    """Print the tables, and write them to a file if asked."""
    known = {case.name: case for case in cases.all_cases() if case.name not in ("ultraface", "vit_digits")}
    default = [name for name in ("resnet20_cifar10", "mobilenet_v1_025_imagenet") if name in known] or list(known)
    parser = tables.parser(__doc__, known, default)
    parser.add_argument("--images", type=int, default=2000, help="evaluation images at most, evenly spread [2000]")
    parser.add_argument("--cost", action="store_true", help="memory and time of calibration, too")
    parser.add_argument("--cost-only", action="store_true", help="nothing but them")
    parser.add_argument("--repeats", type=int, default=3, help="of the measurements of memory and time [3]")
    args = tables.parsed(parser, known)

    def parts() -> Iterator[Iterable[str]]:
        command = "python bench/ranges.py --cost --markdown bench/results/accuracy.md"
        yield tables.heading("Accuracy of range-setting methods", command, TEXT)
        for name in () if args.cost_only else args.models or default:
            with tempfile.TemporaryDirectory() as scratch:
                yield measured(Subject(known[name], args.images, Path(scratch)))
        if not args.models and not args.cost_only:
            yield NOTES.splitlines()
        if (args.cost or args.cost_only) and cases.REAL.is_dir():
            with tempfile.TemporaryDirectory() as scratch:
                yield cost(args.repeats, Path(scratch))
        yield SEE_ALSO.splitlines()

    tables.show(parts(), args.markdown)


if __name__ == "__main__":
    main()
