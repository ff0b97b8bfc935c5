"""Results of long work, kept in files so that an interrupted run goes on where it was.

One file a result, written under another name first: a file is whole or not there. Names carry a key of all that the
results depend on (model, data, options), so that a folder may serve many runs and nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.npz import NpzFile
from ..errors import OutputError
from ..graph.scratch import scratch_folder

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """folder: made where it is missing.  key: `key_of` whatever determines the results."""

    folder: Path
    key: str

    def load(self, name: str) -> Arrays | None:
        """What was saved under a name; None where nothing was, or nothing that can be read."""
        try:
            path = self._path(name)
            with NpzFile(path, str(path), path.stat().st_size) as file:  # `save` does not compress
                return {key: file[key] for key in file.names()}
        except Exception:  # zipfile, zlib and numpy's parser raise a dozen types over damaged bytes
            return None

    def save(self, name: str, arrays: Arrays) -> None:
        """Raises OutputError where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with scratch_folder(self.folder, ".part-") as scratch:
                with open(scratch / "part.npz", "wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(scratch / "part.npz", self._path(name))
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot write the checkpoint: {error.strerror or error}") from None

    def _path(self, name: str) -> Path:
        return self.folder / f"{key_of(self.key.encode(), name.encode())[:32]}.npz"


def key_of(*parts: bytes) -> str:
    """SHA-256, in hex, of some byte strings, and of where each of them ends."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()
