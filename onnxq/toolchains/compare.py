"""A model in its vendor's tool-chain, beside ONNX Runtime with its optimisations off (the arithmetic as written), and
beside the float model where that is known. All figures are of the same few samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ..checking.qdq_reader import QdqGraph, label
from ..data import Feed, InputSpec
from ..execution.session import Session
from ..graph.class_scores import class_score_outputs
from ..graph.model import Model
from ..graph.scratch import scratch_folder
from ..graph.shapes import dynamic_inputs
from ..numeric.metrics import OutputSqnr, finite, same_class
from ..operators.registry import linear_form
from ..report import FallbackNode, ToolchainResult
from ..thresholds import TOOLCHAIN_AGREES_DB, TOOLCHAIN_SHARE
from .process import run_adapter
from .toolchain import Toolchain, ToolchainOptions

_LONGEST_MESSAGE = 600


def check_toolchain(
    path: Path,
    proto: ModelProto,
    toolchain: Toolchain,
    options: ToolchainOptions,
    feeds: Sequence[Feed],
    source: str,
    *,
    static_shapes: bool = False,
    reference: ModelProto | None = None,
) -> ToolchainResult:
    """What the tool-chain makes of a quantized model.

    path, proto: the model's file, and what is in it. feeds: samples to run; none: it is only compiled. source: where
    they come from.
    static_shapes: whether the target needs these. reference: the float model. Raises EngineError where the tool does
    not end, or ONNX Runtime fails.
    """
    start = time.perf_counter()
    with scratch_folder() as folder:
        files = []
        for index, feed in enumerate(feeds):
            files.append(str(folder / f"sample{index}.npz"))
            arrays: dict[str, Any] = {name: feed.arrays[name] for name in _inputs(proto)}
            np.savez(files[-1], **arrays)
        outputs = folder / "outputs.npz"
        request = {
            "model": os.path.abspath(path), "outputs": str(outputs), "feeds": files, "linear": _quantized_layers(proto),
        }  # fmt: skip
        answer, crash = run_adapter(toolchain, request, folder, options.interpreter, options.toolchain_limit)
        computed = _read_outputs(outputs) if answer.get("ran") else []
    message = " ".join(f"{answer.get('message', '')} {crash}".split())[:_LONGEST_MESSAGE]
    result = ToolchainResult(
        toolchain=toolchain.title,
        versions=answer.get("versions", {}),
        accepted=bool(answer.get("accepted")),
        message=message,
        partitions=answer.get("partitions"),
        nodes=answer.get("nodes"),
        integer_nodes=answer.get("integer_nodes"),
        fallback=tuple(FallbackNode(*node) for node in answer.get("fallback", ())),
        samples=len(computed),
        source=source,
        **_figures(path, proto, feeds, computed, reference),
    )
    must_run = toolchain.runs_models and bool(feeds)
    problem = _problem(result, must_run)
    if problem and static_shapes and (dynamic := dynamic_inputs(proto, feeds[0].arrays if feeds else {})):
        problem += f"; it needs static shapes, and {dynamic}"
    return replace(result, problem=problem, seconds=time.perf_counter() - start)


def _problem(result: ToolchainResult, must_run: bool) -> str:
    """Why the model is of no use in the tool-chain; empty where it is."""
    if not result.accepted:
        return f"{result.toolchain} does not take the model: {result.message or 'it does not say why'}"
    if result.partitions == 0:
        return f"{result.toolchain} runs nothing of the model: all of it is left to the CPU"
    if result.nodes and (result.integer_nodes or 0) < TOOLCHAIN_SHARE * result.nodes:
        return (
            f"{result.toolchain} takes {result.integer_nodes} of {result.nodes} nodes, less than {TOOLCHAIN_SHARE:.0%}"
        )
    if must_run and not result.samples:
        return f"{result.toolchain} compiles the model and cannot run it: {result.message}"
    if result.sqnr_db is not None and result.sqnr_db < TOOLCHAIN_AGREES_DB:
        return (
            f"{result.toolchain} computes something else than the model says: SQNR {result.sqnr_db:.1f} dB against ONNX"
            f" Runtime without optimisations, below {TOOLCHAIN_AGREES_DB:g} dB"
        )
    return ""


def _inputs(proto: ModelProto) -> list[str]:
    """Names of the inputs that must be fed, in order."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    return [value.name for value in proto.graph.input if value.name not in constant]


