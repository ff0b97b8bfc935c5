"""Statistics files: the same whatever the order, merged, refused where they do not fit, and used instead of a run."""

import io
import itertools
import json
import os
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import model
from quantized import PLAIN

import onnxq
from onnxq import Override, cli
from onnxq.calibration import statistics
from onnxq.errors import DataError, OutputError, UsageError
from onnxq.graph import storage
from onnxq.numeric.histogram import Histogram
from onnxq.numeric.logits import Logits

NET = """(float[N,3,H,W] x) => (float[N,?] y)
    <float[4,3,3,3] w, float[4] b, float[4] g, float[4] h, float[4] m, float[4] var, float[5,4] v, float[5] c> {
    a = Conv<pads=[1,1,1,1]>(x, w, b)  n = BatchNormalization(a, g, h, m, var)  r = Relu(n)
    p = GlobalAveragePool(r)  f = Flatten(p)  z = Gemm<transB=1>(f, v, c) y = Softmax(z) }"""
TIED = """(float[N,3,4,4] x) => (float[N,?] y) <float[2,3,4,4] w, float[3,3,4,4] v, float[4,5,1,1] u>
    { a = Conv(x, w) b = Conv(x, v) c = Concat<axis=1>(a, b) d = Conv(c, u) f = Flatten(d) y = Softmax(f) }"""


