"""Reading models from disk, and writing them so that a reader never sees half a file."""

from __future__ import annotations

import contextlib
import functools
import heapq
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import google.protobuf.message
import onnx
from onnx import ModelProto

from ..errors import AlreadyQuantizedError, ModelError, OutputError
from . import external_data, large
from .sanitize import refuse_unsound
from .scratch import scratch_folder
from .serialized import captured, nodes_of

logger = logging.getLogger("onnxq")

LARGEST_PROTOBUF = 2**31 - 2**20
"""Bytes that still fit one protobuf file; larger models keep their tensors in a second file beside it."""

_NOTE = ".data-files"
"""File in a run's hidden folder: names of the data files that the new model refers to, and the one it replaces."""

_OTHER_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), "torch.onnx.export"),
    **dict.fromkeys((".h5", ".keras", ".tflite"), "tf2onnx"),
    ".pdmodel": "paddle2onnx",
    ".mlmodel": "coremltools' converter",
}
"""Suffixes of models of frameworks -> what makes ONNX of them."""

_INTEGER_OPS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
    "QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm", "QLinearMul", "DynamicQuantizeMatMul",
}  # fmt: skip


def read(path: str | os.PathLike[str], *, quantized: bool = False) -> ModelProto:
    """The model at `path`, external data included, past `check`. Raises ModelError."""
    path = Path(path)
    if not os.path.exists(path):  # unlike Path.exists, calm about names that are too long
        raise ModelError(f"{path}: no such file")
    if not path.is_file():  # a pipe would be waited for, a device never ends
        kind = "a folder" if path.is_dir() else "something that is no regular file"
        raise ModelError(f"{path}: expected an .onnx file, got {kind}")
    if (tool := _OTHER_FORMATS.get(path.suffix.lower())) is not None:
        raise ModelError(f"{path}: expected an .onnx file; make one with {tool}")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except google.protobuf.message.DecodeError:
        raise ModelError(f"{path}: not an ONNX model, or a truncated one (protobuf cannot be parsed)") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"{path}: not an ONNX model, or a truncated one (no graph or operator sets in it)")
    try:
        external_data.load(proto, path.parent)
    except (ModelError, OSError) as error:
        raise ModelError(
            f"{path}: external data cannot be loaded: {first_line(error)}; put the data file beside the model"
        ) from None
    proto = in_order(proto)
    check(proto, str(path), quantized=quantized)
    return proto


def check(proto: ModelProto, origin: str, *, quantized: bool = False) -> None:
    """Raise ModelError where the ONNX checker rejects the model, or where it is quantized but must not be."""
    try:
        onnx.checker.check_model(large.listed_as_inputs(proto))
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:  # the latter for damaged names
        raise ModelError(f"{origin}: not a valid ONNX model: {first_line(error)}") from None
    refuse_unsound(proto, origin)
    for node in () if quantized else nodes_of(proto.graph):
        if node.op_type in _INTEGER_OPS:
            raise AlreadyQuantizedError(
                f"{origin}: already quantized: node {node.name or node.output[0]!r} is {node.op_type};"
                " start from the float model"
            )


def first_line(error: BaseException) -> str:
    """The first line with text of an error's message; protobuf and checker messages go on for pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write a file to, in a hidden folder beside `path`; moved to `path` if the block succeeds.

    An existing file is replaced by one atomic rename, and stays as it is if the block raises. What killed runs left
    beside it goes first, what only the replaced model referred to goes last.
    Raises OutputError, before the block runs, where `path` cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise OutputError(f"{path}: expected a file to write the model to, got a folder")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise OutputError(f"{path}: not writable")
    with contextlib.ExitStack() as stack:
        try:
            clear = functools.partial(_remove_unnamed_data, path)
            folder = stack.enter_context(scratch_folder(path.parent, f".{path.name}.", clear))
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {path.parent}: {error.strerror}") from None
        yield folder / path.name
        try:
            _move(folder, path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
        logger.info("%s: written, %d bytes", path, path.stat().st_size)


def _move(folder: Path, path: Path) -> None:
    """Tensors beside a model come first, under names that no other content has: the old model keeps its own, and is
    whole until the new one takes its place. Whose data may go then is noted before, should the run be killed."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
    data = {file.name for file in files[:-1]} | _data_of(path)
    if data:
        (folder / _NOTE).write_bytes(b"\0".join(map(os.fsencode, sorted(data))))
    for file in files:
        os.replace(file, path.parent / file.name)


def _remove_unnamed_data(path: Path, folder: Path) -> None:
    """Remove the data files of the models that a run brought to `path` and replaced there, but for those of the model
    that is there now. `folder` is the run's own, which is over, or was killed."""
    with contextlib.suppress(OSError):
        noted = set(map(os.fsdecode, (folder / _NOTE).read_bytes().split(b"\0")))
        for name in (noted & external_data.files_of(path)) - _data_of(path):
            (path.parent / name).unlink()


def _data_of(path: Path) -> set[str]:
    """Data files of ours that the model at `path` refers to. Raises OSError."""
    files = external_data.files_of(path)
    if not files or not path.exists():
        return set()
    try:
        return files & external_data.locations(onnx.load(path, format="protobuf", load_external_data=False))
    except google.protobuf.message.DecodeError:  # it is about to be replaced, whatever it is
        return set()


def write_text(text: str, path: Path) -> None:
    """Write a text file. Raises OutputError."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written: {error.strerror}") from None


def write(proto: ModelProto, path: Path) -> None:
    """Serialize to `path`, with tensors in `NAME.HASH.data` beside it where one protobuf cannot hold them, or where the
    model it was made from kept its own so (`graph.large`). HASH begins the SHA-256 of that file.

    Raises OutputError.
    """
    try:
        if large.nbytes(proto) >= LARGEST_PROTOBUF or large.references(proto):
            proto = external_data.moved_out(proto, path)
        data = proto.SerializeToString(deterministic=True)
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written: {error.strerror or error}") from None


def in_order(proto: ModelProto) -> ModelProto:
    """The model with the main graph's nodes sorted, those that may stand anywhere as near their place as can be.

    ONNX demands an order in which nodes can be computed, ONNX Runtime does not, and some exporters and converters leave
    it out (onnxruntime.transformers.float16 puts its Casts at the end). The given one, unchanged, where they are in
    order, and where none exists: the checker will say so.
    """
    nodes = proto.graph.node
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[n] for n in (*node.input, *captured(node)) if n in maker} for node in nodes]
    if all(max(before, default=-1) < index for index, before in enumerate(needs)):
        return proto
    readers: dict[int, list[int]] = {}
    for index, before in enumerate(needs):
        for source in before:
            readers.setdefault(source, []).append(index)
    missing = [len(before) for before in needs]
    ready = [index for index, count in enumerate(missing) if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes[index] for index in order)
    return copy
