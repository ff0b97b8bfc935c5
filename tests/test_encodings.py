"""Encodings files: the arithmetic of offsets, the three schemas as AIMET writes them, and what is refused."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.encodings import VERSIONS, Encoding, encoding_of, read, to_json
from onnxq.errors import UsageError
from onnxq.numeric.quant import Grid, QuantParams, QuantSpec

ARGUMENTS = {"activation_bitwidth": 8, "param_bitwidth": 8}
INT8 = QuantSpec(Grid(8, signed=True), symmetric=False)
UINT8 = QuantSpec(Grid(8, signed=False), symmetric=False)


def params(scale, zero_point, grid, axis=None, block=None):
    return QuantParams(grid, np.asarray(scale, np.float32), np.asarray(zero_point, grid.dtype), axis, block)


@pytest.fixture
def reading(tmp_path):
    """Content of a file -> what is read from it."""

    def parse(content):
        path = tmp_path / "model.encodings"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read(path)

    return parse


# --- the arithmetic ---------------------------------------------------------------------------------------------


@st.composite
def grids(draw):
    """Parameters of any grid, per tensor or per channel, scales over all of float32."""
    grid = Grid(draw(st.integers(2, 16)), draw(st.booleans()))
    channels = draw(st.one_of(st.none(), st.integers(1, 5)))
    shape = () if channels is None else (channels,)
    count = channels or 1
    scale = draw(
        st.lists(
            st.floats(2.0**-126, 2.0**100, width=32),
            min_size=count,
            max_size=count,
        )
    )
    zero_point = draw(st.lists(st.integers(grid.qmin, grid.qmax), min_size=count, max_size=count))
    return params(np.reshape(scale, shape), np.reshape(zero_point, shape), grid, None if channels is None else 0)


@given(grids(), st.sampled_from(list(VERSIONS)))
def test_scales_and_zero_points_come_back_bit_by_bit(found, version):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.encodings")
        path.write_text(to_json([encoding_of("w", found, constant=True)], version, ARGUMENTS))
        (entry,) = read(path)
    spec = QuantSpec(found.grid, symmetric=False, per_channel=found.axis is not None)
    shape = () if found.axis is None else (found.scale.size, 3)
    params = entry.params(shape, 0, 1, spec)
    assert (params.grid, params.axis, params.block) == (found.grid, found.axis, None)
    for got, expected in ((params.scale, found.scale), (params.zero_point, found.zero_point)):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@given(st.integers(-128, 127))
def test_offsets_are_those_of_the_unsigned_grid(zero_point):
    entry = encoding_of("x", params(0.5, zero_point, Grid(8, signed=True)), constant=False)
    (old,) = json.loads(to_json([entry], "0.6.1", ARGUMENTS))["activation_encodings"]["x"]
    assert old["offset"] == -(zero_point + 128)
    assert (old["min"], old["max"]) == (0.5 * old["offset"], 0.5 * (old["offset"] + 255))
    (new,) = json.loads(to_json([entry], "1.0.0", ARGUMENTS))["activation_encodings"]
    assert new["offset"] == [old["offset"]]
    (latest,) = json.loads(to_json([entry], "2.0.0", ARGUMENTS))["encodings"]
    assert latest.get("y_zero_point", 0) == zero_point


@given(st.integers(0, 255))
def test_the_target_chooses_how_integers_are_stored(zero_point):
    entry = encoding_of("x", params(0.5, zero_point, Grid(8, signed=False)), constant=False)
    values = np.linspace(-200, 200, 801, dtype=np.float32)
    unsigned, signed = (entry.params((), None, None, spec) for spec in (UINT8, INT8))
    assert (unsigned.zero_point, signed.zero_point) == (zero_point, zero_point - 128)
    np.testing.assert_array_equal(unsigned.fake(values), signed.fake(values))


# --- the schemas, as AIMET writes them --------------------------------------------------------------------------

ACTIVATION = params(0.5, 3, Grid(8, signed=False))
CHANNELS = params([0.25, 0.5], [0, 0], Grid(4, signed=True), axis=0)
BLOCKS = params([[0.25, 0.5], [1, 2], [3, 4]], np.zeros((3, 2)), Grid(4, signed=True), axis=1, block=2)
ENTRIES = [encoding_of("x", ACTIVATION, False), encoding_of("w", CHANNELS, True), encoding_of("v", BLOCKS, True)]


def content(version, entries=ENTRIES):
    return json.loads(to_json(entries, version, ARGUMENTS))


def test_version_0_6_1():
    written = content("0.6.1", ENTRIES[:2])
    assert (written["version"], written["quantizer_args"]) == ("0.6.1", ARGUMENTS)
    entry = {
        "bitwidth": 8,
        "dtype": "int",
        "is_symmetric": "False",
        "min": -1.5,
        "max": 126.0,
        "offset": -3,
        "scale": 0.5,
    }
    assert written["activation_encodings"] == {"x": [entry]}
    entry = {
        "bitwidth": 4,
        "dtype": "int",
        "is_symmetric": "True",
        "min": -2.0,
        "max": 1.75,
        "offset": -8,
        "scale": 0.25,
    }
    assert written["param_encodings"] == {"w": [entry, {**entry, "min": -4.0, "max": 3.5, "scale": 0.5}]}


def test_version_1_0_0():
    written = content("1.0.0")
    common = {"dtype": "INT", "bw": 4, "is_sym": True}
    assert written["activation_encodings"] == [
        {
            "name": "x",
            "dtype": "INT",
            "bw": 8,
            "is_sym": False,
            "enc_type": "PER_TENSOR",
            "scale": [0.5],
            "offset": [-3],
        }
    ]
    blocks = {"enc_type": "PER_BLOCK", "block_size": 2, "scale": [0.25, 0.5, 1, 2, 3, 4], "offset": [-8] * 6}
    assert written["param_encodings"] == [
        {"name": "w", **common, "enc_type": "PER_CHANNEL", "scale": [0.25, 0.5], "offset": [-8, -8]},
        {"name": "v", **common, **blocks},
    ]


def test_version_2_0_0():
    assert content("2.0.0")["encodings"] == [
        {"name": "x", "output_dtype": "uint8", "y_scale": 0.5, "y_zero_point": 3},
        {"name": "w", "output_dtype": "int4", "y_scale": [0.25, 0.5], "axis": 0},
        {"name": "v", "output_dtype": "int4", "y_scale": [[0.25, 0.5], [1, 2], [3, 4]], "axis": 1, "block_size": 2},
    ]


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_blocks_come_back(version, reading):
    entry = next(e for e in reading(content(version)) if e.name == "v")
    params = entry.params((3, 4), 0, 1, INT8)
    assert (params.axis, params.block) == (1, 2)
    np.testing.assert_array_equal(params.scale, BLOCKS.scale)
    np.testing.assert_array_equal(params.zero_point, BLOCKS.zero_point)


def test_one_scale_for_all_positions_of_a_kernel(reading):
    entry = next(e for e in reading(content("1.0.0")) if e.name == "v")
    params = entry.params((3, 4, 5, 5), 0, 1, INT8)
    assert params.scale.shape == (3, 2, 5, 5)
    np.testing.assert_array_equal(params.scale[:, :, 4, 4], BLOCKS.scale)


@pytest.mark.parametrize("transposed", [False, True])
def test_lpbq_is_blocks_whose_scales_are_multiples(transposed, reading):
    """AIMET lists block scales channel by channel, whatever the order of the weight's axes."""
    steps, scale = np.array([[1, 2], [3, 4], [5, 6]]), np.array([0.5, 0.25, 0.125])
    entry = {
        "name": "w", "dtype": "INT", "enc_type": "LPBQ", "bw": 8, "compressed_bw": 4, "is_sym": True, "block_size": 2,
        "scale": scale.tolist(), "offset": [-128] * 3, "per_block_int_scale": steps.ravel().tolist(),
    }  # fmt: skip
    (found,) = reading({"version": "1.0.0", "activation_encodings": [], "param_encodings": [entry]})
    shape, axes = ((4, 3), (1, 0)) if transposed else ((3, 4), (0, 1))
    params = found.params(shape, *axes, INT8)
    expected = scale[:, None] * steps
    assert (params.grid.bits, params.axis) == (4, axes[1])
    np.testing.assert_array_equal(params.scale, expected.T if transposed else expected)
    assert not params.zero_point.any()


