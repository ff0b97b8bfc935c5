"""Transformers, decoders, recurrent and speech networks, quantized by onnxq and by ONNX Runtime itself.

    python bench/sequences.py [MODEL ...] [--samples 48] [--markdown bench/results/sequences.md]

The networks are those of `sequence_models.py` and `encoder.py`. SQNR over all outputs on samples that no calibration
has seen, a default session of ONNX Runtime against the float model; size of the file beside the float one's; CPU time
of a run beside the float model's, one thread; CPU seconds of quantizing, verification included, without measuring the
latency. A row that a tool refuses says what it said.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import sequence_models as models
from encoder import Shape, encoder, sentences
from measure import session
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from tables import head, heading, line, parsed, parser, show

import onnxq
from onnxq.numeric.metrics import OutputSqnr

Feeds = Callable[[int, int], list[models.Feed]]
FRESH = 24


def _networks() -> dict[str, Callable[[], tuple[ModelProto, Feeds]]]:
    def decoder(make: Callable[[], ModelProto]) -> tuple[ModelProto, Feeds]:
        proto = make()
        return proto, models.step_feeds(proto)

    return {
        "encoder, BERT-shaped": lambda: (encoder(Shape(layers=4, width=192)), sentences),
        "decoder, GPT-shaped, past, tied head": lambda: decoder(models.gpt),
        "decoder, merged (If)": lambda: decoder(models.merged),
        "tagger, BiLSTM and GRU": lambda: (models.tagger(), models.token_feeds),
        "Conformer": lambda: (models.conformer(), models.frame_feeds("frames", (0, 1, 2))),
        "encoder, DeBERTa-shaped": lambda: (models.deberta(), models.token_feeds),
        "vocoder": lambda: (models.vocoder(), models.frame_feeds("mel", (0, 2, 1))),
    }


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[models.Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> models.Feed | None:
        return next(self._feeds, None)


@dataclass(frozen=True)
class Case:
    """source: the float model's file. feeds: what to calibrate with. result: where to write."""

    source: Path
    feeds: list[models.Feed]
    result: Path


def _onnxq(data: bool, **settings: Any) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        onnxq.quantize(case.source, case.feeds if data else None, output=case.result, latency="off", **settings)

    return run


def _dynamic(case: Case) -> None:
    quantize_dynamic(case.source, case.result, weight_type=QuantType.QInt8, per_channel=True)


def _static(case: Case) -> None:
    reader = _Reader(case.feeds)
    quantize_static(case.source, case.result, reader, weight_type=QuantType.QInt8, per_channel=True)


def _blocks(method: str) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

        config = {
            "RTN": lambda: nbits.DefaultWeightOnlyQuantConfig(block_size=32, accuracy_level=4),
            "HQQ": lambda: nbits.HQQWeightOnlyQuantConfig(block_size=32),
            "GPTQ": lambda: nbits.GPTQWeightOnlyQuantConfig(_Reader(case.feeds), block_size=32),
        }[method]()
        made = nbits.MatMulNBitsQuantizer(onnx.load(case.source), algo_config=config)
        made.process()
        made.model.save_model_to_file(str(case.result))

    return run


METHODS: dict[str, tuple[Callable[[Case], None], tuple[str, ...]]] = {
    "onnxq w8a8": (_onnxq(True), ()),
    "onnxq w8a8 --fallback auto": (_onnxq(True, fallback="auto"), ()),
    "quantize_static": (_static, ()),
    "onnxq w8a8-dynamic, no data": (_onnxq(False, preset="w8a8-dynamic"), ()),
    "quantize_dynamic": (_dynamic, ()),
    "onnxq w8, no data": (_onnxq(False, preset="w8"), ()),
    "onnxq w4, blocks of 32, no data": (_onnxq(False, preset="w4", block_size=32), ()),
    "onnxq w4, blocks of 32": (_onnxq(True, preset="w4", block_size=32), ()),
    "MatMulNBits, RTN": (_blocks("RTN"), ("onnx_ir",)),
    "MatMulNBits, HQQ": (_blocks("HQQ"), ("onnx_ir", "torch")),
    "MatMulNBits, GPTQ": (_blocks("GPTQ"), ("onnx_ir",)),
}
"""What quantizes, and the packages that it needs."""

