"""Files made to harm whoever reads them: refused with one message, or escaped. Nothing hangs, nothing is run."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from graphs import model
from onnx import TensorProto, helper

import onnxq
from onnxq import npz
from onnxq.checkpoint import Checkpoint
from onnxq.cli import main
from onnxq.errors import DataError
from onnxq.graph import storage

NET = (
    "(float[N,3,4,4] x) => (float[N,?,?,?] y) <float[5,3,1,1] w, float[7,5,1,1] v>"
    " { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }"
)
QUICK = ["--activation-range", "minmax", "--cle", "off", "--no-dead-channels", "--bias-correction", "off"]
HOSTILE = "\x1b[2J<script>alert(1)</script>\n|`' onerror=\"x\u202e"


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A test that waits for a pipe is ended."""
    import signal

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    storage.write(model(NET), tmp_path / "net.onnx")
    np.save(tmp_path / "calib.npy", np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32))
    return tmp_path


def run(place: Path, *options: object, net: str = "net.onnx", calib: str = "calib.npy") -> Result:
    command = ["quantize", place / net, place / "out.onnx", "--calib", place / calib, *QUICK, *options]
    return CliRunner().invoke(main, list(map(str, command)))


def refused(place: Path, code: int, message: str, *options: object, **files: str) -> None:
    result = run(place, *options, **files)
    assert result.exit_code == code, (result.output, result.exception)
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(message, last), result.stderr
    assert last.isprintable()
    assert code == 2 or len(result.stderr.splitlines()) == 1
    assert not (place / "out.onnx").exists()


# --- models -----------------------------------------------------------------------------------------------------


def test_a_model_that_is_a_pipe_or_a_device(place: Path) -> None:
    os.mkfifo(place / "pipe.onnx")
    (place / "zeros.onnx").symlink_to("/dev/zero")
    for name in ("pipe.onnx", "zeros.onnx"):
        refused(place, 3, "expected an .onnx file, got something that is no regular file", net=name)


def external(place: Path, **entries: str | None) -> None:
    """The net with its weights in weights.bin, and other entries about them."""
    onnx.save_model(
        model(NET), place / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    proto = onnx.load(place / "net.onnx", load_external_data=False)
    data = proto.graph.initializer[1].external_data
    for key, value in entries.items():
        for entry in [e for e in data if e.key == key]:
            data.remove(entry)
        if value is not None:
            data.add(key=key, value=value)
    (place / "net.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "/etc/passwd"},
        {"location": "/dev/zero"},
        {"location": "../secret.bin"},
        {"location": "sub/../../secret.bin"},
        {"location": "./../secret.bin"},
        {"location": "sub\\..\\..\\secret.bin"},
        {"location": ""},
        {"location": "."},
        {"location": None},
        {"location": "weights.bin\x00.png"},
        {"location": "w" * 5000},
        {"location": "nothing\x1b[2J\nthere"},
        {"location": "symbolic.bin"},
        {"location": "folder/secret.bin"},
        {"location": "hard.bin"},
        {"location": "pipe.bin"},
        {"offset": "-4096"},
        {"offset": "999999999999"},
        {"offset": "1e3"},
        {"offset": "9" * 6000},
        {"length": "-1"},
        {"length": "999999999999"},
        {"length": "4"},
        {"length": "zero"},
        {"length": "140", "offset": "700"},
    ],
    ids=range(25),
)
def test_external_data(place: Path, entries: dict[str, str | None]) -> None:
    inner = place / "inner"
    inner.mkdir()
    (place / "secret.bin").write_bytes(b"secret" * 100)
    (inner / "sub").mkdir()
    (inner / "symbolic.bin").symlink_to(place / "secret.bin")
    (inner / "hard.bin").hardlink_to(place / "secret.bin")
    (inner / "folder").symlink_to(place)
    os.mkfifo(inner / "pipe.bin")
    external(inner, **entries)
    refused(place, 3, "external data|not a valid ONNX model", net="inner/net.onnx")


def test_external_data_that_is_empty_or_short(place: Path) -> None:
    external(place)
    os.truncate(place / "weights.bin", 100)
    refused(place, 3, "external data")
    os.truncate(place / "weights.bin", 0)
    refused(place, 3, "external data")


def nested(depth: int) -> onnx.ModelProto:
    """If in If in If."""
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["leaf"])], "g", [], [value("leaf")])
    for level in range(depth):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=graph, else_branch=graph_of_x(level))
        graph = helper.make_graph([node], "g", [], [value(f"y{level}")])
    graph.input.extend([value("x"), helper.make_tensor_value_info("c", TensorProto.BOOL, [])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def graph_of_x(level: int) -> onnx.GraphProto:
    node = helper.make_node("Identity", ["x"], [f"else{level}"])
    return helper.make_graph([node], "e", [], [value(f"else{level}")])


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])


@pytest.mark.parametrize("depth", [5, 20, 30])
def test_deeply_nested_graphs(place: Path, depth: int) -> None:
    (place / "net.onnx").write_bytes(nested(depth).SerializeToString())
    np.savez(place / "calib.npz", x=np.ones(3, np.float32), c=np.asarray(True))
    refused(place, 3, "nothing to quantize|not an ONNX model", calib="calib.npz")