@pytest.fixture(scope="module")
def net():
    return model(NET)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).standard_normal((10, 3, 6, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(net, data, tmp_path_factory):
    """Statistics of all data."""
    path = tmp_path_factory.mktemp("stats") / "all.npz"
    onnxq.calibrate(net, data, path)
    return path


def calibrated(net, data, path, **options):
    onnxq.calibrate(net, data, path, **options)
    return path.read_bytes()


def written(proto, calibration, *stats, **options):
    return onnxq.quantize(proto, calibration, statistics=stats, **PLAIN, **options).model.SerializeToString(
        deterministic=True
    )


# --- the same bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 10}, {"threads": 1}, {"threads": 4}, {"max_memory": 1}], ids=str
)
def test_how_it_is_run_does_not_change_a_byte(net, data, whole, tmp_path, options):
    assert calibrated(net, data, tmp_path / "s.npz", **options) == whole.read_bytes()


@pytest.mark.parametrize("sizes", [[10], [1] * 10, [3, 3, 3, 1]], ids=str)
def test_how_data_is_stored_does_not_change_a_byte(net, data, whole, tmp_path, sizes):
    (tmp_path / "data").mkdir()
    for number, (start, stop) in enumerate(itertools.pairwise(np.cumsum([0, *sizes]))):
        np.save(tmp_path / "data" / f"{number}.npy", data[start:stop])
    assert calibrated(net, tmp_path / "data", tmp_path / "s.npz") == whole.read_bytes()


def test_the_order_of_data_does_not_change_a_byte(net, data, whole, tmp_path):
    assert calibrated(net, data[::-1], tmp_path / "s.npz") == whole.read_bytes()
    assert calibrated(net, data[:9], tmp_path / "s.npz") != whole.read_bytes()


@pytest.mark.parametrize("cuts", [[4], [1, 2, 9]], ids=str)
def test_shards_merged_are_the_whole(net, data, whole, tmp_path, cuts):
    paths = []
    for number, (start, stop) in enumerate(itertools.pairwise([0, *cuts, 10])):
        paths.append(tmp_path / f"{number}.npz")
        onnxq.calibrate(net, data[start:stop], paths[-1])
    merged = statistics.merge([(str(path), statistics.load(path)) for path in reversed(paths)])
    statistics.save(merged, tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == whole.read_bytes()
    assert written(net, data, *paths) == written(net, data)


def test_a_file_holds_what_was_saved(whole, data, net):
    loaded = statistics.load(whole)
    assert {name: type(s) for name, s in loaded.tensors.items() if name in "xz"} == {"x": Histogram, "z": Logits}
    assert loaded.tensors["x"].extremes.hi == data.max()
    assert loaded.tensors["x"].counts.sum() == data.size
    assert len(loaded.tensors["z"].rows) == len(loaded.samples) == 10
    assert loaded.digest == onnxq.CalibrationData(data, onnxq.api.input_specs(net)).digest()


def test_logits_are_kept_up_to_a_number(tmp_path):
    """Of 600 samples the same 512, however they were spread."""
    proto = model("(float[N,3] x) => (float[N,12] y) <float[3,12] w> { z = MatMul(x, w) y = Softmax(z) }")
    data = np.random.default_rng(0).standard_normal((600, 3)).astype(np.float32)
    for name, part in (("a", data[:80]), ("b", data[80:]), ("all", data)):
        onnxq.calibrate(proto, part, tmp_path / f"{name}.npz")
    merged = statistics.merge([(n, statistics.load(tmp_path / f"{n}.npz")) for n in "ba"])
    statistics.save(merged, tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "all.npz").read_bytes()
    assert len(merged.tensors["z"].rows) == 512


# --- instead of running the model -------------------------------------------------------------------------------

LATER = [
    {},
    {"preset": "w4a4"},
    {"preset": "w4a16"},
    {"preset": "a12"},
    {"symmetric_activations": True, "power_of_two": True},
    {"block_size": 2},
    {"activation_range": "minmax", "weight_range": "minmax", "logits_range": "minmax"},
    {"activation_range": "percentile:99", "logits_range": "mse"},
    {"activation_range": "bn:4"},
    {"activation_range": "entropy"},
    {"exclude": ("Gemm",), "per_channel": False, "weight_range": "mse"},
    {"overrides": (Override(tensor="x", bits=16), Override(tensor="r", method="percentile:90"))},
]


@pytest.mark.parametrize("options", LATER, ids=str)
def test_statistics_give_the_bytes_that_data_gives_without_running_the_model(net, data, whole, options, monkeypatch):
    expected = written(net, data, **options)

    def refuse(*arguments):
        raise AssertionError("the model ran")

    monkeypatch.setattr("onnxq.calibration.collect.collect", refuse)
    assert written(net, data, whole, **options) == expected
    assert written(net, None, whole, **options) == expected


@pytest.mark.parametrize("opset", [9, 12, 17])
def test_models_of_all_operator_sets_keep_their_statistics(opset, data, tmp_path):
    proto = model(NET.replace("H,W", "6,5"), opset=opset, ir_version=4 if opset < 13 else 8)
    onnxq.calibrate(proto, data, tmp_path / "s.npz")
    for preset in ("w8a8", "w4a16"):
        assert written(proto, None, tmp_path / "s.npz", preset=preset) == written(proto, data, preset=preset)


def test_tied_tensors_from_statistics(tmp_path):
    proto = model(TIED)
    data = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
    onnxq.calibrate(proto, data, tmp_path / "s.npz")
    for method in ("mse", "minmax"):
        options = {"tie": ("Concat",), "activation_range": method}
        assert written(proto, data, tmp_path / "s.npz", **options) == written(proto, data, **options)


def test_tied_logits_from_statistics(tmp_path):
    """Statistics of logits and of other tensors, merged."""
    proto = model(TIED.replace("d = Conv(c, u) f = Flatten(d)", "f = Flatten(c)").replace(", float[4,5,1,1] u", ""))
    data = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
    onnxq.calibrate(proto, data, tmp_path / "s.npz")
    options = {"tie": ("Concat",), "force_int_kernels": True}
    assert written(proto, data, tmp_path / "s.npz", **options) == written(proto, data, **options)


def test_a_tied_grid_is_not_that_of_the_logits_alone(tmp_path):
    """`a` leaves the model as class scores and shares its grid: by mse, whatever was collected."""
    proto = model(
        "(float[N,3] x) => (float[N,12] a, float[N,?] y) <float[3,12] w, float[3,12] v, float[12,5] u>"
        " { a = Gemm(x, w) b = Gemm(x, v) c = Add(a, b) y = Gemm(c, u) }"
    )
    data = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    onnxq.calibrate(proto, data, tmp_path / "s.npz")
    options = {"tie": ("Add",), "force_int_kernels": True, "preset": "w8a4", "provenance": False}
    assert written(proto, data, tmp_path / "s.npz", **options) == written(proto, data, **options)
    assert written(proto, data, **options) == written(proto, data, logits_range="mse", **options)


def test_without_data_random_inputs_are_compared_and_the_report_says_so(net, data, whole):
    report = onnxq.quantize(net, statistics=[whole]).report
    assert report.samples.fitting == 10
    assert report.options["calibration"] == "random inputs"
    assert any("compared on random inputs" in warning for warning in report.warnings)
    warnings = onnxq.quantize(net, data[:2], statistics=[whole]).report.warnings
    assert [w for w in warnings if "BatchNorm remembers" not in w] == []  # these data are not those of training


# --- refusals ---------------------------------------------------------------------------------------------------


def test_neither_data_nor_statistics(net):
    with pytest.raises(UsageError, match="no calibration data and no statistics are given"):
        onnxq.quantize(net)


@pytest.mark.parametrize("text", [NET.replace("4,3,3,3", "4,3,1,1"), NET.replace("Relu", "LeakyRelu")])
def test_statistics_of_another_model(data, whole, text):
    with pytest.raises(DataError, match="collected on another model"):
        onnxq.quantize(model(text, check=False), data, statistics=[whole])


def test_statistics_of_other_weights(data, whole):
    with pytest.raises(DataError, match="collected on another model"):
        onnxq.quantize(model(NET, seed=1), data, statistics=[whole])


def test_data_that_the_statistics_do_not_hold(net, data, whole):
    with pytest.raises(DataError, match="holds samples that the statistics were not collected on"):
        onnxq.quantize(net, data + 1, statistics=[whole])


def test_the_same_shard_twice(net, whole):
    with pytest.raises(DataError, match="holds the same samples as the other files; each file may count once"):
        onnxq.quantize(net, statistics=[whole, whole])


def test_shards_of_different_models(net, data, whole, tmp_path):
    onnxq.calibrate(model(NET, seed=1), data[:3], tmp_path / "s.npz")
    with pytest.raises(DataError, match="were collected on different models"):
        onnxq.quantize(net, statistics=[whole, tmp_path / "s.npz"])


def edited(whole, path, edit):
    """A copy of the file with its members changed by `edit`, a dict name -> bytes."""
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_header(change):
    """An edit of the JSON header."""

    def edit(members):
        header = json.loads(np.load(io.BytesIO(members["header.npy"])).tobytes())
        change(header)
        buffer = io.BytesIO()
        np.save(buffer, np.frombuffer(json.dumps(header).encode(), np.uint8))
        members["header.npy"] = buffer.getvalue()

    return edit


def drop_tensor(header):
    next(t for t in header["tensors"] if t["name"] == "x")["name"] = "elsewhere"


def test_a_missing_tensor(net, data, whole, tmp_path):
    path = edited(whole, tmp_path / "s.npz", with_header(drop_tensor))
    with pytest.raises(DataError, match="hold nothing on tensor 'x'; run `onnxq calibrate` again"):
        onnxq.quantize(net, data, statistics=[path])


def test_another_format(net, whole, tmp_path):
    path = edited(whole, tmp_path / "s.npz", with_header(lambda header: header.update(format=2)))
    with pytest.raises(DataError, match="written by another version of onnxq; calibrate again"):
        onnxq.quantize(net, statistics=[path])


@pytest.mark.parametrize(
    "edit",
    [
        lambda members: members.pop("0_bins.npy"),
        lambda members: members.pop("header.npy"),
        lambda members: members.update({"0_bins.npy": members["0_bins.npy"][:-8]}),
        lambda members: members.update({"0_extremes.npy": members["0_bins.npy"]}),
        with_header(lambda header: header.pop("graph")),
        with_header(lambda header: header.update(tensors=[1])),
    ],
)
def test_damaged_files(net, whole, tmp_path, edit):
    path = edited(whole, tmp_path / "s.npz", edit)
    with pytest.raises(DataError, match="not a statistics file of `onnxq calibrate`, or damaged"):
        onnxq.quantize(net, statistics=[path])


@pytest.mark.parametrize("cut", [0, 1, 100, -30, -1])
def test_a_truncated_file(net, whole, tmp_path, cut):
    (tmp_path / "s.npz").write_bytes(whole.read_bytes()[:cut])
    with pytest.raises(DataError, match="not a statistics file"):
        onnxq.quantize(net, statistics=[tmp_path / "s.npz"])


def test_single_bytes_changed_are_never_a_crash(whole, tmp_path):
    content = whole.read_bytes()
    refused = 0
    for position in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        (tmp_path / "s.npz").write_bytes(damaged)
        try:
            statistics.load(tmp_path / "s.npz")
        except DataError:
            refused += 1
    assert refused > 20  # elsewhere the archive does not care: dates and the like


def test_files_of_another_kind(net, data, tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "data.npz", x=data)
    np.save(tmp_path / "data.npy", data)
    for name in ("text.npz", "data.npz", "data.npy"):
        with pytest.raises(DataError, match="not a statistics file"):
            onnxq.quantize(net, statistics=[tmp_path / name])
    with pytest.raises(DataError, match="no such file; `onnxq calibrate` writes statistics"):
        onnxq.quantize(net, statistics=[tmp_path / "missing.npz"])


class Exploding:
    def __reduce__(self):
        return (os.mkdir, ("pickle-was-run",))


@pytest.mark.parametrize("member", ["header", "0_bins"])
def test_pickles_are_not_opened(net, whole, tmp_path, member, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "bomb.npz", bomb=np.array([Exploding()], object))
    with zipfile.ZipFile(tmp_path / "bomb.npz") as archive:
        bomb = archive.read("bomb.npy")
    path = edited(whole, tmp_path / "s.npz", lambda members: members.update({f"{member}.npy": bomb}))
    with pytest.raises(DataError, match="not a statistics file"):
        onnxq.quantize(net, statistics=[path])
    assert not (tmp_path / "pickle-was-run").exists()


def test_integer_inputs_need_data(tmp_path):
    proto = model(
        "(float[N,4] x, int64[N,2] ids) => (float[N,?] y) <float[9,4] table, float[4,5] w, float[8,5] u>"
        " { e = Gather(table, ids) f = Flatten(e) p = MatMul(f, u) q = Gemm(x, w) y = Add(p, q) }"
    )
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((6, 4)).astype(np.float32), "ids": rng.integers(0, 9, (6, 2))}
    onnxq.calibrate(proto, data, tmp_path / "s.npz")
    with pytest.raises(UsageError, match=r"ids.* of model is no float tensor of known rank: give calibration"):
        onnxq.quantize(proto, statistics=[tmp_path / "s.npz"])
    assert written(proto, data, tmp_path / "s.npz") == written(proto, data)


def test_shapes_that_random_inputs_cannot_guess(tmp_path):
    proto = model("(float[N,3,H,W] x) => (float[N,?,?,?] y) <float[4,3,20,20] w> { y = Conv(x, w) }")
    data = np.random.default_rng(0).standard_normal((4, 3, 24, 24)).astype(np.float32)
    onnxq.calibrate(proto, data, tmp_path / "s.npz")
    with pytest.raises(onnxq.OnnxqError, match="give calibration data too"):
        onnxq.quantize(proto, statistics=[tmp_path / "s.npz"])


# --- the output -------------------------------------------------------------------------------------------------


def test_an_existing_file_stays_where_calibration_fails(net, data, tmp_path):
    (tmp_path / "s.npz").write_bytes(b"precious")
    with pytest.raises(DataError):
        onnxq.calibrate(net, data * np.nan, tmp_path / "s.npz")
    assert (tmp_path / "s.npz").read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_the_output_is_neither_the_model_nor_the_data(net, data, tmp_path):
    storage.write(net, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", data)
    with pytest.raises(OutputError, match="the output is the input model itself"):
        onnxq.calibrate(tmp_path / "in.onnx", data, tmp_path / "in.onnx")
    calib = tmp_path / "calib.npy"
    command = ["calibrate", tmp_path / "in.onnx", calib, "--calib", calib]
    result = CliRunner().invoke(cli.main, [str(a) for a in command])
    assert (result.exit_code, f"OUTPUT {calib}: this is {calib} itself" in result.output) == (6, True)
    np.testing.assert_array_equal(np.load(tmp_path / "calib.npy"), data)


def test_the_commands(net, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write(net, "in.onnx")
    for name, part in (("a", data[:4]), ("b", data[4:])):
        np.save(f"{name}.npy", part)

    def run(text):
        return CliRunner().invoke(cli.main, text.split())

    result = run("calibrate in.onnx a.npz --calib a.npy")
    assert result.exit_code == 0, result.output
    assert "a.npz: " in result.stdout
    assert "tensors over 4 samples, digest" in result.stdout
    assert (r := run("calibrate in.onnx b.npz --calib b.npy -q")).exit_code == 0
    assert r.output == ""
    result = run("quantize in.onnx out.onnx --stats a.npz --stats b.npz --preset w4a8")
    assert result.exit_code == 0, result.output
    expected = onnxq.quantize("in.onnx", statistics=["b.npz", "a.npz"], preset="w4a8").model
    assert (tmp_path / "out.onnx").read_bytes() == expected.SerializeToString(deterministic=True)
    assert "random inputs" in result.output
    assert (r := run("quantize in.onnx out.onnx")).exit_code == 2
    assert "Missing option '--calib' (or '--stats'" in r.output
    assert run("quantize in.onnx a.npz --stats a.npz").exit_code == 6
    assert run("quantize in.onnx out.onnx --stats a.npz --stats a.npz").exit_code == 4
