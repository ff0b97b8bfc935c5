"""An adapter in a process of its own, with a time limit: a vendor's tool may print, crash, or never end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import EngineError, UsageError
from ..graph.scratch import scratch_folder
from ..targets import Target
from .toolchain import PYTHON_VARIABLE, TOOLCHAINS, Toolchain, ToolchainOptions, toolchain_of

_STARTS_WITHIN = 120.0
"""Seconds in which an interpreter must have imported a vendor's package."""


def find_toolchain(target: Target, options: ToolchainOptions) -> Toolchain:
    """The tool-chain of a target, once its package is seen to be there: asked before any long work. UsageError."""
    toolchain = toolchain_of(target)
    if toolchain is None:
        known = ", ".join(TOOLCHAINS)
        raise UsageError(
            f"target {target.name} has no tool-chain that could be run here; there are adapters for {known}. For"
            " `ort` the verification of `onnxq quantize` runs the model already"
        )
    with scratch_folder() as folder:
        answer, said = run_adapter(toolchain, {}, folder, options.interpreter, _STARTS_WITHIN)
    if "missing" in answer or not answer:
        why = answer.get("missing") or said
        raise UsageError(
            f"{toolchain.title} is not installed for {options.interpreter} ({why}): pip install {toolchain.install},"
            " into an environment of its own if it disagrees with onnxq's, whose interpreter `toolchain_python` or"
            f" {PYTHON_VARIABLE} names"
        )
    return toolchain


def run_adapter(
    toolchain: Toolchain, request: dict[str, Any], folder: Path, interpreter: str, limit: float
) -> tuple[dict[str, Any], str]:
    """(the answer, as far as the adapter came; what became of it where it did not end by itself).

    folder: for the request, the answer and what is printed. limit: in seconds. Raises UsageError where the interpreter
    cannot be started, EngineError where the limit is reached.
    """
    question, reply, log = (folder / name for name in ("request.json", "answer.json", "log.txt"))
    question.write_text(json.dumps({**request, "log": str(log)} if request else {}), encoding="utf-8")
    environment = dict(os.environ)
    if Path(interpreter) != Path(sys.executable):  # what is meant for this interpreter may break the other one
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
    command = [interpreter, str(toolchain.script), str(question), str(reply)]
    with open(log, "wb") as printed:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, env=environment, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"`toolchain_python` {interpreter}: cannot be started: {error.strerror}") from None
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"{toolchain.title} did not end within {limit:g} s; give `toolchain_limit` more, or"
                " `toolchain_samples` fewer"
            ) from None
        finally:
            _end(process)
    answer: dict[str, Any] = {}
    if reply.exists():
        answer = json.loads(reply.read_text(encoding="utf-8"))
    return answer, "" if process.returncode == 0 else f"{_status(process.returncode)}: {_last_words(log)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it has started, if they still run."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _status(code: int) -> str:
    return f"it ended with status {code}" if code > 0 else f"it was ended by {signal.Signals(-code).name}"


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return " ".join(" ".join(lines[-4:]).split())[-300:] or "it printed nothing"
