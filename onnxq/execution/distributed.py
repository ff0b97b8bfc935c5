"""Work spread over processes and machines by Dask; imported only when a scheduler is given.

A part (some items in a row: at most `most`, and PART_BYTES unless a single one has more) travels to a worker, and its
results come back, in order. Workers read no files of the user, so that nothing has to be shared between machines. What
`prepare` holds is sent once to each process, and unpacked once there (see `services.Workers`).

Parts have no side effects: a part that was lost with its worker Dask gives to another one, from what the scheduler
keeps. It keeps and the client sends no more than a part for each thread of the workers, and SPARE_PARTS.

Dask pickles: whoever may connect to a scheduler may run code on it, on its workers and on its clients. So none is
looked for; the user names it. With tls:// addresses Dask's own configuration says which certificates count.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import platform
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import chain, islice
from typing import Any, TypeAlias

from onnx import ModelProto, TensorProto

from ..data import Feed
from ..errors import ClusterError, OnnxqError, UsageError
from ..graph import large
from ..graph.scratch import scratch_folder
from .services import PART_ITEMS, R, Stage, T
from .session import (
    check_custom_ops,
    custom_ops,
    default_threads,
    instruction_sets,
    runtime_version,
    with_custom_ops,
)

PART_BYTES = 32 << 20
SPARE_PARTS = 4
"""Sent ahead, so that no worker waits for the next one."""

PACKAGES = ("onnxq", "onnxruntime", "numpy", "distributed")
"""Whose versions must be the same everywhere."""

CONNECT_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
"""How long there may be no worker at all: a cluster that scales has none at first, and lost ones are replaced."""

Result: TypeAlias = tuple[list[Any], Exception | None, str]
"""Of one part: what the stage returned, or the error that it raised, and its traceback."""


@contextmanager
def open_cluster(scheduler: str) -> Iterator[Cluster]:
    """The workers of a scheduler, which are released afterwards.

    scheduler: `local` or `local:N` for N processes on this machine (as many as processors); or the address of a Dask
        scheduler, `tcp://host:8786`.

    Raises UsageError for any other text, and without Dask; ClusterError where the cluster cannot be set up.
    """
    match = re.fullmatch(r"local(?::([1-9]\d{0,3}))?|\w+://.+", scheduler)
    if match is None:
        raise UsageError(f"`scheduler` {scheduler!r}: expected local, local:N or an address like tcp://host:8786")
    try:
        import dask
        import distributed
        from distributed.utils import silence_logging_cmgr
    except ImportError:
        raise UsageError("`scheduler` needs Dask, which is not installed: pip install 'onnxq[dask]'") from None
    silent = logging.CRITICAL + 1  # errors reach the user as exceptions of ours
    with ExitStack() as stack:
        settings = {
            "temporary-directory": os.fspath(stack.enter_context(scratch_folder())),
            "distributed.admin.large-graph-warning-threshold": 1 << 60,
        }
        stack.enter_context(dask.config.set(settings))
        stack.enter_context(silence_logging_cmgr(silent))
        with _dask_errors(scheduler):
            address = scheduler
            if "://" not in scheduler:
                address = stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=int(match[1] or default_threads()),
                        threads_per_worker=1,
                        dashboard_address="127.0.0.1:0",
                        silence_logs=silent,
                        preload=[__name__],
                    )
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a table of versions
                client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
            stack.enter_context(client)
            _refuse_others(client.get_versions(packages=PACKAGES), scheduler)
        yield Cluster(client, scheduler)


class Cluster:
    """The workers of a Dask cluster, those that join later as well."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self._name = client, name

    def run(
        self, prepare: Callable[[int], Stage[T, R]], items: Iterable[T], threads: int, most: int = PART_ITEMS
    ) -> Iterator[R]:
        parts = _parts(items, most)
        begin = list(islice(parts, 2))
        if len(begin) < 2:  # a single part is not worth sending
            yield from prepare(threads)(chain(*begin))
            return
        payload = self._submit(bytes, _packed(prepare))  # a task, since Dask cannot replace lost data
        pending: deque[Any] = deque()
        for part in chain(begin, parts):
            pending.append(self._submit(_run_part, versions(), payload, part))
            if len(pending) >= self._threads() + SPARE_PARTS:
                yield from self._result(pending.popleft())
        while pending:
            yield from self._result(pending.popleft())

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with _dask_errors(self._name):
            return self._client.submit(function, *arguments, pure=False)

    def _threads(self) -> int:
        """Of all workers that there are now."""
        with _dask_errors(self._name):
            return sum(self._client.nthreads(callback_timeout=PATIENCE_SECONDS).values())

    def _result(self, future: Any) -> list[Any]:
        from distributed import TimeoutError as StillRunning
        from distributed import wait

        result: Result
        with _dask_errors(self._name):
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not future.done():
                with suppress(StillRunning), self._client.as_current():
                    wait(future, timeout=1)
                now = time.monotonic()
                if self._threads():
                    deadline = now + PATIENCE_SECONDS
                elif now > deadline:
                    raise ClusterError(f"{self._name}: there has been no worker for {PATIENCE_SECONDS:g} s")
            result = future.result()
        found, error, place = result
        if error is not None:
            raise error from (None if isinstance(error, OnnxqError) else RuntimeError(f"on a worker:\n{place}"))
        return found


