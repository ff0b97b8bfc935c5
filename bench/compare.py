"""onnxq beside onnxruntime.quantization.quantize_static: same model, same calibration samples, same grids.

    python bench/compare.py [MODEL ...] [--repeats 5] [--memory] [--markdown bench/results/benchmarks.md]

Needs `pip install -e '.[bench]'`. Both tools are set to uint8 activations and symmetric int8 weights, one scale a
channel, min-max ranges. What takes time is measured alternately, A B A B, and reported as the median of the pairs'
ratios: other work on the machine changes the seconds, but hardly the ratios.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cases
import measure
import numpy as np
import tables
from cases import Case, Images
from child import peak_memory

TOOLS = ("quantize_static", "onnxq")

STEPS_OFF = ("--no-dead-channels", "--no-cle", "--no-absorb", "--no-bias-correction", "--rounding", "nearest")
MIN_MAX = (
    *STEPS_OFF, "--weight-range", "minmax", "--activation-range", "minmax", "--logits-range", "minmax",
)  # fmt: skip
"""What quantize_static does; by default onnxq does more, which `bench/steps.py` and `bench/ranges.py` measure."""


@dataclass(frozen=True)
class Run:
    """One quantization in a process of its own, imports included.

    seconds: on the clock. cpu_seconds: user and system, of its children, too. mebibytes: peak memory.
    code: exit status; None where the process was ended at its limit. said: its standard output and error.
    """

    seconds: float
    cpu_seconds: float
    mebibytes: float
    code: int | None
    said: str


def quantize(tool: str, model: Path, folder: Path, output: Path, *options: str) -> Run:
    """Let a tool quantize `model` with the calibration samples in `folder`. Raises RuntimeError with what it said."""
    run = attempt(tool, model, folder, output, *options)
    if run.code:
        raise RuntimeError(f"{tool} failed on {model}:\n{run.said}")
    return run


def attempt(
    tool: str,
    model: Path,
    folder: Path,
    output: Path,
    *options: str,
    limit: float = math.inf,
    interpreter: str | None = None,
) -> Run:
    """The same, whatever becomes of it. It is ended after `limit` CPU seconds, or ten times as many on the clock.
    interpreter: that has the tool, if not this one."""
    child = Path(__file__).with_name("child.py")
    command = [interpreter or sys.executable, str(child), tool, str(model), str(output), "--calib", str(folder)]
    command += options
    with tempfile.TemporaryFile("w+") as said:
        start, peak, ended = time.perf_counter(), 0, False
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - start
            if found:
                break
            peak = peak_memory(process.pid) or peak
            if not ended and (_cpu_seconds(process.pid) > limit or seconds > 10 * limit):
                os.killpg(process.pid, signal.SIGKILL)
                ended = True
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if text.split() and text.split()[-1].isdigit():  # by the process itself, at its end
        text, _, last = text.rstrip().rpartition("\n")
        peak = int(last)
    return Run(
        seconds, usage.ru_utime + usage.ru_stime, peak / 1024, None if ended else process.returncode, text.strip()
    )


def _cpu_seconds(process: int) -> float:
    """User and system time of a running process and of those of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def write_samples(folder: Path, x: Images, count: int | None = None) -> None:
    """Samples as .npy files of batch 1, repeated where `count` asks for more than there are."""
    folder.mkdir()
    for i in range(count or len(x)):
        np.save(folder / f"{i:05}.npy", x[i % len(x)][np.newaxis])


