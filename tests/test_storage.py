"""Reading: one clear error for whatever is wrong with a file. Writing: all of it or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import assert_same_function, model
from onnx import ModelProto

from onnxq.errors import AlreadyQuantizedError, ModelError, OutputError
from onnxq.graph import storage


@pytest.fixture
def net() -> ModelProto:
    return model(
        "(float[N,3,8,8] x) => (float[N,50,?,?] y) <float[5,3,3,3] w, float[5] b, float[50,5,3,3] v>"
        " { h = Conv(x, w, b) r = Relu(h) y = Conv(r, v) }"
    )


@pytest.fixture
def saved(tmp_path: Path, net: ModelProto) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(net.SerializeToString())
    return path


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is too large for one protobuf."""
    monkeypatch.setattr(storage, "LARGEST_PROTOBUF", 10)


def test_a_model_is_read_as_it_is(saved: Path, net: ModelProto) -> None:
    assert storage.read(saved) == net
    assert storage.read(str(saved)) == net


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ghost\.onnx: no such file"):
        storage.read(tmp_path / "ghost.onnx")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected an \.onnx file, got a folder"):
        storage.read(tmp_path)


RANDOM = np.random.default_rng(0).bytes(500)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"this is text, not a model\n" * 9, b"# Markdown\n", b"{}", RANDOM, b"\x00" * 64, b"PK\x03\x04" * 9,
     b"\x89PNG\r\n\x1a\n" + bytes(64)],
    ids=["empty", "newline", "text", "markdown", "json", "random", "zeros", "zip", "png"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["net.onnx", "net.txt", "net.json", "net.onnxtxt", "net.textproto", "net"])
def test_not_onnx_whatever_it_is_called(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: not an ONNX model") as caught:
        storage.read(path)
    assert "\n" not in str(caught.value)


def test_random_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    for seed in range(200):
        rng = np.random.default_rng(seed)
        path.write_bytes(rng.bytes(int(rng.integers(1, 40))))
        with pytest.raises(ModelError):
            storage.read(path)


@pytest.mark.parametrize("percent", range(10, 100, 10))
def test_truncated_anywhere(saved: Path, percent: int) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) * percent // 100])
    with pytest.raises(ModelError, match=r"net\.onnx: not (an ONNX model, or a truncated one|a valid ONNX model)"):
        storage.read(saved)


def test_truncated_at_every_byte_never_ends_in_another_error(tmp_path: Path) -> None:
    small = model("(float[3] x) => (float[3] y) <float[3] k> { h = Add(x, k) y = Relu(h) }").SerializeToString()
    path = tmp_path / "net.onnx"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        try:
            storage.read(path)
        except ModelError:
            continue
        assert length > len(small) * 0.8, "only the last fields (operator sets) can be missed"


def test_damaged_bytes_never_end_in_another_error(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] = int(rng.integers(256))
        saved.write_bytes(damaged)
        with contextlib.suppress(ModelError):
            storage.read(saved)


def test_invalid_model(saved: Path, net: ModelProto) -> None:
    net.graph.node[1].op_type = "NoSuchOperator"
    saved.write_bytes(net.SerializeToString())
    with pytest.raises(ModelError, match=r"not a valid ONNX model: No Op registered for NoSuchOperator"):
        storage.read(saved)


def test_damaged_names(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b"Relu", b"Re\xdfu"))
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        storage.read(saved)


def test_no_operator_set(saved: Path, net: ModelProto) -> None:
    del net.opset_import[:]
    saved.write_bytes(net.SerializeToString())
    with pytest.raises(ModelError, match="no graph or operator sets"):
        storage.read(saved)


def external(net: ModelProto, path: Path, location: str = "weights.bin") -> None:
    onnx.save_model(net, path, save_as_external_data=True, location=location, size_threshold=0)


