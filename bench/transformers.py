"""What exceptions, scale migration and 4-bit weights do to a transformer whose activations have outliers.

    python bench/transformers.py [--layers 6] [--width 384] [--samples 8] [--markdown FILE.md]

The encoder of `bench/encoder.py`, as BERT (norms behind the residuals) and as GPT (in front of the layers). SQNR of its
scores on sentences that calibration has not seen; sentences differ in length. Needs no torch.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from encoder import Shape, encoder, sentences
from onnx import ModelProto

import onnxq
from onnxq.execution.session import Session, optimized_graph
from onnxq.numeric.metrics import Sqnr

ROWS: dict[str, dict[str, Any]] = {
    "w8a8": {},
    "w8a8, automatic 16-bit exceptions": {"fallback": "a16"},
    "w8a8, scale migration": {"smoothquant": 0.5},
    "w8a8, both": {"smoothquant": 0.5, "fallback": "a16"},
    "w8a16": {"preset": "w8a16"},
    "w4a8": {"preset": "w4a8"},
    "w4a8, both": {"preset": "w4a8", "smoothquant": 0.5, "fallback": "a16"},
    "w4": {"preset": "w4"},
    "w4, blocks of 32": {"preset": "w4", "block_size": 32},
}
HEAD = ("| | SQNR, dB | activations in 16 bits | layers in integers, in 4-bit blocks, in float |", "|---|---|---|---|")
INTEGER = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QLinearMatMul")


def distance(original: ModelProto, quantized: ModelProto, count: int) -> float:
    """SQNR of the scores, ONNX Runtime's optimisations on, dB."""
    sessions, total = [Session(proto, optimize=True) for proto in (original, quantized)], Sqnr()
    for feed in sentences(count, seed=2):
        total.update(*(session.run(feed)["scores"] for session in sessions))
    return total.db


def row(name: str, original: ModelProto, samples: int, evaluated: int) -> str:
    """One line of the table."""
    result = onnxq.quantize(original, sentences(samples), **ROWS[name])
    wide = sum(t.kind == "activation" and "16" in t.grid for t in result.report.tensors)
    narrow = sum(t.kind == "activation" for t in result.report.tensors) - wide
    ops = [node.op_type for node in optimized_graph(result.model).node]
    kernels = sum(ops.count(op) for op in INTEGER), ops.count("MatMulNBits"), ops.count("MatMul") + ops.count("Gemm")
    share = f"{wide} of {wide + narrow}" if wide + narrow else "all in float"
    return f"| {name} | {distance(original, result.model, evaluated):.1f} | {share} | {', '.join(map(str, kernels))} |"


def table(shape: Shape, title: str, samples: int, evaluated: int) -> Iterator[str]:
    """All rows for one encoder."""
    original = encoder(shape)
    yield f"## {title}\n"
    yield from HEAD
    for name in ROWS:
        yield row(name, original, samples, evaluated)


def heading(shape: Shape, samples: int, evaluated: int) -> Iterator[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxq", "onnxruntime", "onnx", "numpy"))
    yield "# Transformers with outliers\n"
    yield "Written by `python bench/transformers.py --markdown bench/results/accuracy-transformers.md`; do not edit.\n"
    yield f"{packages}, Python {platform.python_version()}, {os.cpu_count()} cores.\n"
    yield (
        f"A seeded encoder of {shape.layers} layers, {shape.width} wide, its outliers planted (`bench/encoder.py`);"
        f" {samples} sentences calibrate, {evaluated} others are compared. Products of two activations are counted as"
        " float.\n"
    )


def main() -> None:
    """Print the tables, and write them to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--samples", type=int, default=8, help="calibration sentences [8]")
    parser.add_argument("--evaluated", type=int, default=16, help="sentences that are compared [16]")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    args = parser.parse_args()
    sizes = {"layers": args.layers, "width": args.width}
    counts = args.samples, args.evaluated
    parts = (
        heading(Shape(**sizes), *counts),
        table(Shape(**sizes), "BERT's order: norms behind the residuals", *counts),
        table(Shape(**sizes, pre_norm=True), "GPT's order: norms in front of the layers", *counts),
    )
    lines: list[str] = []
    for text in chain.from_iterable(chain(part, [""]) for part in parts):
        print(text, flush=True)
        lines.append(text)
    if args.markdown:
        args.markdown.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
