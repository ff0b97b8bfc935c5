"""Train the example models and write their folders: the ONNX file, calibration data and evaluation data.

    python models/train.py resnet|mobilenet|vit|all

Needs the `train` extra (torch, scikit-learn) and Pillow; runs on one CPU core in a few minutes per model.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from digits import evaluation_set, training_set
from evaluate import HERE, load, preprocess, top1
from nets import MobileNet, ResNet, VisionTransformer
from numpy.typing import NDArray
from PIL import Image
from torch import nn

EPOCH_IMAGES = 12_000
BATCH = 100
WARMUP = 0.1
"""The share of the steps in which the learning rate rises; it then falls along a cosine."""

CALIBRATION_SEED = 1_000_000  # no epoch draws its images with this one
SAMPLES_PER_FILE = 8


@dataclass(frozen=True)
class Recipe:
    """How one example is made."""

    name: str
    net: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    epochs: int
    export: Callable[[nn.Module, torch.Tensor, Path], None]
    write_calibration: Callable[[Path, NDArray[np.uint8], str], None]
    calibration_images: int
    evaluation_images: int
    colour: bool = False


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The usual optimizer of a ResNet."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def rmsprop(model: nn.Module) -> torch.optim.Optimizer:
    """MobileNetV2's own optimizer: RMSProp with momentum and little decay, none on BatchNorm and depthwise.

    As in the large MobileNets, it lets some channels die out in front of their BatchNorm, which then scales
    what is left of them up by a large factor: folded, such weights suffer from per-tensor quantization.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        for parameter in module.parameters(recurse=False):
            (free if depthwise or parameter.ndim < 2 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 4e-5}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.RMSprop(groups, lr=2e-3, alpha=0.9, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The usual optimizer of a ViT."""
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)


def train(recipe: Recipe) -> nn.Module:
    """Train the recipe's net; every epoch draws its images afresh. Returns it in evaluation mode."""
    torch.manual_seed(0)
    model = recipe.net()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    optimizer = recipe.optimizer(model)
    steps = recipe.epochs * EPOCH_IMAGES // BATCH

    def rate(step: int) -> float:
        rise = (step + 1) / (WARMUP * steps)
        return rise if rise < 1 else 0.5 + 0.5 * math.cos(math.pi * (step / steps - WARMUP) / (1 - WARMUP))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for epoch in range(recipe.epochs):
        start, total = time.monotonic(), 0.0
        for images, labels in _batches(recipe, epoch):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean, seconds = total * BATCH / EPOCH_IMAGES, time.monotonic() - start
        print(f"{recipe.name} epoch {epoch + 1:2}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def _batches(recipe: Recipe, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The training batches of one epoch."""
    images, labels = training_set(EPOCH_IMAGES, epoch, colour=recipe.colour)
    for start in range(0, EPOCH_IMAGES, BATCH):
        part = slice(start, start + BATCH)
        x = torch.from_numpy(preprocess(recipe.name, images[part]))
        yield x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels[part])


def export_resnet(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    """The TorchScript exporter at opset 13, which folds each BatchNorm into its convolution."""
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        model,
        (x,),
        path,
        dynamo=False,
        opset_version=13,
        training=torch.onnx.TrainingMode.EVAL,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes=axes,
    )


def export_mobilenet(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    """The TorchScript exporter at opset 17, which leaves each BatchNorm a node of its own."""
    torch.onnx.export(
        model,
        (x,),
        path,
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )


def export_vit(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    """The dynamo exporter at opset 20, without its notes on the Python source (they name local paths)."""
    program = torch.onnx.export(
        model,
        (x,),
        dynamo=True,
        opset_version=20,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    proto = program.model_proto
    for holder in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del holder.metadata_props[:]
    onnx.save(proto, path)


def write_png(folder: Path, images: NDArray[np.uint8], name: str) -> None:
    """One grey PNG file per image, as it was before preprocessing."""
    for index, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{index:03}.png", optimize=True)


def write_npy(folder: Path, images: NDArray[np.uint8], name: str) -> None:
    """Preprocessed batches, one float32 array per file."""
    for index, start in enumerate(range(0, len(images), SAMPLES_PER_FILE)):
        np.save(folder / f"{index:02}.npy", preprocess(name, images[start : start + SAMPLES_PER_FILE]))


def write_npz(folder: Path, images: NDArray[np.uint8], name: str) -> None:
    """Preprocessed batches keyed by the name of the input, compressed."""
    for index, start in enumerate(range(0, len(images), SAMPLES_PER_FILE)):
        batch = preprocess(name, images[start : start + SAMPLES_PER_FILE])
        np.savez_compressed(folder / f"{index:02}.npz", pixels=batch)


def verify(path: Path, model: nn.Module, x: NDArray[np.float32]) -> None:
    """Check the exported file: valid, and equal to the torch model at two batch sizes."""
    onnx.checker.check_model(path, full_check=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        with torch.no_grad():
            expected = model(torch.from_numpy(x[:batch])).numpy()
        logits = session.run(None, {session.get_inputs()[0].name: x[:batch]})[0]
        worst = np.abs(logits - expected).max()
        print(f"{path.parent.name}: batch {batch} differs from torch by {worst:.1e}")
        if not worst < 1e-4:
            raise RuntimeError(f"{path} does not compute what the torch model does")


RECIPES = {
    "resnet": Recipe("resnet_digits", ResNet, sgd, 25, export_resnet, write_png, 200, 2000),
    "mobilenet": Recipe("mobilenet_digits", MobileNet, rmsprop, 16, export_mobilenet, write_npy, 64, 1500, colour=True),
    "vit": Recipe("vit_digits", VisionTransformer, adamw, 24, export_vit, write_npz, 96, 1200),
}


def build(recipe: Recipe) -> None:
    """Train one example, write its folder and print its accuracy there."""
    folder = HERE / recipe.name
    shutil.rmtree(folder / "calib", ignore_errors=True)
    (folder / "calib").mkdir(parents=True)

    images, _ = training_set(recipe.calibration_images, CALIBRATION_SEED, colour=recipe.colour)
    recipe.write_calibration(folder / "calib", images, recipe.name)
    images, labels = evaluation_set(recipe.evaluation_images, colour=recipe.colour)
    np.savez_compressed(folder / "eval.npz", images=images, labels=labels)

    model = train(recipe)
    x, labels = load(recipe.name)
    recipe.export(model, torch.from_numpy(x[:2]), folder / "model.onnx")
    verify(folder / "model.onnx", model, x)
    print(f"{recipe.name}: top-1 {top1(folder / 'model.onnx', x, labels):.2%} of {len(x)} images")


def main() -> None:
    """Build the examples named on the command line."""
    parser = argparse.ArgumentParser(description="Train the example models and write their folders.")
    parser.add_argument("which", choices=[*RECIPES, "all"])
    which = parser.parse_args().which
    torch.set_num_threads(1)
    for recipe in RECIPES.values() if which == "all" else [RECIPES[which]]:
        build(recipe)


if __name__ == "__main__":
    main()
