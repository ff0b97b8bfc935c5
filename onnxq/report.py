"""What happened, as frozen records; and the same as JSON for machines and as text for people."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FloatNode:
    """A node that stayed in float, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Step:
    """One pass: its options as text, what it changed, what it declined (where, why), what is worth knowing."""

    name: str
    options: str
    changed: int
    seconds: float
    notes: tuple[str, ...] = ()
    skips: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor on a grid. scale, zero_point: one value, or one a channel along `axis`."""

    tensor: str
    kind: str
    grid: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    grid_of: str | None = None


@dataclass(frozen=True)
class OutputQuality:
    """One output of the quantized model beside the float model's, over the samples compared.

    sqnr_db: signal to quantization noise, in dB; None where the two are identical.
    runtime_sqnr_db: the quantized model with ONNX Runtime's optimisations off against on, likewise.
    top1_agreement: share of samples with the same best class, where the output looks like class scores.
    """

    output: str
    sqnr_db: float | None
    runtime_sqnr_db: float | None
    top1_agreement: float | None


@dataclass(frozen=True)
class ModelFacts:
    """A model file: `path` None where it never was one; sizes in bytes."""

    path: str | None
    bytes: int
    opset: int
    nodes: int
    parameters: int


@dataclass(frozen=True)
class Report:
    """Everything `quantize` has to tell. `options` reproduce the run; `seconds` are wall time."""

    onnxq: str
    onnxruntime: str
    options: dict[str, Any]
    source: ModelFacts
    result: ModelFacts
    samples: int
    steps: tuple[Step, ...]
    integer_nodes: int
    float_nodes: tuple[FloatNode, ...]
    tensors: tuple[QuantizedTensor, ...]
    quality: tuple[OutputQuality, ...]
    compared_samples: int
    runtime_operators: dict[str, int]
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> str:
        """Strict JSON (no NaN or Infinity), keys as the fields here."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    def to_text(self, verbose: bool = False) -> str:
        """The summary for a terminal, a few lines; with `verbose` each step and each node left in float."""
        lines = [
            f"{self.integer_nodes} nodes in integers, {len(self.float_nodes)} in float;"
            f" {len(self.tensors)} tensors on grids; {self.samples} calibration samples; {self.seconds:.1f} s",
            f"size {_size(self.source.bytes)} -> {_size(self.result.bytes)}"
            f" ({self.source.bytes / max(self.result.bytes, 1):.2f} times smaller), opset {self.result.opset}",
        ]
        lines += [f"output {_quality(q)}" for q in self.quality]
        lines += self._left_in_float(verbose)
        if verbose:
            lines += [line for step in self.steps for line in _step_lines(step)]
            operators = ", ".join(f"{count} {op}" for op, count in self.runtime_operators.items())
            lines.append(f"ONNX Runtime runs: {operators}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _left_in_float(self, verbose: bool) -> list[str]:
        if verbose:
            return [
                f"in float: {printable(n.node)} ({printable(n.op)}): {printable(n.reason)}" for n in self.float_nodes
            ]
        groups = Counter((n.op, n.reason) for n in self.float_nodes)
        return [
            f"in float: {count} {printable(op)}: {printable(reason)}" for (op, reason), count in groups.most_common()
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _quality(quality: OutputQuality) -> str:
    text = f"{printable(quality.output)}: SQNR {_db(quality.sqnr_db)} against float"
    if quality.top1_agreement is not None:
        text += f", same top-1 on {100 * quality.top1_agreement:.1f} % of samples"
    return f"{text} (ONNX Runtime optimised against not: {_db(quality.runtime_sqnr_db)})"


def _db(value: float | None) -> str:
    return "identical" if value is None else f"{value:.1f} dB"


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _step_lines(step: Step) -> list[str]:
    head = f"{step.name}: {step.changed} changed, {step.seconds:.2f} s"
    return [
        head,
        *(f"  {printable(note)}" for note in step.notes),
        *(f"  left: {printable(w)}: {printable(r)}" for w, r in step.skips),
    ]


def printable(text: str) -> str:
    """Names come from the model: no control characters may reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
