"""What a model's input looks like, and the words in which errors about it are written."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError, OnnxqError

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = int | str | None


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    A dimension is an int where the model fixes it; a str (its `dim_param`) or None where it is dynamic.
    `shape` is None where the model does not even declare the rank.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    def __str__(self) -> str:
        return f"input {shown(self.name)} ({self.type_name}, {shape_text(self.shape)})"

    @property
    def is_text(self) -> bool:
        """Whether it holds strings, which are Python objects to numpy."""
        return self.dtype == np.object_

    @property
    def type_name(self) -> str:
        return "strings" if self.is_text else str(self.dtype)

    def takes(self, dtype: np.dtype[Any]) -> bool:
        """Whether arrays of this type can be fed; text may be str, bytes or objects."""
        return dtype.kind in "OUST" if self.is_text else dtype.newbyteorder("=") == self.dtype


def batch_size(inputs: Sequence[InputSpec]) -> int | None:
    """How many samples one run of the model takes; None where its inputs share no batch axis.

    The batch axis is axis 0 of every input. Dynamic counts as 1: ONNX Runtime's results differ in the last
    bits between batch sizes, so running every sample alone makes them independent of how data is stored.
    """
    if any(spec.shape == () for spec in inputs):
        return None
    leading = {spec.shape[0] if spec.shape else None for spec in inputs}
    names = {dim for dim in leading if isinstance(dim, str)}
    fixed = {dim for dim in leading if isinstance(dim, int)}
    if len(names) > 1:
        return None
    if fixed <= {1}:
        return 1
    # Here some dimension is fixed to B > 1: a batch only where all of them are.
    return fixed.pop() or None if len(leading) == 1 else None


def shown(text: object) -> str:
    """The text of a path or name, escaped as `repr` does where it holds line breaks or control characters."""
    plain = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    return plain if plain and plain.isprintable() else repr(plain)


def shape_text(shape: Sequence[Dim] | None) -> str:
    """`N x 3 x 5 x 7`, with `?` for an unnamed dynamic dimension."""
    if shape is None:
        return "any shape"
    return " x ".join("?" if dim is None else shown(dim) for dim in shape) or "scalar"


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into a DataError that names the file.

    It catches broadly because a damaged file makes numpy, zipfile, Pillow and protobuf raise almost anything.
    """
    try:
        yield
    except OnnxqError:
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise DataError(f"cannot read {shown(path)}: {reason}; save it again, or leave it out") from error