def compare(case: Case, repeats: int, seconds: float, scratch: Path) -> Iterator[str]:
    """A table of one model, as lines of Markdown."""
    calibration, (x, labels) = case.calibration(), case.evaluation()
    write_samples(scratch / "calib", calibration)
    models = [case.model, *(scratch / f"{tool}.onnx" for tool in TOOLS)]
    runs: dict[str, list[Run]] = {tool: [] for tool in TOOLS}
    for _ in range(repeats):
        for tool, output in zip(TOOLS, models[1:], strict=True):
            options = MIN_MAX if tool == "onnxq" else ()
            runs[tool].append(quantize(tool, case.model, scratch / "calib", output, *options))
    theirs, ours = (runs[tool] for tool in TOOLS)

    yield f"## {case.name}\n"
    yield f"{len(calibration)} calibration samples; data: {case.data}.\n"
    yield "| | float | quantize_static | onnxq | onnxq / quantize_static | onnxq / float |"
    yield "|---|--:|--:|--:|--:|--:|"
    drop = 0.0
    if labels is not None:
        shares = [cases.top1(case, model, x, labels) for model in models]
        drop = shares[0] - shares[2]
        yield row(f"top-1 %, {len(x)} images", *(f"{share:.2f}" for share in shares))
    distances = [measure.sqnr(case.model, model, x) for model in models[1:]]
    yield row("SQNR of the worst output, dB", "", *(f"{db:.1f}" for db in distances))
    slower = _ratio([r.seconds for r in theirs], [r.seconds for r in ours])
    larger = _ratio([r.mebibytes for r in theirs], [r.mebibytes for r in ours])
    yield row("quantization time, s", "", *(_median(r.seconds for r in found) for found in (theirs, ours)), slower)
    yield row("peak memory, MiB", "", *(_median(r.mebibytes for r in found) for found in (theirs, ours)), larger)
    taken = measure.latencies(models, x, seconds)
    over = _ratio(taken[:, 1], taken[:, 2]), _ratio(taken[:, 0], taken[:, 2])
    yield row(f"latency, ms ({len(taken)} rounds)", *(f"{1e3 * t:.3f}" for t in np.median(taken, axis=0)), *over)
    sizes = [model.stat().st_size / 1024 for model in models]
    yield row("file, KiB", *(f"{size:.0f}" for size in sizes), sizes[2] / sizes[1], sizes[2] / sizes[0])
    yield row("QuantizeLinear / DequantizeLinear", "", *("{} / {}".format(*measure.pairs(m)) for m in models[1:]))
    yield from _graph_rows([measure.kernels(model, x) for model in models])
    goals = [("latency <= 1.05 of quantize_static's", over[0], 1.05), ("latency < float's", over[1], 1.0)]
    if case.name == "resnet20_cifar10":
        goals += [("time < quantize_static's", slower, 1.0), ("at most 0.4 points of top-1 lost", drop, 0.4)]
    verdicts = (f"{goal}: {value:.3f} ({'met' if value <= limit else 'MISSED'})" for goal, value, limit in goals)
    yield "\nTargets: " + "; ".join(verdicts) + "."


def _median(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.2f}"


def _ratio(theirs: Iterable[float], ours: Iterable[float]) -> float:
    """Median of the ratios of what was measured one after the other."""
    return statistics.median(float(b) / float(a) for a, b in zip(theirs, ours, strict=True))


def _graph_rows(graphs: Sequence[Sequence[measure.Kernel]]) -> Iterator[str]:
    """What ONNX Runtime runs, and how much of the time goes there."""
    for kind in ("integer", "float", "conversion", "movement"):
        yield row(f"{kind} nodes", *(str(measure.count(g, kind).total()) for g in graphs))
        spent = (1e6 * sum(k.seconds for k in g if k.kind == kind) for g in graphs)
        yield row(f"{kind} nodes, time in us", *(f"{us:.0f}" for us in spent))
    yield row("operators in float", "", *(_listed(measure.count(g, "float")) for g in graphs[1:]))
    linear = [[k for k in g if k.kind == "float" and k.is_linear] for g in graphs[1:]]
    yield row("of these Conv, Gemm, MatMul", "", *(", ".join(f"`{k.name}`" for k in g) or "none" for g in linear))


def _listed(ops: Counter[str]) -> str:
    return ", ".join(f"{n} {op}" for op, n in ops.most_common()) or "none"


def row(*cells: str | float) -> str:
    """A line of a table of six columns; numbers are ratios."""
    texts = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
    return "| " + " | ".join([*texts, *[""] * (6 - len(texts))]) + " |"


