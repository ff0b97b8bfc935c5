"""Training samples as arrays, batches drawn from them, and their augmentation.

Everything random is drawn anew from (seed, what it is for, number): a step's batch depends on its number alone, so that
an interrupted training goes on as it would have without the interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data import CalibrationData, InputSpec
from ..errors import DataError, UsageError
from ..graph.scratch import scratch_folder

Arrays = Mapping[str, NDArray[np.generic]]

CROP = 8
"""Images are shifted by up to an eighth of their height and width."""

_ORDER, _AUGMENTATION = 0, 1


@dataclass(frozen=True)
class TrainingSamples:
    """arrays: by input, the samples along axis 0.  labels: (N,) int64, or None.

    rows: which of them count, in order; None: all. Parts are read when they are taken: arrays may lie in a file.
    """

    arrays: Arrays
    labels: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())) if self.rows is None else self.rows)

    def take(self, which: NDArray[np.int64] | slice) -> TrainingSamples:
        """Some of them, in memory."""
        places = which if self.rows is None else self.rows[which]
        labels = None if self.labels is None else self.labels[places]
        return TrainingSamples({name: a[places] for name, a in self.arrays.items()}, labels)

    def batches(self, size: int) -> Iterator[TrainingSamples]:
        """All, in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def split(self, most: int) -> tuple[TrainingSamples, TrainingSamples]:
        """Those to train on, and one in ten, at most `most`, held out, evenly spread. Raises DataError."""
        count = min(len(self) // 10 or 1, most)
        if len(self) < 2:
            raise DataError("training needs at least two samples, one of them to be held out")
        held = np.linspace(0, len(self) - 1, count + 2)[1:-1].astype(np.int64)
        kept = np.setdiff1d(np.arange(len(self)), held)
        return replace(self, rows=kept), replace(self, rows=held)

    def drawn(self, step: int, size: int, seed: int) -> TrainingSamples:
        """The batch of a training step; a sample is drawn once an epoch at most."""
        size = min(size, len(self))
        per_epoch = len(self) // size
        order = np.random.default_rng((seed, _ORDER, step // per_epoch)).permutation(len(self))
        place = step % per_epoch * size
        return self.take(np.sort(order[place : place + size]))

    def digest(self) -> bytes:
        """SHA-256 of all of them and their labels."""
        sha = hashlib.sha256()
        for part in self.batches(256):
            for name, array in sorted(part.arrays.items()):
                sha.update(f"{name!r} {array.dtype} {array.shape}".encode())
                sha.update(array.tobytes())
            sha.update(b"" if part.labels is None else part.labels.tobytes())
        return sha.digest()


def read_samples(
    data: CalibrationData, labels: Sequence[int] | None, max_bytes: int, stack: ExitStack
) -> TrainingSamples:
    """All samples of `data`; in a temporary file where they are larger than `max_bytes`.

    Raises DataError where samples differ in shape, UsageError where a model's inputs share no batch axis.
    """
    total, filled = len(data.numbers()), 0
    arrays: dict[str, NDArray[np.generic]] = {}
    for feed in data:
        if feed.rows is None:
            raise UsageError("training needs inputs that share a batch axis, and this model's do not")
        for name, array in feed.arrays.items():
            if name not in arrays:
                shape = (total, *array.shape[1:])
                arrays[name] = _room(shape, array.dtype, max_bytes, stack)
            if arrays[name].shape[1:] != array.shape[1:]:
                raise DataError(
                    f"{feed.origin}: input {name!r} has shape {array.shape[1:]}, others {arrays[name].shape[1:]};"
                    " samples of a batch have one shape: set resize or crop, or pad them alike"
                )
            arrays[name][filled : filled + feed.rows] = array[: feed.rows]
        filled += feed.rows
    return TrainingSamples(arrays, None if labels is None else np.asarray(labels, np.int64))


def _room(shape: tuple[int, ...], dtype: np.dtype[np.generic], max_bytes: int, stack: ExitStack) -> NDArray[np.generic]:
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize <= max_bytes:
        return np.empty(shape, dtype)
    folder: Path = stack.enter_context(scratch_folder())
    return np.lib.format.open_memmap(folder / "samples.npy", "w+", dtype, shape)


@dataclass(frozen=True)
class Augmentation:
    """Random views of images: mirrored, and shifted by up to an `CROP`-th with their edges repeated.

    images: inputs that hold images, with their (height, width) axes.
    """

    flip: bool
    crop: bool
    images: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, kinds: Sequence[str], inputs: Sequence[InputSpec]) -> Augmentation:
        """kinds: of flip, crop. Inputs are images where they are float of rank 4 with 1, 3 or 4 channels."""
        images = {spec.name: axes for spec in inputs if (axes := _image_axes(spec)) is not None}
        return cls("flip" in kinds, "crop" in kinds, images)

    def apply(self, samples: TrainingSamples, step: int, seed: int) -> TrainingSamples:
        """The same samples as other views of them; every image of a sample is treated alike."""
        if not self.images or not (self.flip or self.crop):
            return samples
        rng = np.random.default_rng((seed, _AUGMENTATION, step))
        mirrored = rng.random(len(samples)) < 0.5 * self.flip
        shifts = rng.random((len(samples), 2)) * 2 - 1 if self.crop else np.zeros((len(samples), 2))
        arrays = dict(samples.arrays)
        for name, axes in self.images.items():
            arrays[name] = _viewed(samples.arrays[name], axes, mirrored, shifts)
        return TrainingSamples(arrays, samples.labels)


def _viewed(
    images: NDArray[np.generic], axes: tuple[int, int], mirrored: NDArray[np.bool_], shifts: NDArray[np.float64]
) -> NDArray[np.generic]:
    """shifts: (N, 2), from -1 to 1, in the largest shift."""
    height, width = (images.shape[axis] for axis in axes)
    out = np.empty_like(images)
    for index, image in enumerate(images):
        rows, columns = (
            np.clip(np.arange(n) + round(float(shift) * (n // CROP)), 0, n - 1)
            for n, shift in zip((height, width), shifts[index], strict=True)
        )
        columns = columns[::-1] if mirrored[index] else columns
        out[index] = image.take(rows, axes[0] - 1).take(columns, axes[1] - 1)
    return out


def _image_axes(spec: InputSpec) -> tuple[int, int] | None:
    shape = spec.shape
    if shape is None or len(shape) != 4 or spec.dtype.kind != "f":
        return None
    if shape[1] in (1, 3, 4):
        return 2, 3
    return (1, 2) if shape[3] in (1, 3, 4) else None
