"""One form for what exporters write in many: operator set, constants, names, types.

Works on the protobuf where ONNX's own tools do (version conversion, shape inference), on the graph elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..errors import EngineError, ModelError
from ..graph import edit
from ..graph.model import Model, extract
from ..graph.ops import ONNX_DOMAINS, is_op
from ..graph.shapes import infer_shapes
from ..runtime import Session
from .base import Context, Outcome, Skip

LARGEST_FOLDED = 2**22
"""Elements: folding a ConstantOfShape or Expand into something larger would bloat the file."""

OLDEST_OPSET = 7

_NEVER_FOLDED = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Constant",
}  # fmt: skip


def convert_opset(proto: ModelProto, lowest: int, origin: str) -> ModelProto:
    """The model at operator set `lowest` or, where it is there already, as it is. Raises ModelError."""
    opset = next((o.version for o in proto.opset_import if o.domain in ONNX_DOMAINS), None)
    if opset is None:
        raise ModelError(
            f"{origin}: imports no ai.onnx operator set, so there is nothing that can be quantized"
        )
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"{origin}: operator set {opset} is not supported; expected {OLDEST_OPSET} to {newest}"
        )
    if opset >= lowest:
        return proto
    try:
        converted = onnx.version_converter.convert_version(_with_initializer_inputs(proto), lowest)
    except Exception as error:  # the converter raises RuntimeError and its own types
        raise ModelError(
            f"{origin}: operator set {opset} cannot be converted to {lowest}, which the target needs:"
            f" {' '.join(str(error).split())[:300]}; export the model again at opset {lowest} or later"
        ) from None
    inputs = {i.name for i in proto.graph.initializer}
    kept = [i for i in converted.graph.input if i.name not in inputs]
    del converted.graph.input[:]
    converted.graph.input.extend(kept)
    converted.ir_version = max(converted.ir_version, 7)
    return converted


def _with_initializer_inputs(proto: ModelProto) -> ModelProto:
    """IR version 3, which the converter assumes, lists initializers among the inputs."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    listed = {i.name for i in copy.graph.input}
    for tensor in copy.graph.initializer:
        if tensor.name not in listed:
            copy.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return copy


@dataclass(frozen=True)
class Normalize:
    """Constants become initializers, constant expressions their values, Identity and Dropout go, nodes get names."""

    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        counts = {
            "Constant nodes made initializers": _lift_constants(model),
            "constant expressions folded": 0,
            "Identity and Dropout removed": _remove_no_ops(model),
        }
        _infer(model)
        while folded := _fold_constants(model) + _fold_shapes(model):
            counts["constant expressions folded"] += folded
            _infer(model)
        counts["Gemm attributes folded"] = sum(
            _plain_gemm(model, n) for n in model.graph.nodes if is_op(n, "Gemm")
        )
        counts["dangling nodes removed"] = edit.drop_dangling(model)
        _drop_unused_domains(model)
        edit.name_nodes(model.graph.nodes)
        skips = _observe_types(model, context)
        notes = tuple(f"{label}: {count}" for label, count in counts.items() if count)
        return Outcome(sum(counts.values()), skips, notes)


def _lift_constants(model: Model) -> int:
    lifted = []
    for node in model.graph.nodes:
        if not is_op(node, "Constant") or model.is_output(node.outputs[0]):
            continue
        values = _constant_value(node)
        if values is None:
            continue
        target = node.outputs[0]
        node.outputs.clear()
        constant = gs.Constant(target.name, values)
        for consumer in model.consumers(target):
            edit.replace_input(consumer, target, constant)
        lifted.append(node)
    edit.remove(model, lifted)
    return len(lifted)


def _constant_value(node: gs.Node) -> np.ndarray | None:
    ((attribute, value),) = node.attrs.items() or ((None, None),)
    if attribute == "value" and isinstance(value, gs.Constant):
        return np.asarray(value.values)
    if attribute in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    return None  # strings and sparse tensors take no part in quantization


def _remove_no_ops(model: Model) -> int:
    removed = []
    for node in model.graph.nodes:
        identity = is_op(node, "Identity")
        # A Dropout whose mask is read, or that trains, is more than an identity.
        dropout = (
            is_op(node, "Dropout")
            and all(not t.outputs and not model.is_output(t) for t in node.outputs[1:])
            and (len(node.inputs) < 3 or _is_false(node.inputs[2]))
        )
        if (identity or dropout) and edit.bypass(model, node):
            removed.append(node)
    edit.remove(model, removed)
    return len(removed)


def _is_false(tensor: gs.Tensor) -> bool:
    return not tensor.name or (isinstance(tensor, gs.Constant) and not np.any(tensor.values))


def _infer(model: Model) -> None:
    """Write what shape inference finds into the graph's tensors."""
    proto = infer_shapes(model.to_proto())
    inferred = {t.name: t for t in gs.import_onnx(proto).tensors().values() if isinstance(t, gs.Variable)}
    for name, tensor in model.graph.tensors().items():
        if isinstance(tensor, gs.Variable) and name in inferred:
            tensor.dtype = tensor.dtype if tensor.dtype is not None else inferred[name].dtype
            tensor.shape = inferred[name].shape if inferred[name].shape is not None else tensor.shape


