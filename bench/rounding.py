"""Rounding to nearest against each method, in the form of the white paper's tables 5 and 6.

    python bench/rounding.py [MODEL ...] [--quick] [--markdown bench/results/accuracy-rounding.md]

Every cell is what `onnxq.quantize` makes with `rounding` set, all other options at their defaults; `adaround` runs
with effort fast, and at W4A8 alone unless `--everything` is given: it takes ten times as long as the others.
ultraface, which has no labels, is measured only where it is named. Two idle cores should need about half an hour for
the others, and 5 minutes for `--quick`. A quantization that fails leaves a cell that says so, and
the reason below the table. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cases
import numpy as np
import onnx
import tables
from cases import Case
from scores import Evaluation, outputs
from tables import head, line

import onnxq
from onnxq.operators.linear import is_depthwise, linear_layers
from onnxq.options import Options
from onnxq.pipeline.prepare import load

SLOW = "adaround"
METHODS = ("nearest", "gptq", "coordinate-descent", SLOW)
PRESETS = ("w8a8", "w4a8", "w3a8")
GRANULARITIES = {"per tensor": False, "per channel": True}
MIXED = "coordinate-descent; first, last and depthwise layers at 8 bits"


@dataclass(frozen=True)
class Cell:
    """One quantization. seconds: of all processors. error: of layers on held-out samples, nearest and optimised.
    failure: why there is none."""

    accuracy: str = ""
    seconds: str = ""
    error: str = ""
    failure: str = ""


@dataclass
class Subject:
    """One model, its calibration samples and its evaluation. everything: `SLOW` in all columns."""

    case: Case
    samples: int
    images: int
    everything: bool = False
    evaluation: Evaluation = field(init=False)

    def __post_init__(self) -> None:
        self.proto = onnx.load(self.case.model)
        every = self.case.calibration()
        self.calibration = every[np.linspace(0, len(every) - 1, min(self.samples, len(every))).astype(int)]
        self.evaluation = Evaluation(self.case, self.images)
        nodes = load(self.proto, self.case.name, Options()).graph.nodes
        self.layers = linear_layers(nodes)

    @property
    def rows(self) -> Sequence[str]:
        """The methods; networks with depthwise layers also in mixed precision."""
        return (*METHODS, MIXED) if any(map(is_depthwise, self.layers)) else METHODS

    def cell(self, row: str, preset: str, per_channel: bool) -> Cell:
        if (row == MIXED and preset == "w8a8") or (row == SLOW and preset != "w4a8" and not self.everything):
            return Cell("-", "-", "-")
        settings: dict[str, Any] = {"rounding": row}
        if row == MIXED:
            settings = {"rounding": "coordinate-descent", "overrides": self.at_8_bits()}
        if row == SLOW:
            settings["effort"] = "fast"
        begin = time.process_time()
        try:
            made = onnxq.quantize(
                self.proto, self.calibration, preset=preset, per_channel=per_channel, force_int_kernels=True, **settings
            )
        except onnxq.OnnxqError as error:
            return Cell("failed", failure=str(error))
        seconds = time.process_time() - begin
        found = outputs(made.model.SerializeToString(), self.evaluation.x)
        accuracy = f"{self.evaluation.db(found):.1f}"
        if self.evaluation.labels is not None:
            accuracy = f"{self.evaluation.top1(found[0]):.2f} ({accuracy})"
        return Cell(accuracy, f"{seconds:.0f}", held_out(made.report))

    def at_8_bits(self) -> tuple[onnxq.Override, ...]:
        """Overrides for the weights of the first, the last and all depthwise layers."""
        chosen = {layer.node.name for layer in (self.layers[0], self.layers[-1], *filter(is_depthwise, self.layers))}
        return tuple(onnxq.Override(node=name, bits=8) for name in sorted(chosen))


def held_out(report: onnxq.Report) -> str:
    """Mean over layers of the squared error on held-out samples, in percent of each output's variance."""
    layers = [layer for step in report.steps for layer in step.rounded]
    if not layers:
        return ""
    kept = [layer.objective if layer.kept_nearest_because is None else layer.nearest for layer in layers]
    return f"{100 * np.mean([layer.nearest for layer in layers]):.3g} -> {100 * np.mean(kept):.3g}"


