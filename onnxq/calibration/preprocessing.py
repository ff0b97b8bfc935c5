"""Do the calibration data look like those that the network was trained on? BatchNorm remembers what these were.

In channel c of a layer, BatchNorm holds the mean m0 and variance v0 of training; with the calibration data we measure m
and v. Were both normal, the divergence of the measured distribution from the remembered one would be (Kullback-Leibler)

    D_c = 1/2 (v / v0 + (m - m0)^2 / v0 - 1 - ln(v / v0))

    misfit = mean over the first `LAYERS` such layers of the median over channels of D_c
    shift  = mean over them of the mean over channels of (m - m0)^2 / v0

The first layers see little but the preprocessing: a wrong scale or offset of the pixels shows in `misfit`, swapped
colours, which leave variances as they were, in `shift`. Where the misfit is large, the pixels are taken back out of the
inputs and put into the forms that networks are usually trained with (`CONVENTIONS`); the one that fits best is named
where it has at most half of the misfit. Where none has, other images than those of training are the likelier cause,
which a warning is only given for beyond `LOST`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from ..data import Feed, InputSpec, Preprocess
from ..errors import EngineError
from ..execution.partial import tensor_values
from ..execution.session import without_padding
from ..graph.model import Model
from ..operators.linear import LinearLayer, layer_ending_in
from ..operators.node import is_op
from ..thresholds import DATA_FIT_SAMPLES, LOST, MISFIT, SWAPPED_SHIFT

Vector = NDArray[np.float64]
Factors = tuple[Vector, Vector]

LAYERS = 3
"""The nearest layers to the input tell preprocessing from everything else; one alone may be odd."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Convention:
    """x = (pixel * scale - mean) / std, pixels from 0 to 255; mean, std: one value, or three for red, green, blue."""

    name: str
    scale: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def factors(self, channels: int, reverse: bool) -> Factors:
        """(C,) a and b of x = a pixel + b. reverse: the model's channels are blue, green, red."""
        mean, std = (_by_channel(values, channels, reverse) for values in (self.mean, self.std))
        return self.scale / std, -mean / std

    def settings(self, reverse: bool) -> str:
        """The options of `Preprocess` that make it."""
        parts = [f"`scale` {'1/255' if self.scale == 1 / 255 else f'{self.scale:g}'}"]
        for name, values in (("mean", self.mean), ("std", self.std)):
            parts.append(f"`{name}` " + ",".join(f"{value:g}" for value in (values[::-1] if reverse else values)))
        return " ".join(parts)


CONVENTIONS = (
    Convention("0 to 255", 1.0),
    Convention("0 to 1", 1 / 255),
    Convention("-1 to 1", 1.0, (127.5,), (127.5,)),
    Convention("ImageNet's mean and standard deviation", 1 / 255, _IMAGENET_MEAN, _IMAGENET_STD),
    Convention("0 to 255 less ImageNet's mean", 1.0, (123.675, 116.28, 103.53)),
)


@dataclass(frozen=True)
class DataFit:
    """How far the data are from what BatchNorm remembers.

    misfit, shift: as above, without unit; 0 is perfect.  layers, samples: of how many; no layers: nothing is known.
    given: the form that the inputs are in, as far as it can be seen.  better: the one that fits clearly better.
    swapped_shift: `shift` with the order of the colours reversed; None where there are no colours.
    remedy: what to do; empty where the data fit.
    """

    misfit: float = 0.0
    shift: float = 0.0
    layers: int = 0
    samples: int = 0
    given: str | None = None
    better: str | None = None
    swapped_shift: float | None = None
    remedy: str = ""

    @property
    def is_swapped(self) -> bool:
        """Whether the order of the colours, and nothing else, is what does not fit."""
        return (
            self.better is None and self.swapped_shift is not None and self.shift > SWAPPED_SHIFT * self.swapped_shift
        )

    @property
    def verdict(self) -> str:
        """One sentence, for a warning or for `inspect`."""
        if not self.layers:
            return "the model has no BatchNorm that says what its inputs looked like in training"
        given = f", in the form {self.given}," if self.given else ""
        if not self.remedy:
            return f"the data{given} fit what BatchNorm remembers of training (misfit {self.misfit:.2f} of {MISFIT:g})"
        if self.is_swapped:
            return (
                "behind the first layers the means fit what BatchNorm remembers of training better with red and blue"
                f" swapped (shift {self.swapped_shift:.3f}, now {self.shift:.3f}): {self.remedy}"
            )
        fit = f"; {self.better} fits" if self.better else ""
        return (
            f"the data{given} are not what the network was trained on: behind its first layers they are far from what"
            f" BatchNorm remembers (misfit {self.misfit:.3g}, at most {MISFIT:g} is normal){fit}: {self.remedy}"
        )