def _fold_constants(model: Model) -> int:
    """Evaluate nodes that depend on constants alone, all of them in one run of ONNX Runtime."""
    known = {t.name for t in model.initializers()}
    chosen: list[gs.Node] = []
    for node in model.graph.nodes:
        if _foldable(node, known) and not any(model.is_output(t) for t in node.outputs):
            chosen.append(node)
            known.update(t.name for t in node.outputs)
    if not chosen:
        return 0
    wanted = [t for node in chosen for t in node.outputs if t.name]
    try:
        part = extract(model.to_proto(), [t.name for t in wanted])
        del part.graph.input[:]
        values = Session(part).run({})
    except EngineError:
        return 0  # ONNX Runtime lacks a kernel: the nodes stay, which is no loss of function
    folded = []
    for node in chosen:
        results = [values[t.name] for t in node.outputs if t.name]
        if all(isinstance(r, np.ndarray) and r.size <= LARGEST_FOLDED for r in results):
            _replace_outputs(model, node, results)
            folded.append(node)
    edit.remove(model, folded)
    return len(folded)


def _foldable(node: gs.Node, known: set[str]) -> bool:
    return (
        node.domain in ONNX_DOMAINS
        and node.op not in _NEVER_FOLDED
        and bool(node.inputs)
        and all(not t.name or t.name in known for t in node.inputs)
        and not any(isinstance(v, gs.Graph) for v in node.attrs.values())
    )


def _replace_outputs(model: Model, node: gs.Node, values: list[np.ndarray]) -> None:
    targets = [t for t in node.outputs if t.name]
    node.outputs.clear()
    for target, value in zip(targets, values, strict=True):
        constant = gs.Constant(target.name, value)
        for consumer in model.consumers(target):
            edit.replace_input(consumer, target, constant)


def _fold_shapes(model: Model) -> int:
    """Shape of a tensor with fixed dimensions, and elements of Shape that are fixed where others are not."""
    folded = []
    for node in model.graph.nodes:
        if not is_op(node, "Shape", "Gather", "Slice") or model.is_output(node.outputs[0]):
            continue
        dims = _shape_elements(node)
        if dims is not None and all(isinstance(d, int) for d in dims):
            value = np.asarray(dims, np.int64)
            scalar = is_op(node, "Gather") and np.ndim(node.inputs[1].values) == 0
            _replace_outputs(model, node, [value.reshape(()) if scalar else value])
            folded.append(node)
    edit.remove(model, folded)
    return len(folded)


def _shape_elements(node: gs.Node) -> list[int | str | None] | None:
    """Dimensions that the node computes, where it is Shape, or Gather or Slice of one with constant indices."""
    if is_op(node, "Shape"):
        dims = node.inputs[0].shape
        return None if dims is None else list(dims)[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    if not node.inputs[0].inputs or not is_op(node.inputs[0].inputs[0], "Shape"):
        return None
    dims = _shape_elements(node.inputs[0].inputs[0])
    if dims is None or not all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name):
        return None
    if is_op(node, "Gather"):
        try:
            return [dims[int(i)] for i in np.ravel(node.inputs[1].values)]
        except IndexError:
            return None
    if len(node.inputs) > 3 and np.any(node.inputs[3].values != 0):
        return None
    start, stop = (int(np.ravel(node.inputs[i].values)[0]) for i in (1, 2))
    step = int(np.ravel(node.inputs[4].values)[0]) if len(node.inputs) > 4 else 1
    return dims[start:stop:step] if step > 0 else None


def _plain_gemm(model: Model, node: gs.Node) -> bool:
    """alpha and beta into the constants, the bias as one value a channel; whether anything changed."""
    changed = False
    weight = node.inputs[1]
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if alpha != 1.0 and isinstance(weight, gs.Constant):
        scaled = np.asarray(np.float64(weight.values) * alpha, weight.dtype)
        node.inputs[1] = edit.constant(model, f"{weight.name}_alpha", scaled)
        node.attrs["alpha"] = 1.0
        changed = True
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(bias, gs.Constant) and isinstance(weight, gs.Constant):
        channels = weight.shape[0 if node.attrs.get("transB", 0) else 1]
        values = np.asarray(np.float64(bias.values) * beta, bias.dtype)
        if values.size == 1 or values.shape == (1, channels):
            values = np.broadcast_to(values.reshape(-1), (channels,))
        if beta != 1.0 or values.shape != tuple(bias.shape):
            node.inputs[2] = edit.constant(model, f"{bias.name}_beta", values)
            node.attrs["beta"] = 1.0
            changed = True
    return changed


def _drop_unused_domains(model: Model) -> None:
    used = {node.domain or "" for graph in _graphs(model.graph) for node in graph.nodes} | {""}
    used |= {function.domain for function in model.graph.functions}
    imports = model.graph.import_domains
    model.graph.import_domains = [o for o in imports if o.domain in used or o.domain in ONNX_DOMAINS]


def _graphs(graph: gs.Graph) -> list[gs.Graph]:
    return [graph, *graph.subgraphs(recursive=True)]


def _observe_types(model: Model, context: Context) -> tuple[Skip, ...]:
    """Types that shape inference could not tell (operators of other domains, say), as ONNX Runtime sees them."""
    unknown = [
        t for t in model.graph.tensors().values() if isinstance(t, gs.Variable) and t.dtype is None and t.name
    ]
    if not unknown:
        return ()
    names = [t.name for t in unknown]
    try:
        types = Session(extract(model.to_proto(), names)).output_types()
    except EngineError as error:
        return tuple(Skip(name, f"type unknown: {error}") for name in names)
    for tensor in unknown:
        if types[tensor.name] == "tensor(float)":
            tensor.dtype = np.dtype(np.float32)
    return ()