def test_lpbq_of_version_2(reading):
    entry = {
        "name": "w", "output_dtype": "int4", "axis": 1, "block_size": 2,
        "per_channel_float_scale": [[0.5], [0.25]], "per_block_int_scale": [[1, 2], [3, 4]],
    }  # fmt: skip
    (found,) = reading({"version": "2.0.0", "encodings": [entry]})
    np.testing.assert_array_equal(found.params((2, 4), 0, 1, INT8).scale, [[0.5, 1], [0.75, 1]])


def test_strictly_symmetric_grids_have_zero_in_the_middle(reading):
    """AIMET's offset is then 1 - 2^(b-1): the lowest integer is not counted."""
    entry = {
        "bitwidth": 8,
        "dtype": "int",
        "is_symmetric": "True",
        "min": -63.5,
        "max": 63.5,
        "offset": -127,
        "scale": 0.5,
    }
    found = reading({"activation_encodings": {}, "param_encodings": {"w": [entry]}})
    assert found[0].params((), None, None, INT8).zero_point == 0
    found = reading({"activation_encodings": {}, "param_encodings": {"w": [{**entry, "is_symmetric": "False"}]}})
    assert found[0].params((), None, None, INT8).zero_point == -1


def test_versions_before_0_6_are_read(reading):
    entry = {"bitwidth": 8, "is_symmetric": "False", "max": 2.6, "min": -2.1, "offset": -114.0, "scale": 0.0185}
    (found,) = reading({"version": "0.4.0", "activation_encodings": {"20": [entry]}, "param_encodings": {}})
    assert (found.name, found.bits, found.zero_point) == ("20", 8, 114)


