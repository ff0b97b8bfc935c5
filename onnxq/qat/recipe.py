"""How to train: the options of `onnxq qat`, without PyTorch, which this part of `qat` alone does not import."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..schema import check_fields, documented, option

TRAINING = "Training (figure 12 of the white paper)"


@documented
@dataclass(frozen=True)
class Recipe:
    """How to train. Each field is an option of `onnxq qat`, but for seed, which is that of the samples.

    augment: a mirrored image may be another thing (digits, text, left and right), a shifted one hardly.
    """

    steps: int = option(2000, "Training steps, a batch each.", TRAINING, least=1)
    batch: int = option(128, "Samples a step.", TRAINING, least=1)
    lr: float = option(
        1e-2,
        "Learning rate of weights at its height, in steps of their grids; small batches want less.",
        TRAINING, above=0, most=1,
    )  # fmt: skip
    scale_lr: float = option(
        2e-3, "The same of scales and zero points, relative to the range.", TRAINING, above=0, most=1
    )
    warmup: float = option(
        0.05, "Share of the steps over which the rates rise; then they fall along a cosine.", TRAINING, least=0, most=1
    )
    held_out: int = option(
        1000, "Held-out samples, at most; one in ten. The state that does best on them is kept.", TRAINING, least=1
    )
    evaluations: int = option(20, "How often the held-out samples are evaluated.", TRAINING, least=1)
    patience: int | None = option(
        None, "End after N evaluations without progress.", TRAINING, least=1, metavar="N", shown="never"
    )
    temperature: float = option(1.0, "Of distillation, where outputs are class scores.", TRAINING, above=0)
    distill: tuple[str, ...] = option(
        (), "Inner tensors to learn from the float model, too.", TRAINING, flag="distill-tensors", metavar="GLOB"
    )
    loss: str | None = option(
        None,
        "A loss of your own, (outputs, float model's outputs, labels) -> tensor.",
        TRAINING, metavar="MODULE:FUNCTION", shown="distillation; with labels cross-entropy",
    )  # fmt: skip
    augment: tuple[str, ...] = option(
        ("crop",),
        "Random views of images: shifted by up to an eighth; mirrored, where that changes no meaning.",
        TRAINING, choices=("flip", "crop", "none"),
    )  # fmt: skip
    learn_ranges: bool = option(
        True, "Train scales and zero points beside weights and biases.", TRAINING, opposite="fixed-ranges"
    )
    device: str = option("auto", "cpu, cuda, ...; auto: a GPU where there is one.", TRAINING, metavar="NAME")
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "augment", tuple(kind for kind in self.augment if kind != "none"))

    def rate(self, step: int) -> float:
        """Share of the learning rates at a step: up in a line, down in a cosine."""
        rise = max(round(self.warmup * self.steps), 1)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(self.steps - rise, 1)))
