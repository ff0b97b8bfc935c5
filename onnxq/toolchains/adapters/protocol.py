"""What the adapters share: `python adapter.py REQUEST.json ANSWER.json`.

Request     {"model": path of the .onnx file, "outputs": path of the .npz to write, "log": path of what is printed,
             "feeds": paths of .npz files, a sample each, in the model's order of inputs,
             "linear": [[node, op], ...] whose weights and inputs have 8 bits}
            or {}: say only which versions there are.
Answer      {"missing": what cannot be imported} or {"versions": {package: version}} and the fields of `Answer`.

A tool may print what it likes, and may crash: the answer is written again after each stage, so that what is known by
then is not lost.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, Any]
"""Input name -> array, in the model's order."""


@dataclass
class Answer:
    """accepted: the tool reads and compiles the model. ran: it has run all samples.

    partitions: pieces that the tool took, where it divides a model. nodes, integer_nodes: how many nodes there were to
    take, and how many it took. fallback: [node, op, where it runs instead]. message: what it said. None: it does not
    tell.
    """

    accepted: bool = False
    ran: bool = False
    partitions: int | None = None
    nodes: int | None = None
    integer_nodes: int | None = None
    fallback: list[tuple[str, str, str]] = field(default_factory=list)
    message: str = ""


class Job:
    """One model for one tool."""

    def __init__(self, request: dict[str, Any], path: Path, versions: dict[str, str]) -> None:
        self.model: str = request["model"]
        self.linear: list[tuple[str, str]] = [(node, op) for node, op in request["linear"]]
        self.answer = Answer()
        self._request, self._path, self._versions = request, path, versions
        self._outputs: dict[str, Any] = {}

    def feeds(self) -> Iterator[Feed]:
        """The samples."""
        for path in self._request["feeds"]:
            with np.load(path) as arrays:
                yield {name: arrays[name] for name in arrays.files}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> shape of the first sample; empty without samples."""
        return {name: array.shape for name, array in next(self.feeds(), {}).items()}

    def accept(self) -> None:
        """The tool has compiled the model."""
        self.answer.accepted = True
        self.save()

    def run(self, function: Callable[[Feed], Any]) -> None:
        """Run all samples. function: outputs of one sample, in the model's order."""
        count = 0
        for count, feed in enumerate(self.feeds(), 1):
            for index, value in enumerate(function(feed)):
                self._outputs[f"{count - 1}.{index}"] = np.array(value)
        np.savez(self._request["outputs"], **self._outputs)
        self.answer.ran = count > 0
        self.save()

    def logged(self, start: str) -> list[str]:
        """Lines that the tool has printed and that start so."""
        sys.stdout.flush()
        lines = Path(self._request["log"]).read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.startswith(start)]

    def save(self) -> None:
        """Write what is known."""
        self._path.write_text(json.dumps({"versions": self._versions, **asdict(self.answer)}), encoding="utf-8")


def main(packages: tuple[str, ...], attempt: Callable[[Job], None]) -> None:
    """Answer the request of the command line. packages: distributions whose versions count."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(sys.argv[2])
    versions = {name: found for name in packages if (found := _version(name)) is not None}
    if not request:
        path.write_text(json.dumps({"versions": versions}), encoding="utf-8")
        return
    job = Job(request, path, versions)
    job.save()
    try:
        attempt(job)
    except (Exception, SystemExit) as error:
        job.answer.message = f"{type(error).__name__}: {error}"
    job.save()


def missing(error: ImportError) -> None:
    """Say that the package is not there, or does not load, and end."""
    Path(sys.argv[2]).write_text(json.dumps({"missing": str(error)}), encoding="utf-8")
    raise SystemExit(0)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
