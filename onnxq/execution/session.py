"""The only importer of onnxruntime: run a model, read its optimised graph.

Every session runs single-threaded, but for those that measure time (`latency`), and every feed is one sample;
parallelism comes from running several feeds at once. GEMM kernels sum in another order for other batch sizes and thread
counts: this way a result depends on its sample alone, and statistics are the same bits on any number of threads. It is
also faster, for a sample's activations stay in cache (MobileNetV1 at 224 x 224, 200 images: 0.7 s, against 4.9 s in
batches of 32).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto

from ..data import Feed
from ..errors import EngineError, UsageError
from ..graph import external_data, large, storage
from ..graph.scratch import scratch_folder

Arrays = Mapping[str, np.ndarray]
Source: TypeAlias = ModelProto | str | os.PathLike[str]
LEAN_WEIGHTS = 1 << 27
"""Models of more weights run one sample at a time, one model at a time, and free memory after each operator."""

FOLDED_WEIGHTS = "session.disable_quant_qdq"
"""A session option of ONNX Runtime: 1 leaves QuantizeLinear and DequantizeLinear as they are, so that weights are
dequantized once, when the model is loaded, and everything computes in float."""

EXACT_PRODUCTS = "session.qdq_matmulnbits_accuracy_level"
"""A session option of ONNX Runtime: 1 computes MatMulNBits in float32; 4, the default behind DequantizeLinear, rounds
activations to 8 bits in blocks."""

_ONE_AT_A_TIME = threading.Lock()

T = TypeVar("T")
R = TypeVar("R")

ort.set_default_logger_severity(4)  # errors are raised as exceptions instead


def default_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runtime_version() -> str:
    """Version of ONNX Runtime."""
    return str(ort.__version__)


def saturates() -> bool:
    """Whether products of uint8 and int8 saturate in 16 bits on this machine: x86 without VNNI, where Linux says so."""
    flags = _processor_flags()
    return "sse2" in flags and not any(f.endswith("_vnni") for f in flags)


def instruction_sets() -> list[str]:
    """What ONNX Runtime chooses kernels by, on which the last bits of results depend, where Linux says so."""
    return sorted(f for f in _processor_flags() if f.startswith(("avx", "fma", "amx", "asimd", "sve", "i8mm", "bf16")))


def _processor_flags() -> list[str]:
    """By Linux's names, on x86 and on ARM."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])


CPU = "CPUExecutionProvider"

_PROVIDER: ContextVar[str] = ContextVar("provider", default=CPU)

_PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""What makes a provider compute float32 as such: with 10 bits of mantissa no rewrite would preserve a function."""


def check_provider(name: str) -> None:
    """Raises UsageError where this ONNX Runtime has no such execution provider."""
    known = ort.get_available_providers()
    if name not in known:
        raise UsageError(
            f"`provider` {name!r} is not in the installed ONNX Runtime {runtime_version()}, which has"
            f" {', '.join(known)}; other packages of it have others (onnxruntime-gpu: CUDAExecutionProvider)"
        )


_LIBRARIES: ContextVar[tuple[str, ...]] = ContextVar("libraries", default=())


def check_custom_ops(paths: Iterable[str]) -> None:
    """Raises UsageError where a file is no library of custom operators that this ONNX Runtime loads."""
    for path in paths:
        if not os.path.isfile(path):
            raise UsageError(
                f"`custom_ops` {path}: no such file; expected a shared library of custom operators, as"
                " SessionOptions.register_custom_ops_library takes it"
            )
        _register(ort.SessionOptions(), path)


def _register(options: Any, path: str) -> None:
    try:
        options.register_custom_ops_library(os.path.abspath(path))
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise UsageError(
            f"`custom_ops` {path}: ONNX Runtime {runtime_version()} cannot load it as a library of custom operators"
            f" ({_message(error)}); it must be built for this system and export RegisterCustomOps"
        ) from None


def custom_ops() -> tuple[str, ...]:
    """Absolute paths of the libraries that `with_custom_ops` says."""
    return _LIBRARIES.get()


@contextmanager
def with_custom_ops(paths: Iterable[str]) -> Iterator[None]:
    """Sessions that are made inside know the operators of these libraries, too.

    Raises UsageError as `check_custom_ops`.
    """
    paths = tuple(paths)
    check_custom_ops(paths)
    token = _LIBRARIES.set(tuple(os.path.abspath(path) for path in paths))
    try:
        yield
    finally:
        _LIBRARIES.reset(token)


@contextmanager
def running_on(provider: str, scheduler: str | None = None, custom_ops: Iterable[str] = ()) -> Iterator[None]:
    """Sessions that are made inside run on an execution provider, and on the CPU what that has no kernels for.

    custom_ops: libraries whose operators they know (`with_custom_ops`).
    Raises UsageError where something is missing, or where a `scheduler`'s processes, which use the CPU, would do the
    work.
    """
    check_provider(provider)
    if scheduler is not None and provider != CPU:
        raise UsageError(f"`provider` {provider} does not go with `scheduler`, whose processes run on the CPU")
    token = _PROVIDER.set(provider)
    try:
        with with_custom_ops(custom_ops):
            yield
    finally:
        _PROVIDER.reset(token)


def session_provider() -> str:
    """The execution provider that `running_on` says."""
    return _PROVIDER.get()


class Session:
    """A model loaded from a path or from memory. `optimize`: whether ONNX Runtime rewrites it first; `exact_products`:
    whether it then multiplies weights of few bits with activations as they are (`EXACT_PRODUCTS`). `provider`: what
    runs it; None: the CPU, or what `running_on` says. `threads`, `lean`, `profile`: to measure time: with more than one
    thread, without saving memory, and with the time of each node, in files that begin so (`end_profile`).

    Raises EngineError where the model does not load, or fails when it runs.
    """

    def __init__(
        self,
        model: Source,
        *,
        optimize: bool = False,
        exact_products: bool = False,
        folded_weights: bool = False,
        optimized_path: Path | None = None,
        provider: str | None = None,
        threads: int = 1,
        lean: bool = True,
        profile: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        self._provider = _PROVIDER.get() if provider is None else provider
        self._lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._weights: list[tuple[np.ndarray, Any]] = []
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        if threads > 1:  # threads that wait busily would take the processors from another session
            options.add_session_config_entry("session.force_spinning_stop", "1")
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        if exact_products:
            options.add_session_config_entry(EXACT_PRODUCTS, "1")
        if folded_weights:
            options.add_session_config_entry(FOLDED_WEIGHTS, "1")
        for path in custom_ops():
            _register(options, path)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        try:
            if isinstance(model, ModelProto) and large.references(model):
                self._session = self._load_large(model, options, optimize)
            else:
                source = model.SerializeToString() if isinstance(model, ModelProto) else os.fspath(model)
                if lean:
                    self._make_lean(options, model if isinstance(model, ModelProto) else _without_data(Path(model)))
                self._session = ort.InferenceSession(source, options, providers=self._providers())
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise EngineError(f"ONNX Runtime cannot load the model: {_message(error)}") from None
        if self._provider not in self._session.get_providers():  # ONNX Runtime goes on without it
            raise EngineError(
                f"ONNX Runtime has {self._provider}, and cannot start it on this machine: are its driver and libraries"
                f" installed? `provider` {CPU} does without"
            )
        self.outputs = [output.name for output in self._session.get_outputs()]

    def _load_large(self, model: ModelProto, options: Any, optimize: bool) -> Any:
        """A session that shares the weights mapped from their files, without copies.

        ONNX Runtime requires a file of external data even where it is given the weights: an empty, sparse one is
        enough. Its optimiser, however, computes with what the file holds: it gets a copy of the weights.
        """
        self._make_lean(options, model)
        with scratch_folder() as folder:
            path = folder / "model.onnx"
            if optimize:
                storage.write(model, path)
            else:
                path.write_bytes(self._shared(model, options, folder / "sparse.bin").SerializeToString())
            return ort.InferenceSession(str(path), options, providers=self._providers())

    def _providers(self) -> list[tuple[str, Mapping[str, str]]]:
        """In the order in which ONNX Runtime asks them for kernels."""
        return [(name, _PROVIDER_OPTIONS.get(name, {})) for name in dict.fromkeys((self._provider, CPU))]

    def _shared(self, model: ModelProto, options: Any, sparse: Path) -> ModelProto:
        """A copy whose references lead to a sparse file; the session is given the weights that they stand for."""
        model = ModelProto.FromString(model.SerializeToString())
        for tensor in large.references(model):
            values = large.array(tensor)
            shared = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(values, tensor.data_type)
            options.add_initializer(tensor.name, shared)
            self._weights.append((values, shared))
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value=sparse.name)
        with open(sparse, "wb") as file:
            file.truncate(max(values.nbytes for values, _ in self._weights))
        return model

    def _make_lean(self, options: Any, model: ModelProto) -> None:
        """Save memory: no weights of external files are packed into copies. A large model computes each tensor just
        before it is read, such as a layer's float weight from its integers, frees it at once, and runs while no other
        model does.
        """
        if external_data.locations(model):
            options.add_session_config_entry("session.disable_prepacking", "1")
        if sum(math.prod(tensor.dims) for tensor in model.graph.initializer) > LEAN_WEIGHTS:
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            self._lock = _ONE_AT_A_TIME

    def end_profile(self) -> list[tuple[str, str, float]]:
        """(node, operator, seconds) of each time that a node ran, in the graph that ONNX Runtime made of the model.

        Raises EngineError where ONNX Runtime could not write it down, on a full disk, say.
        """
        try:
            events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError(f"ONNX Runtime's profile cannot be read: {error}") from None
        suffix = "_kernel_time"
        return [
            (event["name"].removesuffix(suffix), event["args"]["op_name"], event["dur"] / 1e6)
            for event in events
            if event["cat"] == "Node" and event["name"].endswith(suffix)
        ]

    def output_types(self) -> dict[str, str]:
        """Output name -> ONNX Runtime's name of its type, such as `tensor(float)`."""
        return {output.name: output.type for output in self._session.get_outputs()}

    def run(self, feed: Arrays) -> dict[str, Any]:
        """All outputs for one feed: arrays, or lists of them for sequences."""
        try:
            with self._lock:
                found = self._session.run(None, dict(feed))
                for mapped, _ in self._weights:  # else this model and the next one count as memory together
                    large.forget(mapped)
                return dict(zip(self.outputs, found, strict=True))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed to run the model: {_message(error)}") from None