def test_external_data_is_read(tmp_path: Path, net: ModelProto) -> None:
    original = ModelProto.FromString(net.SerializeToString())
    path = tmp_path / "net.onnx"
    external(net, path)
    assert (tmp_path / "weights.bin").stat().st_size > 500
    assert_same_function(original, storage.read(path), 0)


@pytest.mark.parametrize("damage", ["missing", "short", "folder", "outside", "absolute", "symlink"])
def test_bad_external_data(tmp_path: Path, net: ModelProto, damage: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path, data = folder / "net.onnx", folder / "weights.bin"
    external(net, path)
    if damage == "missing":
        data.unlink()
    elif damage == "short":
        data.write_bytes(data.read_bytes()[:-8])
    elif damage == "folder":
        data.unlink()
        data.mkdir()
    elif damage == "symlink":
        data.rename(tmp_path / "secret.bin")
        data.symlink_to(tmp_path / "secret.bin")
    else:
        data.rename(tmp_path / "secret.bin")
        location = "../secret.bin" if damage == "outside" else str(tmp_path / "secret.bin")
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            next(e for e in tensor.external_data if e.key == "location").value = location
        path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"net\.onnx: external data cannot be loaded: .*beside the model") as caught:
        storage.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", ["QuantizeLinear", "DynamicQuantizeLinear"])
def test_already_quantized(saved: Path, op: str) -> None:
    nodes = {
        "QuantizeLinear": "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        "DynamicQuantizeLinear": "q, t, u = DynamicQuantizeLinear(x) y = DequantizeLinear(q, t, u)",
    }
    quantized = model(f"(float[3] x) => (float[3] y) <float s = {{1}}, uint8 z = {{0}}> {{ {nodes[op]} }}")
    saved.write_bytes(quantized.SerializeToString())
    with pytest.raises(AlreadyQuantizedError, match=f"'q' is {op}; start from the float model"):
        storage.read(saved)


def test_already_quantized_in_a_subgraph(saved: Path) -> None:
    quantized = model(
        """(float[3] x, bool c) => (float[3] y) <float s = {1}, uint8 z = {0}> {
            y = If(c) <
                then_branch = t () => (float[3] a) { q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) },
                else_branch = e () => (float[3] b) { b = Relu(x) }
            >
        }"""
    )
    saved.write_bytes(quantized.SerializeToString())
    with pytest.raises(AlreadyQuantizedError):
        storage.read(saved)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_written_and_read_again(tmp_path: Path, net: ModelProto) -> None:
    with storage.replacing(tmp_path / "out.onnx") as path:
        assert not (tmp_path / "out.onnx").exists()
        storage.write(net, path)
    assert names(tmp_path) == ["out.onnx"]
    assert storage.read(tmp_path / "out.onnx") == net


