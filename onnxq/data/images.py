"""Images as model inputs: decode -> color -> resize -> crop -> x = (pixel * scale - mean) / std -> layout.

Pixels travel between the steps as uint8 arrays H x W x C with C = 1 (gray), 3 (RGB) or 4 (RGBA).
Sizes and rounding are those of torchvision's transforms on Pillow images, which most models were
trained with.
"""

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from ..errors import DataError, UsageError
from ..schema import check_fields, documented, option
from .inputs import Array, Dim, InputSpec, reading, shape_text, shown

if TYPE_CHECKING:
    from PIL import Image

Layout: TypeAlias = Literal["auto", "nchw", "nhwc"]
Color: TypeAlias = Literal["auto", "rgb", "bgr", "gray"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Size: TypeAlias = int | tuple[int, int] | None

# Pillow goes by content, not by suffix: without this list, PostScript named x.png would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


IMAGES = "Images"


@documented
@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a model input. The defaults: RGB, stretched to the model's size, scaled to 0..1.

    x = (pixel * scale - mean) / std is evaluated in float32 in this order, pixels in 0..255. A uint8 input receives the
    pixels as they are, and refuses anything but the defaults. An input of four channels receives alpha as the fourth.
    resize and crop are (height, width) in pixels, or an int: of the shorter side, the aspect ratio being kept, or of a
    square, cut from the center after resizing. mean and std are one value, or one per channel in the model's channel
    order. Raises UsageError for a value that is not accepted; lists, as TOML has them, do for tuples.
    """

    layout: Layout = option(
        "auto", "Order of the input's axes; auto: channels are on the axis, first or last, of size 1, 3 or 4.", IMAGES,
        choices=get_args(Layout),
    )  # fmt: skip
    color: Color = option(
        "auto", "Channel order of images; auto: gray for one channel, else rgb.", IMAGES, choices=get_args(Color)
    )
    resize: Size = option(
        None, "Resize images: shorter side N, or to HxW.", IMAGES,
        unit="pixels", metavar="N|HxW", shown="the model's size, where it is fixed",
    )  # fmt: skip
    crop: Size = option(
        None, "Then cut this much from the centre.", IMAGES, unit="pixels", metavar="N|HxW", shown="no crop"
    )
    interpolation: Interpolation = option(
        "bilinear", "How images are resized; all but nearest are antialiased when they shrink an image.", IMAGES,
        choices=get_args(Interpolation),
    )  # fmt: skip
    scale: float = option(1 / 255, "x = (pixel * scale - mean) / std.", IMAGES, shown="1/255")
    mean: tuple[float, ...] = option((0.0,), "One value, or one a channel.", IMAGES, metavar="NUMBERS", shown="0")
    std: tuple[float, ...] = option((1.0,), "One value, or one a channel.", IMAGES, metavar="NUMBERS", shown="1")

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _per_channel(name, getattr(self, name)))
        if not _is_number(self.scale) or self.scale == 0:
            raise UsageError(f"`scale` must be a finite number other than 0, got {self.scale!r}")
        # Checked as the float32 that images are divided by, in which 1e-50 is 0 as well.
        if not all(np.asarray(self.std, np.float32)):
            raise UsageError(f"`std` must not be 0, got {list(self.std)}: images are divided by it")
        check_fields(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocess":
        """The options as a TOML table holds them, e.g. `{"resize": [256, 256], "mean": 0.5}`.

        Raises UsageError for an unknown option, with the closest known one, and for a value not accepted.
        """
        known = [field.name for field in fields(cls)]
        for key in config:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"options are {', '.join(known)}"
                raise UsageError(f"unknown preprocessing option {shown(key)}: {hint}")
        return cls(**config)

    def check(self, spec: InputSpec) -> None:
        """Raises DataError where this input takes no images, UsageError where these options do not fit it."""
        _frame(self, spec)

    def accepts_pixels(self, spec: InputSpec) -> bool:
        """Whether uint8 arrays for this input are images to be preprocessed: it is float, of rank 4."""
        if spec.dtype.kind != "f" or spec.shape is None or len(spec.shape) != 4:
            return False
        return self.layout != "auto" or any(spec.shape[axis] in _MODES for axis in (1, 3))

    def batch(self, pixels: Array, spec: InputSpec, origin: str = "images") -> Array:
        """uint8 H x W x C, or N x H x W or H x W for a gray input, as N x H x W x C, C being 1, 3 or 4.

        For a gray input, three axes are H x W x C where the last one is 1, 3 or 4. Raises DataError elsewhere.
        """
        gray = _frame(self, spec).channels == 1
        if gray and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] not in _MODES)):
            pixels = pixels[..., np.newaxis]
        if pixels.ndim == 3:
            pixels = pixels[np.newaxis]
        if pixels.ndim != 4 or pixels.shape[3] not in _MODES:
            raise DataError(
                f"{origin}: uint8 arrays for {spec} are images, N x H x W x C with C = 1, 3 or 4, "
                f"got {shape_text(pixels.shape)}; transpose them, or save finished inputs as {spec.dtype}"
            )
        return pixels

    def apply(self, pixels: Array, spec: InputSpec, origin: str = "image") -> Array:
        """One image as one sample of the input, without batch axis.

        pixels: uint8, H x W x C with C = 1 (gray), 3 (RGB) or 4 (RGBA).
        Returns C x H x W or H x W x C (see layout) of the input's dtype, C-contiguous.
        Raises as `check` does, and DataError (naming `origin`) where the crop is larger than the image.
        """
        from PIL import Image

        frame = _frame(self, spec)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image = image.convert(_MODES[frame.channels])
        size = _resized(self.resize, image.height, image.width) if self.resize else frame.size
        if size:
            image = image.resize((size[1], size[0]), Image.Resampling[self.interpolation.upper()])
        if self.crop:
            image = _center_crop(image, self.crop, origin)
        values = np.asarray(image).reshape(image.height, image.width, frame.channels)
        if self.color == "bgr":
            values = values[..., [2, 1, 0, 3][: frame.channels]]
        if spec.dtype != np.uint8:
            scale, mean, std = (np.asarray(value, np.float32) for value in (self.scale, self.mean, self.std))
            values = ((values.astype(np.float32) * scale - mean) / std).astype(spec.dtype)
        return np.ascontiguousarray(values.transpose(2, 0, 1) if frame.channels_first else values)


def decode(path: Path) -> Array:
    """An image file (the first frame of an animation), upright, as uint8 H x W x C with C = 1, 3 or 4.

    Raises DataError where the file is unreadable, truncated or implausibly large, or its pixels have neither
    8 nor 16 bits.
    """
    from PIL import Image, ImageOps

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            return _eight_bit(ImageOps.exif_transpose(image), path)


def _eight_bit(image: "Image.Image", path: Path) -> Array:
    if image.mode == "F":
        raise DataError(f"{shown(path)} has floating-point pixels; save it as an 8-bit image or as .npy")
    if image.mode.startswith("I"):
        # 16-bit gray, which Pillow also delivers as 32-bit "I". Its own conversion clips at 255.
        gray = np.asarray(image)
        if gray.min() < 0 or gray.max() > 0xFFFF:
            raise DataError(f"{shown(path)} has over 16 bits per pixel; save it as an 8-bit image or as .npy")
        return (gray >> 8).astype(np.uint8)[..., np.newaxis]
    if image.mode == "L":
        return np.asarray(image)[..., np.newaxis]
    transparent = "A" in image.getbands() or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))


@dataclass(frozen=True)
class _Frame:
    """How an input holds an image; `size` is (height, width) where the model fixes both."""

    channels_first: bool
    channels: int
    size: tuple[int, int] | None


def _frame(options: Preprocess, spec: InputSpec) -> _Frame:
    dims: Sequence[Dim] = (None, None, None) if spec.shape is None else spec.shape
    if len(dims) not in (3, 4) or (spec.dtype.kind != "f" and spec.dtype != np.uint8):
        raise DataError(f"{spec} takes no images, only float or uint8 inputs of rank 3 or 4 do; use .npz files")
    if spec.dtype == np.uint8 and (options.scale, options.mean, options.std) != (1 / 255, (0.0,), (1.0,)):
        raise UsageError(f"{spec} takes pixels as they are: leave `scale`, `mean` and `std` at their defaults")

    dims = dims[-3:]
    plausible = [layout for layout, dim in (("nchw", dims[0]), ("nhwc", dims[2])) if dim in _MODES]
    if options.layout == "auto" and len(plausible) != 1:
        raise UsageError(f"cannot tell where {spec} has its channels; set `layout` to nchw or nhwc")
    channels_first = (plausible[0] if options.layout == "auto" else options.layout) == "nchw"

    channels, height, width = dims if channels_first else (dims[2], dims[0], dims[1])
    if not isinstance(channels, int):
        channels = 1 if options.color == "gray" else 3
    accepted = {"auto": (1, 3, 4), "gray": (1,)}.get(options.color, (3, 4))
    if channels not in accepted:
        raise UsageError(
            f"{spec} has {channels} channels in layout {'nchw' if channels_first else 'nhwc'}, "
            f"but color {options.color} makes {' or '.join(map(str, accepted))}; change `layout` or `color`"
        )
    for name, values in (("mean", options.mean), ("std", options.std)):
        if len(values) not in (1, channels):
            raise UsageError(f"`{name}` has {len(values)} values, {spec} has {channels} channels; give 1 or {channels}")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return _Frame(channels_first, channels, size)


def _resized(resize: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """The (height, width) to resize to; an int is the shorter side, the longer one rounded down."""
    if isinstance(resize, tuple):
        return resize
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _center_crop(image: "Image.Image", crop: int | tuple[int, int], origin: str) -> "Image.Image":
    height, width = (crop, crop) if isinstance(crop, int) else crop
    if height > image.height or width > image.width:
        raise DataError(
            f"{origin}: crop {height} x {width} is larger than the image, {image.height} x {image.width} "
            "after resizing; make `crop` smaller or `resize` larger"
        )
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(option: str, value: object) -> Size:
    match value:
        case None:
            return None
        case int(side) if type(side) is int and side > 0:  # not a bool
            return side
        case [int(height), int(width)] if type(height) is type(width) is int and min(height, width) > 0:
            return height, width
    raise UsageError(f"`{option}` must be a positive int or (height, width), in pixels, got {value!r}")


def _per_channel(option: str, value: object) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else (value,)
    if len(values) not in (1, 3, 4) or not all(_is_number(v) for v in values):
        raise UsageError(f"`{option}` must be one finite number, or one per channel (3 or 4), got {value!r}")
    return tuple(float(v) for v in values)
