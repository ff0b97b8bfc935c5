"""Everything onnxq raises on purpose, and the exit code that the command line turns it into.

    OnnxqError
    ├── UsageError          2   an option, configuration file or argument that makes no sense
    ├── ModelError          3   the model cannot be read, is invalid, or cannot be quantized
    │   ├── AlreadyQuantizedError   it has QuantizeLinear, DequantizeLinear or integer kernels in it
    │   └── NothingToQuantizeError  no node of it can compute in integers, for reasons that the message counts
    ├── DataError           4   calibration or evaluation data: missing, unreadable, wrong shape, type or value
    ├── VerificationError   5   the quantized model failed a check; nothing was written
    ├── OutputError         6   the result cannot be written to the path that was given
    ├── EngineError         7   ONNX Runtime failed on a model that passed the checker
    └── ClusterError        8   the Dask cluster cannot be reached, was lost, or would compute other bytes

A message is one sentence or two: which file, node or tensor; what was expected and what arrived; what to do.
Options stand in messages as in Python, in backquotes (`block_size`); the command line prints flags (--block-size).
Exit code 7 also means that memory ran out; 70 any other exception, which is a bug in onnxq; 128 + n that signal n ended
the run: 130 for Ctrl-C, 143 for SIGTERM.
"""

INTERNAL_ERROR = 70
"""Exit code of the command line for unexpected exceptions (EX_SOFTWARE of sysexits.h)."""


class OnnxqError(Exception):
    """Base of all errors of this package; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(OnnxqError):
    """An option, configuration file or argument that makes no sense."""

    exit_code = 2


class ModelError(OnnxqError):
    """The input model cannot be read, is not valid ONNX, or cannot be quantized."""

    exit_code = 3


class AlreadyQuantizedError(ModelError):
    """The input model is quantized already."""


class NothingToQuantizeError(ModelError):
    """No node of the model can be quantized: the result would be the float model again, under another name."""


class DataError(OnnxqError):
    """Calibration or evaluation data that is missing, unreadable, or does not fit the model's inputs."""

    exit_code = 4


class VerificationError(OnnxqError):
    """The quantized model failed the checker, did not load, or did not agree with itself; it was not written."""

    exit_code = 5


class OutputError(OnnxqError):
    """The output path is not writable, or is the input itself."""

    exit_code = 6


class EngineError(OnnxqError):
    """ONNX Runtime failed on a model that passed the checker."""

    exit_code = 7


class ClusterError(OnnxqError):
    """The Dask cluster cannot be reached, has lost its workers, or has other versions than this process."""

    exit_code = 8
