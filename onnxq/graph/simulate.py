"""The model as quantized so far, in float arithmetic: what the layer-wise methods take their inputs from.

    activation x    QuantizeLinear -> DequantizeLinear, as in the final model
    constant W      the floats that lie on its grid

Only quantizers that have an answer count; biases stay as they are (32 bits lose nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..numeric.quant import QuantParams
from . import large
from .model import Model, Quantizer


def simulated(model: Model) -> ModelProto:
    """A model of its own; nodes keep their names, graph outputs are left unquantized."""
    return on_grids(model.to_proto(), model.quantizers, model.unique_name)


def on_grids(
    proto: ModelProto,
    quantizers: Mapping[str, Quantizer],
    unique_name: Callable[[str], str],
    switches: Mapping[str, str] = MappingProxyType({}),
) -> ModelProto:
    """`proto`, which is changed, with what its nodes read through `quantizers` on grids.

    quantizers: by tensor. unique_name: stem -> a tensor name that nothing in the model has. switches: activation ->
    a boolean scalar, to be computed or fed, that keeps it in float where it is true.
    """
    initializers = {t.name: t for t in proto.graph.initializer}
    renamed: dict[tuple[str, str], str] = {}  # (node, tensor it read) -> tensor it reads now; any node: ""
    behind: dict[str, list[NodeProto]] = {}
    for name, quantizer in quantizers.items():
        if quantizer.params is None:
            continue
        if name in initializers:
            weight = initializers[name]
            rounded = quantizer.params.fake(large.array(weight))
            target = unique_name(f"{name}_on_grid")
            proto.graph.initializer.append(large.tensor(rounded, target, aside=large.is_reference(weight)))
            renamed.update({(reader, name): target for reader in quantizer.readers})
        else:
            nodes, constants = _pair(name, quantizer.params, unique_name)
            proto.graph.initializer.extend(constants)
            if name in switches:
                inputs = [switches[name], name, nodes[-1].output[0]]
                nodes.append(helper.make_node("Where", inputs, [unique_name(f"{name}_switched")]))
            behind[name] = nodes
            renamed.update({(reader, name): nodes[-1].output[0] for reader in quantizer.readers or ("",)})
    nodes = [n for v in proto.graph.input for n in behind.get(v.name, ())]
    for node in proto.graph.node:
        inputs = [renamed.get((node.name, name), renamed.get(("", name), name)) for name in node.input]
        node.input[:] = inputs
        nodes += [node, *(n for name in node.output for n in behind.get(name, ()))]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _pair(
    name: str, params: QuantParams, unique_name: Callable[[str], str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes that put tensor `name` on its grid, and their parameters."""
    scale, zero_point, lo, hi = (unique_name(f"{name}_{s}") for s in ("scale", "zero_point", "lowest", "highest"))
    clipped, integers, target = (unique_name(f"{name}_{s}") for s in ("clipped", "integers", "dequantized"))
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
