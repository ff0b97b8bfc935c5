"""The model as quantized so far, in float arithmetic: what the layer-wise methods take their inputs from.

    activation x    QuantizeLinear -> DequantizeLinear, as in the final model
    constant W      the floats that lie on its grid

Only quantizers that have an answer count; biases stay as they are (32 bits lose nothing).
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..numeric.quant import QuantParams
from .model import Model


def simulated(model: Model) -> ModelProto:
    """A model of its own; nodes keep their names, graph outputs are left unquantized."""
    proto = model.to_proto()
    initializers = {t.name: t for t in proto.graph.initializer}
    renamed: dict[tuple[str, str], str] = {}  # (node, tensor it read) -> tensor it reads now; any node: ""
    behind: dict[str, list[NodeProto]] = {}
    for name, quantizer in model.quantizers.items():
        if quantizer.params is None:
            continue
        if name in initializers:
            rounded = quantizer.params.fake(numpy_helper.to_array(initializers[name]))
            target = model.unique_name(f"{name}_on_grid")
            proto.graph.initializer.append(numpy_helper.from_array(rounded, target))
            renamed.update({(reader, name): target for reader in quantizer.readers})
        else:
            nodes, constants = _pair(model, name, quantizer.params)
            proto.graph.initializer.extend(constants)
            behind[name] = nodes
            renamed["", name] = nodes[-1].output[0]
    nodes = [n for v in proto.graph.input for n in behind.get(v.name, ())]
    for node in proto.graph.node:
        inputs = [renamed.get((node.name, name), renamed.get(("", name), name)) for name in node.input]
        node.input[:] = inputs
        nodes += [node, *(n for name in node.output for n in behind.get(name, ()))]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _pair(model: Model, name: str, params: QuantParams) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes that put tensor `name` on its grid, and their parameters."""
    scale, zero_point, lo, hi = (model.unique_name(f"{name}_{s}") for s in ("scale", "zero_point", "lowest", "highest"))
    clipped, integers, target = (model.unique_name(f"{name}_{s}") for s in ("clipped", "integers", "dequantized"))
    constants = [
        numpy_helper.from_array(np.asarray(params.scale, np.float32), scale),
        numpy_helper.from_array(np.asarray(params.zero_point, params.grid.dtype), zero_point),
    ]
    nodes, source = [], name
    if params.grid.bits not in (8, 16):  # a narrower grid inside its type: the type's ends do not clip
        ends = params.dequantize(np.asarray([params.grid.qmin, params.grid.qmax], np.int32))
        constants += [numpy_helper.from_array(np.asarray(e), n) for e, n in zip(ends, (lo, hi), strict=True)]
        nodes, source = [helper.make_node("Clip", [name, lo, hi], [clipped])], clipped
    nodes += [
        helper.make_node("QuantizeLinear", [source, scale, zero_point], [integers]),
        helper.make_node("DequantizeLinear", [integers, scale, zero_point], [target]),
    ]
    return nodes, constants
