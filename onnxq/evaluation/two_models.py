"""Two models that are to be fed the same samples."""

from __future__ import annotations

from dataclasses import replace

from onnx import ModelProto

from ..data import InputSpec
from ..errors import ModelError
from ..pipeline.open_inputs import input_specs


def common_inputs(first: ModelProto, second: ModelProto, names: tuple[str, str]) -> list[InputSpec]:
    """Inputs that both models take: of each dimension the length that either fixes it to.

    names: what messages call the two. Raises ModelError where they differ in names, types or shapes.
    """
    one, other = ({spec.name: spec for spec in input_specs(proto)} for proto in (first, second))
    if one.keys() != other.keys():
        raise ModelError(
            f"the models have different inputs: {names[0]} has {_list(one)}, {names[1]} has {_list(other)}; give two"
            " versions of one model"
        )
    return [_merged(spec, other[name], names) for name, spec in one.items()]


def _merged(one: InputSpec, other: InputSpec, names: tuple[str, str]) -> InputSpec:
    if one.shape is None or other.shape is None:
        shape = one.shape or other.shape
        fits = True
    else:
        dims = list(zip(one.shape, other.shape, strict=False))
        fits = len(one.shape) == len(other.shape) and not any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in dims
        )
        shape = tuple(a if isinstance(a, int) else b if isinstance(b, int) else a for a, b in dims)
    if one.dtype != other.dtype or not fits:
        raise ModelError(f"the models have different inputs: {one} of {names[0]}, {other} of {names[1]}")
    return replace(one, shape=shape)


def _list(specs: dict[str, InputSpec]) -> str:
    return ", ".join(repr(name) for name in specs) or "none"
