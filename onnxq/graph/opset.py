"""Bringing a model to an operator set that a target reads.

ONNX's own converter does it, once operators that the older set does not have are expanded (`expand`), but for what it
gets wrong or drops (each found by running models before and after):

    Upsample, Resize before 11   read x / scale; the converter leaves Resize's default, half pixels
    Hardmax before 13            takes the maximum over all trailing axes; the converter leaves the last one alone
    Scan before 9                has a batch axis; the converter leaves it
    functions of the model       are dropped, inlined before; those of registered operators are converted, too
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..errors import ModelError
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import registered
from . import large
from .expand import expand_newer
from .serialized import nodes_of

OLDEST_OPSET = 6
OLDEST_RUN = 7
"""ONNX Runtime runs nothing older."""


def opset_of(proto: ModelProto) -> int | None:
    """The version of the standard operator set that a model imports, if any."""
    return next((o.version for o in proto.opset_import if o.domain in ONNX_DOMAINS), None)


def convert_opset(proto: ModelProto, lowest: int, origin: str, highest: int | None = None) -> ModelProto:
    """The model at an operator set from `lowest` to `highest`, as it is where it is at one already. ModelError."""
    opset = opset_of(proto)
    if opset is None:
        raise ModelError(f"{origin}: imports no ai.onnx operator set, so there is nothing that can be quantized")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(f"{origin}: operator set {opset} is not supported; expected {OLDEST_OPSET} to {newest}")
    wanted = min(max(opset, lowest), highest or newest)
    if opset == wanted:
        return proto
    if large.references(proto):
        return large.without_references(proto, lambda rest: convert_opset(rest, lowest, origin, highest))
    try:
        kept = [f for f in proto.functions if (f.domain, f.name) in set(registered())]
        if len(kept) < len(proto.functions):
            proto = onnx.inliner.inline_local_functions(proto, convert_version=True)
        sampling = _sampling(proto, opset)
        _refuse_unconverted(proto, opset)
        listed = _as_converter_expects(proto)
        if wanted < opset:
            listed = expand_newer(listed, opset, wanted)
        converted = _convert(listed, opset, wanted)
        for node in nodes_of(converted.graph):
            if node.op_type == "Resize" and node.output[0] in sampling:
                _set_attributes(node, sampling[node.output[0]])
        _drop_initializer_inputs(converted)
        converted.functions.extend(_converted(function, wanted) for function in kept)
        needed = onnx.helper.find_min_ir_version_for(list(converted.opset_import), ignore_unknown=True)
        converted.ir_version = max(converted.ir_version, needed, 4)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises RuntimeError and its own types
        raise ModelError(
            f"{origin}: operator set {opset} cannot be converted to {wanted}, which the target needs:"
            f" {' '.join(str(error).split())[:300]}; export the model again at opset {wanted}"
        ) from None
    return converted


def _convert(proto: ModelProto, opset: int, wanted: int) -> ModelProto:
    """What ONNX's converter makes of a model. Where it cannot go back, it does not see operators whose later versions
    took more types and nothing else (Mul, Reshape, ConstantOfShape): it lacks a way back for some."""
    try:
        return onnx.version_converter.convert_version(proto, wanted)
    except RuntimeError:
        if wanted > opset:
            raise
    for node in nodes_of(proto.graph):
        if node.domain in ONNX_DOMAINS and _has_same_signature(node.op_type, opset, wanted):
            node.domain = _HIDDEN
    proto.opset_import.add(domain=_HIDDEN, version=1)
    converted = onnx.version_converter.convert_version(proto, wanted)
    for node in nodes_of(converted.graph):
        if node.domain == _HIDDEN:
            node.domain = ""
    kept = [imported for imported in converted.opset_import if imported.domain != _HIDDEN]
    del converted.opset_import[:]
    converted.opset_import.extend(kept)
    return converted


_HIDDEN = "onnxq.hidden"


def _has_same_signature(op: str, *opsets: int) -> bool:
    """Whether an operator has the same attributes, inputs and outputs in two operator sets, types apart."""
    try:
        schemas = [onnx.defs.get_schema(op, opset) for opset in opsets]
    except onnx.defs.SchemaError:
        return False
    signatures = [
        (
            {name: (a.type, a.required, a.default_value.SerializeToString()) for name, a in s.attributes.items()},
            [(p.name, p.option) for p in s.inputs],
            [(p.name, p.option) for p in s.outputs],
        )
        for s in schemas
    ]
    return signatures[0] == signatures[1]


def _converted(function: FunctionProto, wanted: int) -> FunctionProto:
    """A function's body at another operator set; as it is where attributes are its own parameters, which the converter
    would drop."""
    opset = next((o for o in function.opset_import if o.domain in ONNX_DOMAINS), None)
    if opset is None or any(a.ref_attr_name for node in function.node for a in node.attribute):
        return function
    graph = GraphProto(name="body", node=function.node)
    for values, names in ((graph.input, function.input), (graph.output, function.output)):
        values.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    body = helper.make_model(graph, opset_imports=function.opset_import)
    copy = FunctionProto()
    copy.CopyFrom(function)
    del copy.node[:], copy.opset_import[:]
    converted = onnx.version_converter.convert_version(body, wanted)
    copy.node.extend(converted.graph.node)
    copy.opset_import.extend(converted.opset_import)
    return copy


def _sampling(proto: ModelProto, opset: int) -> dict[str, dict[str, str]]:
    """Output name -> attributes of the Resize that samples as this Upsample, or Resize of opset 10, does."""
    if opset > 10:
        return {}
    constants = {t.name: t for t in proto.graph.initializer}
    for node in nodes_of(proto.graph):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return {
        node.output[0]: {"coordinate_transformation_mode": "asymmetric", **_rounding(node, constants)}
        for node in nodes_of(proto.graph)
        if node.op_type in ("Upsample", "Resize") and node.domain in ONNX_DOMAINS
    }


def _rounding(node: NodeProto, constants: Mapping[str, onnx.TensorProto]) -> dict[str, str]:
    """Nearest neighbours: the pixel at or before x / scale when growing, the one at or behind it when shrinking."""
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"nearest")
    if mode != b"nearest":
        return {}
    if node.op_type == "Upsample":
        return {"nearest_mode": "floor"}
    scales = constants.get(node.input[1])
    values = None if scales is None else numpy_helper.to_array(scales)
    if values is not None and np.all(values >= 1):
        return {"nearest_mode": "floor"}
    if values is not None and np.all(values <= 1):
        return {"nearest_mode": "ceil"}
    reason = "computed scales" if values is None else "scales above and below 1"
    raise ValueError(f"Resize of {node.input[0]!r} to nearest neighbours has {reason}")


def _refuse_unconverted(proto: ModelProto, opset: int) -> None:
    """Raise ValueError where a node's meaning would change unnoticed."""
    for node in nodes_of(proto.graph):
        if node.domain not in ONNX_DOMAINS:
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if node.op_type == "Hardmax" and opset < 13 and axis != -1:
            raise ValueError(f"Hardmax {node.output[0]!r} takes the maximum over several axes")
        if node.op_type == "Scan" and opset < 9:
            raise ValueError(f"Scan {node.output[0]!r} has a batch axis")


def _set_attributes(node: NodeProto, values: Mapping[str, str]) -> None:
    kept = [a for a in node.attribute if a.name not in values]
    kept += [onnx.helper.make_attribute(name, value) for name, value in values.items()]
    del node.attribute[:]
    node.attribute.extend(kept)


def _as_converter_expects(proto: ModelProto) -> ModelProto:
    """Initializers among the inputs, as in IR version 3, and the standard domain without a name."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for imported in copy.opset_import:
        if imported.domain in ONNX_DOMAINS:
            imported.domain = ""
    listed = {i.name for i in copy.graph.input}
    for tensor in copy.graph.initializer:
        if tensor.name not in listed:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            copy.graph.input.append(value)
    return copy


def _drop_initializer_inputs(proto: ModelProto) -> None:
    constant = {t.name for t in proto.graph.initializer}
    kept = [i for i in proto.graph.input if i.name not in constant]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