def test_float_tensors(reading):
    old = {"activation_encodings": {"x": [{"bitwidth": 16, "dtype": "float"}]}}
    new = {"activation_encodings": [{"name": "x", "bw": 16, "dtype": "FLOAT", "enc_type": "PER_TENSOR"}]}
    assert reading(old)[0].bits is reading(new)[0].bits is None


# --- refusals ---------------------------------------------------------------------------------------------------

GOOD = {"name": "x", "output_dtype": "uint8", "y_scale": 0.5}
GOOD_1 = {"name": "x", "dtype": "INT", "bw": 8, "enc_type": "PER_TENSOR", "is_sym": False, "scale": [1], "offset": [0]}


@pytest.mark.parametrize(
    ("given_content", "message"),
    [
        ("{", "JSON cannot be parsed"),
        ([], "not an encodings file"),
        ({"version": "1.0.0"}, "not an encodings file"),
        ({"encodings": []}, "the file holds no encodings"),
        ({"encodings": 3}, "'encodings' must be a list"),
        ({"encodings": [3]}, "expected entries with a 'name'"),
        ({"encodings": [GOOD, GOOD]}, "tensor 'x' has 2 encodings"),
        ({"encodings": [{"name": "x", "output_dtype": "uint8"}]}, "'x' has no 'y_scale'"),
        ({"encodings": [GOOD | {"output_dtype": "float8e4m3fn"}]}, "'float8e4m3fn' is no integer type"),
        ({"encodings": [GOOD | {"output_dtype": "uint17"}]}, "2 to 16 bits, or 32 for a bias, got 17"),
        ({"encodings": [GOOD | {"y_scale": 0}]}, "scales must be positive"),
        ({"encodings": [GOOD | {"y_scale": 1e-60}]}, "scales must be positive and finite in float32"),
        ({"encodings": [GOOD | {"y_scale": "a"}]}, "expected numbers, got a"),
        ({"encodings": [GOOD | {"y_scale": []}]}, "expected numbers|scales must be"),
        ({"encodings": [GOOD | {"y_scale": [[1], [1, 2]]}]}, "'x' makes no sense"),
        ({"encodings": [GOOD | {"y_zero_point": 256}]}, "zero lies outside its grid: offsets must be -255 to 0"),
        ({"encodings": [GOOD | {"y_zero_point": 0.5}]}, "must be whole numbers"),
        ({"encodings": [GOOD | {"y_zero_point": [1, 2]}]}, "'x' makes no sense"),
        ({"encodings": [GOOD | {"axis": "a"}]}, "expected a whole number, got 'a'"),
        ({"activation_encodings": [GOOD_1 | {"enc_type": "PER_ROW"}]}, "'PER_ROW' is unknown"),
        ({"activation_encodings": [GOOD_1 | {"scale": [1, 2]}]}, "'x' makes no sense"),
        ({"activation_encodings": [GOOD_1 | {"zero_point_shift": [0.5]}]}, "between two integers"),
        ({"activation_encodings": [GOOD_1 | {"bw": 64}]}, "got 64"),
        ({"activation_encodings": {"conv1": {"output": {"0": {}}}}}, "do not name tensors"),
        ({"activation_encodings": {"x": [{"bitwidth": 8, "scale": 1}]}}, "'x' has no 'offset'"),
        ({"activation_encodings": {"x": [{"bitwidth": 8, "scale": 1, "offset": 3}]}}, "zero lies outside its grid"),
        ({"param_encodings": {"x": [{"bitwidth": b, "scale": 1, "offset": 0} for b in (4, 8)]}}, "different bit width"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_files_that_make_no_sense(given_content, message, reading):
    with pytest.raises(UsageError, match=message) as caught:
        reading(given_content)
    assert "model.encodings: " in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.json: encodings cannot be read: No such file"):
        read(tmp_path / "gone.json")


def test_schemas_without_blocks_say_so():
    with pytest.raises(UsageError, match=r"0\.6\.1 have no blocks, but 'v' has"):
        to_json(ENTRIES, "0.6.1", ARGUMENTS)
    kernel = params(np.ones((3, 2, 5, 5)), np.zeros((3, 2, 5, 5)), Grid(4, signed=True), axis=1, block=2)
    with pytest.raises(UsageError, match=r"1\.0\.0 have blocks for matrices only"):
        to_json([encoding_of("w", kernel, True)], "1.0.0", ARGUMENTS)


@pytest.mark.parametrize(
    ("entry", "shape", "axes", "message"),
    [
        (encoding_of("w", CHANNELS, True), (3, 2), (0, 1), "2 scales, but the tensor, of shape .3, 2., has 3 channels"),
        (encoding_of("w", params([1, 2, 3], [0] * 3, Grid(8, True), 7), True), (3, 2), (0, 1), "axis 7 is none"),
        (encoding_of("w", BLOCKS, True), (3, 8), (0, 1), "but the tensor, of shape .3, 8., has blocks of 2 of"),
        (Encoding("w", 8, np.ones(2, np.float32), np.zeros(2, int)), (2,), (None, None), "several scales, but"),
        (Encoding("w", 8, np.ones(5, np.float32), np.zeros(5, int), block=2), (3, 4), (0, 1), "5 scales, .* 6 blocks"),
    ],
)  # fmt: skip
def test_encodings_that_do_not_fit_their_tensor(entry, shape, axes, message):
    with pytest.raises(UsageError, match=message):
        entry.params(shape, *axes, INT8)
