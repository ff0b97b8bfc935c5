"""Inputs, arrays and files that the tests of calibration data share."""

import numpy as np
import pytest
from onnx import numpy_helper
from PIL import Image

from onnxq.data import CalibrationData, InputSpec
from onnxq.errors import DataError

F32 = np.dtype(np.float32)
X = InputSpec("x", F32, ("N", 3, 5))
Y = InputSpec("y", np.dtype(np.int64), ("N", 7))
IMAGE = InputSpec("image", F32, (1, 3, 5, 7))
ANY_IMAGE = InputSpec("image", F32, ("N", 3, "H", "W"))
GRAY = InputSpec("image", F32, ("N", 1, 5, 7))


def batch(count, *shape, dtype=np.float32):
    """Distinct finite values; the n-th sample is the same however many there are."""
    values = np.arange(count * int(np.prod(shape)), dtype=np.float64) / 8
    return values.reshape(count, *shape).astype(dtype)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_image(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def save_proto(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array).SerializeToString())
    return path


def rows(data, name="x"):
    return [feed.arrays[name] for feed in data]


def assert_feeds(data, expected, name="x"):
    found = rows(data, name)
    assert len(found) == len(expected)
    for array, wanted in zip(found, expected, strict=True):
        assert array.dtype == wanted.dtype
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, wanted, strict=True)


def refused(match, source, inputs=(X,), error=DataError, **options):
    with pytest.raises(error, match=match) as caught:
        list(CalibrationData(source, inputs, **options))
    return str(caught.value)


def fixed(size):
    return InputSpec("x", F32, (size, 3, 5))


def as_input(image):
    """The default preprocessing of H x W x C pixels that have the model's size already."""
    return (image.astype(np.float32) * np.float32(1 / 255)).transpose(2, 0, 1)[None]
