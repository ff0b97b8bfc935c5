"""One form for what exporters write in many: operator set, constants, names, types.

Works on the protobuf where ONNX's own tools do (version conversion, shape inference), on the graph elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..errors import EngineError
from ..execution.partial import extract
from ..execution.session import CPU, Session
from ..graph import edit
from ..graph.model import Model
from ..graph.shapes import inferred_types, order_of_axes, shape_elements
from ..graph.ties import find_ties
from ..operators.node import ONNX_DOMAINS, is_op
from .base import Context, Outcome, Skip

LARGEST_FOLDED = 2**22
"""Elements: folding a ConstantOfShape or Expand into something larger, and than its inputs, would bloat the file."""

SMALL_GROWTH = 2**15
"""Elements: what folding may add to any file for one tensor; and a share of 1/64 of its constants."""

_NEVER_FOLDED = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout",
    "Constant",
}  # fmt: skip


@dataclass(frozen=True)
class Normalize:
    """Constants become initializers, constant expressions their values, If with a constant condition its branch,
    Identity, Dropout and Reshapes to the same shape go, nodes get names."""

    title: ClassVar[str] = "Normalize"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        counts = {
            "Constant nodes made initializers": _lift_constants(model),
            "constant expressions folded": 0,
            "Identity and Dropout removed": _remove_no_ops(model),
        }
        _infer(model)
        while folded := _fold_constants(model) + _fold_shapes(model) + _take_branches(model):
            counts["constant expressions folded"] += folded
            _infer(model)
        counts["Reshape and Expand to the same shape removed"] = _remove_same_shapes(model)
        counts["Gemm attributes folded"] = sum(_plain_gemm(model, n) for n in model.graph.nodes if is_op(n, "Gemm"))
        counts["dangling nodes removed"] = edit.drop_dangling(model)
        _drop_unused_domains(model)
        edit.name_nodes(model.graph.nodes)
        skips = _observe_types(model, context)
        model.tied = find_ties(model)
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
    if attribute == "value" and isinstance(value, gs.Constant) and _is_plain(value.dtype):
        return np.asarray(value.values)
    if attribute in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    return None  # sparse, or a type that numpy lacks


def _is_plain(dtype: object) -> bool:
    """Whether numpy has the type: others (strings, bfloat16, int4) graph surgeon writes back wrongly, if at all."""
    return isinstance(dtype, np.dtype) and dtype.kind in "biufc"


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


def _remove_same_shapes(model: Model) -> int:
    removed = []
    for node in model.graph.nodes:
        if is_op(node, "Reshape", "Expand", "Flatten"):
            order = order_of_axes(node.inputs[0].shape, node.outputs[0].shape)
            if order is not None and list(order) == sorted(order) and edit.bypass(model, node):
                removed.append(node)
    edit.remove(model, removed)
    return len(removed)


def _is_false(tensor: gs.Tensor) -> bool:
    return not tensor.name or (isinstance(tensor, gs.Constant) and not np.any(tensor.values))


def _infer(model: Model) -> None:
    """Write what shape inference finds into the graph's tensors, but over nothing that inputs and outputs declare."""
    proto = inferred_types(model.outline())
    inferred = {t.name: t for t in gs.import_onnx(proto).tensors().values() if isinstance(t, gs.Variable)}
    declared = {t.name for t in (*model.graph.inputs, *model.graph.outputs) if t.shape is not None}
    for name, tensor in model.graph.tensors().items():
        if isinstance(tensor, gs.Variable) and name in inferred:
            if tensor.dtype is None:
                tensor.dtype, tensor.type = inferred[name].dtype, inferred[name].type
            if name not in declared and inferred[name].shape is not None:
                tensor.shape = inferred[name].shape


