"""Calibration data from memory: what an array must be, batches, the choice of samples."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples_on_disk import F32, X, Y, assert_feeds, batch, fixed, refused, rows, save_proto

from onnxq.data import CalibrationData, InputSpec
from onnxq.data.inputs import batch_size
from onnxq.errors import DataError, UsageError

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
        (7, UsageError, "must be a path, array, mapping, list or other iterable.* got int"),
        ([], DataError, "no samples"),
        ([3], DataError, "feed 0: input x is of type int; make it a numpy array"),
        ([{"x": [1.0, 2.0]}], DataError, "feed 0: input x is of type list; make it a numpy array"),
        ([{"z": batch(1, 3, 5)}], DataError, "feed 0 has no array x for input x; it has z. .*`input_keys` x=z"),
        ([{}], DataError, "it has none"),
    ],
)
def test_refused_sources(source, error, match):
    refused(match, source, error=error)


def test_one_array_cannot_feed_two_inputs():
    refused("one value for inputs x, y", batch(2, 3, 5), [X, Y])


def test_refused_arguments():
    with pytest.raises(UsageError, match="no inputs"):
        CalibrationData(batch(1, 3), [])
    for samples in (0, -1, True):
        with pytest.raises(UsageError, match="`samples` must be at least 1"):
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


def test_infinity_is_accepted_where_the_model_takes_it():
    values = batch(4, 3, 5)
    values[2, 1, 4] = -np.inf
    asked = []
    data = CalibrationData(values, [InputSpec("x", F32, ("N", 3, 5))], accepts_infinity=asked.append)
    assert sum(np.isinf(feed.arrays["x"]).sum() for feed in data) == 1
    assert [feed.origin for feed in asked] == ["calibration data[2]"]
    values[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="has nan"):
        list(data)


TEXT = InputSpec("text", np.dtype(object), ("N", 2))


@pytest.mark.parametrize("kind", ["U", "S", "O"])
def test_text(kind):
    stored = np.array([["one", "two"], ["three", "four"]]).astype(kind)
    data = CalibrationData({"text": stored}, [TEXT])
    assert [feed.arrays["text"].tolist() for feed in data] == [[["one", "two"]], [["three", "four"]]]
    assert all(feed.arrays["text"].dtype == object for feed in data)
    again = CalibrationData({"text": np.array(stored, object)}, [TEXT])
    assert data.digest() == again.digest()


def test_what_is_no_text():
    with pytest.raises(DataError, match=r"has a int at \(0, 1\); expected text"):
        list(CalibrationData({"text": np.array([["a", 3]], object)}, [TEXT]))
    with pytest.raises(DataError, match="expected strings, got float32; save an array of strings"):
        list(CalibrationData({"text": batch(2, 2)}, [TEXT]))


def test_names_with_control_characters_are_escaped():
    spec = InputSpec("a\nb", F32, ("N", 3))
    assert r"'a\nb'" in refused("expected", {"a\nb": batch(1, 4)}, [spec])


# --- batch dimension -----------------------------------------------------------------------------------------


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
        (("N", 3), ("M", 5)),  # with other names
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
