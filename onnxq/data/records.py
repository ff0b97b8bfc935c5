"""What calibration data consist of: records that can be read again and again.

A record is what is stored together: a file, an ONNX test_data_set folder, or an item in memory. It can be read in full,
or only its headers, for counting: a header is an array of the declared shape and dtype that takes no memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..errors import DataError
from .inputs import Array, shown


@dataclass(frozen=True)
class Record(ABC):
    """`keys` maps each input's name to the key under which a file or mapping holds its array."""

    keys: Mapping[str, str]
    is_image: ClassVar[bool] = False

    @property
    def is_single(self) -> bool:
        """Whether it is one sample, which need not be read to know it."""
        return self.is_image

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where this record lies, as errors name it."""

    @abstractmethod
    def read(self, headers_only: bool = False) -> dict[str, Array]:
        """Input name -> array as stored. Raises DataError for whatever keeps it from being read."""

    @property
    def names(self) -> str:
        """The inputs, for messages."""
        return ", ".join(map(shown, self.keys))

    @property
    def input_name(self) -> str:
        """The model's only input, for records that hold one array."""
        (name,) = self.keys
        return name

    def pick(self, names: Iterable[str]) -> None:
        """Raises DataError unless every key is among the names that the record holds."""
        held = list(names)
        for name, key in self.keys.items():
            if key not in held:
                known = next(iter(held)) if len(held) == len(self.keys) == 1 else "KEY"
                raise DataError(
                    f"{self.origin} has no array {shown(key)} for input {shown(name)}; it has "
                    f"{', '.join(map(shown, held)) or 'none'}. Map names with `input_keys` {shown(name)}={shown(known)}"
                )


def is_whole(array: Array) -> bool:
    """Whether the file that the array is mapped from, if it is, still has all its bytes."""
    mapped = getattr(array, "_mmap", None)
    return mapped is None or mapped.size() >= len(mapped)
