"""What users bring, opened and checked before any long work: a model, data, statistics, the place of the result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from ..calibration import statistics as statistics_file
from ..calibration.statistics import Statistics
from ..data import CalibrationData, Feed, InputSpec, Preprocess, Transform
from ..data.inputs import shown
from ..encodings import Encoding
from ..errors import DataError, EngineError, ModelError, OutputError, UsageError
from ..execution.session import Session
from ..graph import large, storage
from ..graph.freeze import frozen
from ..graph.import_model import import_model
from ..graph.storage import in_order
from ..options import Options
from ..thresholds import RANDOM_SAMPLES, RANDOM_SAMPLES_OF_WEIGHTS


def open_model(
    model: str | os.PathLike[str] | ModelProto, *, quantized: bool = False, freeze: Sequence[str] = ()
) -> tuple[ModelProto, str, int]:
    """The model as a checked protobuf, what messages call it, and its bytes as it was given.

    Raises ModelError, or UsageError of `freeze`.

    quantized: whether it may be; then it stays as it is, else `graph.import_model` brings it into one form.
    freeze: dynamic dimensions to make static, as in `Options`.
    """
    if isinstance(model, ModelProto):
        proto, origin = in_order(model), "model"
        storage.check(proto, origin, quantized=quantized)
    elif isinstance(model, (str, os.PathLike)):
        proto, origin = storage.read(model, quantized=quantized), str(model)
    else:
        raise UsageError(f"`model` must be a path or an onnx.ModelProto, got {type(model).__name__}")
    size = large.nbytes(proto)  # of what was given: what is float16 there takes twice as much in float32
    return (proto if quantized else frozen(import_model(proto, origin), freeze, origin)), origin, size


def input_specs(proto: ModelProto) -> list[InputSpec]:
    """The inputs that must be fed, in order. ModelError where there are none, or some are no tensors."""
    initializers = {t.name for t in proto.graph.initializer}
    specs = [_input_spec(value) for value in proto.graph.input if value.name not in initializers]
    if not specs:
        raise ModelError("the model has no inputs: it always computes the same, and cannot be calibrated")
    return specs


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"input {value.name!r} is no tensor; such models cannot be calibrated")
    shape = None
    if kind.HasField("shape"):
        shape = tuple(_dimension(d) for d in kind.shape.dim)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    except KeyError:
        raise ModelError(f"input {value.name!r} is of type {kind.elem_type}, unknown to this version of onnx") from None
    return InputSpec(value.name, dtype, shape)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """Old exporters write -1 for a dynamic one."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None


