"""Encodings from JSON, of any of the three schemas. What does not make sense is refused with its tensor's name."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .record import DERIVED_BITS, Encoding

GROUPS = ("activation_encodings", "param_encodings")


def read(path: str | os.PathLike[str]) -> tuple[Encoding, ...]:
    """All encodings of a file. Raises UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UsageError(f"{path}: encodings cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise UsageError(f"{path}: not an encodings file: JSON cannot be parsed ({error})") from None
    try:
        found = tuple(_encodings(content))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    names = Counter(encoding.name for encoding in found)
    if not names:
        raise UsageError(f"{path}: the file holds no encodings")
    name, count = names.most_common(1)[0]
    if count > 1:
        raise UsageError(f"{path}: tensor {name!r} has {count} encodings; expected one")
    return found


def _encodings(content: Any) -> Iterator[Encoding]:
    if not isinstance(content, dict) or not {"encodings", *GROUPS} & set(content):
        raise UsageError(
            "not an encodings file: expected JSON with 'activation_encodings', 'param_encodings' or 'encodings'"
        )
    if "encodings" in content:
        for name, entry in _named(content["encodings"], "encodings"):
            yield _one(name, entry, _entry_2_0_0)
        return
    for group in GROUPS:
        entries = content.get(group, [])
        if isinstance(entries, dict):
            for name, channels in entries.items():
                yield _one(name, channels, _entries_0_6_1, group == "param_encodings")
        else:
            for name, entry in _named(entries, group):
                yield _one(name, entry, _entry_1_0_0, group == "param_encodings")


def _named(entries: Any, group: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(entries, list):
        raise UsageError(f"{group!r} must be a list, or a table of tensors, got {type(entries).__name__}")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UsageError(f"{group!r}: expected entries with a 'name', got {str(entry)[:80]}")
        yield entry["name"], entry


def _one(name: str, entry: Any, parse: Any, *arguments: Any) -> Encoding:
    try:
        encoding: Encoding = parse(name, entry, *arguments)
        _check(encoding)
    except KeyError as error:
        raise UsageError(f"the encoding of {name!r} has no {error}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"the encoding of {name!r} makes no sense: {error}") from None
    return encoding


def _entries_0_6_1(name: str, channels: Any, constant: bool) -> Encoding:
    if not isinstance(channels, list) or not channels or not all(isinstance(c, dict) for c in channels):
        raise ValueError(
            "expected a list with one entry, or one for each channel; encodings of PyTorch modules, by input and"
            " output, do not name tensors: export those for ONNX"
        )
    if str(channels[0].get("dtype", "int")).lower() == "float":
        return _float(name, constant)
    bits = {_whole(c["bitwidth"]) for c in channels}
    if len(bits) > 1:
        raise ValueError(f"its channels have different bit widths, {sorted(bits)}")
    scale, offset = (_numbers([c[key] for c in channels]) for key in ("scale", "offset"))
    if len(channels) == 1:
        scale, offset = scale[0], offset[0]
    return _from_offset(name, bits.pop(), scale, offset, str(channels[0].get("is_symmetric")), constant=constant)


def _entry_1_0_0(name: str, entry: Mapping[str, Any], constant: bool) -> Encoding:
    if str(entry["dtype"]).upper() == "FLOAT":
        return _float(name, constant)
    if entry.get("zero_point_shift") is not None and np.any(_numbers(entry["zero_point_shift"])):
        raise ValueError("a zero point between two integers (zero_point_shift) has no counterpart in ONNX")
    kind = entry["enc_type"]
    scale = np.ravel(_numbers(entry["scale"]))
    if kind == "LPBQ":
        steps = _numbers(entry["per_block_int_scale"]).reshape(scale.size, -1)
        bits = _whole(entry["compressed_bw"])
        return _levels(name, bits, scale[:, None], steps, block=_whole(entry["block_size"]), by_channel=True)
    if kind not in ("PER_TENSOR", "PER_CHANNEL", "PER_BLOCK"):
        raise ValueError(f"enc_type {kind!r} is unknown; expected PER_TENSOR, PER_CHANNEL, PER_BLOCK or LPBQ")
    offset = np.ravel(_numbers(entry["offset"]))
    shape = () if kind == "PER_TENSOR" else (-1,)
    block = _whole(entry["block_size"]) if kind == "PER_BLOCK" else None
    signed = str(entry.get("is_sym"))
    return _from_offset(name, _whole(entry["bw"]), scale.reshape(shape), offset.reshape(shape), signed, constant, block)


def _entry_2_0_0(name: str, entry: Mapping[str, Any]) -> Encoding:
    kind = re.fullmatch(r"(u?)int(\d+)", str(entry["output_dtype"]))
    if kind is None:
        if str(entry["output_dtype"]).startswith(("float", "bfloat")) and "y_scale" not in entry:
            return _float(name, False)
        raise ValueError(f"output_dtype {entry['output_dtype']!r} is no integer type like uint8")
    bits, signed = int(kind[2]), not kind[1]
    axis = None if entry.get("axis") is None else _whole(entry["axis"])
    block = _whole(entry["block_size"]) if entry.get("block_size") else None
    if "per_block_int_scale" in entry:
        scale, steps = _numbers(entry["per_channel_float_scale"]), _numbers(entry["per_block_int_scale"])
        return _levels(name, bits, scale, steps, axis=axis, block=block)
    scale = _numbers(entry["y_scale"])
    zero_point = np.broadcast_to(_numbers(entry.get("y_zero_point") or 0), scale.shape)
    if axis is None and scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    unsigned = zero_point + signed * 2 ** (bits - 1)
    return Encoding(name, bits, np.asarray(scale, np.float32), _integers(unsigned), signed, axis, block)


def _from_offset(
    name: str, bits: int, scale: Any, offset: Any, symmetric: str, constant: bool, block: int | None = None
) -> Encoding:
    """AIMET's strictly symmetric grids leave out the lowest integer and count from the next, offset 1 - 2^(b-1)."""
    signed = symmetric.lower() == "true"
    zero_point = np.broadcast_to(-_integers(offset), np.shape(scale))
    if signed and np.all(zero_point == 2 ** (bits - 1) - 1):
        zero_point = zero_point + 1
    return Encoding(name, bits, np.asarray(scale, np.float32), zero_point, signed, None, block, constant=constant)


def _levels(
    name: str,
    bits: int,
    scale: Any,
    steps: Any,
    *,
    block: int | None,
    axis: int | None = None,
    by_channel: bool = False,
) -> Encoding:
    """LPBQ: a block's scale is a small integer times its channel's scale."""
    if block is None:
        raise ValueError("LPBQ needs a block_size")
    product = np.asarray(scale * steps, np.float32)
    middle = np.full(product.shape, 2 ** (bits - 1), np.int64)
    return Encoding(name, bits, product, middle, True, axis, block, by_channel, constant=True)


def _float(name: str, constant: bool) -> Encoding:
    return Encoding(name, None, np.float32(1).reshape(()), np.zeros((), np.int64), constant=constant)


def _check(encoding: Encoding) -> None:
    if encoding.bits is None:
        return
    if not (2 <= encoding.bits <= 16 or encoding.bits == DERIVED_BITS):
        raise ValueError(f"expected 2 to 16 bits, or 32 for a bias, got {encoding.bits}")
    if encoding.block is not None and encoding.block < 1:
        raise ValueError(f"block_size must be at least 1, got {encoding.block}")
    if not encoding.scale.size or not (np.isfinite(encoding.scale).all() and (encoding.scale > 0).all()):
        raise ValueError("scales must be positive and finite in float32")
    last = 2**encoding.bits - 1
    if not ((encoding.zero_point >= 0) & (encoding.zero_point <= last)).all():
        raise ValueError(f"zero lies outside its grid: offsets must be {-last} to 0")


def _numbers(value: Any) -> NDArray[np.float64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"expected numbers, got {str(value)[:80]}")
    return np.asarray(array, np.float64)


def _integers(values: Any) -> NDArray[np.int64]:
    array = np.asarray(values, np.float64)
    if not (np.isfinite(array).all() and np.array_equal(array, np.rint(array))):
        raise ValueError("offsets and zero points must be whole numbers")
    return np.asarray(array, np.int64)


def _whole(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value != int(value)
    ):
        raise ValueError(f"expected a whole number, got {value!r}")
    return int(value)
