"""What vendors' tool-chains make of the networks, each quantized for its target; docs/targets.md: how to install them.

    python bench/toolchains.py --tools FOLDER [--markdown bench/results/toolchains.md] [--only TOOL ...] [MODEL ...]

FOLDER/TOOL/bin/python is an environment that has the package of TOOL: tensorrt, qnn, openvino, rknn, tract, opencv, and
web, where onnxruntime-web lies in FOLDER/web/node_modules. What is missing is left out with a line.

Networks are those of models/ and of ../shared/realmodels, all with static shapes. Where a tool refuses a file, or
computes something else, it gets the file that quantize_static makes of the same network, too: then it is not the file
that is at fault. Formats and placement count here: weights are rounded to nearest, nothing is equalized.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
from cost import networks
from tables import head, heading, line, parser, show

import onnxq
from onnxq.data import CalibrationData
from onnxq.errors import OnnxqError
from onnxq.graph.freeze import frozen
from onnxq.graph.import_model import import_model
from onnxq.pipeline.open_inputs import input_specs
from onnxq.report import ToolchainResult
from onnxq.targets import TARGETS
from onnxq.toolchains import TOOLCHAINS, Toolchain, ToolchainOptions, check_toolchain

COMMAND = "python bench/toolchains.py --tools FOLDER --markdown bench/results/toolchains.md"
CALIBRATION, COMPARED, LIMIT = 24, 4, 240.0
OPTIONS = {"dead_channels": False, "cle": "off", "absorb": False, "rounding": "nearest"}
CLOSE_DB = 3.0
"""What a simulator may be worse than ONNX Runtime against float."""


@dataclass(frozen=True)
class Web(Toolchain):
    """ONNX Runtime for browsers, whose adapter stands here."""

    @property
    def script(self) -> Path:
        return Path(__file__).parent / "web_adapter.py"


WEB = Web("", "onnxruntime-web", "onnxruntime-web, by npm")
PAIRS = (
    ("tensorrt", "tensorrt", TOOLCHAINS["tensorrt"]),
    ("qnn", "qnn", TOOLCHAINS["qnn"]),
    ("openvino", "openvino", TOOLCHAINS["openvino"]),
    ("rknn", "rknn", TOOLCHAINS["rknn"]),
    ("tract", "tract", TOOLCHAINS["tract"]),
    ("opencv", "opencv", TOOLCHAINS["opencv"]),
    ("web", "ort", WEB),
)
"""Name of the environment, target, tool-chain."""

Feeds = Sequence[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Work:
    """A network with static shapes: its file, and samples of these shapes."""

    name: str
    model: Path
    freeze: tuple[str, ...]
    calibration: Feeds
    unseen: Feeds


def prepared(folder: Path, wanted: Sequence[str]) -> Iterator[Work | str]:
    """The networks, those of ../shared/cases apart; a sentence for what is missing."""
    for network in networks():
        if isinstance(network, str):
            yield network
            continue
        kind, _, name = network.name.partition("/")
        if kind == "cases" or (wanted and name not in wanted):
            continue
        loaded = network.load(folder)
        shapes = Counter(tuple(sorted((k, v.shape) for k, v in feed.items())) for feed in loaded.calibration)
        common = shapes.most_common(1)[0][0]
        same = [f for f in loaded.calibration if tuple(sorted((k, v.shape) for k, v in f.items())) == common]
        unseen = [f for f in loaded.unseen if tuple(sorted((k, v.shape) for k, v in f.items())) == common]
        freeze = tuple(f"{key}={'x'.join(map(str, shape))}" for key, shape in common)
        proto = frozen(import_model(onnx.load(loaded.model), name), freeze, name)
        model = folder / f"{name}.onnx"
        onnx.save(proto, model)
        yield Work(name, model, freeze, same[:CALIBRATION], (unseen or same)[:COMPARED])


def quantized(work: Work, target: str, output: Path) -> None:
    onnxq.quantize(work.model, work.calibration, output=output, target=target, **OPTIONS)


def static(work: Work, output: Path, folder: Path) -> str:
    """quantize_static's file of the same network and samples; what it said where there is none."""
    samples = folder / f"{work.name}.samples"
    if not samples.exists():
        samples.mkdir()
        for index, feed in enumerate(work.calibration):
            np.savez(samples / f"{index:03}.npz", **feed)
    child = str(Path(__file__).parent / "child.py")
    command = [sys.executable, child, "quantize_static", str(work.model), str(output), "--calib", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if output.exists() else f"quantize_static fails: {' '.join(done.stderr.split())[-150:]}"


def tried(work: Work, file: Path, target: str, tool: Toolchain, python: Path) -> ToolchainResult:
    """Raises OnnxqError where the tool does not end."""
    proto, reference = onnx.load(file), onnx.load(work.model)
    feeds = list(CalibrationData(work.unseen, input_specs(proto)))
    options = ToolchainOptions(toolchain_python=str(python), toolchain_limit=LIMIT)
    needs = TARGETS[target].static_shapes
    return check_toolchain(file, proto, tool, options, feeds, "unseen", static_shapes=needs, reference=reference)


def trouble(found: ToolchainResult) -> str:
    """What falls short of what is wanted of a tool-chain."""
    if found.problem:
        return found.problem
    if found.partitions is not None and found.partitions != 1:
        return f"{found.partitions} partitions; on the CPU: {listed(found)}"
    if found.fallback:
        return f"left out: {listed(found)}"
    if found.quality_db is not None and found.quality_db < (found.runtime_quality_db or 200.0) - CLOSE_DB:
        return f"{found.quality_db:.1f} dB against float, ONNX Runtime {db(found.runtime_quality_db)}"
    return ""


def listed(found: ToolchainResult) -> str:
    return ", ".join(f"{n} {op}" for op, n in Counter(node.op for node in found.fallback).most_common()) or "nothing"


def db(value: float | None) -> str:
    return "identical" if value is None else f"{value:.1f}"


def cells(found: ToolchainResult) -> list[str]:
    share = "" if found.integer_nodes is None else f"{found.integer_nodes}{f' of {found.nodes}' * bool(found.nodes)}"
    figures = ["", "", ""]
    if found.is_compared:
        figures = [db(found.sqnr_db), db(found.quality_db), db(found.runtime_quality_db)]
    same = "" if found.top1_agreement is None else f"{100 * found.top1_agreement:.0f} %"
    pieces = "" if found.partitions is None else str(found.partitions)
    return ["yes" if found.accepted else "**no**", pieces, share, *figures, same]


def short(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:260]


def rows(work: Work, tools: Path, only: Sequence[str], folder: Path) -> Iterator[str]:
    for name, target, tool in PAIRS:
        python = tools / name / "bin" / "python"
        if not python.exists() or (only and name not in only):
            continue
        ours, theirs = folder / f"{work.name}.{target}.onnx", folder / f"{work.name}.static.onnx"
        try:
            quantized(work, target, ours)
            found = tried(work, ours, target, tool, python)
        except OnnxqError as error:
            yield line(work.name, name, "**no**", *[""] * 6, short(f"{type(error).__name__}: {error}"), "")
            continue
        wrong, same = trouble(found), ""
        if wrong:
            same = "" if theirs.exists() else static(work, theirs, folder)
            if theirs.exists():
                try:
                    other = tried(work, theirs, target, tool, python)
                    same = trouble(other) or f"fine: {' / '.join(c for c in cells(other) if c)}"
                except OnnxqError as error:
                    same = str(error)
        yield line(work.name, name, *cells(found), short(wrong), short(same))


def versions(tools: Path) -> Iterator[str]:
    """Which tools there are."""
    packages = {"tensorrt": "tensorrt-rtx", "qnn": "onnxruntime-qnn", "rknn": "rknn-toolkit2"}
    packages["opencv"] = "opencv-python-headless"
    for name, _, tool in PAIRS:
        python = tools / name / "bin" / "python"
        if not python.exists():
            yield f"{tool.title}: left out, there is no {name}/bin/python."
            continue
        if name == "web":
            continue
        ask = f"import importlib.metadata as m; print(m.version({packages.get(name, name)!r}))"
        done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
        yield f"{tool.title}: {packages.get(name, name)} {done.stdout.strip()}."


TEXT = f"""Each network is quantized for the target of each tool-chain with {CALIBRATION} samples (static shapes,
rounding to nearest), and {COMPARED} others run. `integer`: nodes that the tool takes, of those that it should
(OpenVINO: quantized linear layers; QNN: all nodes; OpenCV does not tell). SQNR in dB: the tool against ONNX Runtime
without optimisations on the same file; the tool, and ONNX Runtime, against the float model. `top-1`: same class as
ONNX Runtime. TensorRT builds engines and does not run them without a GPU. The last column has what the tool makes of
quantize_static's file (uint8, int8 per channel) of the same network, where ours falls short.
"""


def main() -> None:
    logging.disable(logging.WARNING)
    made = parser(__doc__, ())
    made.add_argument("--tools", type=Path, required=True, help="folder of the environments")
    made.add_argument("--only", action="append", default=[], help="this tool; repeatable")
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        columns = ("tool", "loads", "partitions", "integer", "SQNR to ORT", "to float", "ORT to float", "top-1")
        text = TEXT + "\n" + "\n".join(f"- {each}" for each in versions(args.tools)) + "\n"
        body = chain(
            head("network", *columns, "what falls short", "quantize_static"),
            chain.from_iterable(
                [f"\n{work}"] if isinstance(work, str) else rows(work, args.tools, args.only, folder)
                for work in prepared(folder, args.models)
            ),
        )
        show([heading("Networks in vendors' tool-chains", COMMAND, text), body], args.markdown, by_line=True)


if __name__ == "__main__":
    main()
