"""The fields of `Options` as typed keyword arguments, so that editors complete them and type checkers know them.

A test holds them equal to `Options`, whose `docs/options.md` says what each means.
"""

from __future__ import annotations

import sys
from typing import Literal, TypedDict

from .options import Override

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = ["Settings", "Unpack"]


class Settings(TypedDict, total=False):
    """Any fields of `Options`: `onnxq.quantize(..., preset="w4a8", per_channel=False)`."""

    target: str
    preset: str
    per_channel: bool
    force_int_kernels: bool
    symmetric_activations: bool
    narrow_activations: Literal["products", "all"]
    asymmetric_weights: bool | None
    power_of_two: bool
    block_size: int | None
    embeddings: Literal["8", "4", "float"]
    store_4bit: Literal["auto", "int4", "int8"]
    dead_channels: bool
    cle: Literal["noise", "range", "off"]
    absorb: bool
    bias_correction: Literal["analytic", "empirical", "off"]
    smoothquant: float | None
    hard_swish: Literal["auto", "integers", "float"]
    fallback: Literal["off", "a16", "dynamic", "float", "auto"]
    exceptions: float
    rounding: Literal["auto", "nearest", "gptq", "coordinate-descent", "adaround"]
    effort: Literal["fast", "default", "high"]
    checkpoint: str | None
    data_free: bool
    synthetic: bool
    input_ranges: tuple[tuple[str, float, float], ...]
    weight_range: str
    activation_range: str
    logits_range: str
    freeze: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    tie: tuple[Literal["Add", "Concat"], ...]
    overrides: tuple[Override, ...]
    from_encodings: str | None
    encodings_version: Literal["0.6.1", "1.0.0", "2.0.0"]
    float_output: bool
    samples: int | None
    seed: int
    strict: bool
    latency: Literal["report", "tune", "off"]
    provenance: bool
    batch_size: int
    threads: int
    provider: str
    custom_ops: tuple[str, ...]
    max_memory: int
