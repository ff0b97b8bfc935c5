"""The float model inside a QDQ model, on which a target's rule for a node is asked as placement asks it.

    x [-> Sum] [-> Clip] -> QuantizeLinear -> DequantizeLinear -> readers       x -> readers
    integers -> DequantizeLinear [-> Sum] -> readers                            constant -> readers

A quantized constant stands for its shape: zeros take no memory, and no rule asks for the values of what has a grid.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..graph import edit
from ..graph.model import Model
from ..graph.shapes import infer_shapes
from ..operators.node import ONNX_DOMAINS
from .tensor_grid import is_dequantize, is_qdq, is_quantize


def float_view(proto: ModelProto) -> tuple[Model, list[gs.Node]]:
    """The float model, and its nodes as they stand in `proto`, one for each that is there: what quantized is without
    inputs and outputs."""
    model = Model.from_proto(infer_shapes(proto), read_only=True)
    nodes = list(model.graph.nodes)
    edit.name_nodes(nodes)
    for node in nodes:
        if is_dequantize(node):
            _remove_dequantizer(model, node)
    for node in nodes:
        if node.op == "Sum" and node.domain in ONNX_DOMAINS and len(node.inputs) == 1:
            edit.bypass(model, node)
    edit.remove(model, [node for node in nodes if not node.outputs or _is_idle(model, node)])
    return model, nodes


def _remove_dequantizer(model: Model, node: gs.Node) -> None:
    """Let the readers of a DequantizeLinear read what was quantized."""
    source = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    stored = node.inputs[0] if source is None else source.inputs[0] if is_quantize(source) else None
    if isinstance(stored, gs.Constant):
        values = np.broadcast_to(np.float32(0), tuple(stored.shape))
        constant = gs.Constant(model.unique_name(f"{stored.name}_float"), values)
        for reader in model.consumers(node.outputs[0]):
            edit.replace_input(reader, node.outputs[0], constant)
        node.inputs.clear()
        node.outputs.clear()
    elif source is not None and is_quantize(source):
        node.inputs[0] = _before_clip(model, source)
        edit.bypass(model, node)


def _before_clip(model: Model, quantize: gs.Node) -> gs.Tensor:
    """What is quantized, in front of a Clip that serves the quantizer alone."""
    tensor = quantize.inputs[0]
    clip = tensor.inputs[0] if tensor.inputs else None
    if clip is None or clip.op != "Clip" or not all(map(is_qdq, model.consumers(tensor))) or model.is_output(tensor):
        return tensor
    before = clip.inputs[0]
    quantize.inputs[0] = before
    if not tensor.outputs:
        clip.inputs.clear()
        clip.outputs.clear()
    return before


def _is_idle(model: Model, node: gs.Node) -> bool:
    """Whether a QuantizeLinear has lost its readers; it is detached then."""
    if not is_quantize(node) or any(t.outputs or model.is_output(t) for t in node.outputs):
        return False
    node.inputs.clear()
    return True