def test_the_same_model_is_the_same_bytes(tmp_path: Path, net: ModelProto) -> None:
    for name in "ab":
        storage.write(net, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_relative_path_in_the_current_folder(
    tmp_path: Path, net: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with storage.replacing("out.onnx") as path:
        storage.write(net, path)
    assert names(tmp_path) == ["out.onnx"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_no_trace(tmp_path: Path, net: ModelProto, error: type[BaseException], exists: bool) -> None:
    output = tmp_path / "out.onnx"
    if exists:
        output.write_bytes(b"old")

    def fail() -> None:
        with storage.replacing(output) as path:
            storage.write(net, path)
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["out.onnx"] * exists
    assert not exists or output.read_bytes() == b"old"


def test_an_existing_file_is_replaced_and_keeps_its_neighbours(tmp_path: Path, net: ModelProto) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"other")
    with storage.replacing(tmp_path / "out.onnx") as path:
        storage.write(net, path)
        assert (tmp_path / "out.onnx").read_bytes() == b"old"
    assert names(tmp_path) == ["other", "out.onnx"]
    assert storage.read(tmp_path / "out.onnx") == net


def unusable(output: Path, message: str) -> None:
    with pytest.raises(OutputError, match=message), storage.replacing(output):
        pytest.fail("the block must not run")


def test_the_output_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").mkdir()
    unusable(tmp_path / "out.onnx", r"out\.onnx: expected a file to write the model to, got a folder")
    assert names(tmp_path) == ["out.onnx"]


@pytest.mark.parametrize("parent", ["missing", "file"])
def test_the_folder_cannot_be_written(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    unusable(tmp_path / parent / "out.onnx", r"out\.onnx: cannot be written: ")
    assert names(tmp_path) == ["file"]


def test_the_file_is_write_protected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to protected files
    unusable(output, r"out\.onnx: not writable")
    assert output.read_bytes() == b"old"


def test_a_full_disk_leaves_no_trace(tmp_path: Path, net: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    def write() -> None:
        with storage.replacing(tmp_path / "out.onnx") as path:
            storage.write(net, path)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"out\.onnx: cannot be written: No space left on device"):
        write()
    assert names(tmp_path) == []


def test_a_move_that_fails_is_an_output_error(tmp_path: Path, net: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def write() -> None:
        with storage.replacing(tmp_path / "out.onnx") as path:
            storage.write(net, path)

    (tmp_path / "out.onnx").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match=r"out\.onnx: cannot be written: Operation not permitted"):
        write()
    assert names(tmp_path) == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


@pytest.mark.usefixtures("small_limit")
def test_large_models_get_a_data_file(tmp_path: Path, net: ModelProto) -> None:
    original = ModelProto.FromString(net.SerializeToString())
    (tmp_path / "out.onnx").write_bytes(b"old")
    (tmp_path / "out.onnx.data").write_bytes(b"another one's")
    with storage.replacing(tmp_path / "out.onnx") as path:
        storage.write(net, path)
        assert names(tmp_path)[1:] == ["out.onnx", "out.onnx.data"]
    assert_same_function(original, net, 0)  # the model in memory keeps its tensors
    model, data, other = names(tmp_path)
    assert (model, other) == ("out.onnx", "out.onnx.data")
    assert data == f"out.onnx.{hashlib.sha256((tmp_path / data).read_bytes()).hexdigest()[:12]}.data"
    assert (tmp_path / other).read_bytes() == b"another one's"
    assert_same_function(original, storage.read(tmp_path / "out.onnx"), 0)


@pytest.mark.usefixtures("small_limit")
def test_data_files_go_with_the_model_that_referred_to_them(tmp_path: Path, net: ModelProto) -> None:
    output, other = tmp_path / "out.onnx", ModelProto.FromString(net.SerializeToString())
    largest = max(other.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    stray = tmp_path / "out.onnx.0123456789ab.data"
    stray.write_bytes(b"another one's, whatever its name")
    held = []
    for proto in (net, other, other, net):
        with storage.replacing(output) as path:
            storage.write(proto, path)
        assert_same_function(proto, storage.read(output), 0)
        held.append(sorted(set(tmp_path.iterdir()) - {output, stray}))
    assert [len(files) for files in held] == [1, 1, 1, 1]
    assert held[0] == held[3] != held[1] == held[2]
    with storage.replacing(output) as path:
        path.write_bytes(b"no model at all")
    assert set(tmp_path.iterdir()) == {output, stray}


@pytest.mark.usefixtures("small_limit")
def test_large_models_are_checked_too(tmp_path: Path, net: ModelProto) -> None:
    external(net, tmp_path / "net.onnx")
    broken = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    broken.graph.node[1].op_type = "NoSuchOperator"
    (tmp_path / "net.onnx").write_bytes(broken.SerializeToString())
    with pytest.raises(ModelError, match="No Op registered for NoSuchOperator"):
        storage.read(tmp_path / "net.onnx")


def test_first_line_of_an_error() -> None:
    assert storage.first_line(ValueError("\n\n  one \ntwo")) == "one"
    assert storage.first_line(ValueError()) == "ValueError"
