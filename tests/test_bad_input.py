"""What users get wrong: one message on stderr, the right exit code, and not a file more or less than before."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model
from PIL import Image

import onnxq
from onnxq.cli import main
from onnxq.errors import AlreadyQuantizedError
from onnxq.graph import storage

NET = "(float[N,3,4,4] x) => (float[N,?,?,?] y) <float[5,3,1,1] w> { a = Conv(x, w) y = Relu(a) }"
TWO = "(float[N,3] x, float[N,3] z) => (float[N,?] y) <float[3,5] w> { a = Add(x, z) y = MatMul(a, w) }"


def images(count=3, *shape):
    return np.random.default_rng(0).standard_normal((count, *(shape or (3, 4, 4)))).astype(np.float32)


@pytest.fixture
def place(tmp_path):
    """A folder with a good model, good data, and a result from before."""
    storage.write(model(NET), tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", images())
    (tmp_path / "out.onnx").write_bytes(b"precious")
    return tmp_path


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if not p.is_symlink() or p.exists()
    }


def refused(place, code, *messages, source="in.onnx", output="out.onnx", calib="calib.npy", options=()):
    """Run the command; it fails with `code`, says `messages` in one line, and changes no file."""
    before = contents(place)
    arguments = ["quantize", str(place / source), str(place / output), "--calib", str(place / calib)]
    result = CliRunner().invoke(main, [*arguments, *map(str, options)])
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    if code != 2 or last.startswith("onnxq"):
        assert result.stderr.startswith("onnxq: error: ")
        assert len(result.stderr.splitlines()) == 1, result.stderr
    for message in messages:
        assert message in result.stderr, result.stderr
    assert contents(place) == before
    return result


# --- the model --------------------------------------------------------------------------------------------------


def test_no_such_model(place):
    refused(place, 3, "none.onnx", "no such file", source="none.onnx")


def test_a_folder_as_model(place):
    (place / "folder").mkdir()
    refused(place, 3, "expected an .onnx file, got a folder", source="folder")


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x00" * 100, b"PK\x03\x04" + b"z" * 50])
def test_not_onnx(place, content):
    (place / "in.onnx").write_bytes(content)
    refused(place, 3, "in.onnx", "not an ONNX model")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model(place, share):
    whole = (place / "in.onnx").read_bytes()
    (place / "in.onnx").write_bytes(whole[: int(len(whole) * share)])
    refused(place, 3, "in.onnx")


def test_a_damaged_model(place):
    """Bits flipped anywhere: refused, or still a model, but never a traceback or a leftover."""
    whole = bytearray((place / "in.onnx").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] ^= 1 << int(rng.integers(8))
        (place / "in.onnx").write_bytes(damaged)
        arguments = [str(place / "in.onnx"), str(place / "new.onnx"), "--calib", str(place / "calib.npy")]
        result = CliRunner().invoke(main, ["quantize", *arguments])
        assert result.exit_code in (0, 3, 4, 5, 7), (result.output, result.exception)
        assert (place / "new.onnx").exists() == (result.exit_code == 0)
        (place / "new.onnx").unlink(missing_ok=True)


def test_missing_external_data(place):
    onnx.save_model(model(NET), place / "in.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (place / "weights.bin").unlink()
    refused(place, 3, "external data cannot be loaded", "weights.bin")


def test_external_data_outside_the_folder(place):
    (place / "sub").mkdir()
    onnx.save_model(
        model(NET), place / "sub" / "in.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    proto = onnx.load(place / "sub" / "in.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../calib.npy"
    (place / "sub" / "in.onnx").write_bytes(proto.SerializeToString())
    refused(place, 3, "external data cannot be loaded", source="sub/in.onnx")


def test_a_model_that_breaks_the_rules(place):
    proto = model(NET)
    proto.graph.node[0].input[0] = "nobody"
    storage.write(proto, place / "in.onnx")
    refused(place, 3, "not a valid ONNX model", "nobody")


def test_a_model_that_is_quantized_already(place):
    onnxq.quantize(place / "in.onnx", images(), output=place / "int8.onnx")
    refused(place, 3, "already quantized", "start from the float model", source="int8.onnx")
    with pytest.raises(AlreadyQuantizedError):
        onnxq.quantize(place / "int8.onnx", images())


def test_everything_excluded(place):
    refused(place, 3, "nothing to quantize: 1 Conv: excluded by 'Conv'", options=["--exclude", "Conv"])


def test_an_operator_set_too_old(place):
    storage.write(model(NET, opset=5, ir_version=3, check=False), place / "in.onnx")
    refused(place, 3, "operator set 5 is not supported; expected 6 to")


def test_an_operator_that_the_runtime_does_not_know(place):
    text = "(float[N,3,4,4] x) => (float[N,?,?,?] y) <float[5,3,1,1] w> { a = Conv(x, w) y = our.own.Op(a) }"
    storage.write(model(text, domains="our.own", check=False), place / "in.onnx")
    refused(place, 7, "ONNX Runtime cannot load the model", "our.own")


def test_a_weight_that_is_not_finite(place):
    storage.write(model(NET, w=np.nan), place / "in.onnx")
    refused(place, 3, "weight 'w'", "not-a-number or infinity")


# --- calibration data -------------------------------------------------------------------------------------------


def test_no_such_data(place):
    refused(place, 4, "none", "does not exist", calib="none")


def test_an_empty_folder(place):
    (place / "empty").mkdir()
    refused(place, 4, "no calibration files in", calib="empty")


def test_a_file_of_another_kind(place):
    (place / "calib.txt").write_text("1 2 3")
    refused(place, 4, "calib.txt", "expected images", calib="calib.txt")


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 3, 5, 4), (3, 4), (2, 3, 3, 4, 4), (0, 3, 4, 4)])
def test_data_of_the_wrong_shape(place, shape):
    np.save(place / "calib.npy", images(*shape) if shape[0] else np.zeros(shape, np.float32))
    refused(place, 4, "calib.npy")


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float16, bool, "U3"])
def test_data_of_the_wrong_type(place, dtype):
    np.save(place / "calib.npy", images().astype(dtype))
    refused(place, 4, "calib.npy", "expected float32")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_data_that_is_not_finite(place, value):
    values = images()
    values[2, 1, 0, 3] = value
    np.save(place / "calib.npy", values)
    refused(place, 4, "calib.npy[2]", str(value))


def test_an_unreadable_image(place):
    (place / "photos").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(place / "photos" / "0.png")
    (place / "photos" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    refused(place, 4, "1.png", "cannot read", calib="photos", options=["--layout", "nchw"])


def test_pickled_objects_are_not_loaded(place):
    class Bomb:
        def __reduce__(self):
            return os.system, ("touch exploded",)

    np.save(place / "calib.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    refused(place, 4, "calib.npy")
    np.savez(place / "calib.npz", x=np.array([Bomb()], dtype=object))
    refused(place, 4, "calib.npz", calib="calib.npz")
    assert not os.path.exists("exploded")


def test_a_missing_input_name(place):
    storage.write(model(TWO), place / "in.onnx")
    np.savez(place / "calib.npz", x=np.ones((2, 3), np.float32), y=np.ones((2, 3), np.float32))
    refused(place, 4, "has no array z for input z", "--input-key z=KEY", calib="calib.npz")
    refused(place, 4, "calib.npy", "use .npz files")


def test_an_input_key_for_no_input(place):
    refused(place, 2, "the model has no input xx; did you mean x?", options=["--input-key", "xx=pixels"])


def test_a_truncated_file(place):
    whole = (place / "calib.npy").read_bytes()
    (place / "calib.npy").write_bytes(whole[:-100])
    refused(place, 4, "calib.npy")


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "tpu"], "--target 'tpu' is unknown; expected one of generic-int8, opencv"),
        (["--preset", "w1a1"], "'w1a1' is unknown"),
        (["--samples", "0"], "0 is not in the range"),
        (["--samples", "many"], "not a valid integer"),
        (["--threads", "-1"], "-1 is not in the range"),
        (["--layout", "chwn"], "'chwn' is not one of"),
        (["--mean", "grey"], "is not a list of numbers"),
        (["--resize", "big"], "is not a size like 224"),
        (["--tie", "Mul"], "'Mul' is not"),
        (["--no-such-option"], "No such option"),
        (["--exclude", "conv*"], "--exclude 'conv*' matches no node name"),
        (["--input-key", "x"], "not of the form INPUT=KEY"),
        (["--interpolation", "cubic"], "cubic"),
    ],
)
def test_options_that_make_no_sense(place, options, message):
    refused(place, 2, message, options=options)


def test_a_missing_argument(place):
    result = CliRunner().invoke(main, ["quantize", str(place / "in.onnx")])
    assert (result.exit_code, "Missing argument 'OUTPUT'" in result.stderr) == (2, True)


@pytest.mark.parametrize("option", [["--scale", "nan"], ["--std", "0"], ["--resize", "0"], ["--mean", "1,2"]])
def test_image_options_that_make_no_sense(place, option):
    (place / "photos").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(place / "photos" / "0.png")
    refused(place, 2, option[0][2:], calib="photos", options=["--layout", "nchw", *option])


# --- the output -------------------------------------------------------------------------------------------------


def test_the_output_is_a_folder(place):
    (place / "folder").mkdir()
    refused(place, 6, "expected a file to write the model to, got a folder", output="folder")


@pytest.mark.parametrize("output", ["none/out.onnx", "calib.npy/out.onnx", "n" * 300])
def test_the_output_lies_nowhere(place, output):
    refused(place, 6, "cannot be written", output=output)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_the_output_is_not_writable(place):
    (place / "locked").mkdir(mode=0o500)
    refused(place, 6, "cannot be written", output="locked/out.onnx")
    (place / "out.onnx").chmod(0o400)
    refused(place, 6, "not writable")


def test_the_output_is_not_writable_for_whoever_runs_this(place, monkeypatch):
    monkeypatch.setattr("onnxq.graph.storage.os.access", lambda path, mode: False)
    refused(place, 6, "out.onnx: not writable")


@pytest.mark.parametrize("output", ["in.onnx", "./sub/../in.onnx", "link.onnx", "hard.onnx"])
def test_the_output_is_the_input(place, output):
    (place / "sub").mkdir()
    (place / "link.onnx").symlink_to(place / "in.onnx")
    (place / "hard.onnx").hardlink_to(place / "in.onnx")
    refused(place, 6, "the output is the input model itself", output=output)


def test_a_disk_that_is_full(place, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxq.graph.storage.os.fsync", full)
    refused(place, 6, "No space left on device")


@pytest.mark.parametrize("name", ["n" * 300, "evil\x1b[2J.onnx"])
def test_names_that_are_no_names(place, name):
    refused(place, 3, source=name)
    refused(place, 4, calib=name)


# --- in a process of its own ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["none.onnx", "new.onnx", "--calib", "calib.npy"], 3),
        (["in.onnx", "new.onnx", "--calib", "none"], 4),
        (["in.onnx", "in.onnx", "--calib", "calib.npy"], 6),
        (["in.onnx", "new.onnx", "--calib", "calib.npy", "--samples", "x"], 2),
    ],
)
def test_through_the_installed_command(place, arguments, code):
    before = contents(place)
    command = [sys.executable, "-m", "onnxq", "quantize", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "rror: " in line]) == 1
    assert contents(place) == before