def measured(subject: Subject, methods: Sequence[str], presets: Sequence[str], failures: list[str]) -> Iterator[str]:
    """All tables of one model, as lines of Markdown; what failed is added to `failures`."""
    yield f"## {subject.case.name}\n"
    samples = f"{len(subject.calibration)} calibration samples; data: {subject.case.data}."
    yield f"{subject.evaluation.float_model()} {samples}\n"
    columns = [(preset, name) for preset in presets for name in GRANULARITIES]
    titles = [f"{preset.upper()} {name}" for preset, name in columns]
    cells: dict[str, list[Cell]] = {}
    labelled = subject.evaluation.labels is not None
    yield from head("top-1 % (SQNR, dB)" if labelled else "SQNR of the worst output, dB", *titles)
    for row in subject.rows:
        if row in methods or (row == MIXED and "coordinate-descent" in methods):
            cells[row] = [subject.cell(row, preset, GRANULARITIES[name]) for preset, name in columns]
            yield line(row, *(cell.accuracy for cell in cells[row]))
    yield ""
    yield from head("error on held-out samples, %, nearest -> optimised", *titles)
    yield from (line(row, *(cell.error for cell in made)) for row, made in cells.items() if row != "nearest")
    yield ""
    yield from head("CPU seconds", *titles)
    yield from (line(row, *(cell.seconds for cell in made)) for row, made in cells.items())
    failed = [
        f"{row}, {title}: {c.failure}"
        for row in cells
        for title, c in zip(titles, cells[row], strict=True)
        if c.failure
    ]
    yield from (f"\n**Failed**: {text}" for text in failed)
    failures += failed


TEXT = """Cells: what `onnxq.quantize` makes with `--rounding` set, everything else by default: steps before it are kept
where the result is no worse; `nearest` with analytic bias correction, the others re-centre biases by themselves. All
layers take part (`force_int_kernels`), the first and the last too. Activations are uint8. Run by ONNX Runtime, its
optimisations on.

- *Error on held-out samples*: squared error of a layer's output in percent of its variance, mean over channels, then
  over layers; one sample in five is held out while the rounding is chosen. *Nearest* is not what rounding to nearest
  from the start makes: layers before are optimised already. Empty where the step was not kept.
- `adaround` runs with `--effort fast` (500 iterations), the others with the default effort; -: not run.
- *CPU seconds*: of the whole quantization, with all steps that are tried and measured, and the verification of the
  result; all threads together, so that two cores need little more than half of it on the clock.
"""


