"""What calibration data look like before they are used: mistakes that no later figure would show.

Ranges, rounding and the comparison with the float model all use the same inputs. Where these are wrong, the quantized
model follows the float model closely, on inputs that neither will ever see. Checked on a few samples:

    preprocessing    against what BatchNorm remembers of training (`preprocessing.py`)
    scaling          pixels that are scaled to 0..1, with a mean or standard deviation meant for 0..255
    variety          inputs that are the same everywhere, or the same in all samples
    images           gray or much smaller than what the model takes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..data import CalibrationData, Feed, InputSpec, Preprocess
from ..data.inputs import Array
from ..graph.model import Model
from ..thresholds import DATA_FIT_SAMPLES, ENLARGED, FLAT
from .preprocessing import DataFit, fit_of_data


@dataclass(frozen=True)
class DataCheck:
    """fit: of the data to the network, as BatchNorm remembers it.  findings: what is likely wrong, a sentence each."""

    fit: DataFit
    findings: tuple[str, ...]


def check_data(prepared: Model, data: CalibrationData) -> DataCheck:
    """Look at a few samples. prepared: the float model with BatchNorm folded. Raises DataError for damaged data."""
    feeds = data.take(DATA_FIT_SAMPLES)
    images = data.holds_images
    fit = fit_of_data(prepared, feeds, data.inputs, data.preprocess if images else None)
    findings = [fit.verdict] if fit.remedy else []
    if images and not fit.remedy:
        findings += _scaling(data.preprocess)
    findings += _variety(feeds, data.inputs)
    if images:
        findings += _images(data, fit)
    return DataCheck(fit, tuple(findings))


def _scaling(preprocess: Preprocess) -> Iterator[str]:
    """Of options that contradict each other, whatever the network."""
    largest = 255 * abs(preprocess.scale)
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if max(abs(v) for v in values) > 1 and largest <= 1.01:
            yield (
                f"`{name}` {','.join(f'{v:g}' for v in values)} is meant for pixels from 0 to 255, but `scale` 1/255"
                " brings them to 0 to 1 first: give `scale` 1 as well"
            )
            return


def _variety(feeds: Sequence[Feed], inputs: Sequence[InputSpec]) -> Iterator[str]:
    spec = inputs[0]
    arrays = [np.asarray(feed.arrays[spec.name]) for feed in feeds]
    if len(inputs) == 1 and spec.dtype.kind == "f" and all(array.size > 1 for array in arrays):  # masks may be constant
        constant = sum(array.min() == array.max() for array in arrays)
        if constant:
            yield f"input {spec.name!r} has one value everywhere in {constant} of {len(arrays)} samples looked at"
        deviation = float(np.sqrt(np.mean([array.var(dtype=np.float64) for array in arrays])))
        mean = float(np.mean([array.mean(dtype=np.float64) for array in arrays]))
        if constant < len(arrays) and deviation < FLAT * abs(mean):
            yield (
                f"input {spec.name!r} hardly varies: its standard deviation is {deviation:.2g} around {mean:.3g}; see"
                " how samples are scaled"
            )
    repeated = len(feeds) - len({feed.digest() for feed in feeds})
    if repeated:
        yield f"{repeated} of {len(feeds)} samples looked at repeat another one: there are fewer than it seems"


def _images(data: CalibrationData, fit: DataFit) -> Iterator[str]:
    pixels = list(data.pixels(DATA_FIT_SAMPLES))
    channels, *sides = sorted(data.take(1)[0].arrays[data.inputs[0].name].shape[-3:])
    small = [image for image in pixels if ENLARGED * max(image.shape[:2]) < min(sides)]
    if small:
        height, width = small[0].shape[:2]
        yield (
            f"{len(small)} of {len(pixels)} images looked at are enlarged more than {ENLARGED:g} times, from"
            f" {height} x {width} to {sides[0]} x {sides[1]}: they have none of the detail of larger ones"
        )
    if channels == 3 and all(_is_gray(image) for image in pixels) and (fit.remedy or not fit.layers):
        yield f"all {len(pixels)} images looked at are gray, and the model takes three colours"


def _is_gray(image: Array) -> bool:
    return image.shape[-1] == 1 or bool((image[..., :1] == image[..., 1:3]).all())
