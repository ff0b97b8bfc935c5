"""A function in a process of its own, with limits on time and memory: what it does to that process is an outcome, too.

    with Worker(function, seconds=60, mebibytes=4096) as worker:
        worker.run(case)      what function(case) returned, or Lost("crash", "SIGSEGV"), or Lost("hang", "60 s")

The process is forked, so that cases may be large and functions closures; it serves case after case, and is replaced
once it is lost. It works in a folder of its own, which goes with the worker, whatever was left in it. The parent must
not have started threads before (ONNX Runtime does): fork copies only one of them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Lost:
    """The process ended without a result. kind: `crash` or `hang`; detail: the signal, exit code or time limit."""

    kind: str
    detail: str


class Worker:
    """function: case -> anything that can be pickled. seconds: for one case. mebibytes: of address space."""

    def __init__(self, function: Callable[[Any], Any], seconds: float = 60, mebibytes: int = 8192) -> None:
        self._function, self._seconds, self._bytes = function, seconds, mebibytes * 2**20
        self._context = multiprocessing.get_context("fork")
        self._process: Any = None
        self._pipe: Connection | None = None
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Worker:
        self._folder = self._exit.enter_context(tempfile.TemporaryDirectory(prefix="worker-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()
        self._exit.close()

    def run(self, case: Any) -> Any:
        """function(case), or what became of the process."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(case)
            if self._pipe.poll(self._seconds):
                return self._pipe.recv()
            lost = Lost("hang", f"{self._seconds:g} s")
        except (EOFError, ConnectionError):
            self._process.join(5)
            lost = Lost("crash", _cause(self._process.exitcode))
        self._stop()
        return lost

    def _start(self) -> None:
        self._pipe, far = self._context.Pipe()
        self._process = self._context.Process(target=self._serve, args=(far,), daemon=True)
        self._process.start()
        far.close()

    def _serve(self, pipe: Connection) -> None:
        assert self._pipe is not None
        self._pipe.close()
        resource.setrlimit(resource.RLIMIT_AS, (self._bytes, self._bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)  # native code writes its last words there
        faulthandler.disable()  # pytest's has a descriptor of its own
        os.chdir(self._folder)
        while True:
            try:
                case = pipe.recv()
            except EOFError:
                return
            pipe.send(self._function(case))

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _cause(code: int | None) -> str:
    if code is None:
        return "no exit code"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
