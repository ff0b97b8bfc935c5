import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model
from PIL import Image

import onnxq
from onnxq import Override, cli
from onnxq.cli import config
from onnxq.graph import storage

NET = """(float[N,3,8,8] x) => (float[N,?] y) <float[4,3,3,3] w, float[4,4,3,3] u, float[5,4] v> {
    a = Conv(x, w)  r = Relu(a)  b = Conv<pads=[1,1,1,1]>(r, u)  s = Add(b, r)
    p = GlobalAveragePool(s)  f = Flatten(p)  y = Gemm<transB=1>(f, v) }"""


@pytest.fixture
def place(tmp_path):
    """A folder with a model and 4 samples in three forms."""
    storage.write(model(NET), tmp_path / "in.onnx")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "calib.npy", rng.standard_normal((4, 3, 8, 8)).astype(np.float32))
    np.savez(tmp_path / "calib.npz", pixels=np.load(tmp_path / "calib.npy"))
    (tmp_path / "images").mkdir()
    for number in range(4):
        image = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def quantize(place, *options, calib="calib.npy"):
    """The result of the command on the model of `place`."""
    return invoke("quantize", place / "in.onnx", place / "out.onnx", "--calib", place / calib, *options)


def report_of(place, *options, calib="calib.npy"):
    """The report of a run, without what differs from run to run."""
    result = quantize(place, "--report", place / "report.json", *options, calib=calib)
    assert result.exit_code == 0, result.output
    found = json.loads((place / "report.json").read_text())
    return {key: value for key, value in found.items() if key not in ("seconds", "steps", "latency", "command")}


# --- what it prints ---------------------------------------------------------------------------------------------


def test_the_summary_says_what_happened(place):
    result = quantize(place)
    assert result.exit_code == 0
    assert f"{place / 'out.onnx'}: 6 nodes in integers, 0 in float" in result.stdout
    assert "output y: SQNR" in result.stdout
    assert result.stderr == ""


