"""Temporary folders that go, whatever becomes of the process.

A folder is locked (flock) as long as its process lives, and the kernel lets go of the lock however that ends. Whoever
makes a folder first removes those of the same stem beside it that no process holds: what a killed run left behind goes
with the next run, and what another run works in stays. Where a file system knows no such locks, leftovers stay too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import OutputError

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".tmp"
_RANDOM = "[a-z0-9_]{8}"  # of tempfile.mkdtemp


@contextlib.contextmanager
def scratch_folder(
    parent: Path | None = None, stem: str = "onnxq-", clear: Callable[[Path], None] = lambda folder: None
) -> Iterator[Path]:
    """A folder `STEM????????.tmp` of one's own in `parent` (the system's temporary folder), gone afterwards.

    clear: called with a folder before it goes, and with those that killed runs left behind.
    Raises OSError where it cannot be made in `parent`, OutputError where it cannot among the system's.
    """
    try:
        place = Path(tempfile.gettempdir()) if parent is None else parent
        _remove_abandoned(place, stem, clear)
        folder, lock = _locked_folder(place, stem)
    except OSError as error:
        if parent is not None:
            raise
        raise OutputError(f"no temporary folder can be made: {error.strerror or error}; set TMPDIR") from None
    try:
        yield folder
    finally:
        clear(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder(parent: Path, stem: str) -> tuple[Path, int | None]:
    """Another process may take a new folder for an abandoned one before it is locked: then it is made again."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=stem, suffix=_SUFFIX, dir=parent))
        try:
            lock = _lock(folder)
        except BlockingIOError:
            continue
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _remove_abandoned(parent: Path, stem: str, clear: Callable[[Path], None]) -> None:
    form = re.compile(re.escape(stem) + _RANDOM + re.escape(_SUFFIX))
    with contextlib.suppress(OSError):
        for name in filter(form.fullmatch, os.listdir(parent)):
            with contextlib.suppress(OSError):  # it is held, or another user's
                lock = _lock(parent / name)
                if lock is not None:
                    clear(parent / name)
                    shutil.rmtree(parent / name, ignore_errors=True)
                    os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder; None where folders cannot be held.

    Raises BlockingIOError where another descriptor holds it, FileNotFoundError where it is gone.
    """
    if sys.platform == "win32":
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BlockingIOError from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    except OSError:
        os.close(lock)
        return None
    return lock
