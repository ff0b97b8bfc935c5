"""Data and settings made to harm whoever reads them: refused with one message. Nothing hangs, nothing is run."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import model
from hostile import HOSTILE, NET, no_hang, place, refused, run

import onnxq
from onnxq.calibration.checkpoint import Checkpoint
from onnxq.data import npz
from onnxq.errors import DataError

__all__ = ["no_hang", "place"]


# --- arrays -----------------------------------------------------------------------------------------------------


class Exploding:
    def __reduce__(self) -> tuple[Any, Any]:
        return os.system, ("touch exploded",)


def pickled(path: Path, name: str = "x") -> Path:
    bomb = np.array([Exploding()], object)
    np.savez(path, **{name: bomb}) if path.suffix == ".npz" else np.save(path, bomb, allow_pickle=True)
    return path


def bomb(path: Path, size: int, name: str = "x") -> Path:
    """An array of zeros, compressed a thousandfold."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (size // 192, 3, 4, 4)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        file.write(header.getvalue())
        for _ in range(size // (1 << 20)):
            file.write(bytes(1 << 20))
    return path


def test_no_pickle_is_opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for name in ("p.npy", "p.npz"):
        pickled(place / name)
        refused(place, 4, "Python objects", calib=name)
    refused(place, 4, "not a statistics file", "--stats", pickled(place / "header.npz", "header"))
    for name in ("labels.npy", "labels.npz"):
        pickled(place / name, "labels")
        data = onnxq.CalibrationData(place / "calib.npy", [onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 4, 4))])
        with pytest.raises(DataError, match="labels"):
            onnxq.evaluation.labels.read_labels(place / name, data)
    assert not (place / "exploded").exists()


def test_compressed_bombs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "UNSUSPICIOUS_BYTES", 1 << 20)
    refused(place, 4, "decompression bomb", calib=bomb(place / "b.npz", 8 << 20).name)
    refused(place, 4, "decompression bomb", "--stats", bomb(place / "s.npz", 8 << 20, "header"))
    data = onnxq.CalibrationData(place / "calib.npy", [onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 4, 4))])
    with pytest.raises(DataError, match="decompression bomb"):
        onnxq.evaluation.labels.read_labels(bomb(place / "l.npz", 8 << 20, "labels"), data)
    assert Checkpoint(place, "key").load("layer") is None
    bomb(Checkpoint(place, "key")._path("layer"), 8 << 20)
    assert Checkpoint(place, "key").load("layer") is None, "checkpoints are not compressed"


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png", ".pb"])
def test_a_pipe_among_the_data(place: Path, suffix: str) -> None:
    (place / "calib").mkdir()
    os.mkfifo(place / "calib" / f"0{suffix}")
    os.mkfifo(place / f"input_0{suffix}")
    refused(place, 4, "is no regular file", calib="calib")
    refused(place, 4, "is no regular file", calib=f"input_0{suffix}")


def test_a_pipe_in_test_data(place: Path) -> None:
    (place / "calib").mkdir()
    os.mkfifo(place / "calib" / "input_0.pb")
    refused(place, 4, "is no regular file", calib="calib")


def test_npy_headers_that_are_programs(place: Path) -> None:
    for text in ("__import__('os').system('touch exploded')", "{'descr': '<f4', 'shape': (1,) * 10**9}", "[" * 9000):
        data = text.encode().ljust(118) + b"\n"
        (place / "p.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data)
        refused(place, 4, r"p\.npy", calib="p.npy")
    assert not os.path.exists("exploded")


# --- images -----------------------------------------------------------------------------------------------------


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(1 << 16))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_image_bombs(place: Path) -> None:
    (place / "i.png").write_bytes(png(60_000, 60_000))
    refused(place, 4, r"i\.png.*decompression bomb", "--layout", "nchw", calib="i.png")
    text = b"Comment\x00\x00" + zlib.compress(bytes(200 << 20), 9)
    (place / "i.png").write_bytes(png(4, 4, (b"zTXt", text)))
    refused(place, 4, r"i\.png", "--layout", "nchw", calib="i.png")


# --- configuration, labels, encodings, statistics, checkpoints ---------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 20_000,
        "a = " + "{b=" * 20_000,
        "samples = " + "9" * 6000,
        f"{json.dumps(HOSTILE)} = 1",
        'preset = "\\u001b[2J\\n"',
        "samples = nan",
        "[[override]]\nnode = {}",
        'override = "x"',
        "preprocess = 3",
        "exclude = [[1], {}]",
        "samples = 1979-05-27",
        "\x00",
        "a.b.c.d = 1\na.b = 2",
    ],
    ids=range(13),
)
def test_configurations(place: Path, text: str) -> None:
    (place / "c.toml").write_text(text)
    result = run(place, "--config", place / "c.toml")
    assert result.exit_code == 2, (result.output, result.exception)
    assert all(line.isprintable() for line in result.stderr.splitlines()), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[NaN]", "[1e999]", "[" + "9" * 6000 + "]", '[{"a": 1}]', "{}"],
    ids=range(7),
)
def test_labels(place: Path, text: str) -> None:
    (place / "labels.json").write_text(text)
    data = onnxq.CalibrationData(place / "calib.npy", [onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 4, 4))])
    with pytest.raises(DataError, match=r"labels\.json"):
        onnxq.evaluation.labels.read_labels(place / "labels.json", data)


