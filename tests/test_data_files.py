"""Calibration data from files and folders."""

import builtins
import io
import struct
import zipfile

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from samples_on_disk import IMAGE, X, Y, assert_feeds, batch, pixels, refused, rows, save_image, save_proto

from onnxq.data import CalibrationData
from onnxq.data import sources as data_sources
from onnxq.data.npz import NpzFile
from onnxq.errors import DataError, UsageError

# --- files and folders ---------------------------------------------------------------------------------------


def test_folders_are_read_recursively_in_natural_order_leaving_other_files_out(tmp_path):
    names = ["b2/1.npy", "b10/1.npy", "9.npy", "10.NPY", "b2/a 2 x.npy", "b2/a 10 x.npy"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as stream:
            np.save(stream, np.full((1, 3, 5), i, np.float32))
    for other in (".DS_Store", "Thumbs.db", "labels.txt", "README", "meta.json", ".hidden.npy", ".git/1.npy", "m.onnx"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("not data")
    order = ["9.npy", "10.NPY", "b2/1.npy", "b2/a 2 x.npy", "b2/a 10 x.npy", "b10/1.npy"]
    data = CalibrationData(str(tmp_path), [X])
    assert [feed.origin for feed in data] == [str(tmp_path / name) for name in order]
    assert [int(array[0, 0, 0]) for array in rows(data)] == [names.index(name) for name in order]


def test_symbolic_links_are_followed_and_loops_are_not(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    np.save(real / "1.npy", batch(1, 3, 5))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked").symlink_to(real)
    (folder / "up").symlink_to(folder)
    (folder / "2.npy").symlink_to(real / "1.npy")
    assert len(CalibrationData(folder, [X])) == 2


def test_a_mixed_folder_names_both_kinds(tmp_path):
    save_image(tmp_path / "a.png", pixels(5, 7, 3))
    np.savez(tmp_path / "b.npz", image=batch(1, 3, 5, 7))
    refused(r"mixes images \(.*a.png\) and .npz \(.*b.npz\)", tmp_path, [IMAGE])


def test_empty_missing_and_unknown_paths(tmp_path):
    (tmp_path / "labels.txt").write_text("cat")
    refused(r"no calibration files in .*: expected images \(.jpg .*\), .npy, .npz or test_data_set", tmp_path)
    refused("gone.npz does not exist", tmp_path / "gone.npz")
    refused("labels.txt: expected images", tmp_path / "labels.txt")
    assert r"line\nbreak" in refused("does not exist", tmp_path / "line\nbreak.npy")


def test_an_unreadable_folder_or_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "sub" / "1.npy", batch(1, 3, 5))
    data = CalibrationData(tmp_path, [X])
    real_open, real_scandir = open, data_sources.os.scandir

    def no_open(path, *args, **kwargs):
        if str(path).endswith(".npy"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    def no_scandir(path="."):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", no_open)
        with pytest.raises(DataError, match=r"cannot read .*1\.npy: Permission denied"):
            list(data)
    monkeypatch.setattr(data_sources.os, "scandir", no_scandir)
    refused("Permission denied", tmp_path)


def test_files_are_read_again_in_each_pass(tmp_path):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", batch(1, 3, 5))
    data = CalibrationData(tmp_path, [X])
    assert len(list(data)) == 2
    np.save(tmp_path / "0.npy", batch(1, 3, 5) + 1)
    np.testing.assert_array_equal(rows(data)[0], batch(1, 3, 5) + 1)
    (tmp_path / "1.npy").unlink()
    with pytest.raises(DataError, match=r"cannot read .*1\.npy: No such file"):
        list(data)


def test_a_large_npy_is_memory_mapped_and_only_chosen_rows_are_touched(tmp_path):
    # A sparse file: 64 GiB long, some kilobytes on disk.
    path, count = tmp_path / "big.npy", (64 << 30) // 60
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (count, 3, 5)})
        stream.truncate(stream.tell() + count * 60)
    data = CalibrationData(path, [X], samples=3)
    assert_feeds(data, [np.zeros((1, 3, 5), np.float32)] * 3)
    assert [feed.origin for feed in data] == [f"{path}[{i * count // 3}]" for i in range(3)]
    assert len(CalibrationData(path, [X])) == count
    assert next(iter(CalibrationData(path, [X]))).origin == f"{path}[0]"


def test_npy_of_one_sample_and_single_files(tmp_path):
    value = batch(1, 3, 5)
    np.save(tmp_path / "a.npy", value[0])
    np.savez(tmp_path / "b.npz", x=value)
    save_proto(tmp_path / "c.pb", value)
    for name in ("a.npy", "b.npz", "c.pb"):
        data = CalibrationData(tmp_path / name, [X])
        assert_feeds(data, [value])
        assert data.take(1)[0].origin == str(tmp_path / name)


def test_one_array_files_cannot_feed_two_inputs(tmp_path):
    np.save(tmp_path / "a.npy", batch(1, 3, 5))
    refused(r"a.npy: .npy hold one array, and the model has inputs x, y; use .npz", tmp_path / "a.npy", [X, Y])


def test_npz_keys(tmp_path):
    np.savez(tmp_path / "a.npz", images=batch(2, 3, 5), y=batch(2, 7, dtype=np.int64), extra=np.ones(3))
    path = tmp_path / "a.npz"
    refused(
        r"a\.npz has no array x for input x; it has images, y, extra. Map names with `input_keys` x=KEY", path, [X, Y]
    )
    data = CalibrationData(path, [X, Y], keys={"x": "images"})
    assert_feeds(data, [batch(2, 3, 5)[i : i + 1] for i in range(2)])
    assert [feed.origin for feed in data] == [f"{path}[0]", f"{path}[1]"]
    refused("no input imag; did you mean x?", path, keys={"imag": "images"}, error=UsageError)
    assert_feeds(CalibrationData({"z": batch(1, 3, 5)}, [X], keys={"x": "z"}), [batch(1, 3, 5)])


def test_an_npz_is_decoded_only_where_a_sample_is_chosen(tmp_path, monkeypatch):
    for i in range(4):
        np.savez(tmp_path / f"{i}.npz", x=batch(2, 3, 5), unused=np.ones(3))
    decoded = []
    real = data_sources.npy.read_array
    monkeypatch.setattr(data_sources.npy, "read_array", lambda *a, **k: decoded.append(a) or real(*a, **k))
    data = CalibrationData(tmp_path, [X], samples=2)
    assert len(data) == 2
    assert decoded == []
    assert [feed.origin for feed in data] == [f"{tmp_path}/0.npz[0]", f"{tmp_path}/2.npz[0]"]
    assert len(decoded) == 2


def test_damaged_files(tmp_path):
    np.save(tmp_path / "a.npy", batch(2, 3, 5))
    np.savez(tmp_path / "b.npz", x=batch(2, 3, 5))
    save_proto(tmp_path / "c.pb", batch(2, 3, 5))
    for name in ("a.npy", "b.npz", "c.pb"):
        path = tmp_path / name
        whole = path.read_bytes()
        for keep in (len(whole) - 1, len(whole) // 2, 3, 0):
            path.write_bytes(whole[:keep])
            refused(rf"{name}", path)
    (tmp_path / "b.npz").write_bytes(b"no zip file")
    refused("cannot read .*b.npz: not a zip file", tmp_path / "b.npz")


def test_a_flipped_bit_in_an_npz_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=batch(2, 3, 5))
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    refused(r"cannot read .*a\.npz", path)


def npz_declaring(path, shape, version=(1, 0), dtype="<f4", payload=b""):
    header = io.BytesIO()
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    header.write(b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + payload)
    return path


def test_decompression_bombs_and_lies_in_npz_headers(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    refused("array x declares 12884901888 bytes, over 8589934592", npz_declaring(path, (1 << 30, 3)))
    refused("truncated: it declares 60 bytes", npz_declaring(path, (1, 3, 5)))
    refused("absurd shape", npz_declaring(path, (1 << 40, 1 << 40)))
    refused("cannot read", npz_declaring(path, (-1, 3, 5)))
    refused("version .* is not supported", npz_declaring(path, (1, 3, 5), version=(3, 0)))
    npz_declaring(path, (1, 3, 5), version=(2, 0), payload=batch(1, 3, 5).tobytes())
    assert_feeds(CalibrationData(path, [X]), [batch(1, 3, 5)])
    monkeypatch.setattr(NpzFile.__init__, "__defaults__", (59,))
    refused("over 59", path)


def test_pickles_are_never_loaded(tmp_path):
    objects = np.array([[{}]], object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=objects)
    for name in ("a.npy", "b.npz"):
        refused(f"{name}.*Python objects", tmp_path / name)


def test_empty_arrays_in_files(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 3, 5), np.float32))
    refused(r"a\.npy: the array for input x .* is empty, 0 x 3 x 5", tmp_path / "a.npy")


