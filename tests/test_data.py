import builtins
import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image

from onnxq.data import CalibrationData, InputSpec, Preprocess
from onnxq.data import sources as data_sources
from onnxq.data.inputs import batch_size
from onnxq.errors import DataError, UsageError
from onnxq.npz import NpzFile

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


# --- in memory -----------------------------------------------------------------------------------------------


def test_an_array_is_split_into_single_samples():
    values = batch(4, 3, 5)
    data = CalibrationData(values, [X])
    assert_feeds(data, [values[i : i + 1] for i in range(4)])
    assert [(feed.rows, feed.origin) for feed in data] == [(1, f"calibration data[{i}]") for i in range(4)]
    assert len(data) == 4


def test_mappings_lists_and_custom_iterables_give_the_same_feeds():
    values = batch(4, 3, 5)

    class Loader:
        def __iter__(self):
            for value in values:
                yield {"x": value[None]}

    singles = [{"x": value[None]} for value in values]
    for source in ({"x": values}, singles, Loader(), [values[:3], values[3:]], tuple(singles)):
        data = CalibrationData(source, [X])
        assert len(data) == 4
        for _ in range(2):
            assert_feeds(data, [values[i : i + 1] for i in range(4)])


def test_several_inputs_are_split_together():
    data = CalibrationData({"x": batch(2, 3, 5), "y": batch(2, 7, dtype=np.int64)}, [X, Y])
    assert [{k: v.shape for k, v in feed.arrays.items()} for feed in data] == [{"x": (1, 3, 5), "y": (1, 7)}] * 2
    assert_feeds(data, [batch(2, 7, dtype=np.int64)[i : i + 1] for i in range(2)], "y")


def test_a_sample_may_lack_the_batch_axis():
    value = batch(1, 3, 5)
    assert_feeds(CalibrationData([{"x": value[0]}], [X]), [value])
    assert_feeds(CalibrationData(value[0], [X]), [value])


def test_feeds_do_not_alias_the_callers_arrays():
    values = batch(2, 3, 5)
    for array in rows(CalibrationData(values, [X])):
        array[:] = -1
    np.testing.assert_array_equal(values, batch(2, 3, 5))


def test_byte_order_and_memory_order_do_not_matter(tmp_path):
    values = batch(2, 3, 5)
    np.save(tmp_path / "a.npy", np.asfortranarray(values).astype(">f4"))
    for source in (values.astype(">f4"), np.asfortranarray(values), tmp_path / "a.npy"):
        assert_feeds(CalibrationData(source, [X]), [values[:1], values[1:]])


def test_take_gives_feeds_from_all_over():
    values = batch(4, 3, 5)
    taken = CalibrationData(values, [X]).take(2)
    np.testing.assert_array_equal(np.concatenate([feed.arrays["x"] for feed in taken]), values[[0, 2]])
    assert len(CalibrationData(values, [X]).take(9)) == 4


def test_an_iterator_is_refused_because_it_can_be_read_only_once():
    refused(r"a generator only once; pass a list", ({"x": value} for value in batch(2, 3, 5)), error=UsageError)
    refused("only once", iter([{"x": batch(2, 3, 5)}]), error=UsageError)


def test_an_iterable_that_runs_dry_is_noticed():
    class OneShot:
        def __init__(self):
            self.iterator = iter([{"x": batch(1, 3, 5)}])

        def __iter__(self):
            return self.iterator

    refused("changed: it had 1 parts at first", OneShot())


def test_a_feed_that_changes_length_is_noticed():
    feeds = [{"x": batch(2, 3, 5)}]
    data = CalibrationData(feeds, [X])
    list(data)
    feeds[0]["x"] = batch(3, 3, 5)
    with pytest.raises(DataError, match="feed 0 changed: it had 2 samples at first, now 3"):
        list(data)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (7, UsageError, "must be a path, array, mapping or list, got int"),
        ([], DataError, "no samples"),
        ([3], DataError, "feed 0: expected a mapping name -> array, got int"),
        ([{"x": [1.0, 2.0]}], DataError, "feed 0: input x is a list; make it a numpy array"),
        ([{"z": batch(1, 3, 5)}], DataError, "feed 0 has no array x for input x; it has z. .*--input-key x=KEY"),
        ([{}], DataError, "it has none"),
    ],
)
def test_refused_sources(source, error, match):
    refused(match, source, error=error)