def common_inputs(first: ModelProto, second: ModelProto, names: tuple[str, str]) -> list[InputSpec]:
    """Inputs that both models take: of each dimension the length that either fixes it to.

    names: what messages call the two. Raises ModelError where they differ in names, types or shapes.
    """
    one, other = ({spec.name: spec for spec in input_specs(proto)} for proto in (first, second))
    if one.keys() != other.keys():
        raise ModelError(
            f"the models have different inputs: {names[0]} has {_names(one)}, {names[1]} has {_names(other)}; give two"
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


def _names(specs: dict[str, InputSpec]) -> str:
    return ", ".join(repr(name) for name in specs) or "none"


def open_data(
    calibration: Any,
    inputs: Sequence[InputSpec],
    options: Options,
    preprocess: Preprocess | None,
    input_keys: Mapping[str, str] | None,
    model: ModelProto,
    transform: Transform | None = None,
    *,
    may_be_empty: bool = False,
) -> CalibrationData:
    """Data for a model with these inputs, as the options choose from it. Raises DataError or UsageError."""
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise UsageError(
            f"`preprocess` must be onnxq.Preprocess(...), got {type(preprocess).__name__}; of a dictionary"
            " onnxq.Preprocess(**it)"
        )
    return CalibrationData(
        calibration,
        inputs,
        preprocess=preprocess or Preprocess(),
        samples=options.samples,
        keys=input_keys,
        seed=options.seed,
        accepts_infinity=_FiniteOutputs(model),
        transform=transform,
        max_memory=options.max_memory * 2**20,
        may_be_empty=may_be_empty,
    )


@dataclass
class _FiniteOutputs:
    """Infinity in an input, as masks hold it, is sound where the float model's outputs are finite."""

    model: ModelProto
    session: Session | None = None

    def __call__(self, feed: Feed) -> None:
        self.session = self.session or Session(self.model)
        try:
            outputs = self.session.run(feed.arrays)
        except EngineError as error:
            raise DataError(f"{feed.origin} holds infinity, and the model does not run on it: {error}") from None
        for name, value in outputs.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
                inputs = (k for k, array in feed.arrays.items() if array.dtype.kind == "f" and np.isinf(array).any())
                given = next(inputs)
                place = tuple(int(i) for i in np.argwhere(np.isinf(feed.arrays[given]))[0])
                raise DataError(
                    f"{feed.origin}: input {shown(given)} has {feed.arrays[given][place]} at {place}, and output"
                    f" {shown(name)} is not finite for it; leave it out"
                )


def open_output(
    stack: ExitStack, model: str | os.PathLike[str] | ModelProto, output: str | os.PathLike[str] | None
) -> Path | None:
    if output is None:
        return None
    path = Path(output)
    if not isinstance(model, ModelProto) and os.path.exists(path) and os.path.exists(model) and path.samefile(model):
        raise OutputError(f"{path}: the output is the input model itself; choose another name")
    return stack.enter_context(storage.replacing(path))


def read_statistics(paths: Iterable[str | os.PathLike[str]]) -> Statistics | None:
    parts = [(os.fspath(path), statistics_file.load(path)) for path in paths]
    return statistics_file.merge(parts) if parts else None


def random_inputs(
    proto: ModelProto,
    known: Statistics | None,
    encodings: Iterable[Encoding],
    options: Options,
    origin: str,
) -> list[dict[str, np.ndarray]]:
    """Inputs to verify with where there is no data: floats uniform over the range that each input is known to take,
    integers 0 and 1, all dynamic dimensions of one length.

    Empty where the model runs on none of these, and only weights are quantized, which need no data: then nothing is
    compared. UsageError where activations are quantized.
    """
    ranges = {e.name: e.range for e in encodings if e.bits is not None}
    ranges |= {name: (lo, hi) for name, lo, hi in options.input_ranges}
    specs, weights_only = input_specs(proto), options.activation is None
    for spec in specs:
        if known is not None and spec.name in known.tensors:
            samples = known.tensors[spec.name].samples()
            ranges.setdefault(spec.name, (float(samples.lo[0]), float(samples.hi[0])))
        if not weights_only and (spec.dtype.kind != "f" or spec.shape is None):
            raise UsageError(f"{spec} of {origin} is no float tensor of known rank: give calibration data too")
    if any(spec.shape is None or spec.is_text for spec in specs):
        return []
    session, trouble = Session(proto), None
    count = RANDOM_SAMPLES_OF_WEIGHTS if weights_only else RANDOM_SAMPLES
    for length in RANDOM_LENGTHS:
        random = np.random.default_rng(options.seed)
        feeds = [_random_feed(specs, ranges, length, random) for _ in range(count)]
        try:
            session.run(feeds[0])
            return feeds
        except EngineError as error:
            trouble = trouble or error
    if weights_only:
        return []
    raise UsageError(
        f"{origin} does not run on inputs whose dynamic dimensions are 1: give calibration data too ({trouble})"
    )


RANDOM_LENGTHS = (1, 2, 8, 16)
"""Of dynamic dimensions, one after another until the model runs."""


def _random_feed(
    specs: Sequence[InputSpec], ranges: Mapping[str, tuple[float, float]], length: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    feed = {}
    for spec in specs:
        shape = [n if isinstance(n, int) else 1 if i == 0 else length for i, n in enumerate(spec.shape or ())]
        if spec.dtype.kind == "f":
            feed[spec.name] = random.uniform(*ranges.get(spec.name, (-1.0, 1.0)), shape).astype(spec.dtype)
        else:
            feed[spec.name] = random.integers(0, 2, shape).astype(spec.dtype)
            feed[spec.name].flat[:1] = 1  # a mask that lets nothing through makes not-a-number
    return feed
