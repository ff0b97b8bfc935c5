"""What `compare` found, as frozen records; and the same as JSON and as a table."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from ..report import printable
from ..report.notebook import InNotebook


@dataclass(frozen=True)
class ComparedTensor:
    """A tensor of the float model beside what stands for it in the quantized model, over all samples.

    node, op: what computes it; of a linear layer the linear node. quantized: the name there.
    matched_by: name, node or position. absorbed: further float nodes that the quantized layer has in it.
    sqnr_db: None where the two are identical. max_error: in the tensor's units; None where it is infinite.
    adjusted: channels are scaled or shifted, as by equalization: SQNR up to a scale and an offset of each.
    drop_db: how far SQNR falls from the worst input, both at most 40 dB; None for what has no input.
    weight, weight_sqnr_db: of a linear layer, where matched and neither side of it is adjusted.
    """

    tensor: str
    node: str
    op: str
    quantized: str
    matched_by: str
    absorbed: tuple[str, ...]
    sqnr_db: float | None
    cosine: float
    max_error: float | None
    adjusted: bool
    drop_db: float | None
    weight: str | None
    weight_sqnr_db: float | None


@dataclass(frozen=True)
class Jump:
    """Where the error jumps: a compared tensor, and by how many dB it is below its inputs for good."""

    tensor: str
    drop_db: float


@dataclass(frozen=True, repr=False)
class Comparison(InNotebook):
    """tensors: in the order of computation. jump: the largest drop. unmatched: tensor -> why it has no partner.
    inside: tensor -> the compared tensor that has it in it, since it is fused or folded there."""

    reference: str
    quantized: str
    samples: int
    tensors: tuple[ComparedTensor, ...]
    jump: Jump | None
    unmatched: dict[str, str]
    inside: dict[str, str]

    def to_json(self) -> str:
        """Strict JSON, keys as the fields here."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def to_text(self, verbose: bool = False) -> str:
        """A table for a terminal; with `verbose` also each tensor without a partner."""
        rows = [_HEADER, *(_row(tensor) for tensor in self.tensors)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = [f"{self.quantized} against {self.reference}: {self.samples} samples"]
        for row in rows:
            cells = (f"{cell:{align}{width}}" for cell, align, width in zip(row, _ALIGN, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        lines += self._notes()
        if verbose:
            lines += [f"not compared: {tensor}: {why}" for tensor, why in self.unmatched.items()]
            lines += [f"not compared: {tensor}: inside of {whole}" for tensor, whole in self.inside.items()]
        return "\n".join(printable(line) for line in lines)

    def _notes(self) -> list[str]:
        notes = []
        if any(tensor.adjusted for tensor in self.tensors):
            notes.append("~ channels are scaled or shifted, as by equalization: SQNR up to a scale and offset of each")
        if self.unmatched or self.inside:
            notes.append(
                f"not compared: {len(self.inside)} tensors inside of others (fused or folded),"
                f" {len(self.unmatched)} without a partner"
            )
        if self.jump is not None:
            node = next(t.node or t.op for t in self.tensors if t.tensor == self.jump.tensor)
            notes.append(f"the error jumps at {self.jump.tensor} ({node}): {self.jump.drop_db:.1f} dB below its inputs")
        return notes


_HEADER = ("tensor", "op", "by", "SQNR dB", "cosine", "max error", "drop dB", "weight dB")
_ALIGN = ("<", "<", "<", ">", ">", ">", ">", ">")


def _row(tensor: ComparedTensor) -> tuple[str, ...]:
    return (
        tensor.tensor,
        tensor.op,
        tensor.matched_by,
        ("identical" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f}") + "~" * tensor.adjusted,
        f"{tensor.cosine:.5f}",
        "infinite" if tensor.max_error is None else f"{tensor.max_error:.4g}",
        "" if tensor.drop_db is None else f"{tensor.drop_db:.1f}",
        "" if tensor.weight is None else "-" if tensor.weight_sqnr_db is None else f"{tensor.weight_sqnr_db:.1f}",
    )
