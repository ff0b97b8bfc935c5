"""Images as calibration data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples_on_disk import (
    ANY_IMAGE,
    F32,
    GRAY,
    IMAGE,
    Y,
    as_input,
    assert_feeds,
    batch,
    pixels,
    refused,
    rows,
    save_image,
)

from onnxq.data import CalibrationData, InputSpec, Preprocess
from onnxq.errors import UsageError


def test_an_image_file_is_one_sample(tmp_path):
    for suffix in ("png", "bmp", "tif", "tiff", "ppm", "webp"):
        options = {"lossless": True} if suffix == "webp" else {}
        path = save_image(tmp_path / f"a.{suffix}", pixels(5, 7, 3), **options)
        assert_feeds(CalibrationData(path, [IMAGE]), [as_input(pixels(5, 7, 3))], "image")
    for suffix in ("jpg", "jpeg", "gif"):
        path = save_image(tmp_path / f"a.{suffix}", pixels(5, 7, 3))
        with Image.open(path) as image:
            decoded = np.asarray(image.convert("RGB"))
        assert_feeds(CalibrationData(path, [IMAGE]), [as_input(decoded)], "image")


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.fromarray(np.full((5, 7, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert rows(CalibrationData(tmp_path, [IMAGE]), "image")[0].max() == 0


def test_uint8_arrays_are_images(tmp_path):
    images = pixels(2, 5, 7, 3)
    for i, image in enumerate(images):
        save_image(tmp_path / "files" / f"{i}.png", image)
    np.save(tmp_path / "batch.npy", images)
    np.savez(tmp_path / "batch.npz", image=images)
    files = CalibrationData(tmp_path / "files", [IMAGE])
    assert_feeds(files, [as_input(image) for image in images], "image")
    sources = [tmp_path / "batch.npy", tmp_path / "batch.npz", images, list(images)]
    for source in sources:
        assert CalibrationData(source, [IMAGE]).digest() == files.digest()


def test_uint8_arrays_for_gray_inputs():
    gray = pixels(2, 5, 7)
    expected = [as_input(image[..., None]) for image in gray]
    assert_feeds(CalibrationData(gray, [GRAY]), expected, "image")
    assert_feeds(CalibrationData(gray[..., None], [GRAY]), expected, "image")
    assert_feeds(CalibrationData(list(gray), [GRAY]), expected, "image")
    assert CalibrationData(pixels(5, 7, 3), [GRAY]).take(1)[0].arrays["image"].shape == (1, 1, 5, 7)


def test_uint8_arrays_with_channels_first_are_refused():
    refused(
        "uint8 arrays for input image .* are images, N x H x W x C .* got 2 x 3 x 5 x 7", pixels(2, 3, 5, 7), [IMAGE]
    )
    refused("got 1 x 3 x 5 x 7", pixels(3, 5, 7), [IMAGE])


def test_uint8_arrays_among_other_inputs():
    data = CalibrationData({"image": pixels(2, 5, 7, 3), "y": batch(2, 7, dtype=np.int64)}, [ANY_IMAGE, Y])
    assert_feeds(data, [as_input(image) for image in pixels(2, 5, 7, 3)], "image")
    separate = [ANY_IMAGE, InputSpec("y", Y.dtype, ("M", 7))]
    (feed,) = CalibrationData({"image": pixels(2, 5, 7, 3), "y": batch(4, 7, dtype=np.int64)}, separate)
    assert feed.arrays["image"].shape == (2, 3, 5, 7)


def test_uint8_is_no_image_where_the_input_holds_none():
    spec = InputSpec("x", F32, ("N", 16, 5, 7))
    refused("expected float32, got uint8", pixels(2, 16, 5, 7), [spec])


def test_a_uint8_input_takes_pixels_as_they_are(tmp_path):
    spec = InputSpec("image", np.dtype(np.uint8), (1, 5, 7, 3))
    save_image(tmp_path / "a.png", pixels(5, 7, 3))
    assert_feeds(CalibrationData(tmp_path, [spec]), [pixels(1, 5, 7, 3)], "image")
    assert_feeds(CalibrationData(pixels(1, 5, 7, 3), [spec]), [pixels(1, 5, 7, 3)], "image")
    for source in (tmp_path, pixels(1, 5, 7, 3)):
        refused("pixels as they are", source, [spec], UsageError, preprocess=Preprocess(mean=(0.5,)))


def test_images_for_inputs_without_batch_axis(tmp_path):
    for i in range(3):
        save_image(tmp_path / f"{i}.png", pixels(5, 7, 3, seed=i))
    specs = [(3, 5, 7), (3, "H", "W")]
    for shape in specs:
        data = CalibrationData(tmp_path, [InputSpec("image", F32, shape)], samples=2)
        assert_feeds(data, [as_input(pixels(5, 7, 3, seed=i))[0] for i in (0, 1)], "image")
    (feed, *_) = CalibrationData(tmp_path, [InputSpec("image", F32, ("H", "W", 3))])
    assert (feed.arrays["image"].shape, feed.rows) == ((5, 7, 3), None)


def test_images_for_an_input_of_unknown_rank(tmp_path):
    save_image(tmp_path / "a.png", pixels(5, 7, 3))
    spec = InputSpec("image", F32, None)
    refused("cannot tell where .* has its channels; set `layout`", tmp_path, [spec], UsageError)
    data = CalibrationData(tmp_path, [spec], preprocess=Preprocess(layout="nchw"))
    assert_feeds(data, [as_input(pixels(5, 7, 3))], "image")


@pytest.mark.parametrize("shape", [("N", 7), (), ("N", 1, 3, 5, 7)])
def test_images_need_rank_3_or_4(tmp_path, shape):
    save_image(tmp_path / "a.png", pixels(5, 7, 3))
    refused("takes no images.*use .npz", tmp_path, [InputSpec("x", F32, shape)])


def test_images_need_one_input_and_a_type_for_pixels(tmp_path):
    save_image(tmp_path / "a.png", pixels(5, 7, 3))
    refused("images hold one array, and the model has inputs image, y", tmp_path, [IMAGE, Y])
    refused("takes no images", tmp_path, [InputSpec("image", np.dtype(np.int64), (1, 3, 5, 7))])


def test_images_of_a_fixed_batch(tmp_path):
    for i in range(3):
        save_image(tmp_path / f"{i}.png", pixels(5, 7, 3, seed=i))
    data = CalibrationData(tmp_path, [InputSpec("image", F32, (2, 3, 5, 7))])
    assert [(feed.arrays["image"].shape, feed.rows) for feed in data] == [((2, 3, 5, 7), 2), ((2, 3, 5, 7), 1)]


def test_only_chosen_images_are_opened(tmp_path, monkeypatch):
    for i in range(9):
        save_image(tmp_path / f"{i}.png", pixels(5, 7, 3))
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: opened.append(Path(path).name) or real(path, *a, **k))
    data = CalibrationData(tmp_path, [IMAGE], samples=3)
    assert len(data) == 3
    assert opened == []
    list(data)
    assert opened == ["0.png", "3.png", "6.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = pixels(5, 7, 3)
    # What a camera stores so that the tag turns it upright again.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_image(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    assert_feeds(CalibrationData(tmp_path, [ANY_IMAGE]), [as_input(upright)], "image")


def test_image_modes(tmp_path):
    color, gray = pixels(5, 7, 3), pixels(5, 7)
    images = {
        "L.png": Image.fromarray(gray),
        "LA.png": Image.merge("LA", [Image.fromarray(gray), Image.fromarray(pixels(5, 7, seed=1))]),
        "RGBA.png": Image.fromarray(np.dstack([color, pixels(5, 7, seed=1)])),
        "P.png": Image.fromarray(color).quantize(35),
        "1.png": Image.fromarray(gray).convert("1"),
        "I16.png": Image.fromarray(gray.astype(np.uint16) * 256 + pixels(5, 7, seed=1)),
        "I.tif": Image.fromarray(gray.astype(np.int32) * 256 + pixels(5, 7, seed=1)),
        "CMYK.tif": Image.fromarray(color).convert("CMYK"),
    }
    expected = {
        "RGBA.png": color,
        "P.png": np.asarray(images["P.png"].convert("RGB")),
        "1.png": np.repeat(np.asarray(images["1.png"].convert("L"))[..., None], 3, 2),
        "CMYK.tif": np.asarray(images["CMYK.tif"].convert("RGB")),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        wanted = expected.get(name, np.repeat(gray[..., None], 3, 2))
        assert_feeds(CalibrationData(tmp_path / name, [IMAGE]), [as_input(wanted)], "image")
    for name in ("L.png", "LA.png", "I16.png", "I.tif"):
        assert_feeds(CalibrationData(tmp_path / name, [GRAY]), [as_input(gray[..., None])], "image")
    four = InputSpec("image", F32, (1, 4, 5, 7))
    rgba = np.asarray(images["RGBA.png"])
    assert_feeds(CalibrationData(tmp_path / "RGBA.png", [four]), [as_input(rgba)], "image")


def test_transparent_palettes_lose_only_their_alpha(tmp_path, recwarn):
    image = Image.fromarray(pixels(5, 7, 3)).quantize(35)
    image.save(tmp_path / "a.png", transparency=bytes(range(35)))
    assert_feeds(CalibrationData(tmp_path, [IMAGE]), [as_input(np.asarray(image.convert("RGB")))], "image")
    assert not recwarn.list


def test_pixels_that_are_not_8_or_16_bits(tmp_path):
    Image.fromarray(batch(5, 7)).save(tmp_path / "a.tif")
    refused("a.tif has floating-point pixels", tmp_path / "a.tif", [IMAGE])
    Image.fromarray(np.full((5, 7), 1 << 20, np.int32)).save(tmp_path / "b.tif")
    refused("b.tif has over 16 bits per pixel", tmp_path / "b.tif", [IMAGE])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_images(tmp_path):
    for name in ("a.png", "a.jpg", "a.gif", "a.tif"):
        path = save_image(tmp_path / name, pixels(50, 70, 3))
        whole = path.read_bytes()
        for keep in (len(whole) // 2, 20, 0):
            path.write_bytes(whole[:keep])
            refused(rf"cannot read .*{name}", path, [IMAGE])


def test_image_bombs(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", pixels(50, 70, 3))
    for limit in (3400, 100):  # a warning of Pillow's, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused("cannot read .*a.png: Image size .*decompression bomb", tmp_path, [IMAGE])


def test_only_formats_of_the_list_are_decoded(tmp_path):
    Image.fromarray(pixels(5, 7, 3)).save(tmp_path / "a.png", format="TGA")
    refused("cannot read .*a.png: cannot identify", tmp_path, [IMAGE])
