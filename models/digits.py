"""Distorted hand-written digits: the data of the example models (numpy and scikit-learn only).

scikit-learn's 1797 digits of 8x8 pixels are split once into base images for training and for evaluation.
Every image made here is one base image drawn on a 32x32 canvas with a random rotation, size, shear, shift,
stroke width, contrast and polarity, over a smooth background texture, crossed by up to two straight lines,
sprinkled with black and white pixels, and posterised to 16 levels per channel, which keeps the files small.
The same arguments always give the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Floats = NDArray[np.float64]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

SIDE = 32
"""Height and width of the images."""

TRAINING_BASES = 1200
"""Base images kept for training; the other 597 are only ever used for evaluation."""

_LEVELS = 16
_SPLIT_SEED = 1797
_CHUNK = 2000  # images drawn at a time: bounds the memory


def training_set(count: int, seed: int, *, colour: bool = False) -> tuple[Images, Labels]:
    """Draw `count` images (N x 32 x 32 x 1, or x 3 in colour) of the training bases, with their labels."""
    glyphs, labels = _bases()
    return _draw(glyphs[:TRAINING_BASES], labels[:TRAINING_BASES], count, (0, seed), colour)


def evaluation_set(count: int = 2000, seed: int = 0, *, colour: bool = False) -> tuple[Images, Labels]:
    """Draw `count` images like `training_set`, but of the held-out bases."""
    glyphs, labels = _bases()
    return _draw(glyphs[TRAINING_BASES:], labels[TRAINING_BASES:], count, (1, seed), colour)


def _bases() -> tuple[Floats, Labels]:
    """All base digits, ink in 0..1, in the order that defines the split."""
    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    return digits.images[order] / 16.0, digits.target[order].astype(np.int64)


def _draw(glyphs: Floats, labels: Labels, count: int, seed: tuple[int, int], colour: bool) -> tuple[Images, Labels]:
    """Draw `count` distorted images, using every base equally often (to within one)."""
    rng = np.random.default_rng(seed)
    picks = np.concatenate([rng.permutation(len(glyphs)) for _ in range(-(-count // len(glyphs)))])[:count]
    channels = 3 if colour else 1
    images = np.empty((count, SIDE, SIDE, channels), np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = picks[start : start + _CHUNK]
        images[start : start + _CHUNK] = _render(glyphs[chunk], channels, rng)
    return images, labels[picks]


def _render(glyphs: Floats, channels: int, rng: np.random.Generator) -> Images:
    """Draw each glyph once, distorted at random."""
    count = len(glyphs)

    def uniform(low: float, high: float, depth: int = 1) -> Floats:
        """One number per image (and channel), shaped to broadcast over count x SIDE x SIDE x depth."""
        return rng.uniform(low, high, (count, 1, 1, depth))

    ink = _strokes(glyphs, rng)[..., None]
    for chance in (0.5, 0.25):
        line = _line(count, rng)[..., None]
        ink = np.maximum(ink, line * uniform(0.4, 1.0) * (uniform(0, 1) < chance))

    # The signed distance from background to ink in each channel; the strongest channel sets the contrast.
    contrast = uniform(-1, 1, channels)
    contrast *= uniform(0.25, 0.85) / np.abs(contrast).max(axis=-1, keepdims=True)
    darkest, brightest = np.maximum(0, -contrast), np.minimum(1, 1 - contrast)
    background = darkest + (brightest - darkest) * uniform(0, 1, channels)

    values = background + contrast * ink
    values += uniform(0, 0.3) * uniform(0.5, 1, channels) * _texture(count, rng)[..., None]
    impulses = rng.random(ink.shape) < uniform(0, 0.05)
    values = np.where(impulses, rng.integers(0, 2, ink.shape), values)
    steps = np.rint(np.clip(values, 0, 1) * (_LEVELS - 1))
    return (steps * (255 // (_LEVELS - 1))).astype(np.uint8)


def _strokes(glyphs: Floats, rng: np.random.Generator) -> Floats:
    """The glyphs under random affine maps and stroke widths, as ink (count x SIDE x SIDE, 0..1)."""
    count = len(glyphs)

    def uniform(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (count, 1, 1))

    angle = np.deg2rad(uniform(-25, 25))
    cell = uniform(1.7, 3.2)  # pixels of the canvas per pixel of the glyph
    aspect, shear = uniform(0.85, 1.18), uniform(-0.25, 0.25)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    x, y = x - uniform(-4, 4), y - uniform(-4, 4)
    along = (np.cos(angle) * x + np.sin(angle) * y) / (cell * aspect)
    down = (np.cos(angle) * y - np.sin(angle) * x) / (cell / aspect)
    framed = np.pad(glyphs, ((0, 0), (1, 1), (1, 1)))
    middle = (framed.shape[1] - 1) / 2
    ink = _bilinear(framed, down + middle, along + shear * down + middle)
    return np.clip((ink - uniform(0.15, 0.4)) * uniform(1.5, 4), 0, 1)


def _line(count: int, rng: np.random.Generator) -> Floats:
    """One straight, soft-edged line per image at a random place (count x SIDE x SIDE, 0..1)."""
    angle, offset, width = (rng.uniform(low, high, (count, 1, 1)) for low, high in ((0, np.pi), (-12, 12), (0.8, 1.4)))
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    line: Floats = np.clip(width - np.abs(np.cos(angle) * x + np.sin(angle) * y - offset), 0, 1)
    return line


def _texture(count: int, rng: np.random.Generator) -> Floats:
    """Smooth random blobs (count x SIDE x SIDE, -1..1)."""
    coarse = rng.uniform(-1, 1, (count, 4, 4))
    row, column = np.mgrid[:SIDE, :SIDE] * (3 / (SIDE - 1))
    return _bilinear(coarse, row[None], column[None])


def _bilinear(images: Floats, row: Floats, column: Floats) -> Floats:
    """Sample images (N x h x w) at the given places (N x H x W, or 1 x H x W); the border extends outward."""
    height, width = images.shape[1:]
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    top = np.minimum(row.astype(np.intp), height - 2)
    left = np.minimum(column.astype(np.intp), width - 2)
    image = np.arange(len(images))[:, None, None]
    down, right = row - top, column - left
    upper = images[image, top, left] * (1 - right) + images[image, top, left + 1] * right
    lower = images[image, top + 1, left] * (1 - right) + images[image, top + 1, left + 1] * right
    sampled: Floats = upper * (1 - down) + lower * down
    return sampled