def test_one_array_cannot_feed_two_inputs():
    refused("one array for inputs x, y", batch(2, 3, 5), [X, Y])


def test_refused_arguments():
    with pytest.raises(UsageError, match="no inputs"):
        CalibrationData(batch(1, 3), [])
    for samples in (0, -1, True):
        with pytest.raises(UsageError, match="samples must be at least 1"):
            CalibrationData(batch(1, 3, 5), [X], samples=samples)


# --- what an array must be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (batch(2, 3, 5, dtype=np.float64), r"input x expected float32, got float64; save it with .*\(np.float32\)"),
        (batch(2, 3, 5, dtype=np.uint8), "expected float32, got uint8"),
        (batch(2, 5, 3), r"calibration data\[0\]: input x expected N x 3 x 5, got 1 x 5 x 3"),
        (batch(2, 1, 3, 5), "expected N x 3 x 5, got 2 x 1 x 3 x 5"),
        (batch(1, 5)[0], "expected N x 3 x 5, got 5"),
        (np.zeros((0, 3, 5), np.float32), "empty, 0 x 3 x 5"),
        (np.array([[[{}]]], object), "Python objects"),
    ],
)
def test_arrays_that_do_not_fit(array, match):
    refused(match, array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    values = batch(4, 3, 5)
    values[2, 1, 4] = value
    message = refused(r"calibration data\[2\]: input x has (nan|inf|-inf)", values)
    assert "at (0, 1, 4)" in message


def test_names_with_control_characters_are_escaped():
    spec = InputSpec("a\nb", F32, ("N", 3))
    assert r"'a\nb'" in refused("expected", {"a\nb": batch(1, 4)}, [spec])


# --- batch dimension -----------------------------------------------------------------------------------------


def fixed(size):
    return InputSpec("x", F32, (size, 3, 5))


def test_samples_are_grouped_to_a_fixed_batch_and_the_last_group_is_filled(tmp_path):
    values = batch(5, 3, 5)
    np.save(tmp_path / "a.npy", values[:3])
    np.save(tmp_path / "b.npy", values[3:])
    data = CalibrationData(tmp_path, [fixed(2)])
    assert_feeds(data, [values[0:2], values[2:4], values[[4, 4]]])
    assert [feed.rows for feed in data] == [2, 2, 1]
    assert [feed.origin for feed in data] == [
        f"{tmp_path}/a.npy[0] to {tmp_path}/a.npy[1]",
        f"{tmp_path}/a.npy[2] to {tmp_path}/b.npy[0]",
        f"{tmp_path}/b.npy[1]",
    ]
    assert len(data) == 3


def test_the_last_sample_fills_the_last_feed():
    values = batch(5, 3, 5)
    assert_feeds(CalibrationData(values, [fixed(3)]), [values[:3], values[[3, 4, 4]]])


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([("N", 3), (1, 5), (None, 7), None], 1),
        ([(4, 3), (4, 5)], 4),
        ([(4, 3), None], None),
        ([("N", 3), ("M", 5)], None),
        ([("N", 3), (4, 5)], None),
        ([("N", 3), ()], None),
        ([()], None),
        ([(0, 3)], None),
    ],
)
def test_batch_size(shapes, size):
    assert batch_size([InputSpec(str(i), F32, shape) for i, shape in enumerate(shapes)]) == size


def test_scalars_are_fed_as_stored():
    for shape in ((), None):
        (feed,) = CalibrationData({"x": np.float32(3)}, [InputSpec("x", F32, shape)])
        assert (feed.arrays["x"].shape, feed.rows) == ((), None)