NOTES = """## What limits the rest

MobileNetV1 with 4-bit weights; KL divergence of the classes from the float model's over its 400 evaluation images,
which varies less from run to run (0.01 per channel, 0.05 per tensor) than top-1 (about 1 point). Steps before and
ranges the same in all rows, 200 calibration samples; measured before averages had grids of their own.

| what has few bits | KL divergence | top-1 % |
|---|--:|--:|
| weights 4, activations 8, per channel | 0.231 | 56.1 |
| first, last and depthwise layers at 8 | 0.181 | 56.3 |
| weights of depthwise layers alone at 4 | 0.052 | 58.1 |

- **Weights, not activations.** Without quantizing activations at all the divergence goes from 0.237 to 0.230 (both
  before the held-out samples joined the fit).
- **Pointwise layers**, all alike. Rounding adds 0.5 to 1.3 % of the output's variance in each of them, a fifth to a
  half of what rounding to nearest adds; what layers before have added is passed on, so that the last ones start with
  7 to 10 %, which no rounding of theirs takes back.
- **The search is near its end.** A dense grid of 64 scales lowers the objective by 1.4 %, coordinate descent for each
  of these scales by 3 %. One integer more (-8 to 7 instead of -7 to 7) lowered the divergence from 0.258 to 0.237.
- **Equalization does not help** optimised rounding: per channel the divergence rises from 0.258 to 0.312; per tensor
  the whole pipeline reaches 40.8 % with and 45.3 % without it.

## At 8 bits

MobileNetV1 at W8A8 with calibration on 200 images, `auto`; the outputs' SQNR and top-1 on the 400 evaluation images,
in single runs, so that a few tenths of a dB are chance. Two candidates: floor and ceil of the scaled float weight.

| rounding | per channel | per tensor |
|---|--:|--:|
| nearest, analytic bias correction | 21.7 dB, 59.75 % | 12.5 dB, 56.75 % |
| free integers, 17 scales, 4 dampings, coordinate descent | 24.6 dB, 59.00 % | 19.1 dB, 59.25 % |
| two candidates, planned scale, damping 0.01, coordinate descent | 25.1 dB, 60.50 % | 18.2 dB, 58.75 % |
| the same, GPTQ (what `auto` does per channel; per tensor it is the second row) | 24.7 dB, 59.50 % | 18.3 dB, 59.75 % |
| the same, scales within half an octave | 24.6 dB, 60.25 % | 18.2 dB, 57.50 % |

Layers whose rounding to nearest adds less than a share of the error that quantized inputs make are left at nearest,
with the best bias (`WEIGHT_NOISE`, 0.001; 0.01 in the last three rows). MobileNetV1 per channel, coordinate descent:
24.7 dB where none is left, 25.1 with a share of 0.01, 24.4 with 0.02, 22.7 with 0.05; by GPTQ 24.8 dB with 0.001.
FastestDet, GPTQ, 64 other images: 17.2 dB where none is left, 17.3 with 0.001, 15.7 with 0.01, as rounded to nearest
(17.1 with free integers). The share must be tiny: errors of weights are the same at all positions, while those of
activations average out.

## Blocks learnt together

BRECQ's reconstruction of blocks (arXiv:2102.05426) without PyTorch, tried and left out. The backward pass was an ONNX
graph of ordinary operators in ONNX Runtime; straight-through rounding of the weights from the layer-wise result, biases
and activation scales (LSQ's gradient) learnt with them by Adam, 8 samples a step; target: the float block's output, or
over the whole network the divergence of the classes; a block is kept where its error on samples held out is smaller.
*Drop*: half of the activations left unquantized at random in each step (QDrop, arXiv:2203.05740). 200 calibration
samples, 135 of them to fit; per channel; all evaluation samples. The start is what layer-wise coordinate descent gave.

| network, preset | what is learnt | steps | CPU s more | top-1 % | same class % | SQNR, dB | KL |
|---|---|--:|--:|--:|--:|--:|--:|
| ResNet-20, W4A4 | nothing: the start | | | 79.86 | 85.84 | 9.12 | 0.316 |
| | blocks of 4 layers: scales and biases | 100 | 12 | 79.94 | 84.90 | 9.31 | 0.374 |
| | blocks of 4 layers: all | 100 | 12 | 78.96 | 84.18 | 9.23 | 0.399 |
| | blocks of 4 layers: all, drop | 400 | 61 | 79.02 | 84.94 | 9.53 | 0.356 |
| | the whole network: all, by KL | 100 | 12 | 79.16 | 85.64 | 9.00 | 0.309 |
| | `onnxq qat` on the same images, unlabelled, 64 a step | 100 | 40 | 79.80 | 86.16 | 8.92 | 0.294 |
| MobileNetV1, W4A8 | nothing: the start | | | 53.00 | 71.50 | 8.48 | 0.296 |
| | the whole network: all, by squared error | 100 | 30 | 51.75 | 68.75 | 8.50 | 0.296 |
| | the whole network: all, by KL | 100 | 30 | not better on samples held out | | | |
| MobileNetV1, W4A4 | nothing: the start | | | 17.25 | 21.00 | 1.05 | 2.208 |
| | blocks of 4 layers: all | 80 | 28 | 14.00 | 15.50 | 0.64 | 2.398 |
| | the whole network: all, by KL | 80 | 31 | not better on samples held out | | | |

- **It fits, and unseen classes are no better.** Blocks of ResNet-20 lose up to 14 % of their squared error on samples
  held out, two of five nothing; scales alone, of 0.82 to 0.95 of theirs, bring most of it. The outputs of the choosing
  samples rise to 10.1 to 11.1 dB. Smaller scales clip: that lowers a squared error, and, it seems, moves confident
  classes. By KL over the whole network 135 images are learnt by heart (MobileNetV1 at W4A8: 0.062 to 0.053 on them,
  0.057 to 0.075 on those held out).
- **What few samples cost.** MobileNetV1 at W4A8 has a divergence of 0.066 on the images that were fitted, of 0.24 on
  others. Errors of its convolutions are 1.04 to 1.22 times as large there, that of the classifier 4.4 times: it has
  one column a sample, 135 for 256 inputs. By GPTQ with lambda 1 its error is 8.14 %, with 10 it is 7.73 % (7.22 % with
  float weights). Larger lambda is tried now as long as it pays (`MOST_DAMPING`): 54.25 %, KL 0.292. With the mirrored
  images as well, 400 in all, the network came to KL 0.243 and 9.3 dB before that (52.5 %, within chance). ResNet-20 at
  W4A4 with 1000 images instead of 200: 9.1 to 10.7 dB, the same class 85.8 to 87.4 % (top-1 79.9 and 79.5 %, within
  chance), in 33 instead of 27 CPU seconds. More images are worth more than more work on each.
- **At W4A4 no tensor stands out.** MobileNetV1 gains at most 0.13 of its divergence of 2.2 where one of its last eight
  activations stays in float (33 unseen images).

Not tried: rounding by a sigmoid and a regulariser instead of straight through; 20000 steps of 32 samples as published,
about three hours of processor time for ResNet-20 at this speed; EfficientNet-lite0 and DeepLab.

## Activations of 4 bits

What limits W4A4 per channel, and what was tried against it; SQNR of the outputs where one kind of quantizer is on and
all else is in float, ranges by mse, on images that nothing was fitted to (ResNet-20: 200, MobileNetV1: 25).

| ResNet-20 | dB | | MobileNetV1 | dB |
|---|--:|---|---|--:|
| the image | 8.7 | | all activations | 0.2 |
| what Add alone reads, nine tensors | 15.4 | | `conv1`'s, 8 channels, of which 6 live | 5.1 |
| all other activations | 13.0 | | the next four | 9.3 to 11.6 |
| weights, rounded optimally, with activations of 8 bits | 22 | | logits in front of Softmax | 14.5 |

| ResNet-20, per channel | images | top-1 of 5000, % (standard error 0.4) | KL | SQNR, dB |
|---|--:|--:|--:|--:|
| 4 bits everywhere | 200 | 78.60 | 0.337 | 10.3 |
| | 1000 | 79.48 | 0.302 | 10.7 |
| with exceptions: 3 weights, the image, the average | 1000 | 79.26 | 0.198 | 12.7 |
| image with 8 bits | 200 | 78.86 | 0.220 | 12.1 |
| image, and what Add alone reads (the default now) | 200 | 79.20 | 0.158 | 13.6 |
| | 1000 | 80.32 | 0.133 | 14.1 |
| image; first and last weights with 8 bits as well | 200 | 78.20 | 0.196 | 11.7 |

- **Top-1 of 5000 images is known to 0.4 points**: 79.0 and 79.9, by exceptions and without them, do not differ, and
  200 images to calibrate on cost about a point. By KL, which varies less, exceptions did gain.
- **No bias is left**: at most 1.3 % of the logits' noise is a constant for each class.
- **Ranges searched by the outputs do not pay.** Each activation's scale times 0.75, 0.88, 1.14 or 1.3, from the first
  to the last, kept where the network's outputs are nearer on 48 images that are fitted, weights in float (ResNet-20,
  400 images, 10 CPU s more): 12.5 to 13.5 dB on these, and after rounding 79.72 % with it, 79.68 % without, KL 0.148
  and 0.144; by KL instead of squared error 79.60 %, 0.149. MobileNetV1 with 32 images 2.8 to 4.3 dB on these, KL on
  others 1.84 without, 1.93 with it. Behind rounding three scales move by a tenth, and nothing changes (79.24 and
  79.20 %).
- **More positions or more damping do not pay**: 256 or 1024 columns for each input instead of 64 79.8 and 79.6 %, KL
  0.157 and 0.149 beside 0.158; lambda of 1 in all layers 0.149, of 10 0.168 (ResNet-20, 200 images, standard error of
  KL 0.01).
- **Equalization that knows of scales for each row** (`numeric.equalization`) gives depthwise layers no price, which
  activations of few bits are glad of: MobileNetV1 at W4A4 24.1 to 27.3 % of 400 images (KL 2.09 to 1.93); with one
  scale a layer in mind, as before, it fell to 13.9 % (2.63). Channels that reach the bound of ReLU6, some in 27
  layers, keep their scales.

## At the size of ResNet-50

Measured before two candidates, the bound on a layer's statistics and OpenBLAS's single thread.
`python bench/large.py`: 53 convolutions and a Gemm, 25.6 million weights at random, 128 images of 224 x 224, W4A8 per
channel with all defaults. It ends at 28.9 dB, and took 1600 s of processor time (2 threads; 59 minutes on the clock of
a machine with five other jobs) and 4.3 GB at most, the Gram matrices of a layer with 4608 inputs among them.

| where | seconds, all threads |
|---|--:|
| coordinate descent on the Gram matrices, float64 | 1137 |
| ONNX Runtime | 992 |
| GPTQ, mostly for scales | 882 |
| mse ranges | 340 |
| factorisation of Gram matrices | 212 |
| statistics of channels and activations | 292 |
| Gram matrices from columns | 132 |

(Threads looked at every 20 ms, so that waiting for a processor counts as work: shares, not seconds, are what to read.)
"""