REMARKS = """
Where onnxq is not ahead:

- Merged decoder: each branch holds its integers, so that the file is twice as large as it could be. ONNX Runtime 1.32
  refuses a model whose DequantizeLinear in a branch reads integers from outside once it fuses them with MatMul
  ("Missing required weight"). quantize_static leaves what is in the branches in float: its SQNR is that of the table.
- Tagger: the recurrent weights are dequantized in each run, which takes more time than these small layers. ONNX
  Runtime's session option session.disable_quant_qdq = 1 dequantizes them once, and runs at the speed of float; the
  report of a weight-only model has the latency with it, too. quantize_dynamic writes DynamicQuantizeLSTM, which is no
  operator of ONNX, and leaves the GRU in float.
- 4 bits without outliers: RTN and HQQ leave tables, convolutions and recurrent weights in float, so that their files
  are 1.4 to 5 times as large (the merged decoder's are not: see above). Of the Conformer, onnxq has the convolutions in
  4 bits as well, a scale a channel; without data they are rounded to nearest. HQQ fits its zero points, which are no
  integers, for 0.6 to 0.9 dB of the decoders and the tagger, and takes 1.3 to 8 times as long to run elsewhere.
- MatMulNBits, GPTQ: it refuses most of these networks, in the words above.
"""
"""Of the tables as they stand in bench/results/sequences.md."""


def _rows(name: str, samples: int) -> Iterator[str]:
    proto, feeds = _networks()[name]()
    fresh = feeds(FRESH, 99)
    yield f"## {name}: {proto.ByteSize() / 2**20:.1f} MiB\n"
    yield from head("", "SQNR, dB", "size", "time", "CPU s to quantize")
    with TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        onnx.save(proto, source)
        reference = session(source)
        for title, (quantize, needs) in METHODS.items():
            if any(find_spec(package) is None for package in needs):
                continue
            case = Case(source, feeds(samples, 7), Path(folder) / "quantized.onnx")
            started = time.process_time()
            try:
                quantize(case)
                seconds = time.process_time() - started
                found = session(case.result)
                total, names = OutputSqnr(), [value.name for value in reference.get_outputs()]
                for feed in fresh:
                    total.update(*(dict(zip(names, s.run(names, feed), strict=True)) for s in (reference, found)))
            except Exception as error:  # whatever a tool raises is its row
                yield line(title, f"refused: {' '.join(str(error).split())[:80]}", "", "", "")
                continue
            size, both = os.path.getsize(case.result) / os.path.getsize(source), _times((reference, found), fresh)
            db = "–" if total.db is None else "as float" if math.isinf(total.db) else f"{total.db:.1f}"
            yield line(title, db, f"{size:.3f}", f"{both[1] / both[0]:.2f}", f"{seconds:.1f}")
            case.result.unlink()


def _times(sessions: tuple[Any, Any], feeds: list[models.Feed]) -> list[float]:
    """Least CPU seconds of both, in turns."""
    best = [float("inf")] * 2
    for _ in range(4):
        for index, each in enumerate(sessions):
            started = time.process_time()
            for feed in feeds:
                each.run(None, feed)
            best[index] = min(best[index], time.process_time() - started)
    return best


def main() -> None:
    made = parser(__doc__ or "", _networks())
    made.add_argument("--samples", type=int, default=48, help="to calibrate with [48]")
    args = parsed(made, _networks())
    text = (__doc__ or "").split("\n\n")[-1].strip()
    parts: list[Iterator[str]] = [heading("Networks on sequences", "python bench/sequences.py", text)]
    parts += [_rows(name, args.samples) for name in args.models or _networks()]
    parts.append(iter(REMARKS.strip().split("\n")))
    show(parts, args.markdown, by_line=True)


if __name__ == "__main__":
    main()
