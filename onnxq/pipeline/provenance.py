"""How a model was made, in its metadata and in its report.

The model has one entry of `metadata_props`, JSON with sorted keys:

    onnxq.provenance = {"onnxq": "0.1.0", "source_sha256": "...", "calibration_sha256": "...",
                        "options": {"preset": "w4a8"}, "preprocess": {"mean": [0.485, 0.456, 0.406]}}

options, preprocess: what differs from the defaults, but for what does not change the result. The entry has no time, no
path and no machine in it, so that the same input gives the same bytes. `Options.provenance` leaves it out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from ..data import Preprocess
from ..errors import OutputError
from ..graph import external_data
from ..options import Options
from .task import Task

KEY = "onnxq.provenance"
"""Of the entry in `metadata_props`."""

RUN_ONLY = (
    "batch_size", "threads", "provider", "max_memory", "checkpoint", "custom_ops", "latency", "strict", "provenance",
)  # fmt: skip
"""Options that say how to run, and not what the result is."""


def provenance(task: Task, source: str, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is written down of a run. source: `source_digest` of the model. training: how it was trained, if it was."""
    options = {name: value for name, value in changed(task.options).items() if name not in RUN_ONLY}
    encodings = options.pop("from_encodings", None)
    found = {
        "onnxq": version("onnxq"),
        "source_sha256": source,
        "calibration_sha256": None if task.has_random_inputs else task.feeds.digest(),
        "options": options,
        "preprocess": changed(task.feeds.preprocess),
        "input_keys": dict(task.input_keys),
        "training": training,
    }
    if task.has_random_inputs and task.statistics is not None:
        found["calibration_sha256"] = task.statistics.digest
    if task.evaluation is not None:
        found["evaluation_sha256"] = task.evaluation.digest()
    if encodings is not None:
        found["encodings_sha256"] = hashlib.sha256(Path(encodings).read_bytes()).hexdigest()
    return {key: value for key, value in found.items() if value}


def changed(options: Options | Preprocess) -> dict[str, Any]:
    """The fields that differ from their defaults, as JSON has them."""
    plain = type(options)()
    names = [f.name for f in fields(options) if getattr(options, f.name) != getattr(plain, f.name)]
    values = asdict(options)
    found = {name: values[name] for name in names}
    if "overrides" in found:
        found["overrides"] = [{k: v for k, v in each.items() if v not in (None, False)} for each in found["overrides"]]
    return found


def stamp(proto: ModelProto, record: Mapping[str, Any] | None) -> None:
    """Write the record into a model instead of the one that it has, which is of the model that it was made from."""
    kept = [entry for entry in proto.metadata_props if entry.key != KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    if record is None:
        return
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    proto.metadata_props.append(onnx.StringStringEntryProto(key=KEY, value=text))


def source_digest(model: str | os.PathLike[str] | ModelProto) -> str:
    """SHA-256, in hex, of a model's file, as `sha256sum` prints it, followed by those with its external tensors in the
    order of their names; of a model in memory that of its protobuf."""
    if isinstance(model, ModelProto):
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    sha, path = hashlib.sha256(), Path(model)
    try:
        names = sorted(external_data.locations(onnx.load(path, load_external_data=False)))
        for each in (path, *(path.parent / name for name in names)):
            with open(each, "rb") as file:
                while block := file.read(2**20):
                    sha.update(block)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read any more: {error.strerror}") from None
    return sha.hexdigest()


def call_text(function: str, arguments: Mapping[str, Any], options: Options, preprocess: Preprocess | None) -> str:
    """The call in Python that repeats a run: paths and plain values as they were given, other objects by the names of
    their arguments. arguments: of the function, without those left at None."""
    parts = []
    for name, value in arguments.items():
        if value is not None and not (isinstance(value, (tuple, dict)) and not value):
            text = _literal(value)
            parts.append(f"{name}={name}" if text is None else f"{name}={text}")
    names = [f.name for f in fields(options) if getattr(options, f.name) != getattr(Options(), f.name)]
    parts += [f"{name}={_of_package(getattr(options, name))}" for name in names]
    if preprocess is not None and preprocess != Preprocess():
        fitting = ", ".join(f"{n}={getattr(preprocess, n)!r}" for n in changed(preprocess))
        parts.append(f"preprocess=onnxq.Preprocess({fitting})")
    return f"onnxq.{function}({', '.join(parts)})"


def _literal(value: Any) -> str | None:
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    plain = isinstance(value, (str, int, float, bool, type(None)))
    inside = isinstance(value, (list, tuple)) and all(_literal(each) is not None for each in value)
    named = isinstance(value, dict) and all(_literal(each) is not None for each in value.values())
    return repr(value) if plain or inside or named else None


def _of_package(value: Any) -> str:
    """Overrides are records of ours."""
    return repr(value).replace("Override(", "onnxq.Override(")