def _refuse_others(found: Mapping[str, Any], name: str) -> None:
    """A first check by Dask's own means: a worker without one of the packages could not even run `_run_part`."""
    places = {"the scheduler": found["scheduler"], **{f"worker {at}": of for at, of in found["workers"].items()}}
    for place, known in places.items():
        for package in PACKAGES:
            ours, theirs = found["client"]["packages"].get(package), (known or {}).get("packages", {}).get(package)
            if ours != theirs:
                other = f"{package} {theirs}" if theirs else f"no {package}"
                raise ClusterError(f"{name}: {place} has {other}, and {ours} is installed here")


def _parts(items: Iterable[T], most: int) -> Iterator[list[T]]:
    from dask.sizeof import sizeof

    part: list[T] = []
    size = 0
    for item in items:
        part.append(item)
        size += sizeof(item.arrays if isinstance(item, Feed) else item)
        if len(part) == most or size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _packed(prepare: Callable[..., Any]) -> bytes:
    """`sys.path`, libraries of custom operators and the function, pickled: a module of the user's, with a metric, may
    be among what it needs. The libraries must be there on the workers, under the same paths.

    Raises UsageError for what cannot be sent.
    """
    import cloudpickle

    class Packer(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, thing: Any) -> Any:
            if (isinstance(thing, ModelProto) and large.references(thing)) or (
                isinstance(thing, TensorProto) and large.is_reference(thing)
            ):
                raise UsageError(
                    "`scheduler`: a model of over 1 GiB, whose weights stay in files, cannot be sent around"
                )
            return super().reducer_override(thing)

    file = io.BytesIO()
    for thing in (sys.path, custom_ops(), prepare):
        Packer(file, pickle.HIGHEST_PROTOCOL).dump(thing)
    return file.getvalue()


@contextmanager
def _dask_errors(name: str) -> Iterator[None]:
    """Raise Dask's errors as ClusterError. What tasks raise themselves is never among them, see `_run_part`."""
    try:
        yield
    except OnnxqError:
        raise
    except Exception as error:  # Dask's, the network's, or the operating system's, and whatever pickle raises
        from distributed import CancelledError, KilledWorker

        if isinstance(error, KilledWorker):
            times = error.allowed_failures + 1
            what = f"a part of the work has ended the worker that did it, {times} times; have workers enough memory?"
        elif isinstance(error, CancelledError):
            what = "the connection to the scheduler was lost"
        elif isinstance(error, OSError):
            what = f"the scheduler cannot be reached, or no longer ({_line(error)})"
        else:
            what = f"{_line(error)}; scheduler and workers need the packages that are installed here"
        raise ClusterError(f"{name}: {what}") from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@cache
def versions() -> dict[str, str]:
    """What the bytes of a result depend on, besides model, data and options."""
    return {
        "onnxq": version("onnxq"),
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "onnx": version("onnx"),
        "NumPy": version("numpy"),
        "ONNX Runtime": runtime_version(),
        "the processor": f"{platform.machine()} {' '.join(instruction_sets())}".rstrip(),
    }


def dask_setup(worker: Any) -> None:
    """Dask calls it in each process of `local`. Ctrl-C is left to the process that the user started; it ends these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_part(expected: Mapping[str, str], payload: bytes, part: list[Any]) -> Result:
    """What a worker does. Errors are returned rather than raised, which distinguishes them from Dask's."""
    try:
        _refuse_other_versions(expected)
        libraries, stage = _stage(payload)
        with with_custom_ops(libraries):
            return list(stage(part)), None, ""
    except Exception as error:
        return [], error, traceback.format_exc()


def _refuse_other_versions(expected: Mapping[str, str]) -> None:
    found = versions()
    other = [f"{name} is {found[name]}, and {value} here" for name, value in expected.items() if found[name] != value]
    if other:
        raise ClusterError(f"worker {_address()} would compute other bytes: {'; '.join(other)}")


def _address() -> str:
    from distributed import get_worker

    return str(get_worker().address)


_UNPACKING = threading.Lock()


def _stage(payload: bytes) -> tuple[tuple[str, ...], Stage[Any, Any]]:
    """The same one for all threads of this process."""
    with _UNPACKING:
        return _unpacked(payload)


@lru_cache(maxsize=1)
def _unpacked(payload: bytes) -> tuple[tuple[str, ...], Stage[Any, Any]]:
    file = io.BytesIO(payload)
    sys.path.extend(path for path in pickle.load(file) if path not in sys.path)
    libraries: tuple[str, ...] = pickle.load(file)
    try:
        prepare: Callable[[int], Stage[Any, Any]] = pickle.load(file)
    except Exception as error:  # a module that is missing there raises nothing special
        raise ClusterError(f"worker {_address()} cannot load what was sent to it: {_line(error)}") from None
    try:
        check_custom_ops(libraries)
    except UsageError as error:
        raise ClusterError(f"worker {_address()}: {error}; workers need the file under the same path") from None
    with with_custom_ops(libraries):
        return libraries, prepare(1)