def _without_data(path: Path) -> ModelProto:
    """The model in a file, without what it keeps beside it."""
    return onnx.load(path, format="protobuf", load_external_data=False)


def _message(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def parallel_map(function: Callable[[T], R], items: Iterable[T], threads: int, in_flight: int = 0) -> Iterator[R]:
    """`function(item)` for each item, in threads where this one's settings hold, results in order.

    At most `in_flight` items (2 * threads) are held at once.
    """
    in_flight = in_flight or 2 * threads
    with ThreadPoolExecutor(min(threads, in_flight)) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(copy_context().run, function, item))
                if len(pending) >= in_flight:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def without_padding(value: Any, feed: Feed) -> Any:
    """An output for `feed`, cut to the real rows where it has the batch that was filled up."""
    return real_rows(value, feed.batch, feed.rows)


def real_rows(value: Any, batch: int, rows: int | None) -> Any:
    """The first `rows` rows of what has the length `batch` along axis 0; anything else, and where rows is None, all."""
    if rows is None or rows >= batch or not isinstance(value, np.ndarray) or value.shape[:1] != (batch,):
        return value
    return value[:rows]


def optimized_graph(model: Source) -> onnx.GraphProto:
    """The graph that ONNX Runtime runs once it has rewritten the model, without its weights."""
    with scratch_folder() as folder:
        path = folder / "optimized.onnx"
        Session(model, optimize=True, optimized_path=path, provider=CPU)
        graph = onnx.load(path, load_external_data=False).graph
    del graph.initializer[:]
    return graph