# --- test_data_set folders -------------------------------------------------------------------------------------


def test_onnx_test_data_folders(tmp_path):
    for i in (10, 2):
        save_proto(tmp_path / f"test_data_set_{i}" / "input_0.pb", batch(1, 3, 5) + i)
        save_proto(tmp_path / f"test_data_set_{i}" / "input_1.pb", batch(1, 7, dtype=np.int64))
        save_proto(tmp_path / f"test_data_set_{i}" / "output_0.pb", batch(1, 2))
    (tmp_path / "model.onnx").write_bytes(b"")
    data = CalibrationData(tmp_path, [X, Y])
    assert_feeds(data, [batch(1, 3, 5) + 2, batch(1, 3, 5) + 10])
    assert [feed.origin for feed in data] == [str(tmp_path / f"test_data_set_{i}") for i in (2, 10)]
    assert len(CalibrationData(tmp_path / "test_data_set_2", [X, Y])) == 1
    refused("expected input_0.pb for inputs x, found input_0.pb, input_1.pb", tmp_path)


def test_batches_in_onnx_test_data_are_split(tmp_path):
    save_proto(tmp_path / "input_0.pb", batch(3, 3, 5))
    save_proto(tmp_path / "input_1.pb", batch(3, 7, dtype=np.int64))
    assert [feed.origin for feed in CalibrationData(tmp_path, [X, Y])] == [f"{tmp_path}[{i}]" for i in range(3)]


def test_expected_outputs_in_a_folder_of_protos_are_left_out(tmp_path):
    save_proto(tmp_path / "deep" / "sample_0.pb", batch(1, 3, 5))
    save_proto(tmp_path / "deep" / "output_0.pb", batch(1, 3, 5))
    assert len(CalibrationData(tmp_path, [X])) == 1


def test_protos_with_values_elsewhere_are_refused(tmp_path):
    tensor = numpy_helper.from_array(batch(1, 3, 5))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    (tmp_path / "a.pb").write_bytes(tensor.SerializeToString())
    refused("a.pb keeps its values in another file", tmp_path / "a.pb")
