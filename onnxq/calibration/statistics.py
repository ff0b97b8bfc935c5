"""Activation statistics on disk: collected once or in parts, merged, and used for any bits and any method.

The file is an .npz without pickles: for each tensor its histogram (and logit vectors), and a JSON header with the
hash of the graph that was run and one SHA-256 for each sample. Merging refuses files of another graph, and the same
samples twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ..data.npz import NpzFile
from ..errors import DataError
from ..numeric.histogram import Histogram
from ..numeric.logits import KEPT, LARGEST, Logits
from ..numeric.samples import MinMax

FORMAT = 1

LARGEST_ARRAY = 256 << 20
"""Bytes. The largest there is, the header, has 68 for each sample."""


@dataclass(frozen=True)
class Statistics:
    """tensors: by name. graph: hash of the float graph they belong to. samples: SHA-256 of each sample, sorted."""

    tensors: Mapping[str, Logits | Histogram]
    graph: str
    samples: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the set of samples, as `CalibrationData.digest` gives it."""
        return hashlib.sha256(b"".join(bytes.fromhex(s) for s in self.samples)).hexdigest()

    def cover(self, samples: Iterable[str]) -> bool:
        """Whether they were collected on all of these samples, given by their SHA-256."""
        return set(samples) <= set(self.samples)


def graph_hash(proto: ModelProto) -> str:
    """SHA-256, in hex, of what a model computes: its graph, functions and operator sets, not its metadata."""
    part = ModelProto(graph=proto.graph, functions=proto.functions, opset_import=proto.opset_import)
    part.graph.ClearField("doc_string")
    return hashlib.sha256(part.SerializeToString(deterministic=True)).hexdigest()


def save(statistics: Statistics, path: str | os.PathLike[str]) -> None:
    """Write an .npz, the same bytes for the same statistics. Raises OSError."""
    header: dict[str, Any] = {"format": FORMAT, "graph": statistics.graph, "samples": statistics.samples, "tensors": []}
    arrays: dict[str, np.ndarray] = {}
    for index, (name, statistic) in enumerate(sorted(statistics.tensors.items())):
        histogram = statistic.histogram if isinstance(statistic, Logits) else statistic
        header["tensors"].append({"name": name, "logits": isinstance(statistic, Logits)})
        arrays[f"{index}_extremes"] = np.array([histogram.extremes.lo, histogram.extremes.hi])
        filled = np.flatnonzero(histogram.counts)
        arrays[f"{index}_bins"], arrays[f"{index}_counts"] = filled, histogram.counts[filled]
        if isinstance(statistic, Logits):
            for key, row in sorted(statistic.rows.items()):
                arrays[f"{index}_row_{key.hex()}"] = row
    text = json.dumps(header, sort_keys=True).encode()
    arrays["header"] = np.frombuffer(text, np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # a fixed date: same statistics, same bytes
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def load(path: str | os.PathLike[str]) -> Statistics:
    """Read a file that `save` wrote. Raises DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `onnxq calibrate` writes statistics")
    try:
        with NpzFile(path, str(path), LARGEST_ARRAY) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError("written by another version of onnxq; calibrate again")
            tensors = {_text(t["name"]): _statistic(arrays, i, t) for i, t in enumerate(header["tensors"])}
            samples = tuple(_sha256(sample) for sample in header["samples"])
            return Statistics(tensors, _sha256(header["graph"]), samples)
    except Exception as error:  # zipfile, zlib, json and numpy's parser raise a dozen types over damaged bytes
        raise DataError(f"{path}: not a statistics file of `onnxq calibrate`, or damaged: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a name, got {value!r}")
    return value


def _sha256(value: Any) -> str:
    if len(bytes.fromhex(_text(value))) != hashlib.sha256().digest_size:
        raise ValueError(f"expected a SHA-256, got {value!r}")
    return str(value)


def _statistic(arrays: NpzFile, index: int, facts: Mapping[str, Any]) -> Logits | Histogram:
    lo, hi = map(float, arrays[f"{index}_extremes"])
    histogram = Histogram(MinMax(lo, hi))
    bins, counts = arrays[f"{index}_bins"], arrays[f"{index}_counts"]
    if bins.shape != counts.shape or bins.ndim != 1 or bins.dtype.kind != "i" or counts.dtype.kind != "i":
        raise ValueError(f"tensor {facts['name']!r} has bins and counts that are no two lists of integers")
    if (bins < 0).any() or (np.diff(bins) <= 0).any() or (counts <= 0).any() or (counts.size and not lo <= hi):
        raise ValueError(f"tensor {facts['name']!r} has counts or extremes that no data has")
    histogram.counts[bins] = counts
    if not facts["logits"]:
        return histogram
    prefix = f"{index}_row_"
    rows = {name.removeprefix(prefix): arrays[name] for name in arrays.names() if name.startswith(prefix)}
    if len(rows) > KEPT or any(r.ndim != 1 or r.dtype != np.float32 or r.size > LARGEST for r in rows.values()):
        raise ValueError(f"tensor {facts['name']!r} has rows that are no logits")
    return Logits(histogram, {bytes.fromhex(key): row for key, row in rows.items()})


def merge(parts: Sequence[tuple[str, Statistics]]) -> Statistics:
    """Statistics of all parts together; `parts` are (what messages call it, statistics). Raises DataError."""
    (first_name, total), *rest = parts
    for name, part in rest:
        if part.graph != total.graph:
            raise DataError(f"{name} and {first_name} were collected on different models")
        if set(part.samples) <= set(total.samples):
            raise DataError(f"{name} holds the same samples as the other files; each file may count once")
        if part.tensors.keys() != total.tensors.keys():
            raise DataError(f"{name} and {first_name} hold different tensors; calibrate both with the same options")
        tensors = {t: total.tensors[t].merge(part.tensors[t]) for t in total.tensors}  # type: ignore[arg-type]
        total = Statistics(tensors, total.graph, tuple(sorted((*total.samples, *part.samples))))
    return total
