"""Quantization-aware training against post-training quantization, in the form of the white paper's tables 8 to 10.

    python bench/qat.py [MODEL ...] [--steps N] [--ablation-steps N] [--quick] [--markdown FILE.md]

Trains resnet20_cifar10 on its 10,000 unlabelled images and mobilenet_digits on 10,000 images of its training digits,
both to compute what the float model does. A step takes about 0.35 s on two idle cores (0.6 and 0.45 s of one), to
quantize and verify takes half a minute a row: an hour in all. The file has every row as soon as it is there; `--quick`
runs 20 steps of everything. Needs `pip install -e '.[qat,train]'`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cases
import numpy as np
import tables
import torch
from cases import Case
from numpy.typing import NDArray
from scores import Evaluation, outputs
from tables import head, line

import onnxq
from onnxq import Preprocess
from onnxq.numeric.metrics import sqnr
from onnxq.qat import QatResult, Recipe, TorchNetwork, train
from onnxq.thresholds import QAT_CALIBRATION_SAMPLES

IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
STEPS = {"w8a8": 200, "w4a8": 600, "w4a4": 1600}
"""The fewer bits, the more there is to learn."""

IMAGES = 10_000


@dataclass(frozen=True)
class Data:
    """images: uint8, N x H x W x C, without labels. augment: views of them that training may see."""

    images: Callable[[], NDArray[np.uint8]]
    augment: tuple[str, ...]


def cifar() -> NDArray[np.uint8]:
    with np.load(cases.REAL / "resnet20_cifar10" / "train.npz") as arrays:
        return np.asarray(arrays["images"])


def digits() -> NDArray[np.uint8]:
    """Of the digits that the model was trained on, other drawings of them."""
    sys.path.insert(0, str(cases.EXAMPLES))
    from digits import training_set

    return np.asarray(training_set(IMAGES, 1000, colour=True)[0])


DATA: Mapping[str, Data] = {
    "resnet20_cifar10": Data(cifar, ("flip", "crop")),
    "mobilenet_digits": Data(digits, ()),  # mirrored digits are others, and these are moved already
}


@dataclass(frozen=True)
class Row:
    """Top-1 in percent after quantization and after training; what the two simulations agree on; seconds of all."""

    before: str
    after: str
    same: str
    db: str
    seconds: str


@dataclass
class Subject:
    """One model with its data. recipe: but for the steps."""

    case: Case
    recipe: Recipe
    evaluation: Evaluation = field(init=False)

    def __post_init__(self) -> None:
        data = DATA[self.case.name]
        self.evaluation = Evaluation(self.case)
        self.images = data.images()
        self.recipe = replace(self.recipe, augment=data.augment)

    def row(self, preset: str, recipe: Recipe, **settings: Any) -> Row:
        """Quantize and train. settings: of `onnxq.quantize`."""
        given: dict[str, Any] = {"preset": preset, "force_int_kernels": True, "preprocess": IMAGENET, **settings}
        start = onnxq.quantize(self.case.model, self.images, samples=QAT_CALIBRATION_SAMPLES, **given)
        before = outputs(start.model.SerializeToString(), self.evaluation.x)[0]
        begin = time.perf_counter()
        result = train(self.case.model, self.images, recipe=recipe, **given)
        seconds = time.perf_counter() - begin
        after = outputs(result.model.SerializeToString(), self.evaluation.x)[0]
        same, db = self.simulated(result, after)
        return Row(self.share(before), self.share(after), f"{same:.2f}", f"{db:.1f}", f"{seconds:.0f}")

    def share(self, scores: NDArray[np.float32]) -> str:
        """Top-1, and its standard error as a difference from float."""
        return f"{self.evaluation.top1(scores):.2f} ± {self.evaluation.error(scores):.1f}"

    def simulated(self, result: QatResult, written: NDArray[np.float32]) -> tuple[float, float]:
        """(% of images with the same class, SQNR in dB) of the trained network and the written model."""
        found = run(result.network, self.evaluation.x)
        return float(100 * np.mean(found.argmax(1) == written.argmax(1))), sqnr(written, found)


def run(network: TorchNetwork, x: NDArray[np.float32]) -> NDArray[np.float32]:
    device = next(iter(network.parameters())).device
    with torch.no_grad():
        parts = [network(torch.from_numpy(x[i : i + 128]).to(device)) for i in range(0, len(x), 128)]
    return np.asarray(torch.cat(parts).cpu().numpy())


def measured(subject: Subject, steps: Mapping[str, int], ablation: Recipe | None) -> Iterator[str]:
    """The tables of one model, as lines of Markdown. steps: by preset."""
    yield f"## {subject.case.name}\n"
    yield f"{subject.evaluation.float_model()} {len(subject.images)} images to train on, without labels.\n"
    titles = ("after quantization", "after training", "same class, %", "SQNR, dB", "seconds")
    yield from head("per channel", "steps", *titles)
    for preset, count in steps.items():
        row = subject.row(preset, replace(subject.recipe, steps=count))
        yield line(preset.upper(), str(count), row.before, row.after, row.same, row.db, row.seconds)
    if ablation is None:
        return
    yield f"\nAblations at W4A4, {ablation.steps} steps.\n"
    yield from head("", *titles)
    ablation = replace(ablation, augment=subject.recipe.augment)
    for name, recipe, settings in variants(ablation):
        row = subject.row("w4a4", recipe, **settings)
        yield line(name, row.before, row.after, row.same, row.db, row.seconds)


def variants(recipe: Recipe) -> Iterator[tuple[str, Recipe, dict[str, Any]]]:
    """What is left out, one thing at a time. Per channel equalization hardly matters: it is compared per tensor."""
    coarse = {"weight_range": "minmax", "activation_range": "minmax", "logits_range": "minmax"}
    fixed = replace(recipe, learn_ranges=False)
    yield "learned ranges, from MSE", recipe, {}
    yield "fixed ranges, MSE", fixed, {}
    yield "learned ranges, from min-max", recipe, coarse
    yield "fixed ranges, min-max", fixed, coarse
    yield "per tensor, with CLE", recipe, {"per_channel": False}
    yield "per tensor, without CLE", recipe, {"per_channel": False, "cle": "off", "absorb": False}


TEXT = f"""Cells: top-1 % ± standard error of its difference from float, on the same images, by ONNX Runtime. *After
quantization*: what `onnxq.quantize` makes with all defaults, calibrated on {QAT_CALIBRATION_SAMPLES} of the training
images, where training starts. *After training*: `onnxq qat` by distillation from the float model's outputs. All
layers take part (`force_int_kernels`), the first and the last too. *Same class*, *SQNR*: the network as it was
simulated in training against the written model in ONNX Runtime, over all evaluation images. *Seconds*: of `onnxq qat`
as a whole, with the quantization that it starts from and verification.
"""


def main() -> None:
    """Print the tables, and write them to a file if asked."""
    known = {case.name: case for case in cases.all_cases() if case.name in DATA}
    parser = tables.parser(__doc__ or "", known)
    parser.add_argument("--steps", type=int, help="of the full trainings [200, 600, 1600 for 8, 4/8, 4 bits]")
    parser.add_argument("--ablation-steps", type=int, default=150, help="of the ablations [150]; 0: none")
    parser.add_argument("--presets", nargs="+", default=list(STEPS), help="rows of the first table [w8a8 w4a8 w4a4]")
    parser.add_argument("--lr", type=float, default=Recipe.lr, help="learning rate of weights [the default]")
    parser.add_argument("--scale-lr", type=float, default=Recipe.scale_lr, help="learning rate of grids [the default]")
    parser.add_argument("--quick", action="store_true", help="20 steps of everything")
    args = tables.parsed(parser, known)
    steps = {preset: 20 if args.quick else args.steps or STEPS.get(preset, 600) for preset in args.presets}
    shorter = 20 if args.quick else args.ablation_steps
    recipe = Recipe(lr=args.lr, scale_lr=args.scale_lr)
    ablation = replace(recipe, steps=shorter) if shorter else None

    def parts() -> Iterator[Iterable[str]]:
        command = "python bench/qat.py --markdown bench/results/accuracy-qat.md"
        yield tables.heading("Quantization-aware training", command, TEXT, f"torch {torch.__version__}")
        for name in args.models or known:
            yield measured(Subject(known[name], recipe), steps, ablation)

    tables.show(parts(), args.markdown, by_line=True)


if __name__ == "__main__":
    main()