def test_bytes_nested_deeper_than_any_stack(place: Path) -> None:
    """graph.node.attribute.g.node. ... a hundred thousand times."""
    inner = b""
    for _ in range(20_000):
        inner = b"\x3a" + varint(len(inner)) + inner if len(inner) < 1 << 20 else inner
    (place / "net.onnx").write_bytes(b"\x08\x08" + inner)
    refused(place, 3, "not an ONNX model")


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 20] * 3, [1 << 62, 4], [-5, 3, 1, 1], [0, 1 << 62]], ids=str)
@pytest.mark.parametrize("kind", ["raw", "floats", "constant", "external", "input"])
def test_absurd_dimensions(place: Path, dims: list[int], kind: str) -> None:
    proto = model(NET)
    tensor = proto.graph.initializer[0]
    if kind == "input":
        for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, dims, strict=False):
            dim.dim_value = size
    else:
        if kind == "floats":
            tensor.float_data.extend([1.0] * 15)
            tensor.ClearField("raw_data")
        if kind == "external":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="calib.npy")
        tensor.dims[:] = dims
        if kind == "constant":
            node = helper.make_node("Constant", [], ["w"], value=tensor)
            del proto.graph.initializer[0]
            proto.graph.node.insert(0, node)
    (place / "net.onnx").write_bytes(proto.SerializeToString())
    result = run(place)
    assert result.exit_code in (3, 4, 7), (result.output, result.exception)
    assert len(result.stderr.splitlines()) == 1


# --- names ------------------------------------------------------------------------------------------------------


def test_names_do_nothing_where_they_are_shown(place: Path) -> None:
    """Names of tensors, nodes, operators, domains, and of the model's file."""
    proto = model(NET)
    proto.graph.node[0].name = proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = HOSTILE
    proto.graph.node[2].name = proto.graph.node[2].output[0] = proto.graph.output[0].name = f"out{HOSTILE}"
    proto.producer_name, proto.doc_string = HOSTILE, HOSTILE
    name = f"net{HOSTILE}.onnx".replace("/", "")
    (place / name).write_bytes(proto.SerializeToString())
    reports = [f"report.{kind}" for kind in ("html", "md", "json")]
    result = run(place, "-v", *(a for r in reports for a in ("--report", place / r)), net=name)
    assert result.exit_code == 0, (result.output, result.exception)
    for command in (["inspect", "-v", name], ["check", "--target", "ort", "out.onnx"]):
        result_of = CliRunner().invoke(main, [str(place / c) if c.endswith("onnx") else c for c in command])
        assert result_of.exit_code in (0, 5), (result_of.output, result_of.exception)
        assert all(line.isprintable() for line in result_of.output.splitlines()), result_of.output
    assert all(line.isprintable() for line in result.output.splitlines()), result.output
    html = (place / "report.html").read_text()
    assert "<script>alert" not in html
    assert "\x1b" not in html
    markdown = (place / "report.md").read_text()
    assert "\x1b" not in markdown
    assert not re.search(r"(?<!\\)<script>", re.sub(r"`[^`\n]*`", "", markdown))
    assert "\x1b" not in (place / "report.json").read_text(), "JSON escapes control characters"


def test_names_in_errors(place: Path) -> None:
    proto = model(NET)
    proto.graph.node[2].op_type = f"No{HOSTILE}"
    (place / "net.onnx").write_bytes(proto.SerializeToString())
    refused(place, 3, "not a valid ONNX model")
    proto = model(NET)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = HOSTILE
    (place / "net.onnx").write_bytes(proto.SerializeToString())
    np.save(place / "calib.npy", np.ones((2, 9), np.float32))
    refused(place, 4, "expected N x 3 x 4 x 4")


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
            onnxq.analysis.labels.read_labels(place / name, data)
    assert not (place / "exploded").exists()


def test_compressed_bombs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "UNSUSPICIOUS_BYTES", 1 << 20)
    refused(place, 4, "decompression bomb", calib=bomb(place / "b.npz", 8 << 20).name)
    refused(place, 4, "decompression bomb", "--stats", bomb(place / "s.npz", 8 << 20, "header"))
    data = onnxq.CalibrationData(place / "calib.npy", [onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 4, 4))])
    with pytest.raises(DataError, match="decompression bomb"):
        onnxq.analysis.labels.read_labels(bomb(place / "l.npz", 8 << 20, "labels"), data)
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
        onnxq.analysis.labels.read_labels(place / "labels.json", data)


def test_labels_from_a_pipe(place: Path) -> None:
    os.mkfifo(place / "labels.npy")
    data = onnxq.CalibrationData(place / "calib.npy", [onnxq.data.InputSpec("x", np.dtype("f4"), (None, 3, 4, 4))])
    with pytest.raises(DataError, match=r"labels\.npy: no regular file"):
        onnxq.analysis.labels.read_labels(place / "labels.npy", data)


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
    options: dict[str, Any] = {"preset": "w4a8", "rounding": "error-feedback", "cle": "off", "dead_channels": False}
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
