"""What a model is made of and what of it could be quantized, without calibration data and without writing anything."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..calibration.check_data import DataCheck, check_data
from ..calibration.context import Context
from ..data import CalibrationData, InputSpec
from ..graph.model import Model
from ..operators.linear import linear_layers
from ..options import Options
from ..pipeline.build_report import float_nodes
from ..pipeline.node_states import node_states
from ..pipeline.open_inputs import input_specs
from ..pipeline.prepare import prepare
from ..pipeline.run_passes import run_passes
from ..pipeline.set_ranges import placement
from ..report import FloatNode, printable
from ..report.notebook import InNotebook
from ..targets import find_target


@dataclass(frozen=True)
class InspectedLayer:
    """A linear layer, and whether its weight could be quantized."""

    node: str
    op: str
    weight: str
    shape: tuple[int, ...]
    parameters: int
    quantized: bool


@dataclass(frozen=True, repr=False)
class Inspection(InNotebook):
    """Facts about a model and what `quantize` would do with it; nodes as they are after normalizing and folding."""

    model: str
    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    parameter_types: dict[str, int]
    operators: dict[str, int]
    normalized_operators: dict[str, int]
    layers: tuple[InspectedLayer, ...]
    integer_nodes: int
    weights_only_nodes: int
    quantized_tensors: int
    float_nodes: tuple[FloatNode, ...]
    data: DataCheck | None = None

    def to_json(self) -> str:
        """Strict JSON, keys as the fields here."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @property
    def _weights_only(self) -> str:
        return f" and the weights alone of {self.weights_only_nodes}" if self.weights_only_nodes else ""

    def to_text(self, verbose: bool = False) -> str:
        """For a terminal; with `verbose` each layer and each node left in float."""
        opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in self.opsets.items())
        types = ", ".join(f"{count:,} {dtype}" for dtype, count in self.parameter_types.items())
        lines = [
            f"{self.model}: IR version {self.ir_version}, operator sets {opsets}, producer {self.producer or '?'}",
            *(f"input  {text}" for text in self.inputs),
            *(f"output {text}" for text in self.outputs),
            f"parameters {self.parameters:,}" + (f" ({types})" if types else ""),
            f"operators {_counts(self.operators)}",
            f"after normalizing and folding {_counts(self.normalized_operators)}",
            f"could be quantized: {self.integer_nodes} nodes{self._weights_only}, {self.quantized_tensors} tensors,"
            f" {sum(layer.quantized for layer in self.layers)} of {len(self.layers)} linear layers",
        ]
        if verbose:
            lines += [f"layer {_layer(layer)}" for layer in self.layers]
            lines += [f"in float: {n.node} ({n.op}): {n.reason}" for n in self.float_nodes]
        else:
            groups = Counter((n.op, n.reason) for n in self.float_nodes)
            lines += [f"in float: {count} {op}: {reason}" for (op, reason), count in groups.most_common()]
        if self.data is not None:
            verdict = self.data.fit.verdict
            lines += [f"data: {text}" for text in (verdict, *(f for f in self.data.findings if f != verdict))]
        return "\n".join(printable(line) for line in lines)


def inspect(
    proto: ModelProto, origin: str, options: Options | None = None, data: CalibrationData | None = None
) -> Inspection:
    """What the checked model `proto` holds, what would be quantized, and whether calibration data, if there are some,
    look right. Raises ModelError, DataError or EngineError."""
    options = options or Options()
    context = Context(target=find_target(options.target))
    model, _ = prepare(proto, origin, options, context)
    data_check = None if data is None else check_data(model, data)
    model, _ = run_passes(placement(options), model, context)
    states = node_states(model)
    dtypes = Counter[str]()
    for constant in model.initializers():
        known = isinstance(constant.dtype, (np.dtype, type))
        dtypes[str(np.dtype(constant.dtype)) if known else "other"] += int(np.prod(constant.shape))
    return Inspection(
        model=origin,
        ir_version=proto.ir_version,
        opsets={o.domain: o.version for o in proto.opset_import},
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        inputs=tuple(str(spec).removeprefix("input ") for spec in input_specs(proto)),
        outputs=tuple(_tensor(t) for t in model.graph.outputs),
        parameters=sum(dtypes.values()),
        parameter_types=dict(dtypes.most_common()),
        operators=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        normalized_operators=dict(Counter(node.op for node in model.graph.nodes).most_common()),
        layers=tuple(_layers(model)),
        integer_nodes=sum(state.state in ("integers", "dynamic") for state in states),
        weights_only_nodes=sum(state.state == "weights only" for state in states),
        quantized_tensors=len(model.quantizers),
        float_nodes=float_nodes(states),
        data=data_check,
    )


def _layers(model: Model) -> list[InspectedLayer]:
    found = []
    for layer in linear_layers(model.graph.nodes):
        shape = tuple(int(n) for n in layer.weight.shape)
        quantized = model.weight_quantizer(layer) is not None
        count = int(np.prod(shape))
        found.append(InspectedLayer(layer.node.name, layer.node.op, layer.weight.name, shape, count, quantized))
    return found


def _tensor(tensor: gs.Tensor) -> str:
    if not isinstance(tensor.dtype, (np.dtype, type)):
        return f"{tensor.name!r} of a type that numpy does not have"
    spec = InputSpec(tensor.name, np.dtype(tensor.dtype), None if tensor.shape is None else tuple(tensor.shape))
    return str(spec).removeprefix("input ")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {op}" for op, count in counts.items()) or "none"


def _layer(layer: InspectedLayer) -> str:
    shape = "x".join(str(n) for n in layer.shape)
    state = "quantizable" if layer.quantized else "float"
    return f"{layer.node} ({layer.op}): weight {layer.weight} {shape}, {layer.parameters:,} parameters, {state}"
