"""Calibration data as programs have them: iterators, loaders, datasets, tensors, functions, ONNX Runtime's reader."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import model
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image
from samples_on_disk import X, Y, assert_feeds, batch, refused

import onnxq
from onnxq.data import CalibrationData, replayable
from onnxq.errors import DataError, UsageError

VALUES = batch(4, 3, 5)
ROWS = [VALUES[i : i + 1] for i in range(4)]


class Tensor:
    """What numpy makes an array of, and nothing else is known of."""

    def __init__(self, values: np.ndarray, trouble: str = "") -> None:
        self.values, self.trouble = values, trouble

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        if self.trouble:
            raise TypeError(self.trouble)
        return self.values


class Loader:
    """Batches of (inputs, labels), in the same order each time or, as with shuffle=True, not."""

    def __init__(self, shuffle: bool = False) -> None:
        self.shuffle, self.passes = shuffle, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        order = list(range(4))
        if self.shuffle:
            random.Random(self.passes).shuffle(order)
        for start in (0, 2):
            rows = VALUES[order[start : start + 2]]
            yield Tensor(rows), Tensor(np.arange(2))


class Dataset:
    """With indices, and no __iter__."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= 4:
            raise IndexError
        return Tensor(VALUES[index]), 7


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.rows = iter(ROWS)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self.rows, None)
        return None if row is None else {"x": row}


SOURCES = {
    "generator of mappings": lambda: ({"x": row} for row in ROWS),
    "generator of arrays": lambda: (row for row in VALUES),
    "iterator": lambda: iter(ROWS),
    "list of arrays": lambda: list(VALUES),
    "list of tuples": lambda: [(row,) for row in VALUES],
    "list of tensors": lambda: [Tensor(row) for row in VALUES],
    "one tensor": lambda: [Tensor(VALUES)],
    "mapping of tensors": lambda: {"x": Tensor(VALUES)},
    "loader": Loader,
    "dataset": Dataset,
    "function that makes a generator": lambda: lambda: (row for row in VALUES),
    "function that makes a loader": lambda: Loader,
    "reader": Reader,
}


@pytest.mark.parametrize("name", SOURCES)
def test_all_give_the_same_feeds_in_each_pass(name: str) -> None:
    data = CalibrationData(SOURCES[name](), [X])
    for _ in range(2):
        assert_feeds(data, ROWS)
    assert data.digest() == CalibrationData(VALUES, [X]).digest()


def test_tuples_follow_the_order_of_the_inputs_and_labels_may_stand_behind() -> None:
    pairs = [(row, np.full((1, 7), i), "label") for i, row in enumerate(ROWS)]
    for items in (pairs, [pair[:2] for pair in pairs], (pair for pair in pairs)):
        data = CalibrationData(items, [X, Y])
        assert_feeds(data, ROWS)
        assert_feeds(data, [np.full((1, 7), i) for i in range(4)], "y")
    refused("got 4 values for inputs x, y; pass one for each", [(1, 2, 3, 4)], [X, Y])
    refused("got 1 values for inputs x, y", [(VALUES,)], [X, Y])


def test_a_loader_that_shuffles_is_noticed() -> None:
    data = CalibrationData(Loader(shuffle=True), [X])
    with pytest.raises(DataError, match=r"changed: feed 0 is not what it was.*no shuffling"):
        list(data)
    assert len(list(CalibrationData(iter(Loader(shuffle=True)), [X]))) == 4


def test_an_iterator_is_read_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    taken = []

    def rows() -> Iterator[np.ndarray]:
        buffer = np.empty_like(ROWS[0])
        for row in ROWS:
            taken.append(1)
            buffer[:] = row  # as loaders do that reuse their memory
            yield buffer

    data = CalibrationData(rows(), [X], max_memory=2 * ROWS[0].nbytes)
    assert len(taken) == 4
    assert len(list(tmp_path.glob("*/*.npy"))) == 2
    part = data.part([0, 3])
    del data
    gc.collect()
    assert_feeds(part, [ROWS[0], ROWS[3]])  # parts keep what they read
    del part
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_replayable_reads_only_what_can_be_read_once() -> None:
    for source in (VALUES, ROWS, "calib", Loader(), Dataset(), lambda: iter(ROWS)):
        assert replayable(source) is source
    for once in (iter(ROWS), (row for row in ROWS), Reader()):
        kept = replayable(once)
        assert replayable(kept) is kept
        for _ in range(2):
            assert_feeds(CalibrationData(kept, [X]), ROWS)