def fit_of_data(
    prepared: Model, feeds: Sequence[Feed], inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> DataFit:
    """Compare a few samples with what the BatchNorms of a model, folded or not, remember.

    preprocess: what made inputs of images; None where arrays were taken as they are.
    """
    places = remembered(prepared)
    feeds = feeds[:DATA_FIT_SAMPLES]
    if not places or not feeds:
        return DataFit()
    proto = prepared.to_proto()
    measure = _Measure(proto, places)
    try:
        misfit, shift = measure(feeds)
    except EngineError:  # a model that does not run is reported by whoever needs its outputs
        return DataFit()
    fit = DataFit(misfit, shift, len(places), len(feeds))
    image = _image(inputs, feeds, preprocess)
    if image is None:
        return fit if misfit <= LOST else replace(fit, remedy="see that samples are preprocessed as in training")
    fit = replace(fit, given=None if image.given is None else image.given.name)
    if misfit > MISFIT:
        fit = _with_remedy(fit, image, measure, feeds)
    if image.channels != 3 or fit.remedy:
        return fit
    fit = replace(fit, swapped_shift=measure([image.changed(feed, image.swap) for feed in feeds])[1])
    if not fit.is_swapped:
        return fit
    order = "rgb" if image.is_bgr else "bgr"
    action = f"give `color` {order}" if image.by_options else "reverse the order of the channels"
    return replace(fit, remedy=f"if the network was trained on that order, {action}")


@dataclass(frozen=True)
class Remembered:
    """What BatchNorm says of a tensor: mean and variance of training, (C,) each, of the channels along `axis`."""

    tensor: str
    axis: int
    mean: Vector
    variance: Vector


def remembered(prepared: Model) -> list[Remembered]:
    """Of the first `LAYERS` tensors in graph order, at inputs of BatchNorms and at outputs of layers that hold one."""
    found: list[Remembered] = []
    for node in prepared.graph.nodes:
        if is_op(node, "BatchNormalization"):
            moments = [np.asarray(t.values, np.float64) for t in node.inputs[3:5] if isinstance(t, gs.Constant)]
            if len(moments) == 2:
                found.append(Remembered(node.inputs[0].name, 1, *moments))
        for output in node.outputs:
            layer = layer_ending_in(output) if output.name in prepared.moments else ""
            if isinstance(layer, LinearLayer):
                known = prepared.moments[output.name]
                found.append(Remembered(output.name, layer.output_axis, known.mean, known.std**2))
        if len(found) >= LAYERS:
            break
    return found[:LAYERS]


@dataclass(frozen=True)
class _Measure:
    """misfit and shift of feeds."""

    proto: ModelProto
    places: Sequence[Remembered]

    def __call__(self, feeds: Sequence[Feed]) -> tuple[float, float]:
        """Raises EngineError."""
        count = {place.tensor: 0 for place in self.places}
        sums = {place.tensor: np.zeros((2, place.mean.size)) for place in self.places}
        for feed, values in zip(feeds, tensor_values(self.proto, list(sums), feeds), strict=True):
            for place in self.places:
                x = np.moveaxis(np.asarray(without_padding(values[place.tensor], feed), np.float64), place.axis, 0)
                x = x.reshape(len(x), -1)
                count[place.tensor] += x.shape[1]
                sums[place.tensor] += x.sum(1), np.square(x).sum(1)
        misfits, shifts = [], []
        for place in self.places:
            mean, square = sums[place.tensor] / max(count[place.tensor], 1)
            alive = place.variance > 1e-3 * np.median(place.variance)  # others carry a constant
            ratio = np.maximum(square - mean**2, 1e-12 * place.variance)[alive] / place.variance[alive]
            distance = (mean - place.mean)[alive] ** 2 / place.variance[alive]
            misfits.append(np.median((ratio + distance - 1 - np.log(ratio)) / 2))
            shifts.append(np.mean(distance))
        return float(np.mean(misfits)), float(np.mean(shifts))


@dataclass(frozen=True)
class _Image:
    """The one input that takes images.

    axis: of its channels.  given: the form its pixels are in; None: unknown.  is_bgr: their order.  by_options: whether
    options of `Preprocess` made it, so that others can make another.
    """

    name: str
    axis: int
    channels: int
    given: Convention | None
    is_bgr: bool
    by_options: bool

    def changed(self, feed: Feed, change: Callable[[Vector], Vector]) -> Feed:
        """The feed with `change` applied to its image, channels last."""
        x = feed.arrays[self.name]
        pixels = change(np.moveaxis(x.astype(np.float64), self.axis, -1))
        array = np.ascontiguousarray(np.moveaxis(pixels, -1, self.axis), x.dtype)
        return replace(feed, arrays={**feed.arrays, self.name: array})

    def swap(self, x: Vector) -> Vector:
        """Pixels in the opposite order; what is subtracted and divided by stays with its channel."""
        if self.given is None:
            return x[..., ::-1]
        a, b = self.given.factors(self.channels, self.is_bgr)
        return ((x - b) / a)[..., ::-1] * a + b


def _image(inputs: Sequence[InputSpec], feeds: Sequence[Feed], preprocess: Preprocess | None) -> _Image | None:
    if len(inputs) != 1 or inputs[0].dtype.kind != "f":
        return None
    spec, x = inputs[0], feeds[0].arrays[inputs[0].name]
    layout = "auto" if preprocess is None else preprocess.layout
    axes = {"nchw": (1,), "nhwc": (3,), "auto": (1, 3)}[layout]
    found = [axis for axis in axes if x.ndim == 4 and x.shape[axis] in (1, 3)]
    if not found:
        return None
    axis, channels = found[0], x.shape[found[0]]
    is_bgr = preprocess is not None and preprocess.color == "bgr"
    if preprocess is None:
        return _Image(spec.name, axis, channels, _guessed([feed.arrays[spec.name] for feed in feeds]), False, False)
    std, mean = preprocess.std, preprocess.mean
    given = Convention("", preprocess.scale, mean[::-1] if is_bgr else mean, std[::-1] if is_bgr else std)
    a, b = given.factors(channels, False)
    known = [c.name for c in CONVENTIONS if _is_close((a, b), c.factors(channels, False))]
    text = known[0] if known else f"{float(b.min()):.3g} to {float((255 * a + b).max()):.3g}"
    return _Image(spec.name, axis, channels, replace(given, name=text), is_bgr, True)


def _is_close(one: Factors, other: Factors) -> bool:
    """Whether two forms put black and white within a twentieth of their distance."""
    (a, b), (c, d) = one, other
    return bool((np.abs(255 * (a - c)) + np.abs(b - d) <= 0.05 * np.abs(255 * c)).all())


def _guessed(arrays: Sequence[NDArray[np.floating]]) -> Convention | None:
    """The form that arrays are in, from their range; None where several could be."""
    lo, hi = min(float(x.min()) for x in arrays), max(float(x.max()) for x in arrays)
    by_name = {c.name: c for c in CONVENTIONS}
    if hi - lo < 0.3:  # pixels that were scaled twice
        return None
    if lo >= 0:
        return by_name["0 to 1"] if hi <= 1 else by_name["0 to 255"] if 16 < hi <= 255 else None
    if lo >= -1.01 and hi <= 1.01:
        return by_name["-1 to 1"]
    if lo >= -2.2 and hi <= 2.7:
        return by_name["ImageNet's mean and standard deviation"]
    return by_name["0 to 255 less ImageNet's mean"] if lo >= -124 and 16 < hi <= 152 else None


def _with_remedy(fit: DataFit, image: _Image, measure: _Measure, feeds: Sequence[Feed]) -> DataFit:
    """With the convention that fits clearly better than what was given, if there is one."""
    if image.given is None:
        known = "see that pixels are scaled and shifted as in training"
        return fit if fit.misfit <= LOST else replace(fit, remedy=known)
    a, b = image.given.factors(image.channels, image.is_bgr)
    best: tuple[float, Convention] | None = None
    for convention in CONVENTIONS:
        a_new, b_new = convention.factors(image.channels, image.is_bgr)
        change = partial(_affine, a_new / a, b_new - b * a_new / a)
        misfit, _ = measure([image.changed(feed, change) for feed in feeds])
        if best is None or misfit < best[0]:
            best = misfit, convention
    assert best is not None
    if best[0] > fit.misfit / 2:
        lost = "no usual scaling of the pixels fits either: see whether it is the right data for this model"
        return fit if fit.misfit <= LOST else replace(fit, remedy=lost)
    action = f"give {best[1].settings(image.is_bgr)}" if image.by_options else "save the arrays in that form"
    return replace(fit, better=f"{best[1].name} (misfit {best[0]:.2f})", remedy=action)


def _affine(gain: Vector, offset: Vector, x: Vector) -> Vector:
    return gain * x + offset


def _by_channel(values: tuple[float, ...], channels: int, reverse: bool) -> Vector:
    """(C,) of one value, or of values as red, green, blue; gray has their mean."""
    if len(values) not in (1, channels):
        values = (float(np.mean(values)),) if channels == 1 else values[:channels]
    return np.resize(np.asarray(values[::-1] if reverse else values, np.float64), channels)
