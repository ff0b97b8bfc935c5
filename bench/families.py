"""Families of networks as exporters write them, on every target, beside ONNX Runtime's quantize_static.

    python bench/families.py [--markdown bench/results/accuracy-families.md] [--export] [MODEL ...]

The graphs are those of `tests/exported/families`, with random weights; --export: what torch exports now, by each
exporter (needs torch and onnxscript). The text detectors and recognisers are those of `tests/ocr.py`. Figures are SQNR
of the outputs in dB on inputs that calibration has not seen, ONNX Runtime's optimisations off, for other targets'
kernels are not here. quantize_static's preprocessing needs sympy.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static
from tables import head, heading, line, parsed, parser, show

import onnxq
from onnxq.errors import OnnxqError
from onnxq.execution.session import Session
from onnxq.numeric.metrics import OutputSqnr
from onnxq.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
ULTRAFACE = ROOT.parent / "shared" / "realmodels" / "ultraface" / "model.onnx"

import exported_texts as texts  # noqa: E402
import ocr  # noqa: E402

Feeds: TypeAlias = Sequence[dict[str, np.ndarray]]
CALIBRATION, EVALUATION = 8, 4
COMMAND = "python bench/families.py --markdown bench/results/accuracy-families.md"


@dataclass(frozen=True)
class Case:
    """A float model, and its inputs for calibration and evaluation together."""

    make: Callable[[], ModelProto]
    feeds: Callable[[ModelProto], Feeds]


def drawn(proto: ModelProto) -> Feeds:
    return texts.samples(proto, CALIBRATION + EVALUATION)


def pictures(height: int | None) -> Callable[[ModelProto], Feeds]:
    return lambda proto: ocr.feeds(ocr.pixels(CALIBRATION + EVALUATION, height))


def faces(proto: ModelProto) -> Feeds:
    """Noise of a photograph's spectrum, about: large patches over small ones."""
    random, found = np.random.default_rng(0), []
    for _ in range(CALIBRATION + EVALUATION):
        layers = (random.uniform(-0.5, 0.5, (3, 240 // n, 320 // n)).repeat(n, 1).repeat(n, 2) for n in (80, 20, 4, 1))
        found.append({"input": np.asarray(sum(layers), np.float32)[None] / 2})
    return found


def cases(export: bool) -> dict[str, Case]:
    """All models by name."""
    found = {name: Case(lambda name=name: texts.written(name), drawn) for name in texts.NAMES}
    if export:
        from exported_families import EXPORTERS, FAMILIES, exported

        pairs = [(family, exporter) for family in FAMILIES for exporter in EXPORTERS]
        found = {f"{f}.{e}": Case(lambda f=f, e=e: exported(f, e), drawn) for f, e in pairs}
    found |= {
        f"ocr-{name}": Case(make, pictures(None if name == "detector" else 16)) for name, make in ocr.MODELS.items()
    }
    if ULTRAFACE.exists():
        found["ultraface"] = Case(lambda: onnx.load(str(ULTRAFACE)), faces)
    return found


def distance(original: ModelProto, quantized: ModelProto, feeds: Feeds) -> str:
    """SQNR of all outputs, in dB."""
    total, sessions = OutputSqnr(), (Session(original), Session(quantized))
    for feed in feeds:
        total.update(*(session.run(feed) for session in sessions))
    return "not comparable" if total.db is None else f"{total.db:.0f}"


class Reader(CalibrationDataReader):
    """One sample at a time."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def static(proto: ModelProto, feeds: Feeds, *, opset: int = 0, preprocess: bool = True) -> ModelProto:
    """What quantize_static makes of a model: preprocessed and per channel, as its documentation recommends, or neither.

    opset: raised to it first, where the model's is lower.
    """
    if proto.opset_import[0].version < opset:
        proto = onnx.version_converter.convert_version(proto, opset)
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, out = (str(Path(folder) / name) for name in ("float.onnx", "prepared.onnx", "out.onnx"))
        onnx.save(proto, source)
        if preprocess:
            quant_pre_process(source, prepared)
        quantize_static(
            prepared if preprocess else source,
            out,
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=preprocess,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(out)


STATIC: dict[str, dict[str, Any]] = {
    "as documented": {},
    "opset 13 first": {"opset": 13},
    "neither preprocessed nor per channel": {"preprocess": False},
}


def rows(name: str, case: Case) -> Iterator[str]:
    """One line: the targets, then quantize_static."""
    proto = case.make()
    feeds = case.feeds(proto)
    seen, unseen = feeds[:CALIBRATION], feeds[CALIBRATION:]
    cells = []
    for target in TARGETS:
        try:
            cells.append(distance(proto, onnxq.quantize(proto, seen, target=target).model, unseen))
        except OnnxqError as error:
            cells.append(type(error).__name__)
    for options in STATIC.values():
        try:
            cells.append(distance(proto, static(proto, seen, **options), unseen))
        except Exception as error:  # quantize_static raises whatever comes
            cells.append(f"fails: {type(error).__name__}")
    yield line(name, *cells)


def main() -> None:
    logging.disable(logging.WARNING)
    litter = tempfile.TemporaryDirectory()  # quant_pre_process leaves a file where it fails
    known = cases("--export" in sys.argv)
    made: argparse.ArgumentParser = parser(__doc__, known)
    made.add_argument("--export", action="store_true", help="export with torch instead of reading texts")
    args = parsed(made, known)
    text = (
        "SQNR in dB, 8 inputs calibrate, 4 others are compared. `quantize_static`: as its documentation recommends"
        " (quant_pre_process, per channel), the same on the model raised to operator set 13, and without both."
    )
    lines = (row for name in args.models or known for row in rows(name, known[name]))
    body = chain(head("model", *TARGETS, *(f"quantize_static, {name}" for name in STATIC)), lines)
    markdown = args.markdown and args.markdown.resolve()
    os.chdir(litter.name)
    show([heading("Families of networks, by exporter", COMMAND, text), body], markdown)


if __name__ == "__main__":
    main()
