"""How images become inputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples_on_disk import ANY_IMAGE, F32, IMAGE, pixels, refused, save_image

from onnxq.data import InputSpec, Preprocess
from onnxq.errors import UsageError


def preprocessed(image, shape, **options):
    dtype = options.pop("dtype", F32)
    return Preprocess(**options).apply(image, InputSpec("image", np.dtype(dtype), shape))


def test_normalization_is_computed_in_float32_per_channel():
    image = pixels(5, 7, 3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    result = preprocessed(image, (1, 3, 5, 7), mean=mean, std=std)
    for c in range(3):
        scaled = image[..., c].astype(np.float32) * np.float32(1 / 255)
        np.testing.assert_array_equal(result[c], (scaled - np.float32(mean[c])) / np.float32(std[c]))
    half = preprocessed(image, (1, 3, 5, 7), mean=mean, std=std, dtype=np.float16)
    np.testing.assert_array_equal(half, result.astype(np.float16), strict=True)
    np.testing.assert_array_equal(preprocessed(image, (1, 3, 5, 7), scale=1.0)[0], image[..., 0])


def test_layout():
    image = pixels(5, 7, 3)
    first = preprocessed(image, ("N", 3, "H", "W"))
    last = preprocessed(image, ("N", "H", "W", 3))
    assert (first.shape, last.shape) == ((3, 5, 7), (5, 7, 3))
    np.testing.assert_array_equal(first.transpose(1, 2, 0), last)
    np.testing.assert_array_equal(preprocessed(image, ("N", "C", "H", "W"), layout="nchw"), first)
    np.testing.assert_array_equal(preprocessed(image, None, layout="nhwc"), last)
    for shape in ((1, 3, 5, 3), ("N", "C", "H", "W"), (1, 16, 5, 7)):
        with pytest.raises(UsageError, match=r"cannot tell where .* has its channels; set `layout` to nchw or nhwc"):
            preprocessed(image, shape)
    with pytest.raises(UsageError, match="has 7 channels in layout nhwc, but color auto makes 1 or 3 or 4"):
        preprocessed(image, (1, 3, 5, 7), layout="nhwc")


def test_color():
    image = pixels(5, 7, 3)
    rgb = preprocessed(image, (1, 3, 5, 7), color="rgb", mean=(0.1, 0.2, 0.3))
    bgr = preprocessed(image, (1, 3, 5, 7), color="bgr", mean=(0.3, 0.2, 0.1))
    np.testing.assert_array_equal(bgr, rgb[::-1])
    gray = preprocessed(image, (1, 1, 5, 7), scale=1.0)
    np.testing.assert_array_equal(gray[0], np.asarray(Image.fromarray(image).convert("L")))
    assert preprocessed(image, (1, "C", 5, 7), layout="nchw", color="gray").shape == (1, 5, 7)
    bgra = preprocessed(np.dstack([image, image[..., 0]]), (1, 4, 5, 7), color="bgr", scale=1.0)
    np.testing.assert_array_equal(bgra, image[..., [2, 1, 0, 0]].transpose(2, 0, 1))
    with pytest.raises(UsageError, match="has 1 channels in layout nchw, but color rgb makes 3 or 4"):
        preprocessed(image, (1, 1, 5, 7), color="rgb")
    with pytest.raises(UsageError, match="color gray makes 1"):
        preprocessed(image, (1, 3, 5, 7), color="gray")


@pytest.mark.parametrize(
    ("resize", "shape", "size"),
    [
        (None, (1, 3, 11, 13), (11, 13)),
        (None, (1, 3, "H", "W"), (20, 30)),
        (None, (1, 3, 11, "W"), (20, 30)),
        ((11, 13), (1, 3, "H", "W"), (11, 13)),
        (11, (1, 3, "H", "W"), (11, 16)),  # int(11 * 30 / 20) = int(16.5), as torchvision rounds
    ],
)
def test_resize(resize, shape, size):
    image = pixels(20, 30, 3)
    result = preprocessed(image, shape, resize=resize, scale=1.0)
    pillow = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(result, np.asarray(pillow).transpose(2, 0, 1))
    if resize == 11:
        assert preprocessed(image.transpose(1, 0, 2), shape, resize=11).shape == (3, 16, 11)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_interpolation(interpolation):
    image = pixels(20, 30, 3)
    result = preprocessed(image, (1, 3, 11, 13), interpolation=interpolation, scale=1.0)
    pillow = Image.fromarray(image).resize((13, 11), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(result, np.asarray(pillow).transpose(2, 0, 1))


def test_crop_is_from_the_center():
    image = pixels(20, 31, 3)
    result = preprocessed(image, (1, 3, "H", "W"), crop=(11, 14), scale=1.0)
    # torchvision rounds 4.5 and 8.5 to even.
    np.testing.assert_array_equal(result, image[4:15, 8:22].transpose(2, 0, 1))
    assert preprocessed(image, (1, 3, 7, 7), resize=11, crop=7).shape == (3, 7, 7)


def test_a_crop_larger_than_the_image_names_it(tmp_path):
    path = save_image(tmp_path / "a.png", pixels(5, 7, 3))
    refused(r"a\.png: crop 6 x 6 is larger than the image, 5 x 7", path, [ANY_IMAGE], preprocess=Preprocess(crop=6))


def test_images_of_the_wrong_size_hint_at_resize_and_crop(tmp_path):
    save_image(tmp_path / "a.png", pixels(20, 30, 3))
    message = refused(r"a\.png: input image expected 1 x 3 x 5 x 7", tmp_path, [IMAGE], preprocess=Preprocess(resize=6))
    assert "got 1 x 3 x 6 x 9; set `resize` or `crop`" in message


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layout": "chw"}, "`layout` 'chw' is unknown; expected one of auto, nchw, nhwc"),
        ({"color": "cmyk"}, "`color` 'cmyk' is unknown; expected one of auto, rgb, bgr, gray"),
        ({"interpolation": "cubic"}, "`interpolation` 'cubic' is unknown; expected one of nearest, bilinear"),
        ({"interpolation": ["bilinear"]}, "`interpolation` must be a string"),
        ({"resize": 0}, "`resize` must be a positive int"),
        ({"resize": True}, "`resize` must be"),
        ({"resize": 1.5}, "`resize` must be"),
        ({"resize": [5]}, "`resize` must be"),
        ({"resize": "256"}, "`resize` must be"),
        ({"crop": (5, -7)}, "`crop` must be"),
        ({"crop": [True, 7]}, "`crop` must be"),
        ({"scale": 0}, "`scale` must be a finite number other than 0"),
        ({"scale": "1/255"}, "`scale` must be"),
        ({"mean": (1, 2)}, r"`mean` must be one finite number, or one per channel \(3 or 4\)"),
        ({"mean": []}, "`mean` must be"),
        ({"mean": ["0"]}, "`mean` must be"),
        ({"mean": float("nan")}, "`mean` must be"),
        ({"std": [1, 0, 1]}, "`std` must not be 0"),
        ({"std": 1e-50}, "`std` must not be 0"),
        ({"resise": 5}, "unknown preprocessing option resise: did you mean resize"),
        ({"qqq": 5}, "unknown preprocessing option qqq: options are layout, color"),
    ],
)
def test_refused_options(options, match):
    with pytest.raises(UsageError, match=match):
        Preprocess.from_config(options)


def test_options_from_toml():
    config = {"layout": "nhwc", "resize": [256, 320], "crop": 224, "mean": 0.5, "std": [0.1, 0.2, 0.3], "scale": 1}
    assert Preprocess.from_config(config) == Preprocess(
        layout="nhwc", resize=(256, 320), crop=224, mean=(0.5,), std=(0.1, 0.2, 0.3), scale=1
    )
    assert Preprocess.from_config({}) == Preprocess()


def test_mean_and_std_must_fit_the_channels():
    with pytest.raises(UsageError, match=r"`mean` has 3 values, input image .* has 1 channels; give 1 or 1"):
        preprocessed(pixels(5, 7, 1), (1, 1, 5, 7), mean=(1, 2, 3))


def test_pillow_is_imported_only_when_there_are_images():
    code = "import onnxq.data.calibration, sys; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
