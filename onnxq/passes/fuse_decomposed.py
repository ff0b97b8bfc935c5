"""Decomposed operators are fused again (white paper section 2.3.2: a non-linearity is one
step of an accelerator, with a quantizer before and behind it, not in between).

    HardSigmoid           min(max(x + 3, 0), 6) / 6                   older exporters: Add, Clip, Div or Mul
    HardSwish             x HardSigmoid(x)                            Add, Clip, Mul, Div in any order; HardSigmoid, Mul
    GlobalAveragePool     ReduceMean over all axes behind the channels; AveragePool of the size of the image
    LeakyRelu             PRelu with one slope for all channels
    Conv with pads        Pad with zeros, and Conv
    AveragePool with pads Pad with zeros, and AveragePool, which then counts them
    Gelu                  x/2 (1 + erf(x / sqrt(2))), or with tanh: for targets that take it whole only

GlobalAveragePool has integer kernels nearly everywhere, ReduceMean has not. OpenVINO runs HardSwish as the end of a
convolution, but HardSigmoid and Mul by themselves, in float (measured with 2026.4.1). Gelu is an operator from operator
set 20 on; ONNX Runtime fuses the decomposed one itself, so that models for others stay at theirs. RKNN-Toolkit2 2.5.0
fails where it fuses a Pad into AveragePool by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import ModelError
from ..graph import edit
from ..graph.model import Model
from ..graph.opset import convert_opset
from ..graph.patterns import DECOMPOSED, GELU, Composite, find_composites
from ..operators.node import is_op
from ..operators.registry import preserves_grid
from ..targets import Target
from .base import Context, Outcome, Skip

HARD_SWISH_OPSET = 14
HARD_SWISH_IR = 7
GELU_OPSET = 20


@dataclass(frozen=True)
class FuseDecomposedOperators:
    """Write operators that exporters decomposed, or replaced by others, as what they are."""

    title: ClassVar[str] = "Fuse decomposed operators"
    preserves: ClassVar[bool | None] = True

    def apply(self, model: Model, context: Context) -> Outcome:
        gelus, refusal = _fuse_gelu(model, context.target)
        fused = Counter({"Gelu": gelus} if gelus else {})
        fused.update(_fuse(model, context.target.max_opset))
        normalizing = {id(node) for whole in find_composites(model) for node in whole.nodes}
        for node in [node for node in model.graph.nodes if id(node) not in normalizing]:
            if _is_global_pool(node):
                fused["GlobalAveragePool"] += 1
                node.op, node.attrs = "GlobalAveragePool", {}
            elif _is_global_mean(node):
                fused["GlobalAveragePool"] += 1
                _replace(model, [node], *_pooling(model, node))
            elif is_op(node, "PRelu") and isinstance(node.inputs[1], gs.Constant) and node.inputs[1].values.size == 1:
                fused["LeakyRelu"] += 1
                slope = {"alpha": float(node.inputs[1].values.reshape(()))}
                _replace(model, [node], gs.Node("LeakyRelu", node.name, slope, node.inputs[:1], list(node.outputs)))
            elif is_op(node, "Conv") and (pads := _pads_before(model, node)) is not None:
                fused["Conv with pads"] += 1
                node.inputs[0], node.attrs["pads"] = node.inputs[0].inputs[0].inputs[0], pads
            elif is_op(node, "AveragePool") and (pads := _pads_before(model, node)) is not None and _counts(node, pads):
                fused["AveragePool with pads"] += 1
                node.inputs[0] = node.inputs[0].inputs[0].inputs[0]
                node.attrs["pads"], node.attrs["count_include_pad"] = pads, 1
        edit.drop_dangling(model)
        edit.name_nodes(model.graph.nodes)
        return Outcome(fused.total(), refusal, tuple(f"{op}: {count}" for op, count in fused.items()))


def _fuse_gelu(model: Model, target: Target) -> tuple[int, tuple[Skip, ...]]:
    """Write decomposed Gelus as the operator where the target takes no others: how many, or why not."""
    if not target.whole_gelu or not (found := find_composites(model, GELU)):
        return 0, ()
    newest = target.max_opset
    if newest is not None and newest < GELU_OPSET:
        return 0, (Skip("Gelu", f"{target.name} reads operator sets up to {newest}, Gelu needs {GELU_OPSET}"),)
    if model.graph.opset < GELU_OPSET:
        try:
            model.convert(lambda proto: convert_opset(proto, GELU_OPSET, model.origin))
        except ModelError as error:
            return 0, (Skip("Gelu", str(error)),)
        found = find_composites(model, GELU)
    for whole in found:
        form = {"approximate": "tanh"} if any(is_op(node, "Tanh") for node in whole.nodes) else {}
        _replace(model, whole.nodes, gs.Node("Gelu", whole.nodes[0].name, form, [whole.input], [whole.output]))
    return len(found), ()


def _fuse(model: Model, newest: int | None) -> Iterator[str]:
    """Replace composites by the operators that they stand for, and name these. newest: operator set for the target."""
    for whole in find_composites(model, DECOMPOSED):
        attributes = {}
        if whole.operator == "HardSigmoid":
            attributes = {"alpha": 1 / 6, "beta": 0.5}
        elif not _is_hard_swish(whole) or not _raise_opset(model, newest):
            continue
        node = gs.Node(whole.operator, whole.nodes[0].name, attributes, [whole.input], [whole.output])
        _replace(model, whole.nodes, node)
        yield whole.operator


def _is_hard_swish(whole: Composite) -> bool:
    """Whether the gate, where it is a HardSigmoid, has the slope of HardSwish."""
    gates = [node.attrs for node in whole.nodes if is_op(node, "HardSigmoid")]
    return all(abs(gate.get("alpha", 0.2) - 1 / 6) < 1e-5 and gate.get("beta", 0.5) == 0.5 for gate in gates)


def _raise_opset(model: Model, newest: int | None) -> bool:
    """Bring a model to the operator set that has HardSwish; whether it has it now.

    That set changes nothing for the operators of the one before, but for BatchNormalization while training.
    """
    graph = model.graph
    if graph.opset >= HARD_SWISH_OPSET:
        return True
    training = any(is_op(node, "BatchNormalization") and len(node.outputs) > 1 for node in graph.nodes)
    if graph.opset < HARD_SWISH_OPSET - 1 or training or (newest is not None and newest < HARD_SWISH_OPSET):
        return False
    model.set_opset(HARD_SWISH_OPSET, HARD_SWISH_IR)
    return True


def _is_global_mean(node: gs.Node) -> bool:
    """Whether a ReduceMean runs over all axes behind the second one."""
    if not is_op(node, "ReduceMean") or node.inputs[0].shape is None or len(node.inputs[0].shape) < 3:
        return False
    axes = node.inputs[1].values if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant) else None
    axes = node.attrs.get("axes") if axes is None else axes
    ndim = len(node.inputs[0].shape)
    return axes is not None and sorted(int(axis) % ndim for axis in axes) == list(range(2, ndim))


def _is_global_pool(node: gs.Node) -> bool:
    """Whether an AveragePool takes the mean of all positions."""
    if not is_op(node, "AveragePool") or node.inputs[0].shape is None:
        return False
    plain = not any(node.attrs.get("pads", ())) and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    dilated = any(int(step) != 1 for step in node.attrs.get("dilations", ()))
    return plain and not dilated and list(node.attrs["kernel_shape"]) == list(node.inputs[0].shape[2:])


def _pooling(model: Model, node: gs.Node) -> Iterable[gs.Node]:
    """GlobalAveragePool, and a Squeeze where the axes do not stay."""
    x, y = node.inputs[0], node.outputs[0]
    if node.attrs.get("keepdims", 1):
        return (gs.Node("GlobalAveragePool", node.name, {}, [x], [y]),)
    assert x.shape is not None
    spatial = range(2, len(x.shape))
    pooled = gs.Variable(model.unique_name(f"{y.name}_pooled"), y.dtype, [*x.shape[:2], *(1 for _ in spatial)])
    axes = edit.constant(model, f"{y.name}_axes", np.asarray(spatial, np.int64))
    return (
        gs.Node("GlobalAveragePool", node.name, {}, [x], [pooled]),
        gs.Node("Squeeze", f"{node.name}_squeezed", {}, [pooled, axes], [y]),
    )


def _counts(pool: gs.Node, pads: list[int]) -> bool:
    """Whether an AveragePool can have these pads, and none of its own that it leaves out of its means."""
    kernel = [int(k) for k in pool.attrs["kernel_shape"]]
    own = any(pool.attrs.get("pads", ())) and not pool.attrs.get("count_include_pad", 0)
    fits = all(pad < size for pad, size in zip(pads, kernel + kernel, strict=True))  # ONNX Runtime takes no others
    return not own and fits and not pool.attrs.get("ceil_mode", 0)


def _pads_before(model: Model, conv: gs.Node) -> list[int] | None:
    """The pads of a Conv, or a pooling, and of a Pad with zeros in front of it together; None where there is none, or
    not for it."""
    source = conv.inputs[0]
    pad = source.inputs[0] if source.inputs else None
    if pad is None or not is_op(pad, "Pad") or not preserves_grid(pad) or source.shape is None:
        return None
    alone = conv.attrs.get("auto_pad", "NOTSET") == "NOTSET" and model.sole_consumer(source) is conv
    pads = pad.inputs[1]
    zeros = pad.attrs.get("mode", "constant") == "constant"
    if not alone or not zeros or not isinstance(pads, gs.Constant):
        return None
    ndim, added = len(source.shape), [int(p) for p in pads.values]
    spatial = added[2:ndim] + added[ndim + 2 :]
    if len(added) != 2 * ndim or min(added) < 0 or sum(spatial) != sum(added) or len(pad.inputs) > 3:
        return None
    own = conv.attrs.get("pads", [0] * len(spatial))
    return [int(a) + b for a, b in zip(own, spatial, strict=True)]


def _replace(model: Model, old: Iterable[gs.Node], *new: gs.Node) -> None:
    """`new` nodes in the place of `old` ones, whose last, listed first, wrote what the new ones write now."""
    old = list(old)
    place = next(index for index, node in enumerate(model.graph.nodes) if node is old[0])
    for node in old:
        node.inputs.clear()
        node.outputs.clear()
    model.graph.nodes[place : place + 1] = new
    edit.remove(model, old)