def memory(repeats: int, scratch: Path) -> Iterator[str]:
    """Peak memory of onnxq with 100 and with 1000 calibration images on disk."""
    yield "## Peak memory of onnxq, MiB\n"
    yield "Optimised rounding holds activations, up to `--max-memory` (512 MiB), and puts the others into files; it is"
    yield "what the MobileNet gets by default, and the ResNet does not.\n"
    yield "| model | files | rounding | 100 images | 1000 images | 1000 / 100 |"
    yield "|---|---|---|--:|--:|--:|"
    pixels = ("--scale", str(1 / 127.5), "--mean", "1")
    for name, kind, rounding, options in (
        ("resnet20_cifar10", "npy", "auto", ()),
        ("mobilenet_v1_025_imagenet", "jpg", "auto", pixels),
        ("mobilenet_v1_025_imagenet", "jpg", "auto, `--max-memory 64`", (*pixels, "--max-memory", "64")),
        ("mobilenet_v1_025_imagenet", "jpg", "nearest", (*pixels, "--rounding", "nearest")),
    ):
        model = cases.REAL / name / "model.onnx"
        peaks: dict[int, list[float]] = {100: [], 1000: []}
        for count in peaks:
            folder = scratch / f"{name}{count}"
            if folder.exists():
                continue
            if kind == "npy":
                write_samples(folder, cases.real(name).calibration(), count)
            else:
                copy_photos(folder, sorted((model.parent / "calib").glob("*.jpg")), count)
        for _ in range(repeats):
            for count, found in peaks.items():
                run = quantize("onnxq", model, scratch / f"{name}{count}", scratch / "memory.onnx", *options)
                found.append(run.mebibytes)
        few, many = (statistics.median(found) for found in peaks.values())
        ratio = _ratio(*peaks.values())
        yield f"| {name} | .{kind} | {rounding} | {few:.1f} | {many:.1f} | {ratio:.3f} |"


def copy_photos(folder: Path, photos: Sequence[Path], count: int) -> None:
    """`count` files, the photos over and over again."""
    folder.mkdir()
    for i in range(count):
        shutil.copyfile(photos[i % len(photos)], folder / f"{i:05}.jpg")


TEXT = """Both: uint8 activations, symmetric int8 weights per channel, min-max, the same samples as .npy files.
quantize_static is preceded by quant_pre_process, and by a conversion to opset 13 where the model is older.
Time and peak memory: medians of {repeats} runs, whole processes, the tools by turns; ratios are medians of
pairs. Latency: one sample, one thread, the three models by turns in one process. SQNR is that of the
optimised graphs. Nodes, and the time in them, are those of ONNX Runtime's profile, layout changes included;
profiling adds 1 to 3 us to each node.
"""


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def main() -> None:
    """Print the tables, and write them to a file if asked."""
    known = {case.name: case for case in cases.all_cases()}
    parser = tables.parser(__doc__, known)
    parser.add_argument("--repeats", type=int, default=5, help="quantizations of each model by each tool [5]")
    parser.add_argument("--seconds", type=float, default=6, help="time to measure the latency of each model [6]")
    parser.add_argument("--memory", action="store_true", help="peak memory with 100 and with 1000 images, too")
    args = tables.parsed(parser, known)

    def parts() -> Iterator[Iterable[str]]:
        command = "python bench/compare.py --memory --markdown bench/results/benchmarks.md"
        text = TEXT.format(repeats=args.repeats)
        yield tables.heading("onnxq beside quantize_static", command, text, processor())
        for name in args.models or known:
            with tempfile.TemporaryDirectory() as scratch:
                yield compare(known[name], args.repeats, args.seconds, Path(scratch))
        if args.memory and cases.REAL.is_dir():
            with tempfile.TemporaryDirectory() as scratch:
                yield memory(min(args.repeats, 3), Path(scratch))

    tables.show(parts(), args.markdown)


if __name__ == "__main__":
    main()
