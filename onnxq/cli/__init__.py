"""The command line: parse, call, print; a file for each command. Exit codes are those of `onnxq.errors`."""

from __future__ import annotations

import errno
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from .. import __version__
from ..errors import INTERNAL_ERROR, EngineError, OnnxqError, OutputError
from ..report import printable
from .calibrate import calibrate_command
from .check import check_command
from .compare import compare_command
from .completion import completion_command
from .debug import debug_command
from .evaluate import evaluate_command
from .flags import as_flags, flags_of
from .inspect import inspect_command
from .options import EXIT_CODES
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
            click.echo(f"onnxq: error: {printable(self._in_flags(ctx, str(error)))}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("onnxq: interrupted, nothing was written", err=True)
            ctx.exit(130)
        except _Stopped as stopped:
            click.echo(f"onnxq: ended by {signal.Signals(stopped.number).name}, nothing was written", err=True)
            ctx.exit(128 + stopped.number)
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads the pipe any more: click ends the run
                raise
            click.echo(f"onnxq: error: {printable(str(error.filename or 'output'))}: {error.strerror}", err=True)
            ctx.exit(OutputError.exit_code)
        except MemoryError as error:
            click.echo(f"onnxq: error: {_out_of_memory(error)}", err=True)
            ctx.exit(EngineError.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params["traceback"]:
                traceback.print_exc()
            click.echo(f"onnxq: internal error: {_bug(error)}", err=True)
            ctx.exit(INTERNAL_ERROR)

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
