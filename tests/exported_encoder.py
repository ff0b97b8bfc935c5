"""A transformer's encoder as PyTorch's exporters write it; needs torch and onnxscript.

    python tests/exported_encoder.py

writes `tests/exported/*.txt`, what it looks like without its weights, for tests where there is no torch.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.printer
import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention, query, key and value in one product; `mask` is added to the scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.packed, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self._split(part) for part in self.packed(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5) + mask
        mixed: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class RmsNorm(nn.Module):
    """As in T5 and Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Encoder(nn.Module):
    """Token ids and an attention mask, (N, T) int64 each, to (N, T, width); post-norm, as BERT.

    norm: `layer` or `rms`.  gelu: `none` (by the error function) or `tanh`.
    """

    def __init__(self, width: int = 16, heads: int = 2, depth: int = 1, norm: str = "layer", gelu: str = "none"):
        super().__init__()
        make = nn.LayerNorm if norm == "layer" else RmsNorm
        self.tokens, self.positions = nn.Embedding(50, width), nn.Embedding(32, width)
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(gelu), nn.Linear(4 * width, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(make(width) for _ in range(2 * depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for index, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = self.norms[2 * index](x + attention(x, mask))
            x = self.norms[2 * index + 1](x + mlp(x))
        return x


def exported(module: nn.Module, *, dynamo: bool, opset: int) -> onnx.ModelProto:
    """With dynamic batch and length; seeded."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    feed = (torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64))
    names = ["input_ids", "attention_mask"]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dim = torch.export.Dim
            dims = {0: dim("batch", min=1, max=64), 1: dim("length", min=2, max=32)}
            program = torch.onnx.export(
                module.eval(), feed, dynamo=True, opset_version=opset, input_names=names, output_names=["hidden"],
                dynamic_shapes=(dims, dims), verbose=False,
            )  # fmt: skip
            return program.model_proto
        axes = {name: {0: "batch", 1: "length"} for name in (*names, "hidden")}
        torch.onnx.export(
            module.eval(), feed, file, dynamo=False, opset_version=opset, input_names=names, output_names=["hidden"],
            dynamic_axes=axes,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


CASES: Mapping[str, tuple[bool, int, dict[str, Any]]] = {
    "torchscript-11": (False, 11, {}),
    "torchscript-13-tanh": (False, 13, {"gelu": "tanh"}),
    "torchscript-16-rms": (False, 16, {"norm": "rms"}),
    "torchscript-17": (False, 17, {}),
    "dynamo-18": (True, 18, {}),
    "dynamo-18-rms-tanh": (True, 18, {"norm": "rms", "gelu": "tanh"}),
    "dynamo-20": (True, 20, {"gelu": "tanh"}),
}
"""Name -> dynamo, operator set, the encoder's options."""


def case(name: str) -> onnx.ModelProto:
    """The encoder as this exporter writes it."""
    dynamo, opset, options = CASES[name]
    return exported(Encoder(**options), dynamo=dynamo, opset=opset)


def as_text(model: onnx.ModelProto) -> str:
    """`operator set`, and the graph as `graphs.model` reads it: weights declared only, small constants whole."""
    graph = model.graph
    large = [t for t in graph.initializer if math.prod(t.dims) > 8]
    small = [t for t in graph.initializer if math.prod(t.dims) <= 8]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(small)
    graph.value_info.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large)
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")
    del graph.metadata_props[:]
    text = onnx.printer.to_text(graph)
    return f"{model.opset_import[0].version}\n{text[text.index('(') :]}\n"


if __name__ == "__main__":
    folder = Path(__file__).parent / "exported"
    folder.mkdir(exist_ok=True)
    for name in CASES:
        (folder / f"{name}.txt").write_text(as_text(case(name)), encoding="utf-8")