def _quantized_layers(proto: ModelProto) -> list[tuple[str, str]]:
    """Name and operator of the layers with weights and inputs of 8 bits: other widths have kernels hardly anywhere."""
    graph = QdqGraph(Model.from_proto(proto, read_only=True))
    found = []
    for node in graph.nodes:
        form = linear_form(node.op, node.domain)
        if form is None or graph.arithmetic(node) != "integers":
            continue
        weight, data = graph.constant(node, form.weight), graph.read(node, 0)
        if weight is not None and data is not None and weight.grid.bits == data.bits == 8:
            found.append((label(node), node.op))
    return found


def _read_outputs(path: Path) -> list[list[Any]]:
    """Of each sample, in the model's order."""
    with np.load(path) as arrays:
        found: dict[int, dict[int, Any]] = {}
        for key in arrays.files:
            sample, index = map(int, key.split("."))
            found.setdefault(sample, {})[index] = arrays[key]
    return [[values[index] for index in sorted(values)] for _, values in sorted(found.items())]


def _figures(
    path: Path, proto: ModelProto, feeds: Sequence[Feed], computed: Sequence[list[Any]], reference: ModelProto | None
) -> dict[str, Any]:
    """Distances of the tool-chain's outputs, as fields of the result."""
    if not computed:
        return {}
    written = Session(path)
    original = None if reference is None else Session(reference)
    scores = class_score_outputs(proto)
    between, quality, runtime = OutputSqnr(), OutputSqnr(), OutputSqnr()
    same: list[bool] = []
    for feed, values in zip(feeds, computed, strict=True):
        expected = written.run(feed.arrays)
        got = {name: _like(value, expected[name]) for name, value in zip(written.outputs, values, strict=True)}
        between.update(expected, got)
        for name in scores:
            agreed = same_class(expected[name], got[name], feed.rows or feed.batch)
            same += [] if agreed is None else [bool(each) for each in agreed]
        if original is not None:
            wanted = original.run(feed.arrays)
            quality.update(wanted, got)
            runtime.update(wanted, expected)
    return {
        "is_compared": between.db is not None,
        "sqnr_db": _finite(between),
        "top1_agreement": float(np.mean(same)) if same else None,
        "quality_db": _finite(quality),
        "runtime_quality_db": _finite(runtime),
    }


def _like(value: Any, expected: Any) -> Any:
    """An array of the tool's in the shape and type of ONNX Runtime's, where it has as many values."""
    if not isinstance(expected, np.ndarray) or value.size != expected.size:
        return value
    return value.reshape(expected.shape).astype(expected.dtype)


def _finite(total: OutputSqnr) -> float | None:
    return None if total.db is None else finite(total.db)


def random_feeds(proto: ModelProto, inputs: Sequence[InputSpec], count: int) -> list[dict[str, Any]]:
    """Inputs for a quantized model without data: uniform over the grid of each input's quantizer, over [-1, 1] where it
    has none; dynamic dimensions are 1. Empty where an input holds integers, whose meaning is not known."""
    if any(spec.dtype.kind != "f" or spec.shape is None for spec in inputs):
        return []
    random, ends = np.random.default_rng(0), _input_ranges(proto)
    feeds = []
    for _ in range(count):
        feed = {}
        for spec in inputs:
            shape = [n if isinstance(n, int) else 1 for n in spec.shape or ()]
            feed[spec.name] = random.uniform(*ends.get(spec.name, (-1.0, 1.0)), shape).astype(spec.dtype)
        feeds.append(feed)
    return feeds


def _input_ranges(proto: ModelProto) -> dict[str, tuple[float, float]]:
    """Input -> ends of the grid that it is quantized to."""
    found = {}
    for pair in QdqGraph(Model.from_proto(proto, read_only=True)).pairs:
        scale, zero_point = pair.grid.scale.reshape(-1)[0], pair.grid.zero_point.reshape(-1)[0]
        lowest, highest = pair.grid.limits
        found[pair.tensor.name] = float((lowest - zero_point) * scale), float((highest - zero_point) * scale)
    return found