def test_a_fixed_batch_chooses_whole_feeds():
    values = batch(12, 3, 5)
    data = CalibrationData(values, [fixed(3)], samples=5)  # rounded up to 2 of the 4 feeds
    assert_feeds(data, [values[0:3], values[6:9]])
    assert len(data) == 2


def test_a_fixed_batch_needs_samples_of_one_shape():
    spec = InputSpec("x", F32, (2, "T"))
    refused("different shapes in a batch of 2", [{"x": batch(1, 3)}, {"x": batch(1, 5)}], [spec])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("N", 3), ("M", 5)),  # named apart
        (("N", 3), ()),  # a scalar
        (("N", 3), (2, 5)),  # fixed beside dynamic
        ((2, 3), (7, 5)),
    ],
)
def test_inputs_without_a_common_batch_axis_are_fed_as_stored(first, second):
    specs = [InputSpec("a", F32, first), InputSpec("b", F32, second)]
    shapes = [tuple({"N": 2, "M": 2}.get(dim, dim) for dim in shape) for shape in (first, second)]
    stored = {"a": np.ones(shapes[0], np.float32), "b": np.ones(shapes[1], np.float32)}
    (feed,) = CalibrationData([stored], specs)
    assert [array.shape for array in feed.arrays.values()] == shapes
    assert (feed.rows, feed.origin) == (None, "feed 0")
    assert len(CalibrationData([stored] * 3, specs)) == 3


def test_arrays_of_different_length_are_fed_as_stored():
    specs = [InputSpec("a", F32, ("N", 3)), InputSpec("b", F32, (None, 5))]
    (feed,) = CalibrationData([{"a": batch(2, 3), "b": batch(4, 5)}], specs)
    assert [array.shape for array in feed.arrays.values()] == [(2, 3), (4, 5)]
    assert feed.rows is None
    refused("expected N x 3, got 3", [{"a": batch(1, 3)[0], "b": batch(4, 5)}], specs)


def test_an_input_of_unknown_rank_is_split_along_axis_0():
    values = batch(2, 3, 5)
    assert_feeds(CalibrationData(values, [InputSpec("x", F32, None)]), [values[:1], values[1:]])


def test_dynamic_and_one_are_batch_one():
    specs = [InputSpec("a", F32, ("N", 3)), InputSpec("b", F32, (1, 5)), InputSpec("c", F32, (None, 7))]
    data = CalibrationData({"a": batch(2, 3), "b": batch(2, 5), "c": batch(2, 7)}, specs)
    assert [feed.arrays["b"].shape for feed in data] == [(1, 5), (1, 5)]


# --- choosing samples and digest -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "chosen"), [(1, [0]), (3, [0, 2, 4]), (4, [0, 1, 3, 5]), (7, range(7)), (99, range(7))]
)
def test_samples_are_evenly_spaced(samples, chosen, tmp_path):
    values = batch(7, 3, 5)
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", x=values[3 * i : 3 * i + 3])
    for source in (tmp_path, values):
        data = CalibrationData(source, [X], samples=samples)
        assert len(data) == len(chosen)
        assert_feeds(data, [values[i : i + 1] for i in chosen])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    samples=st.none() | st.integers(1, 12),
    fixed_to=st.sampled_from([1, 2, 3]),
    suffix=st.sampled_from(["npy", "npz", "pb", "memory"]),
)
def test_feeds_do_not_depend_on_how_data_is_cut_into_files(tmp_path_factory, sizes, samples, fixed_to, suffix):
    values, folder = batch(sum(sizes), 3, 5), tmp_path_factory.mktemp("cut")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    for i, part in enumerate(parts):
        if suffix == "npy":
            np.save(folder / f"{i}.npy", part)
        elif suffix == "npz":
            np.savez_compressed(folder / f"{i}.npz", x=part)
        elif suffix == "pb":
            save_proto(folder / f"{i}.pb", part)
    cut = CalibrationData(parts if suffix == "memory" else folder, [fixed(fixed_to)], samples=samples)
    whole = CalibrationData(values, [fixed(fixed_to)], samples=samples)
    assert_feeds(cut, rows(whole))
    assert [feed.rows for feed in cut] == [feed.rows for feed in whole]
    assert cut.digest() == whole.digest()


