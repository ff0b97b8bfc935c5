"""Runs of the command line that come to harm, each in a forked child of one process that has imported everything.

    python killed_runs.py SCENARIO FOLDER ...    prints what became of them as JSON

FOLDER holds net.onnx, calib.npy and big.npy; temporary files go to FOLDER/tmp.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from onnxq.calibration.checkpoint import Checkpoint
from onnxq.cli import main
from onnxq.execution.spill import SpillCache
from onnxq.graph import large

QUICK = ["--activation-range", "minmax", "--cle", "off", "--no-dead-channels", "--bias-correction", "off"]
QUANTIZE = ["quantize", "net.onnx", "out.onnx", "--calib", "calib.npy", *QUICK, "-q"]
REPORTED = [*QUANTIZE, "--report", "report.json", "--encodings", "encodings.json"]
ROUNDED = [*QUANTIZE, "--rounding", "coordinate-descent", "--preset", "w4a8"]
OUTPUTS = ("out.onnx", "report.json", "encodings.json")

Harm = Callable[[], None]


def start(arguments: Sequence[str], harm: Harm = lambda: None) -> tuple[int, int]:
    """A child that runs `onnxq ARGUMENTS`, `harm` done in it first: its process id, and a pipe with its words."""
    words, end = os.pipe()
    child = os.fork()
    if child:
        os.close(end)
        return child, words
    try:
        os.dup2(end, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        harm()
        main(list(arguments))
    except SystemExit as ended:
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os._exit(1)


def finish(child: int, words: int) -> dict[str, object]:
    """How a child ended: its exit code, or minus the signal, its words, and the files that there are now."""
    with open(words, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "stderr": text, **remains()}


def remains() -> dict[str, object]:
    held = {name: Path(name).read_bytes().hex()[-64:] if os.path.exists(name) else None for name in OUTPUTS}
    return {"outputs": held, "leftovers": [n for n in os.listdir() if n.startswith(".")] + os.listdir("tmp")}


def run(arguments: Sequence[str], harm: Harm = lambda: None) -> dict[str, object]:
    return finish(*start(arguments, harm))


def killed_at_random(kills: int) -> object:
    """A first run that ends, runs that are killed at any time, and a last one that ends."""
    begin = time.monotonic()
    runs = [run(REPORTED)]
    duration, rng = time.monotonic() - begin, random.Random(0)
    for _ in range(kills):
        for name in OUTPUTS:
            Path(name).write_bytes(b"old " * 20)
        child, words = start(REPORTED)
        time.sleep(rng.uniform(0, 1.2 * duration))
        os.kill(child, signal.SIGKILL)
        runs.append(finish(child, words))
    return [*runs, run(REPORTED)]


def killed_while_writing() -> object:
    """Killed in front of the first call that makes a file last, in front of the second, and so on, until none comes."""
    runs: list[dict[str, object]] = []
    while not runs or runs[-1]["code"] != 0:
        for name in OUTPUTS:
            Path(name).write_bytes(b"old " * 20)
        runs.append(run(REPORTED, lambda: _kill_at(len(runs), "fsync", "replace")))
    return runs


def killed_with_data_beside() -> object:
    """Likewise where a model with a data file beside it is replaced by another one; what its values are each time."""
    large.LARGE = large.SMALLEST = 1000
    onnx.save_model(onnx.load("net.onnx"), "net.onnx", save_as_external_data=True, size_threshold=0)
    old, new, runs = [*QUANTIZE, "--preset", "w16a16"], QUANTIZE, []
    expected = {name: run(command) and _values() for name, command in (("new", new), ("old", old))}
    while not runs or runs[-1]["code"] != 0:
        run(old)
        files = len(os.listdir())
        runs.append(run(new, lambda: _kill_at(len(runs), "fsync", "replace", "unlink")))
        runs[-1]["held"] = next((name for name, values in expected.items() if values == _values()), None)
        runs[-1]["more_files"] = len(os.listdir()) - files
    return runs


def _values() -> bytes:
    return onnx.load("out.onnx").SerializeToString(deterministic=True)


def _kill_at(count: int, *names: str) -> None:
    left = [count]

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object, **named: object) -> object:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*arguments, **named)

        return wrapper

    for name in names:
        setattr(os, name, counted(getattr(os, name)))


def stopped(*names: str) -> object:
    """A signal while it calibrates on more data than it could ever finish."""
    runs = []
    for name in names:
        child, words = start([*QUANTIZE[:4], "big.npy", "-q"])
        while not [n for n in os.listdir() if n.startswith(".out.onnx")]:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(child, getattr(signal, name))
        runs.append(finish(child, words))
    return runs


def full_disk(*limits: str) -> object:
    """No file may grow beyond so many bytes."""

    def limited(limit: int) -> Harm:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    init = SpillCache.__init__
    SpillCache.__init__ = lambda self, _: init(self, 0)  # type: ignore[method-assign, misc]
    commands = {
        "quantize": REPORTED,
        "calibrate": ["calibrate", "net.onnx", "out.onnx", "--calib", "calib.npy", "-q"],
        "checkpoint": [*ROUNDED, "--checkpoint", "kept"],
        "activations": ROUNDED,
    }
    runs = {}
    for name, command in commands.items():
        for limit in limits:
            runs[f"{name} {limit}"] = run(command, limited(int(limit)))
            for output in OUTPUTS:
                Path(output).unlink(missing_ok=True)
    return runs


def resumed() -> object:
    """Uninterrupted; killed behind its first saved layer, and again behind the next; and to the end."""

    def kill_behind_save() -> None:
        save = Checkpoint.save

        def once(self: Checkpoint, name: str, arrays: object) -> None:
            save(self, name, arrays)  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)

        Checkpoint.save = once  # type: ignore[method-assign]

    kept = [*ROUNDED, "--checkpoint", "kept"]
    runs, files = [run(ROUNDED)], []
    os.unlink("out.onnx")
    for harm in (kill_behind_save, kill_behind_save, lambda: None):
        runs.append(run(kept, harm))
        files.append(sorted((f.name, f.stat().st_mtime_ns) for f in Path("kept").iterdir()))
    return {"runs": runs, "files": files}


def locked() -> object:
    """As a user who may read everything and write nothing."""
    os.chmod(".", 0o755)
    os.chmod("tmp", 0o777)
    return run(QUANTIZE, lambda: os.setuid(65534))


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    os.makedirs("tmp", exist_ok=True)
    tempfile.tempdir = os.path.abspath("tmp")
    arguments = [int(a) if sys.argv[1] == "killed_at_random" else a for a in sys.argv[3:]]
    print(json.dumps(globals()[sys.argv[1]](*arguments)))
