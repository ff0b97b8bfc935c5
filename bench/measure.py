"""What ONNX Runtime makes of a model, how fast it runs it, and how far its outputs are from another model's."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from cases import Images

from onnxq.numeric.metrics import OutputSqnr

Feed = Mapping[str, np.ndarray]

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
MOVEMENT = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "ReorderInput", "ReorderOutput",
        "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
LINEAR = ("Conv", "Gemm", "MatMul")


def session(model: Path, profile: Path | None = None) -> ort.InferenceSession:
    """One thread, all optimisations. profile: prefix of the file that `end_profiling` writes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Kernel:
    """A node as ONNX Runtime ran it. reads, writes: element types of its inputs and outputs; seconds: median."""

    name: str
    op: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    seconds: float

    @property
    def kind(self) -> str:
        """`integer`, `float`, `conversion`, `movement` or `other` (shape arithmetic)."""
        if self.op in CONVERSIONS:
            return "conversion"
        if self.op in MOVEMENT:
            return "movement"
        if {"int8", "uint8"} & {*self.reads, *self.writes}:
            return "integer"
        return "float" if "float" in self.writes else "other"

    @property
    def is_linear(self) -> bool:
        """A convolution or matrix product, whatever ONNX Runtime fused with it."""
        return any(word in self.op for word in LINEAR)


def kernels(model: Path, x: Images, runs: int = 50) -> list[Kernel]:
    """The nodes of the optimised graph, layout changes included, from ONNX Runtime's profile of some runs."""
    with tempfile.TemporaryDirectory() as folder:
        profiled = session(model, Path(folder) / "profile")
        feed = {profiled.get_inputs()[0].name: x[:1]}
        for _ in range(runs):
            profiled.run(None, feed)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    seen: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            seen.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    return [
        Kernel(
            name,
            found[0]["args"]["op_name"],
            _types(found[0]["args"]["input_type_shape"]),
            _types(found[0]["args"]["output_type_shape"]),
            statistics.median(event["dur"] for event in found) / 1e6,
        )
        for name, found in seen.items()
    ]


def _types(described: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    return tuple(next(iter(entry)) for entry in described)


def count(nodes: Sequence[Kernel], kind: str) -> Counter[str]:
    """How many nodes of a kind, by operator."""
    return Counter(node.op for node in nodes if node.kind == kind)


def pairs(model: Path) -> tuple[int, int]:
    """(QuantizeLinear, DequantizeLinear) nodes in the file."""
    ops = Counter(node.op_type for node in onnx.load(model).graph.node)
    return ops["QuantizeLinear"], ops["DequantizeLinear"]


def sqnr(reference: Path, other: Path, x: Images, samples: int = 200) -> float:
    """Signal to quantization noise of the worst output, in dB, over samples run one by one."""
    name = input_name(reference)
    feeds = [{name: x[i : i + 1]} for i in range(min(samples, len(x)))]
    return min(distances(outputs(reference, feeds), outputs(other, feeds)).values())


def input_name(model: Path) -> str:
    """Of a model with one input."""
    return str(session(model).get_inputs()[0].name)


def outputs(model: Path, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    """What the model says to each feed, by output."""
    running = session(model)
    names = [output.name for output in running.get_outputs()]
    return [dict(zip(names, running.run(None, _strings(feed)), strict=True)) for feed in feeds]


def _strings(feed: Feed) -> Feed:
    """Strings as ONNX Runtime takes them."""
    return {name: x.astype(object) if x.dtype.kind == "U" else x for name, x in feed.items()}


def distances(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """SQNR in dB of each float output over the samples for which its shapes agree; outputs without any are left out."""
    total = OutputSqnr()
    for a, b in zip(expected, found, strict=True):
        total.update(a, b)
    return {name: float(one.db) for name, one in total.totals.items()}


def latencies(models: Sequence[Path], x: Images, seconds: float, sessions: int = 3) -> np.ndarray:
    """Seconds of one run at batch 1 and one thread, rounds x models.

    Each round runs every model once, starting with another one each time, so that whatever else the machine does
    meets all alike. The sessions are made anew a few times, for where their memory lies matters as well.
    """
    rounds = np.concatenate([list(_rounds(models, x, seconds / sessions)) for _ in range(sessions)])
    assert rounds.shape[1] == len(models)
    return rounds


def cpu_ratios(reference: Path, other: Path, feeds: Sequence[Feed], seconds: float, least: int = 5) -> list[float]:
    """CPU time of a run of `other` over that of `reference`, one thread, in turns: one ratio a round over all feeds.
    Other work on the machine takes turns on the clock, and hardly any CPU time of this process."""
    loaded, ratios, start = [session(model) for model in (reference, other)], list[float](), time.perf_counter()
    while len(ratios) < least + 1 or time.perf_counter() - start < seconds:
        taken = []
        for each in loaded if len(ratios) % 2 else loaded[::-1]:
            before = time.process_time()
            for feed in feeds:
                each.run(None, _strings(feed))
            taken.append(time.process_time() - before)
        first, second = taken if len(ratios) % 2 else taken[::-1]
        ratios.append(second / first)
    return ratios[1:]  # the first one warms both up


def _rounds(models: Sequence[Path], x: Images, seconds: float, least: int = 100) -> Iterator[list[float]]:
    loaded = [session(model) for model in models]
    names = [s.get_inputs()[0].name for s in loaded]
    samples = [np.ascontiguousarray(x[i : i + 1]) for i in range(min(16, len(x)))]
    for s, name in zip(loaded, names, strict=True):
        for sample in samples:
            s.run(None, {name: sample})
    start, done = time.perf_counter(), 0
    while done < least or time.perf_counter() - start < seconds:
        taken = [0.0] * len(models)
        for i in range(len(models)):
            k = (i + done) % len(models)
            before = time.perf_counter()
            loaded[k].run(None, {names[k]: samples[done % len(samples)]})
            taken[k] = time.perf_counter() - before
        done += 1
        yield taken