def test_labels_from_a_pipe(place: Path) -> None:
    os.mkfifo(place / "labels.npy")
    data = onnxq.CalibrationData(place / "calib.npy", [onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 4, 4))])
    with pytest.raises(DataError, match=r"labels\.npy: no regular file"):
        onnxq.evaluation.labels.read_labels(place / "labels.npy", data)


ENTRY = '{"name": "x", "output_dtype": "uint8", "y_scale": %s, "y_zero_point": %s}'


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"encodings":' * 100_000,
        '{"version": "2.0.0", "encodings": [%s]}' % (ENTRY % ("NaN", "0")),
        '{"version": "2.0.0", "encodings": [%s]}' % (ENTRY % ("1e999", "0")),
        '{"version": "2.0.0", "encodings": [%s]}' % (ENTRY % ("-1", "0")),
        '{"version": "2.0.0", "encodings": [%s]}' % (ENTRY % ("0.1", "1e30")),
        '{"version": "2.0.0", "encodings": [%s]}' % (ENTRY % ("[[[0.1]], 2]", "0")),
        '{"version": "2.0.0", "encodings": [%s]}' % (ENTRY % ('{"a": 1}', "0")),
        '{"version": "2.0.0", "encodings": [%s]}' % (ENTRY % ("0.1", "9" * 5000)),
        '{"version": "2.0.0", "encodings": {"a": 3}}',
    ],
    ids=range(10),
)  # fmt: skip
def test_encodings(place: Path, text: str) -> None:
    (place / "e.json").write_text(text)
    refused(place, 2, r"e\.json", "--from-encodings", place / "e.json")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "s.npz"
    onnxq.calibrate(model(NET), np.ones((4, 3, 4, 4), np.float32), path)
    return path


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("0_bins", np.array([-1])),
        ("0_bins", np.array([1 << 40])),
        ("0_bins", np.array([0.5])),
        ("0_bins", np.zeros(10**6, np.int64)),
        ("0_counts", np.array([-(1 << 60)])),
        ("0_counts", np.zeros((3, 3), np.int64)),
        ("0_extremes", np.array([np.nan, np.nan])),
        ("0_extremes", np.array([5.0, -5.0])),
        ("0_extremes", np.array([1.0, 2.0, 3.0])),
        ("0_extremes", np.array(["a", "b"])),
        ("header", b"[" * 100_000),
        ("header", b'{"format": 1, "graph": 7, "samples": [], "tensors": []}'),
        ("header", b'{"format": 1, "graph": "ab", "samples": [], "tensors": []}'),
        ("header", b'{"format": 1, "graph": "%s", "samples": [3], "tensors": []}' % (b"0" * 64)),
        ("header", b'{"format": 1, "graph": "%s", "samples": 3, "tensors": []}' % (b"0" * 64)),
        ("header", b'{"format": 1, "graph": "%s", "samples": [], "tensors": [{"name": 3, "logits": 0}]}' % (b"0" * 64)),
        ("header", b'{"format": "\\u001b[2J", "graph": "", "samples": [], "tensors": []}'),
    ],
    ids=range(17),
)
def test_statistics(place: Path, statistics: Path, member: str, content: Any) -> None:
    arrays = dict(np.load(statistics))
    arrays[member] = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content
    np.savez(place / "s.npz", **arrays)
    refused(place, 4, r"s\.npz: not a statistics file", "--stats", place / "s.npz")


@pytest.mark.parametrize("harm", ["shape", "nan", "keys", "text", "more", "pickle", "scalars"])
def test_checkpoints_of_others(place: Path, harm: str) -> None:
    """What does not fit is made anew: the result is that without a checkpoint."""
    options: dict[str, Any] = {"preset": "w4a8", "rounding": "gptq", "cle": "off", "dead_channels": False}
    net, data, folder = model(NET), np.load(place / "calib.npy"), place / "kept"
    expected = onnxq.quantize(net, data, **options).model
    onnxq.quantize(net, data, checkpoint=str(folder), **options)
    for path in folder.iterdir():
        arrays: dict[str, Any] = dict(np.load(path))
        if harm == "shape":
            arrays["weight"] = arrays["weight"][:1]
        elif harm == "nan":
            arrays["scale"] = arrays["scale"] * np.nan
        elif harm == "keys":
            del arrays["biases"]
        elif harm == "text":
            arrays["weight"] = arrays["weight"].astype("U3")
        elif harm == "more":
            arrays["evil"] = np.ones(3)
        elif harm == "pickle":
            arrays["weight"] = np.array([Exploding()], object)
        else:
            arrays["nearest"] = np.ones(7)
        np.savez(path, **arrays)
    again = onnxq.quantize(net, data, checkpoint=str(folder), **options).model
    assert again == expected
    assert not os.path.exists("exploded")
