"""Is what PyTorch trains what ONNX Runtime runs? The float network before training, the written model after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from ..data import InputSpec
from ..data.inputs import batch_size
from ..errors import EngineError
from ..execution.compare_outputs import output_sqnr
from ..execution.session import Session, parallel_map
from ..numeric.metrics import same_class
from ..thresholds import QAT_CHECK_SAMPLES, QAT_COMPARED_SAMPLES, TORCH_AGREES_DB
from .network import TorchNetwork
from .samples import TrainingSamples
from .training import Training


@dataclass(frozen=True)
class WrittenModel:
    """How the model in the file compares with the network that was trained, over `compared` held-out samples.

    sqnr_db: None where no output is comparable. same: the share of samples with the same best class; None without
    class scores.
    """

    sqnr_db: float | None
    same: float | None
    compared: int

    def to_text(self) -> str:
        if self.sqnr_db is None:
            distance = "no output can be compared"
        else:
            distance = "the same to the last bit" if np.isinf(self.sqnr_db) else f"SQNR {self.sqnr_db:.1f} dB"
        same = f", same top-1 {100 * self.same:.1f} %" if self.same is not None else ""
        return f"trained network and written model on {self.compared} held-out samples: {distance}{same}"


def rows_of_run(
    network: TorchNetwork, proto: ModelProto, samples: TrainingSamples, specs: Sequence[InputSpec], origin: str
) -> int | None:
    """How many samples one run takes, None for any number, tried on the way of comparing with ONNX Runtime.

    Raises EngineError where the PyTorch network does not compute the same.
    """
    fixed = next((s.shape[0] for s in specs if s.shape and isinstance(s.shape[0], int)), None)
    size = batch_size(specs) if fixed is not None else 1
    some, session = samples.take(slice(0, max(QAT_CHECK_SAMPLES // (size or 1), 1) * (size or 1))), Session(proto)
    expected = [session.run(part.arrays) for part in some.batches(size or 1)]
    for rows in dict.fromkeys((size if fixed is not None else len(some), size)):
        try:
            found = [_outputs(network, part) for part in some.batches(rows or 1)]
        except EngineError:
            if rows == size:
                raise
            continue  # the model allows any batch, and has one written into its shapes
        db = output_sqnr([(_stacked(expected), _stacked(found))])
        if db is None or db >= TORCH_AGREES_DB:
            return None if fixed is None and rows == len(some) else rows
    raise EngineError(
        f"{origin}: the PyTorch network does not compute what ONNX Runtime does (SQNR {db:.1f} dB);"
        " this is a bug in onnxq"
    )


def compare_written(training: Training, path: Path, threads: int) -> WrittenModel:
    """Run the trained network in PyTorch and the written model in ONNX Runtime."""
    session, rows = Session(path), training.rows or 1
    some = training.held_out.take(slice(0, max(QAT_COMPARED_SAMPLES // rows, 1) * rows))
    expected = list(parallel_map(lambda part: session.run(part.arrays), some.batches(rows), threads))
    found = [_outputs(training.student, part) for part in some.batches(training.rows or training.recipe.batch)]
    first, second = _stacked(expected), _stacked(found)
    shares = [same.mean() for name in first if (same := same_class(first[name], second[name])) is not None]
    return WrittenModel(output_sqnr([(first, second)]), float(np.mean(shares)) if shares else None, len(some))


def _outputs(network: TorchNetwork, samples: TrainingSamples) -> dict[str, np.ndarray]:
    device = next(iter(network.parameters())).device
    with torch.no_grad():
        inputs = {n: torch.from_numpy(np.ascontiguousarray(a)).to(device) for n, a in samples.arrays.items()}
        return {n: t.cpu().numpy() for n, t in network.run(inputs).items()}


def _stacked(runs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