def test_quiet_prints_nothing(place):
    result = quantize(place, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (place / "out.onnx").exists()


def test_verbose_lists_nodes_and_steps(place):
    result = quantize(place, "--verbose", "--exclude", "Add")
    assert "in float: Add_s (Add): excluded by 'Add'" in result.stdout
    assert "Set activation ranges:" in result.stdout


@pytest.mark.parametrize("command", [[], ["quantize"]])
def test_help_documents_the_exit_codes(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    for code in ("0 done", "70 a bug", "2 an option", "3 the model", "4 calibration", "5 the result", "6 the output"):
        assert code in " ".join(result.stdout.split())


def test_every_option_has_help():
    for option in cli.quantize_command.params:
        if not isinstance(option, cli.click.Option):
            continue
        assert option.help or option.type.name == "choice" or option.name == "interpolation", option.name


def test_version():
    assert invoke("--version").stdout == f"onnxq, version {onnxq.__version__}\n"


def test_no_progress_bars_where_there_is_no_terminal(place):
    command = [sys.executable, "-m", "onnxq", "quantize", "in.onnx", "out.onnx", "--calib", "calib.npy"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\r" not in done.stdout


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_progress_bars_on_a_terminal(place, columns):
    """Of whatever width, with standard output elsewhere."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "onnxq", "quantize", "in.onnx", "out.onnx", "--calib", "calib.npy"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    process.communicate()
    os.close(ours)
    assert process.returncode == 0
    assert b"calibrating" in shown
    assert b"100%" in shown
    assert shown.endswith(b"\r\x1b[K")  # and nothing of it stays
    assert b"\n" not in shown
    lines = shown.replace(b"\x1b[K", b"").split(b"\r")
    assert max(map(len, lines)) < columns
    assert any(b"#" in line for line in lines) == (columns >= 60)


# --- every option has an effect ---------------------------------------------------------------------------------


def scale_counts(report):
    return {t["tensor"]: len(t["scale"]) for t in report["tensors"] if t["kind"] == "constant"}


def grids(report):
    return [t["scale"] for t in report["tensors"] if t["kind"] == "activation"]


def test_per_channel_and_per_tensor(place):
    assert scale_counts(report_of(place)) == {"w": 4, "u": 4, "v": 5}
    assert report_of(place, "--per-channel") == report_of(place)
    assert scale_counts(report_of(place, "--per-tensor")) == {"w": 1, "u": 1, "v": 1}


def test_include_and_exclude(place):
    assert scale_counts(report_of(place, "--include", "Gemm", "--include", "Add")).keys() == {"v"}
    assert scale_counts(report_of(place, "--exclude", "Conv_a", "--exclude", "Gem*")).keys() == {"u"}


def test_tie(place):
    tied = {t["tensor"]: t["grid_of"] for t in report_of(place, "--tie", "Add")["tensors"]}
    assert {tied[n] for n in ("r", "s")} == {"b"}


def test_an_option_that_does_nothing_says_so(place):
    """On the terminal, with its flag, and in the report; this model has no Concat."""
    result = quantize(place, "--tie", "Concat", "--report", place / "report.json")
    assert result.exit_code == 0
    assert "warning: --tie Concat did nothing" in result.stdout
    assert any(
        "`tie` Concat did nothing" in text for text in json.loads((place / "report.json").read_text())["warnings"]
    )
    assert "did nothing" not in quantize(place, "--tie", "Add").stdout


def test_samples_and_seed(place):
    assert report_of(place, "--samples", 2)["samples"]["fitting"] == 2
    seeds = {str(grids(report_of(place, "--samples", 1, "--seed", seed))) for seed in range(5)}
    assert len(seeds) > 1


@pytest.mark.parametrize("option", ["--batch-size", "--threads", "--max-memory"])
def test_how_it_runs_reaches_the_options_and_changes_nothing_else(place, option):
    plain, other = report_of(place), report_of(place, option, 3)
    assert other["options"].pop(option[2:].replace("-", "_")) == 3
    plain["options"].pop(option[2:].replace("-", "_"))
    assert plain == other


def test_target_and_preset(place):
    report = report_of(place, "--target", "ort", "--preset", "w8a8")
    assert (report["options"]["target"], report["options"]["preset"]) == ("ort", "w8a8")


def test_input_key(place):
    assert quantize(place, calib="calib.npz").exit_code == 4
    assert grids(report_of(place, "--input-key", "x=pixels", calib="calib.npz")) == grids(report_of(place))


@pytest.mark.parametrize(
    "options",
    [
        ["--scale", "1"],
        ["--mean", "0.5"],
        ["--mean", "0.485,0.456,0.406"],
        ["--std", "0.2"],
        ["--color", "bgr"],
        ["--resize", "9", "--crop", "8"],
        ["--resize", "8x9", "--crop", "8x8"],
        ["--interpolation", "nearest"],
    ],
)
def test_each_image_option_changes_the_calibration(place, options):
    assert grids(report_of(place, *options, calib="images")) != grids(report_of(place, calib="images"))


def test_layout(place):
    result = quantize(place, "--layout", "nhwc", calib="images")
    assert result.exit_code in (2, 4)
    assert "nhwc" in result.stderr
    assert grids(report_of(place, "--layout", "nchw", calib="images")) == grids(report_of(place, calib="images"))


# --- the configuration file -------------------------------------------------------------------------------------


def configured(place, text, *options, calib="images"):
    (place / "onnxq.toml").write_text(text)
    return quantize(place, "--config", place / "onnxq.toml", *options, calib=calib)


def test_all_options_in_a_file(place):
    text = f"""
        calib = {str(place / "calib.npz")!r}
        samples = 3
        seed = 5
        strict = true
        input-key = {{ x = "pixels" }}
        target = "ort"
        preset = "w8a8"
        per-channel = false
        include = ["Conv", "Add"]
        exclude = "*_b"
        tie = ["Add"]
        force-int-kernels = true
        freeze = ["x=1x3x8x8"]
        dead-channels = false
        cle = "range"
        absorb = false
        embeddings = "4"
        smoothquant = 0.25
        fallback = "auto"
        no-bias-correction = true
        rounding = "nearest"
        effort = "fast"
        symmetric-activations = true
        asymmetric-weights = true
        power-of-two = true
        block-size = 2
        store-4bit = "int8"
        weight-range = "minmax"
        activation-range = "percentile:99.9"
        logits-range = "mse"
        batch-size = 2
        threads = 1
        max_memory = 100
        no-latency = true
        provenance = false
        report = {str(place / "report.json")!r}
        quiet = true
        verbose = false

        [[override]]
        node = "Conv_a"
        bits = 7

        [preprocess]
        layout = "nchw"
        color = "bgr"
        resize = [9, 10]
        crop = 8
        interpolation = "nearest"
        scale = 0.5
        mean = [0.1, 0.2, 0.3]
        std = 2
        """
    (place / "onnxq.toml").write_text(text)
    result = invoke("quantize", place / "in.onnx", place / "out.onnx", "--config", place / "onnxq.toml")
    assert (result.exit_code, result.output) == (0, "")
    options = json.loads((place / "report.json").read_text())["options"]
    override = {**dict.fromkeys(Override.__dataclass_fields__), "node": "Conv_a", "bits": 7, "keep_float": False}
    assert options == {
        "target": "ort", "preset": "w8a8", "per_channel": False, "include": ["Conv", "Add"], "exclude": ["*_b"],
        "tie": ["Add"], "force_int_kernels": True, "freeze": ["x=1x3x8x8"],
        "dead_channels": False, "cle": "range", "absorb": False,
        "embeddings": "4", "smoothquant": 0.25, "hard_swish": "auto", "fallback": "auto", "exceptions": 3.0,
        "narrow_activations": "products",
        "bias_correction": "off", "rounding": "nearest", "effort": "fast",
        "checkpoint": None, "data_free": False, "synthetic": False, "input_ranges": [],
        "symmetric_activations": True, "asymmetric_weights": True,
        "power_of_two": True, "block_size": 2, "store_4bit": "int8",
            "weight_range": "minmax", "activation_range": "percentile:99.9",
        "logits_range": "mse", "overrides": [override], "samples": 3, "seed": 5, "strict": True,
        "batch_size": 2, "threads": 1,
        "max_memory": 100, "latency": "off", "provenance": False, "provider": "CPUExecutionProvider", "custom_ops": [],
        "encodings_version": "1.0.0", "float_output": False, "from_encodings": None,
        "input_keys": {"x": "pixels"}, "calibration": str(place / "calib.npz"),
        "preprocess": {
            "layout": "nchw", "color": "bgr", "resize": [9, 10], "crop": 8, "interpolation": "nearest",
            "scale": 0.5, "mean": [0.1, 0.2, 0.3], "std": [2.0],
        },
    }  # fmt: skip


def test_every_option_can_stand_in_a_file():
    names = config._long_names(cli.quantize_command)
    options = [p for p in cli.quantize_command.params if isinstance(p, cli.click.Option)]
    assert {option.name for option, _ in names.values()} == {o.name for o in options} - {"config", "help"}


def test_the_command_line_wins_over_the_file(place):
    assert configured(place, "samples = 3\nquiet = true", "--samples", 2, "--report", place / "r.json").exit_code == 0
    assert json.loads((place / "r.json").read_text())["samples"]["fitting"] == 2


def test_per_tensor_in_a_file(place):
    assert configured(place, "per-tensor = true", "--report", place / "r.json").exit_code == 0
    assert not json.loads((place / "r.json").read_text())["options"]["per_channel"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampels = 3", "unknown key 'sampels'; did you mean 'samples'?"),
        ("[preprocess]\nmeen = 3", "unknown key 'meen'; did you mean 'mean'?"),
        ("xyzzy = 3", "unknown key 'xyzzy'"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("samples = 'many'", "'many' is not a valid integer"),
        ("samples = 2.5", "'2.5' is not a valid integer"),
        ("samples = true", "'samples' cannot be True"),
        ("samples = 0", "0 is not in the range"),
        ("quiet = 1", "'quiet' must be true or false, got 1"),
        ("target = 'tpu'", "'tpu' is unknown"),
        ("tie = ['Mul']", "'Mul' is not"),
        ("mean = 'grey'", "'grey' is not a list of numbers"),
        ("mean = [[1]]", "'mean' cannot be [[1]]"),
        ("resize = [1, 2, 3]", "is not a size like 224 or 240x320"),
        ("scale = {}", "'scale' cannot be {}"),
        ("preprocess = 3", "'preprocess' must be a table"),
        ("samples = ", "not valid TOML"),
        ("input-key = 'x'", "'x' is not of the form INPUT=KEY"),
    ],
)
def test_a_file_that_makes_no_sense(place, text, message):
    result = configured(place, text)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (place / "out.onnx").exists()


def test_a_file_that_is_missing_or_no_text(place):
    missing = quantize(place, "--config", place / "none.toml")
    assert (missing.exit_code, "No such file" in missing.stderr) == (2, True)
    (place / "onnxq.toml").write_bytes(b"\xff\xfe\x00")
    damaged = quantize(place, "--config", place / "onnxq.toml")
    assert (damaged.exit_code, "not valid TOML" in damaged.stderr) == (2, True)


# --- files ------------------------------------------------------------------------------------------------------


def test_the_result_runs_anywhere(place):
    quantize(place)
    written = onnx.load(place / "out.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert {o.domain for o in written.opset_import} <= {"", "ai.onnx"}


@pytest.mark.parametrize("name", ["in.onnx", "out.onnx", "calib.npy", "./sub/../in.onnx"])
def test_the_report_replaces_no_other_file(place, name):
    (place / "sub").mkdir()
    before = sorted(p.name for p in place.iterdir())
    result = quantize(place, "--report", f"{place}/{name}")
    assert result.exit_code == 6
    assert "choose another name" in result.stderr
    assert sorted(p.name for p in place.iterdir()) == before


def test_the_report_cannot_be_written_where_there_is_no_folder(place):
    result = quantize(place, "--report", place / "none" / "report.json")
    assert result.exit_code == 6
    assert not (place / "out.onnx").exists()


def test_the_output_does_not_replace_the_calibration_data(place):
    before = (place / "calib.npy").read_bytes()
    result = invoke("quantize", place / "in.onnx", place / "calib.npy", "--calib", place / "calib.npy")
    assert result.exit_code == 6
    assert (place / "calib.npy").read_bytes() == before


def test_an_existing_output_is_replaced(place):
    (place / "out.onnx").write_bytes(b"old")
    assert quantize(place).exit_code == 0
    assert (place / "out.onnx").read_bytes() != b"old"
    assert not [p for p in place.iterdir() if p.name.startswith(".")]


# --- interruptions ----------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing_behind(place):
    """A real interrupt, while it calibrates on far more data than it could finish."""
    big = np.lib.format.open_memmap(place / "big.npy", mode="w+", dtype=np.float32, shape=(200_000, 3, 8, 8))
    del big
    before = sorted(p.name for p in place.iterdir())
    command = [sys.executable, "-m", "onnxq", "quantize", "in.onnx", "out.onnx", "--calib", "big.npy"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not [p for p in place.iterdir() if p.name.startswith(".out.onnx")]:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.strip() == "onnxq: interrupted, nothing was written"
    assert sorted(p.name for p in place.iterdir()) == before


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    script = invoke("completion", shell)
    assert script.exit_code == 0
    assert f"_ONNXQ_COMPLETE={shell}_complete" in script.output
    if shutil.which(shell) is not None:
        assert subprocess.run([shell, "-n"], input=script.output, text=True, check=False).returncode == 0
