"""The command line: parse, call, print; a file for each command. Exit codes are those of `onnxq.errors`."""

from __future__ import annotations

import errno
import shlex
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import INTERNAL_ERROR, EngineError, OnnxqError, OutputError
from ..report import printable
from .calibrate import calibrate_command
from .check import check_command
from .command import EXIT_CODES
from .compare import compare_command
from .completion import completion_command
from .debug import debug_command
from .evaluate import evaluate_command
from .flags import as_flags, flags_of
from .inspect import inspect_command
from .progress import emit, logs_json
from .qat import qat_command
from .quantize import quantize_command
from .sensitivity import sensitivity_command
from .targets import targets_command


class _Stopped(BaseException):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise _Stopped, so that temporary files go as they do after Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Group(click.Group):
    """Turns the errors of this package, and signals, into one message and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _stoppable():
                return super().invoke(ctx)
        except OnnxqError as error:
            self._end(ctx, f"error: {printable(self._in_flags(ctx, str(error)))}", error.exit_code)
        except KeyboardInterrupt:
            self._end(ctx, "interrupted, nothing was written", 130)
        except _Stopped as stopped:
            name = signal.Signals(stopped.number).name
            self._end(ctx, f"ended by {name}, nothing was written", 128 + stopped.number)
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads the pipe any more: click ends the run
                raise
            place = printable(str(error.filename or "output"))
            self._end(ctx, f"error: {place}: {error.strerror}", OutputError.exit_code)
        except MemoryError as error:
            self._end(ctx, f"error: {_out_of_memory(error)}", EngineError.exit_code)
        except click.ClickException as error:
            if not logs_json(ctx):
                raise
            self._end(ctx, f"error: {printable(error.format_message())}", error.exit_code)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params["traceback"]:
                traceback.print_exc()
            self._end(ctx, f"internal error: {_bug(error)}", INTERNAL_ERROR)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and args[0].lower().endswith(".onnx"):
            right = shlex.join(["onnxq", "quantize", *args])
            raise click.UsageError(f"{args[0]} is a model, and a command comes first. Write: {right}", ctx)
        return super().resolve_command(ctx, args)

    def _end(self, ctx: click.Context, message: str, exit_code: int) -> NoReturn:
        """Say why, as text or as JSON, and exit."""
        if logs_json(ctx):
            emit("error", text=message.removeprefix("error: "), exit_code=exit_code)
        else:
            click.echo(f"onnxq: {message}", err=True)
        ctx.exit(exit_code)

    def _in_flags(self, ctx: click.Context, message: str) -> str:
        """A message that names options as Python does, with the flags of the command that ran."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        return message if command is None else as_flags(message, flags_of(command))


def _bug(error: Exception) -> str:
    words = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    return f"{words}; please report it, with what `onnxq --traceback` prints (or ONNXQ_TRACEBACK=1)"


def _out_of_memory(error: MemoryError) -> str:
    request = f" ({printable(str(error))})" if str(error) else ""
    return f"out of memory{request}; --threads 1, --batch-size 1, --max-memory and fewer --samples need less"


@click.group(cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxq")
@click.option("--traceback", is_flag=True, envvar="ONNXQ_TRACEBACK", help="Print the stack of internal errors.")
def main(traceback: bool) -> None:
    """Quantize trained ONNX models: float32 in, verified integer QDQ models out.

    Post-training quantization (PTQ): `quantize`, with calibration data (--calib) or without (--data-free); per-channel
    or --per-tensor weights; --rounding by gptq (GPTQ), coordinate-descent or adaround (AdaRound), where samples that
    are held out decide; --cle, --smoothquant (SmoothQuant), --bias-correction; --auto-mixed for mixed precision.
    Quantization-aware training (QAT): `qat`. The words are those of the white paper, arXiv:2106.08295.
    """


COMMANDS = (
    quantize_command,
    qat_command,
    calibrate_command,
    inspect_command,
    evaluate_command,
    compare_command,
    sensitivity_command,
    debug_command,
    targets_command,
    check_command,
    completion_command,
)

for command in COMMANDS:
    command.epilog = EXIT_CODES
    main.add_command(command)