def test_the_digest_is_of_the_set_of_samples():
    values = batch(4, 3, 5)
    digest = CalibrationData(values, [X]).digest()
    assert len(digest) == 64
    assert CalibrationData(values[::-1], [X]).digest() == digest
    assert CalibrationData(values, [fixed(3)]).digest() == digest  # the filled feed adds nothing
    changed = values.copy()
    changed[3, 2, 4] += 1
    renamed = InputSpec("z", F32, X.shape)
    others = [
        CalibrationData(changed, [X]),
        CalibrationData(values, [X], samples=3),
        CalibrationData(np.concatenate([values, values]), [X]),
        CalibrationData(values.reshape(4, 5, 3), [InputSpec("x", F32, ("N", 5, 3))]),
        CalibrationData(values.view(np.int32), [InputSpec("x", np.dtype(np.int32), X.shape)]),
        CalibrationData(values, [renamed]),
    ]
    assert len({digest, *(other.digest() for other in others)}) == 7


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
        r"a\.npz has no array x for input x; it has images, y, extra. Map names with --input-key x=KEY", path, [X, Y]
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


# --- images --------------------------------------------------------------------------------------------------


def as_input(image):
    """The default preprocessing of H x W x C pixels that have the model's size already."""
    return (image.astype(np.float32) * np.float32(1 / 255)).transpose(2, 0, 1)[None]


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
    apart = [ANY_IMAGE, InputSpec("y", Y.dtype, ("M", 7))]
    (feed,) = CalibrationData({"image": pixels(2, 5, 7, 3), "y": batch(4, 7, dtype=np.int64)}, apart)
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
    refused("cannot tell where .* has its channels; set layout", tmp_path, [spec], UsageError)
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


# --- preprocessing -------------------------------------------------------------------------------------------


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
        with pytest.raises(UsageError, match=r"cannot tell where .* has its channels; set layout to nchw or nhwc"):
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
    assert "got 1 x 3 x 6 x 9; set resize or crop" in message


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layout": "chw"}, "layout must be one of auto, nchw, nhwc, got 'chw'"),
        ({"color": "cmyk"}, "color must be one of auto, rgb, bgr, gray"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, bilinear"),
        ({"interpolation": ["bilinear"]}, "interpolation must be one of"),
        ({"resize": 0}, "resize must be a positive int"),
        ({"resize": True}, "resize must be"),
        ({"resize": 1.5}, "resize must be"),
        ({"resize": [5]}, "resize must be"),
        ({"resize": "256"}, "resize must be"),
        ({"crop": (5, -7)}, "crop must be"),
        ({"crop": [True, 7]}, "crop must be"),
        ({"scale": 0}, "scale must be a finite number other than 0"),
        ({"scale": "1/255"}, "scale must be"),
        ({"mean": (1, 2)}, r"mean must be one finite number, or one per channel \(3 or 4\)"),
        ({"mean": []}, "mean must be"),
        ({"mean": ["0"]}, "mean must be"),
        ({"mean": float("nan")}, "mean must be"),
        ({"std": [1, 0, 1]}, "std must not be 0"),
        ({"std": 1e-50}, "std must not be 0"),
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
    with pytest.raises(UsageError, match=r"mean has 3 values, input image .* has 1 channels; give 1 or 1"):
        preprocessed(pixels(5, 7, 1), (1, 1, 5, 7), mean=(1, 2, 3))


def test_pillow_is_imported_only_when_there_are_images():
    code = "import onnxq.data.calibration, sys; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