def test_a_generator_that_fails_says_so() -> None:
    def rows() -> Iterator[np.ndarray]:
        yield ROWS[0]
        raise ValueError("out of disk")

    with pytest.raises(ValueError, match="out of disk"):
        CalibrationData(rows(), [X])


def test_tensors_that_are_no_arrays() -> None:
    trouble = "can't convert cuda:0 device type tensor to numpy"
    refused(f"feed 0: input x cannot be made a numpy array: {trouble}", [Tensor(VALUES, trouble)])


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (lambda: 7, "function that makes calibration data returned int"),
        (lambda: VALUES, "returned ndarray; it must return an iterable"),
        (lambda path: path, "is called without arguments"),
        (object(), "got object"),
        (b"calib", "got bytes|of type int"),
    ],
)
def test_what_is_no_source(source: object, match: str) -> None:
    with pytest.raises((UsageError, DataError), match=match):
        list(CalibrationData(source, [X]))


def test_a_transform_gets_pixels_arrays_and_items(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    got = []

    def red(value: np.ndarray) -> np.ndarray:
        got.append(value)
        return np.repeat((value[..., :1] / 255).astype(np.float32).transpose(2, 0, 1), 1, 0)

    data = CalibrationData(tmp_path, [X], transform=lambda image: red(image)[0])
    assert len(data) == 1
    assert got == []  # an image is one sample: it need not be read to be counted
    assert_feeds(data, [(pixels[..., 0] / 255).astype(np.float32)[np.newaxis]])
    np.testing.assert_array_equal(got[0], pixels)

    np.save(tmp_path / "rows.npy", VALUES)
    halved = [row / 2 for row in ROWS]
    for source in (tmp_path / "rows.npy", VALUES, [(VALUES, 1)], lambda: iter([{"x": VALUES}]), iter(ROWS)):

        def half(item: object) -> object:
            value = item["x"] if isinstance(item, dict) else item[0] if isinstance(item, tuple) else item
            return {"x": value / 2}

        data = CalibrationData(source, [X], transform=half)
        for _ in range(2):
            assert_feeds(data, halved)


def test_a_transform_that_fails_is_named() -> None:
    def broken(item: object) -> object:
        raise KeyError("pixels")

    refused(r"feed 0: `transform` failed: KeyError: 'pixels'", [VALUES], transform=broken)
    refused("feed 0: input x is of type NoneType", [VALUES], transform=lambda item: None)


MODEL = "(float[N,3,5] x) => (float[N,4] y) <float[15,4] w> { f = Flatten(x) y = MatMul(f, w) }"


def test_every_function_takes_an_iterator_and_a_transform() -> None:
    """Two passes and more are made over what can be read once; the result is that of the same arrays."""
    proto = model(MODEL)
    rows = list(np.random.default_rng(0).standard_normal((12, 3, 5)).astype(np.float32))

    def double(row: np.ndarray) -> np.ndarray:
        return 2 * row

    doubled = np.stack(rows) * 2
    settings = {"rounding": "nearest", "cle": "off"}
    expected = onnxq.quantize(proto, doubled, **settings).model
    found = onnxq.quantize(proto, (row for row in rows), transform=double, **settings).model
    assert found == expected
    compared = onnxq.compare(proto, expected, (row for row in rows), transform=double)
    assert compared == onnxq.compare(proto, expected, doubled)
    again = onnxq.evaluate(expected, iter(rows), transform=double, reference=proto)
    assert again.figures == onnxq.evaluate(expected, doubled, reference=proto).figures
    options = onnxq.Options(**settings)
    ranked = onnxq.sensitivity(proto, (row for row in rows), options=options, transform=double)
    assert ranked.measured == onnxq.sensitivity(proto, doubled, options=options).measured
    debugged = onnxq.debug(proto, (row for row in rows), options=options, transform=double, closest=True)
    assert debugged.options == onnxq.debug(proto, doubled, options=options, closest=True).options
    assert onnxq.inspect(proto, iter(rows), transform=lambda row: row * 0).data.findings  # type: ignore[union-attr]
