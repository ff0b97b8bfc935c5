"""Labels from whatever file they are in, for the samples that are used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.data import CalibrationData, InputSpec
from onnxq.errors import DataError
from onnxq.evaluation.labels import read_labels

IMAGE = [InputSpec("x", np.dtype(np.float32), ("N", 3, 5, 5))]
VECTOR = [InputSpec("x", np.dtype(np.float32), ("N", 2))]


@pytest.fixture
def images(tmp_path: Path) -> CalibrationData:
    """cat/1.png, cat/2.png, ..., dog/10.png, in natural order."""
    for name in ("cat/1", "cat/2", "cat/10", "dog/1", "dog/3"):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5)).save(path)
    return CalibrationData(tmp_path / "data", IMAGE)


def vectors(count: int = 5, samples: int | None = None) -> CalibrationData:
    return CalibrationData(np.zeros((count, 2), np.float32), VECTOR, samples=samples, seed=3)


def written(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_text(json.dumps(content) if path.suffix == ".json" else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "4\n3\n\n2\n1\n0\n"),
        ("l.csv", "class\n4\n3\n2\n1\n0\n"),
        ("l.json", [4, 3, 2, 1, 0]),
        ("l.npy", np.arange(5)[::-1]),
        ("l.npy", np.arange(5, dtype=np.uint8)[::-1, None]),
        ("l.npz", {"images": np.zeros((5, 2), np.uint8), "y": np.arange(5)[::-1], "z": np.arange(5)}),
        ("l.npz", {"images": np.zeros((5, 2), np.uint8), "classes": np.arange(5)[::-1]}),
    ],
)
def test_one_label_a_sample_in_data_order(tmp_path, name, content):
    path = written(tmp_path, name, content)
    assert read_labels(path, vectors()) == (4, 3, 2, 1, 0)


NAMED = "file,label\ndog/3.png,5\ncat/1.png,1\ncat/2,2\n10,3\ndog/1.png,4\nnot_there.png,9\n"


@pytest.mark.parametrize("text", [NAMED, NAMED.replace(",", " "), NAMED.replace(",", "\t"), NAMED.replace(",", ";")])
def test_labels_by_file_name(tmp_path, images, text):
    assert read_labels(written(tmp_path, "l.csv", text), images) == (1, 2, 3, 4, 5)


def test_labels_by_file_name_in_json(tmp_path, images):
    names = {"data/cat/1.png": 1, "2.png": 2, "10.png": 3, "dog/1": 4, "3": 5}
    assert read_labels(written(tmp_path, "l.json", names), images) == (1, 2, 3, 4, 5)


def test_samples_that_are_chosen_keep_their_labels():
    labels = list(range(100, 200))
    x = np.stack([np.arange(100), np.arange(100)], 1).astype(np.float32)
    data = CalibrationData(x, VECTOR, samples=7, seed=3)
    expected = tuple(100 + int(feed.arrays["x"][0, 0]) for feed in data)
    assert len(expected) == 7
    assert read_labels(labels, data) == expected


def test_chosen_batches_keep_their_labels():
    x = np.stack([np.arange(10)] * 2, 1).astype(np.float32)
    data = CalibrationData(x, [InputSpec("x", np.dtype(np.float32), (4, 2))], samples=4, seed=1)
    expected = tuple(int(v) for feed in data for v in feed.arrays["x"][: feed.rows, 0])
    assert read_labels(range(10), data) == expected


def test_a_sample_of_a_file_of_several_has_a_name(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2), np.float32))
    data = CalibrationData(tmp_path / "x.npy", VECTOR)
    assert read_labels(written(tmp_path, "l.csv", "x.npy[1],7\nx.npy[0],6"), data) == (6, 7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "1\n2\n", "expected 5 labels, one for each sample of the data, got 2"),
        ("l.txt", "1\n2\nx\n4\n5\n", "entry 3 is 'x'; expected a class index"),
        ("l.txt", "", "expected 5 labels"),
        ("l.csv", "a,1\na,2\n", "'a' has two labels, 1 and 2"),
        ("l.csv", "a,1\nb,2,3\n", "entry 2 is 'b 2 3'"),
        ("l.json", [1, True, 2, 3, 4], "expected a list of class indices"),
        ("l.json", "x", "expected a list of class indices"),
        ("l.npy", np.zeros((5, 2), int), r"expected integers \(N,\), got int64 \(5, 2\)"),
        ("l.npy", np.zeros(5), "got float64"),
        ("l.npz", {"a": np.arange(5), "b": np.arange(5)}, "it has a, b"),
        ("l.pkl", "1", "expected labels as .txt, .csv, .json, .npy, .npz"),
    ],
)
def test_what_is_no_file_of_labels(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_labels(path, vectors())


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "l.npz").write_bytes(b"PK")
    for name in ("l.npz", "none.txt"):
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            read_labels(tmp_path / name, vectors())


def test_names_that_do_not_tell(tmp_path, images):
    with pytest.raises(DataError, match=r"no label for .*2.png \(4 samples have none\)"):
        read_labels(written(tmp_path, "l.csv", "cat/1.png,1"), images)
    with pytest.raises(DataError, match=r"'1.png' may be .*cat/1.png or .*dog/1.png; write the folder before"):
        read_labels(written(tmp_path, "l.csv", "1.png,1"), images)