def main() -> None:
    """Print the tables, and write them to a file if asked; exit status 1 where a cell failed."""
    known = {case.name: case for case in cases.all_cases()}
    usual = [name for name in known if name != "ultraface"]
    parser = tables.parser(__doc__, known, usual)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="rows of the tables [all]")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, help="columns of the tables [all]")
    parser.add_argument("--samples", type=int, default=200, help="calibration samples at most, evenly spread [200]")
    parser.add_argument("--images", type=int, default=2000, help="evaluation images at most, evenly spread [2000]")
    parser.add_argument(
        "--quick", action="store_true", help="32 samples, 200 images; no adaround and no w3a8 unless named"
    )
    parser.add_argument("--everything", action="store_true", help=f"{SLOW} in all columns; takes hours")
    args = tables.parsed(parser, known)
    methods = args.methods or METHODS[: -1 if args.quick else None]
    presets = args.presets or PRESETS[: -1 if args.quick else None]
    samples, images = (32, 200) if args.quick else (args.samples, args.images)
    failures: list[str] = []

    def parts() -> Iterator[Iterable[str]]:
        command = "python bench/rounding.py --markdown bench/results/accuracy-rounding.md"
        yield tables.heading("Rounding of weights", command, TEXT)
        for name in args.models or usual:
            yield measured(Subject(known[name], samples, images, args.everything), methods, presets, failures)

        if not args.models and cases.REAL.is_dir():
            yield NOTES.splitlines()

    tables.show(parts(), args.markdown)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
