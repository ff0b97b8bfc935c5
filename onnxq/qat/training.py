"""The training loop: a quantized network learns to compute what the float one does.

    batch -> other views of it -> float network t, quantized network y -> loss(y, t) -> Adam on weights and grids

Adam's steps are of the size of the learning rate, whatever the gradient's. Growth and shift of grids take steps of
eta, a weight takes steps of eta_w s, s the step of its grid (`TorchNetwork.units`): at any bits and in every channel
about one weight in 1 / eta_w is rounded to another integer at a time. Both rates rise over the first steps and fall
to zero along a cosine. Held-out samples are evaluated now and then; the best state of all, the one at the start among
them, is what remains: lowest loss, with no fewer samples classified as the float model does than at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..calibration.checkpoint import Checkpoint
from ..errors import EngineError
from .loss import TrainingLoss, agreement
from .network import TorchNetwork
from .recipe import Recipe
from .samples import Augmentation, TrainingSamples

State = dict[str, Tensor]


@dataclass(frozen=True)
class HeldOutScore:
    """Of held-out samples at a step. same: share whose best class is the float model's; None without class scores."""

    step: int
    loss: float
    same: float | None

    def __str__(self) -> str:
        same = "" if self.same is None else f", same top-1 {100 * self.same:.1f} %"
        return f"loss {self.loss:.4g}{same}"


@dataclass
class Training:
    """student, teacher: on one device. rows: samples that one run of the model takes; None: as many as there are."""

    student: TorchNetwork
    teacher: TorchNetwork
    loss: TrainingLoss
    recipe: Recipe
    samples: TrainingSamples
    held_out: TrainingSamples
    augmentation: Augmentation
    inner: tuple[str, ...] = ()
    rows: int | None = None
    checkpoint: Checkpoint | None = None
    progress: Callable[[str, int, int], None] = lambda label, done, total: None
    history: list[HeldOutScore] = field(default_factory=list)
    best: HeldOutScore = field(init=False)
    state: State = field(init=False)
    units: State = field(init=False)

    def __post_init__(self) -> None:
        self.units = self.student.units()

    def run(self) -> None:
        """Train, and leave the best state in `student`. Raises OnnxqError."""
        optimizer = torch.optim.Adam(self._groups())
        first = self._resume(optimizer)
        every = max(self.recipe.steps // self.recipe.evaluations, 1)
        if first == 0:
            self._evaluate(0)
        for step in range(first, self.recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * self.recipe.rate(step)
            value = self._step(optimizer, step)
            if (step + 1) % every == 0 or step + 1 == self.recipe.steps:
                self._evaluate(step + 1)
                self._save(optimizer, step + 1)
                if self._is_stale():
                    break
            label = f"training: loss {value:.4g}; held out: {self.history[-1]}"
            self.progress(label, step + 1, self.recipe.steps)
        self.student.load_state_dict(self.state)

    def _groups(self) -> Iterator[dict[str, object]]:
        """Parameters with the learning rate of each at its height."""
        yield {"params": list(self.student.weights.values()), "full": self.recipe.lr}
        grids = [p for p in self.student.quantizers.parameters() if p.requires_grad]
        if grids:
            yield {"params": grids, "full": self.recipe.scale_lr}

    def _step(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        batch = self.samples.drawn(step, self.recipe.batch, self.recipe.seed)
        batch = self.augmentation.apply(batch, step, self.recipe.seed)
        optimizer.zero_grad()
        total = 0.0
        for part in batch.batches(self.rows or len(batch)):
            loss, _, _ = self._compare(part)
            share = len(part) / len(batch)
            (loss * share).backward()
            total += share * loss.item()
        if not math.isfinite(total):
            raise EngineError(f"training diverged at step {step + 1}: the loss is {total}; try lower learning rates")
        before = {name: weight.detach().clone() for name, weight in self.student.weights.items()}
        optimizer.step()
        with torch.no_grad():
            for name, weight in self.student.weights.items():
                weight.copy_(torch.lerp(before[name], weight, self.units[name]))
        return total

    def _compare(self, samples: TrainingSamples) -> tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]:
        """(loss, outputs, the float network's) of one run."""
        device = next(iter(self.student.parameters())).device
        inputs = {n: _on(device, a) for n, a in samples.arrays.items()}
        labels = None if samples.labels is None else torch.from_numpy(samples.labels).to(device)
        with torch.no_grad():
            reference = self.teacher.run(inputs, self.inner)
        outputs = self.student.run(inputs, self.inner)
        return self.loss(outputs, reference, labels), outputs, reference

    def _evaluate(self, step: int) -> None:
        """Measure on the held-out samples; keep the state if it is the best."""
        total, same, classified = 0.0, 0, 0
        for part in self.held_out.batches(self.rows or self.recipe.batch):
            with torch.no_grad():
                loss, outputs, reference = self._compare(part)
            total += float(loss) * len(part)
            found = agreement(outputs, {n: t for n, t in reference.items() if n not in self.inner})
            same, classified = same + found[0], classified + found[1]
        now = HeldOutScore(step, total / len(self.held_out), same / classified if classified else None)
        start = self.history[0] if self.history else now
        self.history.append(now)
        if step == 0 or (now.loss < self.best.loss and (now.same or 0) >= (start.same or 0)):
            self.best = now
            self.state = {n: t.detach().clone() for n, t in self.student.state_dict().items()}

    def _is_stale(self) -> bool:
        """Whether the best state was too many evaluations ago."""
        patience = self.recipe.patience
        since = sum(j.step > self.best.step for j in self.history)
        return patience is not None and since >= patience

    def _save(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        if self.checkpoint is None:
            return
        arrays = {f"now {n}": _array(t) for n, t in self.student.state_dict().items()}
        arrays |= {f"best {n}": _array(t) for n, t in self.state.items()}
        for number, moments in optimizer.state_dict()["state"].items():
            arrays |= {f"adam {number} {n}": _array(t) for n, t in moments.items()}
        history = [(j.step, j.loss, np.nan if j.same is None else j.same) for j in self.history]
        numbers = {"history": np.asarray(history, np.float64), "step": np.asarray(step)}
        self.checkpoint.save("training", {**arrays, **numbers, "best": np.asarray(self.history.index(self.best))})

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        """The step to go on from: 0 without a checkpoint."""
        found = None if self.checkpoint is None else self.checkpoint.load("training")
        if found is None:
            return 0
        tensors = {n: torch.from_numpy(np.array(a)) for n, a in found.items()}
        self.student.load_state_dict({n[4:]: t for n, t in tensors.items() if n.startswith("now ")})
        self.state = {n[5:]: t for n, t in tensors.items() if n.startswith("best ")}
        adam: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam "):
                _, number, moment = name.split(" ")
                adam.setdefault(int(number), {})[moment] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": adam})
        rows = found["history"].tolist()
        self.history = [HeldOutScore(int(s), loss, None if math.isnan(same) else same) for s, loss, same in rows]
        self.best = self.history[int(found["best"])]
        return int(found["step"])


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """A batch on the device; images with channels last, which convolutions are fastest in."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
