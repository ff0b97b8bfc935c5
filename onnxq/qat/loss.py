"""What training minimises; t: the float model's output (teacher), y: the network's (student).

    class scores    T^2 KL(softmax(t / T), softmax(y / T)), mean over samples (Hinton et al., arXiv:1503.02531)
    other outputs   mean (y - t)^2 / var(t)
    inner tensors   the same as other outputs, added with a weight, where `--distill-tensors` names them
    labels          cross-entropy of y

Where a model ends in Softmax its outputs are probabilities: their logarithms are logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import DataError, UsageError
from ..evaluation.custom_metric import describe, load_function

Outputs = Mapping[str, Tensor]

SMALLEST_PROBABILITY = 1e-7


class TrainingLoss(Protocol):
    """A scalar of one batch. labels: (N,) int64, or None."""

    def __call__(self, outputs: Outputs, reference: Outputs, labels: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class Distillation:
    """outputs: names of the model's outputs; whatever else the reference holds are inner tensors.

    weight: of all inner tensors together, beside a weight of 1 for all outputs together.
    """

    outputs: tuple[str, ...]
    temperature: float = 1.0
    weight: float = 1.0

    def __call__(self, outputs: Outputs, reference: Outputs, labels: Tensor | None) -> Tensor:
        compared = [n for n in self.outputs if reference[n].is_floating_point()]
        if not compared:
            raise UsageError("no output of the model is float: give a loss of your own")
        total = torch.stack([self._output(outputs[n], reference[n]) for n in compared]).mean()
        inner = [squared_error(outputs[n], t) for n, t in reference.items() if n not in self.outputs]
        return total + self.weight * torch.stack(inner).mean() if inner else total

    def _output(self, y: Tensor, t: Tensor) -> Tensor:
        if not is_scores(t):
            return squared_error(y, t)
        y, t = (log_probabilities(x.flatten(1), is_distribution(t), self.temperature) for x in (y, t))
        return functional.kl_div(y, t, reduction="batchmean", log_target=True) * self.temperature**2


@dataclass(frozen=True)
class CrossEntropy:
    """Of the only output that holds class scores, against labels."""

    def __call__(self, outputs: Outputs, reference: Outputs, labels: Tensor | None) -> Tensor:
        found = [n for n, t in reference.items() if is_scores(t)]
        if len(found) != 1 or labels is None:
            raise UsageError(f"labels are for one output of class scores; {len(found)} outputs look like it")
        y = outputs[found[0]].flatten(1)
        if int(labels.min()) < 0 or int(labels.max()) >= y.shape[1]:
            raise DataError(
                f"labels: classes {int(labels.min())} to {int(labels.max())} are named, and output {found[0]!r} has"
                f" scores of {y.shape[1]}"
            )
        return functional.nll_loss(log_probabilities(y, is_distribution(reference[found[0]])), labels)


def load_loss(name: str) -> TrainingLoss:
    """The user's function `module:function`, its result checked. Raises UsageError."""
    function = load_function(name, "loss")

    def checked(outputs: Outputs, reference: Outputs, labels: Tensor | None) -> Tensor:
        try:
            value = function(outputs, reference, labels)
        except Exception as error:
            raise UsageError(f"`loss` {name} failed: {describe(error)}") from None
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise UsageError(f"`loss` {name}: expected a tensor of one number, got {value!r:.100}")
        return value.reshape(())

    return checked


def is_scores(output: Tensor) -> bool:
    """Whether an output looks like scores of classes, (N, C) or (N, C, 1, ...), C > 1."""
    classes = output.shape[1] if output.ndim > 1 else 1
    return bool(output.is_floating_point() and classes > 1 and output[0, 0].numel() == 1)


def is_distribution(scores: Tensor) -> bool:
    """Whether the scores are probabilities already."""
    return bool((scores >= 0).all() and ((scores.flatten(1).sum(1) - 1).abs() < 1e-3).all())


def log_probabilities(scores: Tensor, are_probabilities: bool, temperature: float = 1.0) -> Tensor:
    """(N, C) -> (N, C)."""
    logits = scores.clamp_min(SMALLEST_PROBABILITY).log() if are_probabilities else scores
    return functional.log_softmax(logits / temperature, 1)


def squared_error(y: Tensor, t: Tensor) -> Tensor:
    """Of a batch, in units of the reference's variance."""
    return functional.mse_loss(y, t) / t.var(unbiased=False).clamp_min(1e-12)


def agreement(outputs: Outputs, reference: Outputs) -> tuple[int, int]:
    """(samples with the reference's best class, samples), over all outputs that hold class scores."""
    same = total = 0
    for name, t in reference.items():
        if is_scores(t):
            same += int((outputs[name].flatten(1).argmax(1) == t.flatten(1).argmax(1)).sum())
            total += len(t)
    return same, total
