"""Encodings to JSON, in any of the three schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as package_version
from typing import Any

import numpy as np

from ..errors import UsageError
from .record import Encoding


def to_json(encodings: Sequence[Encoding], version: str, arguments: Mapping[str, Any]) -> str:
    """The text of an encodings file.

    version: a key of `VERSIONS`. arguments: how the encodings were found, AIMET's `quantizer_args`. Raises UsageError
    where the schema cannot say what is to be said.
    """
    content = {"version": version, "producer": {"package": "onnxq", "version": package_version("onnxq")}}
    content |= VERSIONS[version](encodings, arguments)
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _version_0_6_1(encodings: Sequence[Encoding], arguments: Mapping[str, Any]) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {"activation_encodings": {}, "param_encodings": {}}
    for encoding in encodings:
        groups[_group(encoding)][encoding.name] = _entries_0_6_1(encoding)
    return {**groups, "quantizer_args": dict(arguments)}


def _entries_0_6_1(encoding: Encoding) -> list[dict[str, Any]]:
    if encoding.block is not None:
        raise UsageError(
            f"encodings of version 0.6.1 have no blocks, but {encoding.name!r} has; write version 1.0.0 or 2.0.0"
        )
    assert encoding.bits is not None
    last = 2**encoding.bits - 1
    pairs = zip(np.ravel(encoding.scale).tolist(), np.ravel(encoding.zero_point).tolist(), strict=True)
    return [
        {
            "bitwidth": encoding.bits,
            "dtype": "int",
            "is_symmetric": str(_signed_symmetric(encoding)),
            "min": scale * -zero_point,
            "max": scale * (last - zero_point),
            "offset": -zero_point,
            "scale": scale,
        }
        for scale, zero_point in pairs
    ]


def _version_1_0_0(encodings: Sequence[Encoding], arguments: Mapping[str, Any]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {"activation_encodings": [], "param_encodings": []}
    for encoding in encodings:
        groups[_group(encoding)].append(_entry_1_0_0(encoding))
    return {**groups, "quantizer_args": dict(arguments), "excluded_layers": []}


def _entry_1_0_0(encoding: Encoding) -> dict[str, Any]:
    entry = {
        "name": encoding.name,
        "dtype": "INT",
        "bw": encoding.bits,
        "is_sym": _signed_symmetric(encoding),
        "enc_type": "PER_CHANNEL" if encoding.scale.ndim else "PER_TENSOR",
        "scale": np.ravel(encoding.scale).tolist(),
        "offset": np.ravel(-encoding.zero_point).tolist(),
    }
    if encoding.block is not None:
        if encoding.scale.ndim > 2 and max(encoding.scale.shape[2:]) > 1:
            raise UsageError(
                f"encodings of version 1.0.0 have blocks for matrices only, and {encoding.name!r} has scales of shape"
                f" {encoding.scale.shape}; write version 2.0.0"
            )
        entry |= {"enc_type": "PER_BLOCK", "block_size": encoding.block}
    return entry


def _version_2_0_0(encodings: Sequence[Encoding], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"encodings": [_entry_2_0_0(encoding) for encoding in encodings]}


def _entry_2_0_0(encoding: Encoding) -> dict[str, Any]:
    assert encoding.bits is not None
    kind = "int" if encoding.signed else "uint"
    zero_point = encoding.zero_point - encoding.signed * 2 ** (encoding.bits - 1)
    entry: dict[str, Any] = {"name": encoding.name, "output_dtype": f"{kind}{encoding.bits}"}
    entry["y_scale"] = encoding.scale.tolist()
    if zero_point.any():
        entry["y_zero_point"] = zero_point.tolist()
    if encoding.scale.ndim:
        entry["axis"] = encoding.axis
    if encoding.block is not None:
        entry["block_size"] = encoding.block
    return entry


def _group(encoding: Encoding) -> str:
    return "param_encodings" if encoding.constant else "activation_encodings"


def _signed_symmetric(encoding: Encoding) -> bool:
    """AIMET reads a grid as signed only where this is true."""
    return encoding.signed and encoding.symmetric


VERSIONS: Mapping[str, Callable[[Sequence[Encoding], Mapping[str, Any]], dict[str, Any]]] = {
    "0.6.1": _version_0_6_1,
    "1.0.0": _version_1_0_0,
    "2.0.0": _version_2_0_0,
}
"""How each schema lays out a file."""