def _fold_constants(model: Model) -> int:
    """Evaluate nodes that depend on constants alone, all of them in one run of ONNX Runtime."""
    known = {t.name for t in model.initializers()}
    chosen: list[gs.Node] = []
    for node in model.graph.nodes:
        if _foldable(node, known) and not any(model.is_output(t) for t in node.outputs):
            chosen.append(node)
            known.update(t.name for t in node.outputs)
    chosen = _without_growth(model, chosen)
    if not chosen:
        return 0
    values = _evaluate(model.to_proto(), chosen)
    folded = []
    for node in chosen:
        results = [values[t.name] for t in node.outputs if t.name in values]
        if results and all(isinstance(r, np.ndarray) and _is_plain(r.dtype) for r in results):
            _replace_outputs(model, node, results)
            folded.append(node)
    edit.remove(model, folded)
    return len(folded)


def _without_growth(model: Model, chosen: list[gs.Node]) -> list[gs.Node]:
    """Those whose results, where other nodes read them, are not far larger than the constants that they come from.

    A sparse matrix that is scattered into zeros, or a table computed from a range, stays as the exporter wrote it: the
    runtime folds it when it loads the model. Integers that are cast to weights, up to 8 times their size, are folded.
    """
    small = max(SMALL_GROWTH, sum(math.prod(t.shape) for t in model.initializers()) // 64)
    sources: dict[str, int] = {}
    for node in chosen:
        size = sum(sources.get(t.name, _size([t])) for t in node.inputs if t.name)
        sources.update({t.name: size for t in node.outputs})
    while True:
        inside = {id(node) for node in chosen}
        grown = {
            id(node)
            for node in chosen
            if _size(node.outputs) > max(small, 8 * sources[node.outputs[0].name])
            and any(id(reader) not in inside for t in node.outputs for reader in model.consumers(t))
        }
        if not grown:
            return chosen
        chosen = [node for node in chosen if id(node) not in grown]


def _evaluate(proto: ModelProto, nodes: list[gs.Node]) -> dict[str, np.ndarray]:
    """Outputs of nodes that need no input. Where ONNX Runtime lacks a kernel they are left out, which is no loss."""
    part = extract(proto, [t.name for node in nodes for t in node.outputs if t.name])
    del part.graph.input[:]
    try:
        return Session(part, provider=CPU).run({})
    except EngineError:
        if len(nodes) == 1:
            return {}
    return {name: value for node in nodes for name, value in _evaluate(proto, [node]).items()}


def _foldable(node: gs.Node, known: set[str]) -> bool:
    return (
        node.domain in ONNX_DOMAINS
        and node.op not in _NEVER_FOLDED
        and bool(node.inputs)
        and all(not t.name or t.name in known for t in node.inputs)
        and not any(isinstance(v, gs.Graph) for v in node.attrs.values())
        and _size(node.outputs) <= max(LARGEST_FOLDED, _size(node.inputs))
    )


def _size(tensors: Iterable[gs.Tensor]) -> int:
    """Number of elements, as far as shapes are known."""
    shapes = [t.shape for t in tensors if t.shape is not None]
    known = [[d for d in shape if isinstance(d, int)] for shape in shapes]
    return sum(math.prod(found) for found, shape in zip(known, shapes, strict=True) if len(found) == len(shape))


def _replace_outputs(model: Model, node: gs.Node, values: list[np.ndarray]) -> None:
    targets = [t for t in node.outputs if t.name]
    node.outputs.clear()
    for target, value in zip(targets, values, strict=True):
        constant = gs.Constant(target.name, value)
        for consumer in model.consumers(target):
            edit.replace_input(consumer, target, constant)


def _fold_shapes(model: Model) -> int:
    """Arithmetic on shapes whose elements are fixed, and Reshape to a shape that keeps dimensions of its input."""
    folded, changed = [], 0
    for node in model.graph.nodes:
        if is_op(node, "Reshape") and _keep_dimensions(model, node):
            changed += 1
        if not is_op(node, "Shape", "Gather", "Slice", "Concat") or model.is_output(node.outputs[0]):
            continue
        dims = shape_elements(node.outputs[0])
        if dims is not None and all(isinstance(d, int) for d in dims):
            value = np.asarray(dims, np.int64)
            index = node.inputs[1] if is_op(node, "Gather") else None
            scalar = isinstance(index, gs.Constant) and np.ndim(index.values) == 0
            _replace_outputs(model, node, [value.reshape(()) if scalar else value])
            folded.append(node)
    edit.remove(model, folded)
    return changed + len(folded)


def _take_branches(model: Model) -> int:
    """If whose condition is constant by now, as behind `squeeze` on a fixed dimension, becomes the branch it takes."""
    ifs = [(n, n.inputs[0]) for n in model.graph.nodes if is_op(n, "If")]
    decided = [(node, condition) for node, condition in ifs if isinstance(condition, gs.Constant)]
    for node, condition in decided:
        branch = node.attrs["then_branch" if np.all(condition.values) else "else_branch"]
        for tensor in {id(t): t for n in branch.nodes for t in n.outputs if t.name}.values():
            tensor.name = model.unique_name(f"{node.name or node.outputs[0].name}_{tensor.name}")
        results = [
            gs.Node("Identity", inputs=[inner], outputs=[outer])
            for inner, outer in zip(branch.outputs, list(node.outputs), strict=True)
        ]
        place = next(index for index, other in enumerate(model.graph.nodes) if other is node)
        for outer in list(node.outputs):
            outer.inputs = [n for n in outer.inputs if n is not node]
        node.inputs.clear()
        model.graph.nodes[place : place + 1] = [*branch.nodes, *results]
    if decided:
        _lift_constants(model)
        _remove_no_ops(model)
    return len(decided)


def _keep_dimensions(model: Model, node: gs.Node) -> bool:
    """`x.reshape(x.shape[0], -1)` as exporters write it, with Shape, Gather and Concat, becomes a shape of [0, -1]."""
    dims, shape = shape_elements(node.inputs[1]), node.inputs[0].shape
    if isinstance(node.inputs[1], gs.Constant) or dims is None or shape is None or node.attrs.get("allowzero", 0):
        return False
    dims = [0 if isinstance(d, str) and i < len(shape) and d == shape[i] else d for i, d in enumerate(dims)]
    if not all(isinstance(d, int) for d in dims):
        return False
    node.inputs[1] = edit.constant(model, f"{node.inputs[1].name}_kept", np.asarray(dims, np.int64))
    return True


def _plain_gemm(model: Model, node: gs.Node) -> bool:
    """alpha and beta into the constants, the bias as one value a channel; whether anything changed."""
    changed = False
    weight = node.inputs[1]
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if alpha != 1.0 and isinstance(weight, gs.Constant):
        scaled = np.asarray(np.asarray(weight.values, np.float64) * alpha, weight.dtype)
        node.inputs[1] = edit.constant(model, f"{weight.name}_alpha", scaled)
        node.attrs["alpha"] = 1.0
        changed = True
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(bias, gs.Constant) and isinstance(weight, gs.Constant):
        channels = weight.shape[0 if node.attrs.get("transB", 0) else 1]
        values = np.asarray(np.asarray(bias.values, np.float64) * beta, bias.dtype)
        if values.size == 1 or values.shape == (1, channels):
            values = np.broadcast_to(values.reshape(-1), (channels,))
        if beta != 1.0 or values.shape != tuple(bias.shape):
            node.inputs[2] = edit.constant(model, f"{bias.name}_beta", values)
            node.attrs["beta"] = 1.0
            changed = True
    return changed


def _drop_unused_domains(model: Model) -> None:
    graphs = (model.graph, *model.graph.subgraphs(recursive=True))
    used = {node.domain for graph in graphs for node in graph.nodes}
    for function in model.header.functions:
        used |= {function.domain, *(o.domain for o in function.opset_import)}
    imports = model.graph.import_domains or ()
    model.graph.import_domains = [o for o in imports if o.domain in used or o.domain in ONNX_DOMAINS]


def _observe_types(model: Model, context: Context) -> tuple[Skip, ...]:
    """Types that shape inference could not find (operators of other domains, say), as ONNX Runtime sees them."""
    unknown = [t for t in model.graph.tensors().values() if isinstance(t, gs.Variable) and t.dtype is None and t.name]
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
